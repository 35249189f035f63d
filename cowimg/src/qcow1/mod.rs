//! The engine for qcow images of version 1. It reads them and does nothing else.
//!
//! Nothing changes while an image is read, so there are no locks beyond those of two caches: tables are looked up through
//! [`Pages`], and the cluster that was decompressed last is kept. A table that a hostile header claims is never in
//! memory whole.
//!
//! | file | what it is for |
//! |---|---|
//! | `open` | from a storage to an engine |
//! | `mapping` | what stands behind a range |
//! | `read` | the bytes of a range |

mod mapping;
mod open;
mod read;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

use crate::disk::{Disk, OwnPart};
use crate::error::{Error, ErrorKind, Result};
use crate::extent::Extent;
use crate::format::qcow1::Header;
use crate::range::ByteRange;
use crate::storage::{EncryptedStorage, Pages, Storage};
pub(crate) use open::{ImageHeader, Qcow1Options, read_header};

/// An open image.
#[derive(Debug)]
pub(crate) struct Qcow1 {
    storage: Arc<dyn Storage>,
    header: Header,
    /// Length of the file when it was opened, in bytes.
    file_len: u64,
    /// The same file decrypted, if the guest's data is encrypted.
    decrypted: Option<EncryptedStorage>,
    backing: Option<Arc<dyn Disk>>,
    tables: Pages,
    decompressed: Mutex<read::DecompressedCluster>,
}

impl Qcow1 {
    /// Bytes in a cluster.
    pub(crate) fn cluster_size(&self) -> u64 {
        self.header.cluster_size()
    }

    fn check_bounds(&self, offset: u64, len: u64) -> Result<()> {
        let size = self.header.size;
        if ByteRange::new(offset, len).is_some_and(|range| range.end() <= size) {
            return Ok(());
        }
        let asked = ByteRange::between(offset, offset.saturating_add(len));
        Err(Error::new(ErrorKind::OutOfBounds { size }).at_range(asked))
    }
}

impl Disk for Qcow1 {
    fn size(&self) -> u64 {
        self.header.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.check_bounds(offset, buf.len() as u64)?;
        self.read(buf, offset)
    }

    fn extent_at(&self, offset: u64, max_len: u64) -> Result<Extent> {
        self.check_bounds(offset, 0)?;
        self.extent(offset, max_len)
    }

    fn own_part(&self, range: ByteRange) -> Result<OwnPart> {
        self.check_bounds(range.start(), range.len())?;
        let segment = self.next_segment(range)?;
        let answers = segment.source != mapping::Source::Below;
        Ok(OwnPart { answers, end: segment.range.end(), stored: None })
    }
}
