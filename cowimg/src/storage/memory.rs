//! Bytes in memory: for tests, for images that are made to be thrown away, and for what a crash leaves behind.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{Storage, StorageExt, StorageExtent, StorageExtentKind, check_len, write_range};
use crate::range::ByteRange;

const PAGE: u64 = 4096;

type Page = [u8; PAGE as usize];

/// Storage that keeps the pages that were written, so that length costs nothing.
///
/// A clone is a copy of its own; the two share pages until one of them writes.
#[derive(Debug, Default)]
pub struct MemoryStorage {
    pages: RwLock<Pages>,
}

/// Bytes at or past `len` in the last page are zero, and no page lies wholly past it.
#[derive(Debug, Default, Clone)]
struct Pages {
    len: u64,
    map: BTreeMap<u64, Arc<Page>>,
}

/// The part of a range that lies in one page.
struct Piece {
    page: u64,
    /// Where in the page.
    at: usize,
    len: usize,
}

/// The pieces of a range, in order.
fn pieces(range: ByteRange) -> impl Iterator<Item = Piece> {
    let mut offset = range.start();
    std::iter::from_fn(move || {
        let at = offset % PAGE;
        let len = (PAGE - at).min(range.end().saturating_sub(offset));
        let piece = Piece { page: offset / PAGE, at: at as usize, len: len as usize };
        offset += len;
        (len > 0).then_some(piece)
    })
}

impl Pages {
    fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        let n = self.len.saturating_sub(offset).min(buf.len() as u64);
        let mut rest = &mut buf[..n as usize];
        for Piece { page, at, len } in pieces(ByteRange::between(offset, offset.saturating_add(n))) {
            let (part, after) = rest.split_at_mut(len);
            match self.map.get(&page) {
                Some(bytes) => part.copy_from_slice(&bytes[at..at + len]),
                None => part.fill(0),
            }
            rest = after;
        }
        n as usize
    }

    fn write(&mut self, buf: &[u8], range: ByteRange) {
        let mut rest = buf;
        for Piece { page, at, len } in pieces(range) {
            let (part, after) = rest.split_at(len);
            let bytes = self.map.entry(page).or_insert_with(|| Arc::new([0; PAGE as usize]));
            Arc::make_mut(bytes)[at..at + len].copy_from_slice(part);
            rest = after;
        }
        if !range.is_empty() {
            self.len = self.len.max(range.end());
        }
    }

    /// Zeroes the range and drops the pages that it covers.
    fn clear(&mut self, range: ByteRange) {
        let range = range.intersection(ByteRange::between(0, self.len));
        if range.is_empty() {
            return;
        }
        // A last page that ends the storage is whole as far as it goes.
        let end = if range.end() == self.len { self.len.next_multiple_of(PAGE) } else { range.end() };
        let whole = range.start().div_ceil(PAGE)..end / PAGE;
        let dropped: Vec<u64> = if whole.is_empty() {
            Vec::new()
        } else {
            self.map.range(whole).map(|(page, _)| *page).collect()
        };
        for page in dropped {
            self.map.remove(&page);
        }
        let edges = [range.start() / PAGE, (range.end() - 1) / PAGE];
        for page in edges {
            let part = range.intersection(ByteRange::between(page * PAGE, (page + 1) * PAGE));
            if let Some(bytes) = self.map.get_mut(&page) {
                let at = (part.start() - page * PAGE) as usize;
                Arc::make_mut(bytes)[at..at + part.len() as usize].fill(0);
            }
        }
    }

    fn set_len(&mut self, len: u64) {
        self.clear(ByteRange::between(len, self.len));
        self.len = len;
    }

    fn extent_at(&self, offset: u64) -> Option<StorageExtent> {
        if offset >= self.len {
            return None;
        }
        let first = offset / PAGE;
        let mut pages = self.map.range(first..).map(|(page, _)| *page);
        let (kind, end) = match pages.next() {
            Some(page) if page == first => {
                let run = pages.zip(first + 1..).take_while(|(page, expected)| page == expected).count();
                (StorageExtentKind::Data, (first + 1 + run as u64) * PAGE)
            }
            Some(page) => (StorageExtentKind::Hole, page * PAGE),
            None => (StorageExtentKind::Hole, self.len),
        };
        Some(StorageExtent { range: ByteRange::between(offset, end.min(self.len)), kind })
    }
}

impl MemoryStorage {
    /// Storage of no bytes.
    pub fn new() -> MemoryStorage {
        MemoryStorage::default()
    }

    /// Storage that holds `bytes`.
    pub fn with_bytes(bytes: impl AsRef<[u8]>) -> MemoryStorage {
        let bytes = bytes.as_ref();
        let mut pages = Pages::default();
        pages.write(bytes, ByteRange::between(0, bytes.len() as u64));
        MemoryStorage { pages: RwLock::new(pages) }
    }

