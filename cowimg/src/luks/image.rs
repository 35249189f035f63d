//! The format `luks`: the header of a volume with its key material, and behind it the guest's disk, encrypted sector by
//! sector. The header may be in a file of its own.
//!
//! Nothing says which sectors were ever written: those that were not read as noise, new ones too.

use std::sync::Arc;

use super::{KeyLoss, KeySlotChange, LuksPlace, PlannedKeys};
use crate::codec::crypt::Passphrase;
use crate::disk::{Disk, ResizeOptions, ZeroMode};
use crate::error::{Error, ErrorKind, Result};
use crate::extent::{Extent, ExtentKind};
use crate::limits::Limits;
use crate::progress::Control;
use crate::range::ByteRange;
use crate::raw::Raw;
use crate::storage::{EncryptedStorage, Storage};

/// An open LUKS image.
#[derive(Debug)]
pub(crate) struct Luks {
    /// The disk.
    raw: Raw,
    storages: LuksStorages,
    passphrase: Passphrase,
    writable: bool,
}

/// What a LUKS image is in.
#[derive(Debug)]
pub(crate) struct LuksStorages {
    /// The disk, and the header unless that is elsewhere.
    pub(crate) own: Arc<dyn Storage>,
    /// The header, if it is in a file of its own.
    pub(crate) header: Option<Arc<dyn Storage>>,
}

impl LuksStorages {
    /// Where the header is.
    fn header_place(&self) -> LuksPlace<'_> {
        match &self.header {
            Some(header) => LuksPlace::apart(&**header),
            None => LuksPlace::new(&*self.own, 0),
        }
    }
}

impl Luks {
    /// Opens the image in `storages`, to be written only if `writable`.
    pub(crate) fn open(
        storages: LuksStorages,
        (passphrase, limits): (Option<&Passphrase>, &Limits),
        writable: bool,
    ) -> Result<Luks> {
        let passphrase = passphrase.ok_or_else(|| Error::new(ErrorKind::PassphraseNeeded))?.clone();
        let (volume, key) = storages.header_place().unlock_within(&passphrase, limits)?;
        let start = volume.header().payload_start();
        let disk = EncryptedStorage::new(Arc::clone(&storages.own), volume.cipher(&key)?, start);
        Ok(Luks { raw: Raw::open(Arc::new(disk), writable)?, storages, passphrase, writable })
    }

    /// Changes the key slots.
    pub(crate) fn change_keys(&self, change: &KeySlotChange, loss: KeyLoss) -> Result<()> {
        if !self.writable {
            return Err(Error::new(ErrorKind::ReadOnly));
        }
        let place = self.storages.header_place();
        PlannedKeys::judge(place, (change, loss), Some(&self.passphrase))?.carry_out(place)
    }

    /// Changes the size to `new_size` bytes.
    pub(crate) fn resize(&self, new_size: u64, options: ResizeOptions, control: &Control<'_>) -> Result<()> {
        self.raw.resize(new_size, options, control)
    }

    /// Writes to `range` what `source` has from `from` on.
    pub(crate) fn copy_from(&self, source: &dyn Storage, from: u64, range: ByteRange) -> Result<()> {
        self.raw.copy_from(source, from, range)
    }
}

impl Disk for Luks {
    fn size(&self) -> u64 {
        self.raw.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.raw.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.raw.write_at(buf, offset)
    }

    fn write_zeroes(&self, range: ByteRange, mode: ZeroMode) -> Result<()> {
        self.raw.write_zeroes(range, mode)
    }

    /// Nothing: a sector without space would read as noise.
    fn discard(&self, range: ByteRange) -> Result<()> {
        self.raw.discard(range)
    }

    fn flush(&self) -> Result<()> {
        self.raw.flush()
    }

    /// Data all over, which has no place in the file as it is.
    fn extent_at(&self, offset: u64, max_len: u64) -> Result<Extent> {
        let extent = self.raw.extent_at(offset, max_len)?;
        Ok(Extent { kind: ExtentKind::Data, host: None, reads_zero: false, ..extent })
    }
}
