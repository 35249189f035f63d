//! qcow2-compatible copy-on-write disk images: open, create, read, write, fork, check and convert them.
//!
//! ```
//! # fn main() -> cowimg::Result<()> {
//! use cowimg::{CreateOptions, Image};
//!
//! let path = std::env::temp_dir().join(format!("cowimg-front-page-{}.qcow2", std::process::id()));
//! let image = Image::create(&path, &CreateOptions::qcow2(1 << 30))?;
//! image.write_at(b"hello, guest", 4096)?;
//! image.flush()?; // from here on it survives a power cut
//! image.close()?;
//! # std::fs::remove_file(path).ok();
//! # Ok(())
//! # }
//! ```
//!
//! # What to know before you use it
//!
//! * **Threads, not futures.** All I/O is blocking, positional and on `&self`; share an [`Image`] between threads. A
//!   cached read costs a few microseconds, which a hop through an async runtime would multiply, and a blocking call
//!   cannot be dropped in the middle of a metadata update.
//! * **Nothing acknowledged is lost.** Metadata is written in an order that leaves, after a crash at any point, an
//!   image that opens and has leaked space at most. The rules have numbers; `docs/crash-safety.md` tells them.
//! * **Formats are stated, or found with care.** An image's first bytes are looked at only when no format is stated. A
//!   raw disk that a guest has written can look like anything: state [`Format::Raw`] for those.
//! * **An image may name other files.** [`FilePolicy`] says which of these are followed. For images from strangers use
//!   [`FilePolicy::DenyAll`] or [`FilePolicy::SameFolder`].
//! * **No image can make it panic.** Damage is an error of kind [`ErrorKind::Corrupt`], with what and where.
//!
//! Start at [`Image`]; long-running work is in [`job`]; storages of your own implement [`storage::Storage`].

mod chain;
mod codec;
pub mod corruption;
mod disk;
pub mod error;
mod extent;
pub mod format;
pub mod job;
mod limits;
mod luks;
pub mod progress;
mod qcow1;
mod qcow2;
mod range;
mod raw;
pub mod storage;
mod zero_scan;

pub use chain::{
    BackingInfo, BackingOptions, CacheMode, CreateOptions, CreatePlan, CreateReport, DEFAULT_CACHE_SIZE,
    Extents, FilePolicy, Image, ImageInfo, Layer, LayerChoice, LockMode, OpenOptions, Overwrite,
    Qcow2CreateOptions, Qcow2Info, StagedImage, UnknownCacheMode, Verification, create, create_many,
    create_many_synced, inspect, inspect_chain, plan,
};
pub use disk::{Disk, OwnPart, ResizeOptions, Shrink, ZeroMode};
pub use error::{BitmapProblem, Error, ErrorKind, LockConflict, LockHolder, Result};
pub use extent::{Extent, ExtentKind};
pub use format::probe::Format;
pub use format::qcow2::layout::{LazyRefcounts, Preallocation};
pub use format::qcow2::{CompressionType, Version};
pub use limits::Limits;
pub use qcow2::{
    AmendOptions, BitmapInfo, BitmapRanges, NewBitmap, NewSnapshot, Recording, SnapshotNames,
    SnapshotSelector, SnapshotSize,
};
pub use range::ByteRange;
pub use storage::Access;

/// How images are encrypted.
pub mod encryption {
    pub use crate::chain::{Encryption, LuksOptions};
    pub use crate::codec::crypt::{
        CipherAlgorithm, CipherMode, CryptError, HashAlgorithm, IvGenerator, Passphrase,
    };
    pub use crate::luks::{ErasedKeySlots, KeyLoss, KeySlotChange, NewKeySlot};
}

/// The consistency check of qcow2 images, and their repair.
pub mod check {
    pub use crate::chain::{CheckedFile, check_file, repair_file};
    pub use crate::qcow2::check::*;
}

#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
