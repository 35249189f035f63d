//! The header of LUKS version 1: how a volume's data is encrypted, and eight slots that each hold its key under one
//! passphrase. Read from the start of a LUKS volume, or from the place that a qcow2 header names.
//!
//! ```text
//! offset  size  field
//!   0      6    "LUKS" 0xba 0xbe
//!   6      2    version: 1
//!   8     32    cipher: "aes", "serpent" ...
//!  40     32    mode and initialisation vectors: "xts-plain64", "cbc-essiv:sha256" ...
//!  72     32    hash of key derivation: "sha256" ...
//! 104      4    where the data starts, in sectors of 512 bytes; 0 where it is in another file
//! 108      4    length of the volume key in bytes
//! 112     20    digest of the volume key
//! 132     32    salt of the digest
//! 164      4    iterations of the digest
//! 168     40    UUID
//! 208    8*48   key slots: state 4, iterations 4, salt 32, start of the key material in sectors 4, stripes 4
//! 592
//! ```
//!
//! Integers are big-endian, texts end at their first zero byte. (LUKS On-Disk Format Specification 1.2.3, section 2.)

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes in a sector, the unit of offsets and of encryption.
pub const SECTOR_SIZE: u64 = 512;

/// Key slots of every header.
pub const KEY_SLOTS: usize = 8;

const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
const VERSION: u16 = 1;
const SLOT_ENABLED: u32 = 0x00ac_71f3;
const SLOT_DISABLED: u32 = 0x0000_dead;
/// Where the key material of the first slot starts, and the alignment of all, in sectors.
const MATERIAL_ALIGNMENT: u32 = 8;
/// The longest volume key: two keys of 32 bytes, for XTS.
const MAX_KEY_BYTES: u32 = 64;

/// The header, decoded and validated: every slot's material lies behind the header, before the data, and apart from the
/// others'.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LuksHeader {
    /// The cipher's name.
    pub cipher_name: String,
    /// The mode's name and how initialisation vectors are made: `mode-generator[:hash]`.
    pub cipher_mode: String,
    /// The hash of all key derivation.
    pub hash_spec: String,
    /// Where the data starts, in sectors from the header's start; 0 where it is in another file.
    pub payload_offset: u32,
    /// Length of the volume key in bytes.
    pub key_bytes: u32,
    /// What tells the right volume key from a wrong one.
    pub digest: [u8; LuksHeader::DIGEST_LEN],
    /// Salt of the digest.
    pub digest_salt: [u8; LuksHeader::SALT_LEN],
    /// Iterations of the digest.
    pub digest_iterations: u32,
    /// The volume's UUID, as text.
    pub uuid: String,
    /// Who can unlock it.
    pub slots: [KeySlot; KEY_SLOTS],
}

/// A place for the volume key under one passphrase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeySlot {
    /// Whether it holds the key.
    pub active: bool,
    /// Iterations that turn the passphrase into this slot's key.
    pub iterations: u32,
    /// Salt of that derivation.
    pub salt: [u8; LuksHeader::SALT_LEN],
    /// Where the key material starts, in sectors from the header's start.
    pub material: u32,
    /// Into how many stripes the volume key is spread, against recovery of a part.
    pub stripes: u32,
}