    /// A copy of another storage as it is now; holes that it tells stay holes.
    pub fn copy_of(source: &dyn Storage) -> io::Result<MemoryStorage> {
        let copy = MemoryStorage::new();
        let mut buf = vec![0; 256 << 10];
        copy.set_len(source.len()?)?;
        let mut offset = 0;
        while let Some(StorageExtent { range, kind }) = source.extent_at(offset)? {
            offset = range.end();
            if kind == StorageExtentKind::Hole {
                continue;
            }
            let mut at = range.start();
            while at < range.end() {
                let part = (range.end() - at).min(buf.len() as u64) as usize;
                source.read_padded_at(&mut buf[..part], at)?;
                copy.write_all_at(&buf[..part], at)?;
                at += part as u64;
            }
        }
        Ok(copy)
    }

    /// All the bytes. Takes memory for the whole length, holes included.
    pub fn to_vec(&self) -> Vec<u8> {
        let pages = self.read_pages();
        let mut bytes = vec![0; pages.len as usize];
        pages.read(&mut bytes, 0);
        bytes
    }

    // A panic elsewhere while the lock is held leaves pages that are at worst half written, as a crash would.
    fn read_pages(&self) -> RwLockReadGuard<'_, Pages> {
        self.pages.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_pages(&self) -> RwLockWriteGuard<'_, Pages> {
        self.pages.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clone for MemoryStorage {
    fn clone(&self) -> MemoryStorage {
        MemoryStorage { pages: RwLock::new(self.read_pages().clone()) }
    }
}

impl Storage for MemoryStorage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.read_pages().len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        Ok(self.read_pages().read(buf, offset))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        let range = write_range(offset, buf.len())?;
        self.write_pages().write(buf, range);
        Ok(buf.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        check_len(len)?;
        self.write_pages().set_len(len);
        Ok(())
    }

    /// Nothing to do: memory does not survive a power cut whatever is called.
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn write_zeroes(&self, range: ByteRange) -> io::Result<()> {
        let mut pages = self.write_pages();
        pages.clear(range);
        if !range.is_empty() {
            pages.len = pages.len.max(range.end());
        }
        Ok(())
    }

    fn punch_hole(&self, range: ByteRange) -> io::Result<bool> {
        self.write_pages().clear(range);
        Ok(true)
    }

    /// Grows the length only: memory is taken page by page when written, and lasts or the process does not.
    fn allocate(&self, range: ByteRange) -> io::Result<()> {
        let mut pages = self.write_pages();
        if !range.is_empty() {
            pages.len = pages.len.max(range.end());
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> io::Result<Option<StorageExtent>> {
        Ok(self.read_pages().extent_at(offset))
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        Ok(self.read_pages().map.len() as u64 * PAGE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::conformance;

    #[test]
    fn memory_conforms() {
        conformance::run(&mut || Box::new(MemoryStorage::new()));
    }

    #[test]
    fn length_takes_no_memory() {
        let storage = MemoryStorage::new();
        storage.set_len(ByteRange::MAX_END).unwrap();
        storage.write_at(&[1, 2], ByteRange::MAX_END - 2).unwrap();
        assert_eq!(storage.allocated_bytes().unwrap(), PAGE);
        let hole = storage.extent_at(0).unwrap().unwrap();
        assert_eq!(hole.kind, StorageExtentKind::Hole);
        assert_eq!(hole.range.end(), ByteRange::MAX_END / PAGE * PAGE);
        let mut buf = [0; 10];
        assert_eq!(storage.read_at(&mut buf, ByteRange::MAX_END - 3).unwrap(), 3);
        assert_eq!(buf[..3], [0, 1, 2]);
        assert!(storage.punch_hole(ByteRange::between(0, ByteRange::MAX_END)).unwrap());
        assert_eq!(storage.allocated_bytes().unwrap(), 0);
    }

    #[test]
    fn punched_pages_are_given_back() {
        let storage = MemoryStorage::with_bytes(vec![1; 20_000]);
        storage.punch_hole(ByteRange::between(100, 20_000)).unwrap();
        assert_eq!(storage.allocated_bytes().unwrap(), PAGE);
        storage.set_len(0).unwrap();
        assert_eq!(storage.allocated_bytes().unwrap(), 0);
    }

    #[test]
    fn a_clone_does_not_follow_its_original() {
        let original = MemoryStorage::with_bytes(b"abc");
        let clone = original.clone();
        original.write_at(b"x", 0).unwrap();
        clone.write_at(b"z", 2).unwrap();
        assert_eq!(original.to_vec(), b"xbc");
        assert_eq!(clone.to_vec(), b"abz");
    }

    #[test]
    fn a_copy_has_the_bytes_and_the_holes() {
        // More than is copied at a time, but under miri, which counts bytes in seconds.
        const LEN: usize = if cfg!(miri) { 10_000 } else { 300_000 };
        let source = MemoryStorage::with_bytes([1; 5000]);
        source.write_at(&vec![2; LEN], 1 << 30).unwrap();
        source.set_len(1 << 40).unwrap();
        let copy = MemoryStorage::copy_of(&source).unwrap();
        assert_eq!(copy.len().unwrap(), 1 << 40);
        assert_eq!(copy.allocated_bytes().unwrap(), source.allocated_bytes().unwrap());
        let mut buf = vec![0; LEN];
        copy.read_exact_at(&mut buf, 1 << 30).unwrap();
        assert!(buf.iter().all(|byte| *byte == 2));
    }
}
