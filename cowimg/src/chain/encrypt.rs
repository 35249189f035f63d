//! Encryption of a new image: what is asked for, and the LUKS header that is written for it.

use std::time::Duration;

use crate::codec::crypt::volume::{DEFAULT_ITERATION_TIME, VolumeOptions};
use crate::codec::crypt::{CipherAlgorithm, CipherMode, HashAlgorithm, IvGenerator, Passphrase, Scheme};
use crate::error::Result;
use crate::format::luks::{KEY_SLOTS, LuksHeader, SECTOR_SIZE};
use crate::format::qcow2::layout::FreshEncryption;
use crate::luks::LuksPlace;
use crate::qcow2::{Qcow2, luks_place};
use crate::storage::Storage;

/// How the data of a new image is encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encryption {
    /// With a LUKS volume's header inside the image.
    Luks(LuksOptions),
    /// With the method that was there before: AES with a key of 128 bits, the first 16 bytes of the passphrase. It is
    /// weak, and here for programs that know no other.
    Aes(Passphrase),
}

/// How a LUKS volume is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LuksOptions {
    /// What opens it, from its first key slot.
    pub passphrase: Passphrase,
    /// The cipher of the data; AES with 256 bits by default.
    pub cipher: CipherAlgorithm,
    /// Its mode; XTS by default.
    pub mode: CipherMode,
    /// Where initialisation vectors come from; the sector's number by default.
    pub iv: IvGenerator,
    /// The hash of [`IvGenerator::Essiv`], which is SHA-256 where none is named.
    pub iv_hash: Option<HashAlgorithm>,
    /// The hash of key derivation; SHA-256 by default.
    pub hash: HashAlgorithm,
    /// How long deriving a key from the passphrase is to take, on this machine; two seconds by default.
    pub iteration_time: Duration,
}

impl LuksOptions {
    /// The usual volume, which this passphrase opens.
    pub fn new(passphrase: Passphrase) -> LuksOptions {
        let VolumeOptions { scheme, hash, .. } = VolumeOptions::default();
        LuksOptions {
            passphrase,
            cipher: scheme.cipher,
            mode: scheme.mode,
            iv: scheme.iv,
            iv_hash: scheme.iv_hash,
            hash,
            iteration_time: DEFAULT_ITERATION_TIME,
        }
    }

    /// Bytes from the start of the header to that of the data: what the volume takes on top of the disk.
    pub fn header_len(&self) -> u64 {
        let key_bytes = self.volume().scheme.key_len() as u32;
        u64::from(LuksHeader::fresh_place(key_bytes, KEY_SLOTS)) * SECTOR_SIZE
    }

    fn volume(&self) -> VolumeOptions {
        let essiv = self.iv == IvGenerator::Essiv;
        let iv_hash = self.iv_hash.or(essiv.then_some(HashAlgorithm::Sha256));
        let scheme = Scheme { cipher: self.cipher, mode: self.mode, iv: self.iv, iv_hash };
        VolumeOptions { scheme, hash: self.hash, iteration_time: self.iteration_time }
    }

    /// Refuses parts that do not fit together.
    pub(super) fn check(&self) -> Result<()> {
        Ok(self.volume().scheme.validate()?)
    }

    /// Writes the header of a LUKS image.
    pub(super) fn write_header_at_start(&self, storage: &dyn Storage) -> Result<()> {
        LuksPlace::new(storage, 0).write_new(&self.volume(), &self.passphrase).map(drop)
    }

    /// Writes the LUKS header and the first slot's key material to the place that the image in `storage` has for them.
    pub(super) fn write_header(&self, storage: &dyn Storage) -> Result<()> {
        let header = Qcow2::read_header(storage)?;
        luks_place(storage, &header)?.write_new(&self.volume(), &self.passphrase).map(drop)
    }
}

impl Encryption {
    /// Bytes that the header and the key material of a LUKS volume take in the image; 0 without such.
    pub fn header_len(&self) -> u64 {
        match self {
            Encryption::Aes(_) => 0,
            Encryption::Luks(options) => options.header_len(),
        }
    }

    /// What opens the image.
    pub fn passphrase(&self) -> &Passphrase {
        match self {
            Encryption::Aes(passphrase) => passphrase,
            Encryption::Luks(options) => &options.passphrase,
        }
    }

    /// What the layout of the image must know of it.
    pub(super) fn fresh(wanted: Option<&Encryption>) -> Result<FreshEncryption> {
        Ok(match wanted {
            None => FreshEncryption::None,
            Some(Encryption::Aes(_)) => FreshEncryption::Aes,
            Some(Encryption::Luks(options)) => {
                options.check()?;
                FreshEncryption::Luks { header_len: options.header_len() }
            }
        })
    }
}