/// Why a header was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LuksError {
    /// The bytes end within the header.
    #[error("the header is {len} bytes long, fewer than {}", LuksHeader::LEN)]
    Truncated {
        /// How many there are.
        len: usize,
    },
    /// It does not start as it must.
    #[error("it does not start with the bytes \"LUKS\\xba\\xbe\"")]
    Magic,
    /// Another version than 1.
    #[error("it is a LUKS volume of version {0}, and version 1 is known here")]
    Version(u16),
    /// A text is not text, or does not end.
    #[error("its {field} is not a text")]
    Text {
        /// Which one.
        field: &'static str,
    },
    /// A number that makes no sense.
    #[error("its {field} is {value}")]
    Value {
        /// Which one.
        field: &'static str,
        /// What it is.
        value: u64,
    },
    /// A slot that is neither in use nor free.
    #[error("key slot {slot} is neither in use nor free: its state is {state:#x}")]
    SlotState {
        /// Which slot.
        slot: usize,
        /// Its state as stored.
        state: u32,
    },
    /// Key material that overlaps the header, the data or another slot's.
    #[error("the key material of slot {slot} lies over {what}")]
    SlotPlace {
        /// Which slot.
        slot: usize,
        /// What it lies over.
        what: &'static str,
    },
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawSlot {
    state: U32,
    iterations: U32,
    salt: [u8; LuksHeader::SALT_LEN],
    material: U32,
    stripes: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 6],
    version: U16,
    cipher_name: [u8; 32],
    cipher_mode: [u8; 32],
    hash_spec: [u8; 32],
    payload_offset: U32,
    key_bytes: U32,
    digest: [u8; LuksHeader::DIGEST_LEN],
    digest_salt: [u8; LuksHeader::SALT_LEN],
    digest_iterations: U32,
    uuid: [u8; 40],
    slots: [RawSlot; KEY_SLOTS],
}

const _: () = assert!(size_of::<RawHeader>() == LuksHeader::LEN);

impl KeySlot {
    /// A slot that holds no key.
    pub fn free(material: u32) -> KeySlot {
        KeySlot {
            active: false,
            iterations: 0,
            salt: [0; LuksHeader::SALT_LEN],
            material,
            stripes: LuksHeader::STRIPES,
        }
    }
}

impl LuksHeader {
    /// Bytes of the header as stored, without key material.
    pub const LEN: usize = 592;
    /// Bytes of the digest of the volume key.
    pub const DIGEST_LEN: usize = 20;
    /// Bytes of every salt.
    pub const SALT_LEN: usize = 32;
    /// Into how many stripes a volume key is spread by every writer.
    pub const STRIPES: u32 = 4000;

    /// Whether `start`, the first bytes of a file, are those of a LUKS volume of version 1.
    pub fn is_at_start_of(start: &[u8]) -> bool {
        start.starts_with(&MAGIC) && start.get(MAGIC.len()..8) == Some(&VERSION.to_be_bytes())
    }

