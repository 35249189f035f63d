//! Small pieces of a storage that is only read, kept in memory: what an engine looks tables up through.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Storage, StorageExt};

/// Bytes of a page.
const PAGE: u64 = 4096;

/// The pages that were read of late, in two generations of equal size. What nobody has asked for since the younger one
/// filled up is forgotten, so that memory stays bounded.
#[derive(Debug)]
pub(crate) struct Pages {
    storage: Arc<dyn Storage>,
    limit: usize,
    known: Mutex<Generations>,
}

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<u64, Arc<[u8]>>,
    old: HashMap<u64, Arc<[u8]>>,
}

impl Pages {
    /// The pages of `storage`, at most `bytes` of which are kept (but two at least).
    pub(crate) fn new(storage: Arc<dyn Storage>, bytes: u64) -> Pages {
        let limit = usize::try_from(bytes / PAGE / 2).unwrap_or(usize::MAX).max(1);
        Pages { storage, limit, known: Mutex::default() }
    }

    /// Fills `buf` with the bytes at `offset`; what lies past the end of the storage is zeroes.
    pub(crate) fn read(&self, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buf.is_empty() {
            let page = self.page(offset / PAGE)?;
            let there = &page[(offset % PAGE) as usize..];
            let len = there.len().min(buf.len());
            let (part, rest) = buf.split_at_mut(len);
            part.copy_from_slice(&there[..len]);
            buf = rest;
            offset = offset.saturating_add(len as u64);
        }
        Ok(())
    }

    fn page(&self, number: u64) -> io::Result<Arc<[u8]>> {
        if let Some(page) = self.lock().get(number, self.limit) {
            return Ok(page);
        }
        // Two readers may read the same page at once: nobody writes it, so that both have the same.
        let mut bytes = vec![0; PAGE as usize];
        self.storage.read_padded_at(&mut bytes, number * PAGE)?;
        let page: Arc<[u8]> = bytes.into();
        self.lock().add(number, &page, self.limit);
        Ok(page)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Generations> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Generations {
    fn get(&mut self, number: u64, limit: usize) -> Option<Arc<[u8]>> {
        if let Some(page) = self.young.get(&number) {
            return Some(Arc::clone(page));
        }
        let page = self.old.remove(&number)?;
        self.add(number, &page, limit);
        Some(page)
    }

    fn add(&mut self, number: u64, page: &Arc<[u8]>, limit: usize) {
        if self.young.len() >= limit {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(number, Arc::clone(page));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;

    #[test]
    fn bytes_come_from_memory_within_the_bound_and_past_the_end_as_zeroes() {
        let bytes: Vec<u8> = (0..100_000_u32).map(|at| (at % 251) as u8 + 1).collect();
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::with_bytes(&bytes));
        let pages = Pages::new(storage, 4 * PAGE);
        for at in (0..100_000).step_by(777).chain([0, 4095, 50_000, 99_999, 5_000_000]) {
            let mut read = [0xee; 8];
            pages.read(&mut read, at as u64).unwrap();
            let expected: Vec<u8> = (at..at + 8).map(|at| bytes.get(at).copied().unwrap_or(0)).collect();
            assert_eq!(read[..], expected[..], "{at}");
            let known = pages.lock();
            assert!(known.young.len() + known.old.len() <= 4);
        }
    }
}
