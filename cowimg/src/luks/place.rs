//! A LUKS volume's header and key material where they lie: in a storage, from some offset on.

use zeroize::Zeroizing;

use crate::codec::crypt::volume::{Volume, VolumeKey, VolumeOptions};
use crate::codec::crypt::{CryptError, Passphrase};
use crate::corruption::Corruption;
use crate::error::{Error, ErrorKind, Result};
use crate::format::luks::{KeySlot, LuksHeader, SECTOR_SIZE};
use crate::limits::Limits;
use crate::storage::{Storage, StorageExt};

/// The bytes of `storage` from `start` on, which are those of a LUKS volume.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LuksPlace<'a> {
    storage: &'a dyn Storage,
    start: u64,
    /// Whether the volume's data may be in another storage.
    may_be_alone: bool,
}

impl<'a> LuksPlace<'a> {
    /// The place at `start`, in bytes from the start of `storage`.
    pub(crate) fn new(storage: &'a dyn Storage, start: u64) -> LuksPlace<'a> {
        LuksPlace { storage, start, may_be_alone: false }
    }

    /// The place of a header at the start of `storage`, whose volume has its data elsewhere.
    pub(crate) fn apart(storage: &'a dyn Storage) -> LuksPlace<'a> {
        LuksPlace { storage, start: 0, may_be_alone: true }
    }

    /// The volume that is there, locked.
    pub(crate) fn read(self) -> Result<Volume> {
        let mut bytes = vec![0; LuksHeader::LEN];
        self.storage
            .read_padded_at(&mut bytes, self.start)
            .map_err(|error| Error::io("read the LUKS header", error))?;
        let header = LuksHeader::decode(&bytes).map_err(|error| Corruption::LuksHeader(error.to_string()))?;
        if header.is_detached() && !self.may_be_alone {
            let why = "it stands alone: its data is in another file, which is to be opened with this one as its header";
            return Err(Corruption::LuksHeader(why.to_owned()).into());
        }
        Ok(Volume::new(header)?)
    }

    /// The same, unless its keys take longer than `limits` allow.
    pub(crate) fn unlock_within(
        self,
        passphrase: &Passphrase,
        limits: &Limits,
    ) -> Result<(Volume, VolumeKey)> {
        let volume = self.read()?;
        let header = volume.header();
        let slots = header.slots.iter().filter(|slot| slot.active).map(|slot| u64::from(slot.iterations));
        limits.check_iterations("opening its key slots", slots.sum())?;
        limits.check_iterations("the digest of its key", header.digest_iterations.into())?;
        self.unlock(passphrase)
    }

    /// The volume that is there, and the key of its data.
    pub(crate) fn unlock(self, passphrase: &Passphrase) -> Result<(Volume, VolumeKey)> {
        let volume = self.read()?;
        let key = volume.unlock(passphrase.bytes(), |slot| self.material(&volume, slot))?;
        Ok((volume, key))
    }

    /// Makes a volume, whose first slot `passphrase` opens. Nothing is synced.
    pub(crate) fn write_new(self, options: &VolumeOptions, passphrase: &Passphrase) -> Result<Volume> {
        let (mut volume, key) = Volume::create(options)?;
        let material = volume.fill_slot(0, &key, passphrase.bytes(), options.iteration_time)?;
        self.write_material(&volume.header().slots[0], &material)?;
        self.write_header(volume.header())?;
        Ok(volume)
    }

    /// The key material of a slot of `volume`, with what is behind it up to the end of the sector.
    pub(super) fn material(self, volume: &Volume, slot: &KeySlot) -> Result<Vec<u8>> {
        let len = volume.header().material_len().next_multiple_of(SECTOR_SIZE as usize);
        let mut bytes = vec![0; len];
        let read = self.storage.read_padded_at(&mut bytes, self.place_of(slot));
        read.map_err(|error| Error::io("read the key material", error))?;
        Ok(bytes)
    }

    pub(super) fn write_material(self, slot: &KeySlot, material: &[u8]) -> Result<()> {
        let written = self.storage.write_all_at(material, self.place_of(slot));
        written.map_err(|error| Error::io("write the key material", error))
    }

    /// Overwrites the key material of a slot.
    pub(super) fn write_noise(self, volume: &Volume, slot: &KeySlot) -> Result<()> {
        let len = volume.header().material_len().next_multiple_of(SECTOR_SIZE as usize);
        let mut noise = Zeroizing::new(vec![0; len]);
        getrandom::fill(&mut noise).map_err(|_| CryptError::NoRandomness)?;
        self.write_material(slot, &noise)
    }

    pub(super) fn write_header(self, header: &LuksHeader) -> Result<()> {
        let written = self.storage.write_all_at(&header.encode(), self.start);
        written.map_err(|error| Error::io("write the LUKS header", error))
    }

    pub(super) fn sync(self) -> Result<()> {
        self.storage.sync().map_err(|error| Error::io("sync the LUKS header to disk", error))
    }

    fn place_of(self, slot: &KeySlot) -> u64 {
        self.start.saturating_add(u64::from(slot.material) * SECTOR_SIZE)
    }
}

impl From<CryptError> for Error {
    fn from(error: CryptError) -> Error {
        match error {
            CryptError::WrongPassphrase => Error::new(ErrorKind::WrongPassphrase),
            error => Error::unsupported(error.to_string()),
        }
    }
}