    /// Decodes and validates the header at the start of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<LuksHeader, LuksError> {
        let (raw, _) =
            RawHeader::ref_from_prefix(bytes).map_err(|_| LuksError::Truncated { len: bytes.len() })?;
        if raw.magic != MAGIC {
            return Err(LuksError::Magic);
        }
        if raw.version.get() != VERSION {
            return Err(LuksError::Version(raw.version.get()));
        }
        let mut slots = [KeySlot::free(0); KEY_SLOTS];
        for (index, (slot, raw)) in slots.iter_mut().zip(&raw.slots).enumerate() {
            *slot = decode_slot(index, raw)?;
        }
        let header = LuksHeader {
            cipher_name: text(&raw.cipher_name, "cipher")?,
            cipher_mode: text(&raw.cipher_mode, "cipher mode")?,
            hash_spec: text(&raw.hash_spec, "hash")?,
            payload_offset: raw.payload_offset.get(),
            key_bytes: raw.key_bytes.get(),
            digest: raw.digest,
            digest_salt: raw.digest_salt,
            digest_iterations: raw.digest_iterations.get(),
            uuid: text(&raw.uuid, "UUID")?,
            slots,
        };
        header.validate()?;
        Ok(header)
    }

    /// The header as stored. Texts are cut to their fields, which none that is known fills.
    pub fn encode(&self) -> Vec<u8> {
        let slot = |slot: &KeySlot| RawSlot {
            state: U32::new(if slot.active { SLOT_ENABLED } else { SLOT_DISABLED }),
            iterations: U32::new(slot.iterations),
            salt: slot.salt,
            material: U32::new(slot.material),
            stripes: U32::new(slot.stripes),
        };
        let raw = RawHeader {
            magic: MAGIC,
            version: U16::new(VERSION),
            cipher_name: field(&self.cipher_name),
            cipher_mode: field(&self.cipher_mode),
            hash_spec: field(&self.hash_spec),
            payload_offset: U32::new(self.payload_offset),
            key_bytes: U32::new(self.key_bytes),
            digest: self.digest,
            digest_salt: self.digest_salt,
            digest_iterations: U32::new(self.digest_iterations),
            uuid: field(&self.uuid),
            slots: self.slots.each_ref().map(slot),
        };
        raw.as_bytes().to_vec()
    }

    /// Where the data starts, in bytes from the header's start.
    pub fn payload_start(&self) -> u64 {
        u64::from(self.payload_offset).saturating_mul(SECTOR_SIZE)
    }

    /// Whether the data is in another file than the header.
    pub fn is_detached(&self) -> bool {
        self.payload_offset == 0
    }

    /// Bytes of key material in a slot; at most 64 times 4000.
    pub fn material_len(&self) -> usize {
        (self.key_bytes as usize).saturating_mul(LuksHeader::STRIPES as usize)
    }

    /// Where the material of slot `index` starts in a fresh header whose volume key has `key_bytes` bytes, in sectors;
    /// for [`KEY_SLOTS`] it is where the data starts.
    pub fn fresh_place(key_bytes: u32, index: usize) -> u32 {
        let per_slot = sectors_of(key_bytes).next_multiple_of(MATERIAL_ALIGNMENT);
        u32::try_from(index).unwrap_or(u32::MAX).saturating_mul(per_slot).saturating_add(MATERIAL_ALIGNMENT)
    }

    fn validate(&self) -> Result<(), LuksError> {
        let value = |field, value: u32| Err(LuksError::Value { field, value: u64::from(value) });
        if self.key_bytes == 0 || self.key_bytes > MAX_KEY_BYTES {
            return value("key length", self.key_bytes);
        }
        if self.digest_iterations == 0 {
            return value("number of digest iterations", 0);
        }
        let len = u64::from(sectors_of(self.key_bytes));
        let places =
            self.slots.map(|slot| (u64::from(slot.material), u64::from(slot.material).saturating_add(len)));
        for (index, (slot, &(start, end))) in self.slots.iter().zip(&places).enumerate() {
            if slot.stripes != LuksHeader::STRIPES {
                return value("number of stripes", slot.stripes);
            }
            if slot.active && slot.iterations == 0 {
                return value("number of key iterations", 0);
            }
            let place = |what| Err(LuksError::SlotPlace { slot: index, what });
            if start.saturating_mul(SECTOR_SIZE) < LuksHeader::LEN as u64 {
                return place("the header");
            }
            if end > u64::from(self.payload_offset) && !self.is_detached() {
                return place("the data");
            }
            if places.iter().take(index).any(|&(other, other_end)| start < other_end && other < end) {
                return place("that of another slot");
            }
        }
        Ok(())
    }
}

/// Sectors that the key material of a slot takes.
fn sectors_of(key_bytes: u32) -> u32 {
    key_bytes.saturating_mul(LuksHeader::STRIPES).div_ceil(512)
}

fn decode_slot(slot: usize, raw: &RawSlot) -> Result<KeySlot, LuksError> {
    let active = match raw.state.get() {
        SLOT_ENABLED => true,
        SLOT_DISABLED => false,
        state => return Err(LuksError::SlotState { slot, state }),
    };
    Ok(KeySlot {
        active,
        iterations: raw.iterations.get(),
        salt: raw.salt,
        material: raw.material.get(),
        stripes: raw.stripes.get(),
    })
}

