//! A part of a storage as a storage of its own: the disk that stands at some offset in a larger file.

use std::io;

use super::{Storage, StorageExtent};
use crate::range::ByteRange;

/// Decorator that shows the bytes from an offset on, all of them or a fixed number.
#[derive(Debug)]
pub struct WindowStorage<S> {
    inner: S,
    offset: u64,
    /// The fixed length; without it the window ends, and grows, with the storage.
    size: Option<u64>,
}

impl<S: Storage> WindowStorage<S> {
    /// The `size` bytes from `offset` on, or all from there. What the storage does not have cannot be shown: then the
    /// error is [`io::ErrorKind::InvalidInput`].
    pub fn new(inner: S, offset: u64, size: Option<u64>) -> io::Result<WindowStorage<S>> {
        let len = inner.len()?;
        let end = offset.checked_add(size.unwrap_or(0)).filter(|&end| end <= len);
        if end.is_none() {
            let what = size.map_or(String::new(), |size| format!("the {size} bytes from "));
            let message = format!("{what}offset {offset} do not lie within the file, which has {len} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        Ok(WindowStorage { inner, offset, size })
    }

    /// Where `offset` is in the storage.
    fn outside(&self, offset: u64) -> io::Result<u64> {
        self.offset.checked_add(offset).ok_or_else(too_far)
    }

    /// Where `range`, which is to be changed, is in the storage.
    fn range_outside(&self, range: ByteRange) -> io::Result<ByteRange> {
        if self.size.is_some_and(|size| range.end() > size) {
            return Err(fixed_size());
        }
        ByteRange::new(self.outside(range.start())?, range.len()).ok_or_else(too_far)
    }
}

fn too_far() -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, "the range passes the largest file offset")
}

fn fixed_size() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "the image is a part of a file, and its size is fixed")
}

impl<S: Storage> Storage for WindowStorage<S> {
    fn len(&self) -> io::Result<u64> {
        let rest = self.inner.len()?.saturating_sub(self.offset);
        Ok(self.size.unwrap_or(rest))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = self.size.map_or(u64::MAX, |size| size.saturating_sub(offset));
        let most = buf.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
        match self.outside(offset) {
            Ok(outside) if most > 0 => self.inner.read_at(&mut buf[..most], outside),
            _ => Ok(0),
        }
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        let range = ByteRange::new(offset, buf.len() as u64).ok_or_else(too_far)?;
        self.inner.write_at(buf, self.range_outside(range)?.start())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        match self.size {
            Some(size) if size == len => Ok(()),
            Some(_) => Err(fixed_size()),
            None => self.inner.set_len(self.outside(len)?),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    fn is_read_only(&self) -> bool {
        self.inner.is_read_only()
    }

    fn write_zeroes(&self, range: ByteRange) -> io::Result<()> {
        self.inner.write_zeroes(self.range_outside(range)?)
    }

    fn punch_hole(&self, range: ByteRange) -> io::Result<bool> {
        let range = range.intersection(ByteRange::between(0, self.len()?));
        if range.is_empty() { Ok(true) } else { self.inner.punch_hole(self.range_outside(range)?) }
    }

    fn allocate(&self, range: ByteRange) -> io::Result<()> {
        self.inner.allocate(self.range_outside(range)?)
    }

    fn extent_at(&self, offset: u64) -> io::Result<Option<StorageExtent>> {
        let len = self.len()?;
        if offset >= len {
            return Ok(None);
        }
        let Some(found) = self.inner.extent_at(self.outside(offset)?)? else { return Ok(None) };
        let inside = |position: u64| position.saturating_sub(self.offset).min(len);
        let range = ByteRange::between(inside(found.range.start()), inside(found.range.end()));
        Ok(Some(StorageExtent { range, kind: found.kind }))
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.inner.allocated_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::storage::{MemoryStorage, StorageExt, conformance};

    #[test]
    fn a_window_without_an_end_keeps_the_contract() {
        conformance::run(&mut || {
            let inner = MemoryStorage::new();
            inner.set_len(700).unwrap();
            Box::new(WindowStorage::new(inner, 700, None).unwrap())
        });
    }

    #[test]
    fn nothing_outside_a_window_is_seen_or_changed() {
        let inner = Arc::new(MemoryStorage::new());
        inner.write_all_at(&[7; 3000], 0).unwrap();
        let window = WindowStorage::new(Arc::clone(&inner), 1000, Some(1000)).unwrap();
        assert_eq!(window.len().unwrap(), 1000);
        let mut buf = [1; 20];
        assert_eq!(window.read_at(&mut buf, 990).unwrap(), 10);
        assert_eq!(window.read_at(&mut buf, 1000).unwrap(), 0);
        assert!(window.write_at(&[1; 11], 990).is_err());
        assert!(window.set_len(999).is_err());
        assert!(window.write_zeroes(ByteRange::between(0, 1001)).is_err());
        window.write_zeroes(ByteRange::between(0, 1000)).unwrap();
        window.punch_hole(ByteRange::between(500, 5000)).unwrap();
        let mut all = vec![1; 3000];
        inner.read_exact_at(&mut all, 0).unwrap();
        assert!(all[..1000].iter().chain(&all[2000..]).all(|&byte| byte == 7));
        assert!(all[1000..2000].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn a_window_on_what_is_not_there_is_refused() {
        let inner = Arc::new(MemoryStorage::new());
        inner.set_len(1000).unwrap();
        for (offset, size) in [(1001, None), (0, Some(1001)), (1000, Some(1)), (u64::MAX, Some(2))] {
            assert!(WindowStorage::new(Arc::clone(&inner), offset, size).is_err(), "{offset} {size:?}");
        }
        assert!(WindowStorage::new(Arc::clone(&inner), 1000, None).unwrap().is_empty().unwrap());
    }
}
