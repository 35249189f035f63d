//! Where the guest's bytes are: in the image's own file or in an external data file, plain or encrypted. Everything
//! that reads or writes them as they are goes through here; compressed clusters are metadata in this respect.

use std::io::{self, IoSlice};
use std::sync::Arc;

use crate::codec::crypt::SectorCipher;
use crate::error::{Error, Result};
use crate::format::qcow2::HostOffset;
use crate::range::ByteRange;
use crate::storage::{EncryptedStorage, Storage, StorageExt, StorageExtent};

/// What an image's guest data is kept in, as its opener has found it.
#[derive(Debug, Default)]
pub(crate) struct DataOptions {
    /// The external data file, for images that have one.
    pub(crate) file: Option<Arc<dyn Storage>>,
    /// What the data is encrypted with, for images that are encrypted.
    pub(crate) cipher: Option<DataCipher>,
}

/// How the guest's data is encrypted.
#[derive(Debug)]
pub(crate) struct DataCipher {
    /// What with.
    pub(crate) cipher: SectorCipher,
    /// Which number a sector is encrypted by.
    pub(crate) numbering: Numbering,
}

/// Which number a sector is encrypted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Numbering {
    /// Its place in the file.
    Host,
    /// Its place on the guest's disk.
    Guest,
}

/// The guest's data.
#[derive(Debug)]
pub(super) struct GuestData {
    place: Place,
    external: Option<Arc<dyn Storage>>,
}

#[derive(Debug)]
enum Place {
    Plain(Arc<dyn Storage>),
    Encrypted(EncryptedStorage, Numbering),
}

impl GuestData {
    /// The data of an image in `own`.
    pub(super) fn new(own: &Arc<dyn Storage>, options: DataOptions) -> GuestData {
        let storage = Arc::clone(options.file.as_ref().unwrap_or(own));
        let place = match options.cipher {
            None => Place::Plain(storage),
            Some(DataCipher { cipher, numbering }) => {
                Place::Encrypted(EncryptedStorage::new(storage, cipher, 0), numbering)
            }
        };
        GuestData { place, external: options.file }
    }

    /// The data file, if there is one beside the image.
    pub(super) fn external(&self) -> Option<&dyn Storage> {
        self.external.as_deref()
    }

    /// What the bytes are in as the guest reads them.
    pub(super) fn plain(&self) -> Option<Arc<dyn Storage>> {
        match &self.place {
            Place::Plain(storage) => Some(Arc::clone(storage)),
            Place::Encrypted(..) => None,
        }
    }

    /// Whether it is encrypted, so that space that nobody has written reads as noise.
    pub(super) fn is_encrypted(&self) -> bool {
        matches!(self.place, Place::Encrypted(..))
    }

    /// Reads the bytes of the guest at `guest`, which are at `host`. The last cluster of a file may end before its
    /// boundary: what is missing was never written, and is zeroes.
    pub(super) fn read(&self, buf: &mut [u8], host: HostOffset, guest: u64) -> Result<()> {
        match &self.place {
            Place::Plain(storage) => storage.read_padded_at(buf, host.get()),
            Place::Encrypted(storage, numbering) => {
                storage.read_shifted(buf, host.get(), shift(*numbering, host, guest))
            }
        }
        .map_err(|error| Error::io("read guest data", error))
    }

    /// Writes the bytes of the guest at `guest` to `host`.
    pub(super) fn write(&self, bufs: &mut [IoSlice<'_>], host: HostOffset, guest: u64) -> Result<()> {
        match &self.place {
            Place::Plain(storage) => storage.write_all_vectored_at(bufs, host.get()),
            Place::Encrypted(storage, numbering) => {
                let joined: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
                storage.write_shifted(&joined, host.get(), shift(*numbering, host, guest))
            }
        }
        .map_err(|error| Error::io("write guest data", error))
    }

    /// Writes to `to`, for the guest's bytes at `guest`, what `source` has from `from` on.
    pub(super) fn copy_from(
        &self,
        (source, from): (&dyn Storage, u64),
        to: ByteRange,
        guest: u64,
    ) -> Result<()> {
        let io = |error| Error::io("copy guest data", error);
        match &self.place {
            Place::Plain(storage) => storage.copy_from(source, from, to).map_err(io),
            Place::Encrypted(..) => {
                let mut bytes = vec![0; to.len() as usize];
                source.read_padded_at(&mut bytes, from).map_err(io)?;
                self.write(&mut [IoSlice::new(&bytes)], HostOffset(to.start()), guest)
            }
        }
    }

    /// What the host knows of holes at an offset, where holes read as zeroes.
    pub(super) fn extent_at(&self, host: HostOffset) -> io::Result<Option<StorageExtent>> {
        match &self.place {
            Place::Plain(storage) => storage.extent_at(host.get()),
            Place::Encrypted(..) => Ok(None),
        }
    }

    /// Syncs the data file, if there is one; the image's own file is its owner's to sync.
    pub(super) fn sync_external(&self) -> Result<()> {
        match &self.external {
            None => Ok(()),
            Some(storage) => storage.sync().map_err(|error| Error::io("sync the data file to disk", error)),
        }
    }

    /// Gives the data file, if there is one, the disk's length. A device keeps its own.
    pub(super) fn resize_external(&self, size: u64) -> Result<()> {
        let Some(storage) = &self.external else { return Ok(()) };
        let io = |error| Error::io("change the length of the data file", error);
        match storage.set_len(size) {
            Err(error) if storage.len().map_err(io)? < size => Err(io(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Makes a range of the data file hold zeroes, as far as these need no encryption; `release` gives its space back.
    /// Nothing happens where the data is in the image's own file.
    pub(super) fn zero_external(&self, range: ByteRange, release: bool) -> Result<()> {
        let (Some(storage), false) = (&self.external, self.is_encrypted()) else { return Ok(()) };
        let io = |error| Error::io("write zeroes to the data file", error);
        if release && storage.punch_hole(range).map_err(io)? {
            return Ok(());
        }
        let end = storage.len().map_err(io)?;
        let within = range.intersection(ByteRange::between(0, end));
        if within.is_empty() { Ok(()) } else { storage.write_zeroes(within).map_err(io) }
    }
}

/// What is added to an offset in the file to get the bytes' place in the numbering.
fn shift(numbering: Numbering, host: HostOffset, guest: u64) -> u64 {
    match numbering {
        Numbering::Host => 0,
        Numbering::Guest => guest.wrapping_sub(host.get()),
    }
}