/// The text in a field, which ends at the first zero byte.
fn text(bytes: &[u8], field: &'static str) -> Result<String, LuksError> {
    let end = bytes.iter().position(|&byte| byte == 0).ok_or(LuksError::Text { field })?;
    let text = bytes.get(..end).and_then(|text| std::str::from_utf8(text).ok());
    text.map(str::to_owned).ok_or(LuksError::Text { field })
}

/// A text with zeroes behind it; the last byte is always zero.
fn field<const LEN: usize>(text: &str) -> [u8; LEN] {
    let mut field = [0; LEN];
    for (to, from) in field.iter_mut().take(LEN.saturating_sub(1)).zip(text.bytes()) {
        *to = from;
    }
    field
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may fail")]
mod tests {
    use super::*;

    fn header() -> LuksHeader {
        let mut slots =
            [0, 1, 2, 3, 4, 5, 6, 7].map(|index| KeySlot::free(LuksHeader::fresh_place(64, index)));
        slots[0] = KeySlot { active: true, iterations: 1000, salt: [7; 32], ..slots[0] };
        LuksHeader {
            cipher_name: "aes".into(),
            cipher_mode: "xts-plain64".into(),
            hash_spec: "sha256".into(),
            payload_offset: LuksHeader::fresh_place(64, KEY_SLOTS),
            key_bytes: 64,
            digest: [1; 20],
            digest_salt: [2; 32],
            digest_iterations: 1000,
            uuid: "9546ba31-70ea-4eca-94f6-128a3dedb9e0".into(),
            slots,
        }
    }

    #[test]
    fn a_header_comes_back_as_it_was_stored() {
        let bytes = header().encode();
        assert!(LuksHeader::is_at_start_of(&bytes));
        assert_eq!(LuksHeader::decode(&bytes), Ok(header()));
    }

    #[test]
    fn fresh_headers_are_laid_out_as_every_writer_does() {
        assert_eq!(LuksHeader::fresh_place(64, 0), 8);
        assert_eq!(LuksHeader::fresh_place(64, 1), 8 + 504);
        assert_eq!(LuksHeader::fresh_place(64, KEY_SLOTS), 4040);
        assert_eq!(LuksHeader::fresh_place(32, KEY_SLOTS) * 512, 1052672 + 4096 - 4096);
    }

    #[test]
    fn each_contradiction_is_refused_by_name() {
        let refused = |change: fn(&mut LuksHeader)| {
            let mut damaged = header();
            change(&mut damaged);
            LuksHeader::decode(&damaged.encode()).expect_err("damaged").to_string()
        };
        assert!(refused(|header| header.key_bytes = 0).contains("key length is 0"));
        assert!(refused(|header| header.key_bytes = u32::MAX).contains("key length"));
        assert!(refused(|header| header.slots[3].stripes = 1).contains("stripes is 1"));
        assert!(refused(|header| header.slots[3].material = 0).contains("over the header"));
        assert!(refused(|header| header.slots[3].material = 9).contains("another slot"));
        assert!(refused(|header| header.slots[3].material = u32::MAX).contains("over the data"));
        assert!(refused(|header| header.slots[0].iterations = 0).contains("key iterations"));
        assert!(refused(|header| header.digest_iterations = 0).contains("digest iterations"));
        let mut bytes = header().encode();
        bytes[208] = 1;
        assert!(matches!(LuksHeader::decode(&bytes), Err(LuksError::SlotState { slot: 0, .. })));
        bytes[7] = 2;
        assert_eq!(LuksHeader::decode(&bytes), Err(LuksError::Version(2)));
        assert!(matches!(LuksHeader::decode(&bytes[..591]), Err(LuksError::Truncated { len: 591 })));
        bytes[0] = 0;
        assert_eq!(LuksHeader::decode(&bytes), Err(LuksError::Magic));
        let mut endless = header().encode();
        endless[8..40].fill(b'a');
        assert_eq!(LuksHeader::decode(&endless), Err(LuksError::Text { field: "cipher" }));
    }
}
