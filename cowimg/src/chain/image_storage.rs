//! An image's disk as the bytes that another image is in: a format over a format.

use std::io;
use std::sync::Arc;

use super::image::Image;
use crate::range::ByteRange;
use crate::storage::{Storage, StorageExtent, StorageExtentKind, read_only_error};

/// The disk of an image that was opened for reading. Its length is the disk's.
#[derive(Debug)]
pub(super) struct ImageStorage {
    image: Arc<Image>,
}

impl ImageStorage {
    pub(super) fn new(image: Arc<Image>) -> ImageStorage {
        ImageStorage { image }
    }
}

impl Storage for ImageStorage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.image.size())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let len = self.image.size().saturating_sub(offset).min(buf.len() as u64) as usize;
        if len > 0 {
            self.image.read_at(&mut buf[..len], offset).map_err(io::Error::other)?;
        }
        Ok(len)
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
        Err(read_only_error())
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(read_only_error())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn extent_at(&self, offset: u64) -> io::Result<Option<StorageExtent>> {
        let rest = self.image.size().saturating_sub(offset);
        if rest == 0 {
            return Ok(None);
        }
        let extent = self.image.extent_at(offset, rest).map_err(io::Error::other)?;
        let kind = if extent.is_zero() { StorageExtentKind::Hole } else { StorageExtentKind::Data };
        Ok(Some(StorageExtent { range: ByteRange::between(offset, extent.range.end()), kind }))
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.image.layers().first().map_or(Ok(0), |layer| layer.storage().allocated_bytes())
    }
}
