//! LUKS volumes: the image format of this name, and what qcow2 images with a volume's header in them share with it.
//!
//! | file | what it is for |
//! |---|---|
//! | `place` | header and key material in a storage |
//! | `key_slots` | passphrases that come and go |
//! | `image` | the format: a header, then the encrypted disk |
//!
//! Knows nothing of files and of qcow2. Start at [`LuksPlace`].

mod image;
mod key_slots;
mod place;

pub(crate) use image::{Luks, LuksStorages};
pub(crate) use key_slots::PlannedKeys;
pub use key_slots::{ErasedKeySlots, KeyLoss, KeySlotChange, NewKeySlot};
pub(crate) use place::LuksPlace;
