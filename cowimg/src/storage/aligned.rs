//! Any reads and writes over a storage that takes whole, aligned blocks only, as files do that bypass the host's cache.
//!
//! What is not aligned goes through a buffer that is. A write of a part of a block reads the block first, and no other
//! write to that block runs in between: the bytes beside it are never put back to what they were. The end of the
//! storage need not be aligned; a write that ends within a block past the end writes the whole block and cuts the
//! storage again, which nobody sees meanwhile. A crash in between leaves zeroes of less than a block behind the end.
//!
//! Locks, in order: the gate, a block range in [`InFlight`], the pool of buffers. I/O runs under the first two.

use std::io::{self, IoSlice, IoSliceMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockWriteGuard};

use super::buffer::PageBuffer;
use super::{Storage, StorageExt, StorageExtent, check_len, write_range};
use crate::range::ByteRange;

/// The most bytes that are copied through one buffer.
const BOUNCE: u64 = 1 << 20;

/// How many buffers of the largest size are kept for the next use.
const KEPT_BUFFERS: usize = 8;

/// What a storage wants of every read and write. All are powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Alignment {
    /// Offsets and lengths are multiples of this many bytes, except that a read may meet the end.
    pub block: u64,
    /// Buffers start at a multiple of this many bytes in memory.
    pub memory: usize,
}

impl Alignment {
    fn floor(self, offset: u64) -> u64 {
        offset & !(self.block - 1)
    }

    fn ceil(self, offset: u64) -> u64 {
        self.floor(offset.saturating_add(self.block - 1))
    }

    fn is_block(self, offset: u64) -> bool {
        offset == self.floor(offset)
    }

    /// The whole blocks that `range` touches; the last is cut where no file can reach.
    fn around(self, range: ByteRange) -> ByteRange {
        ByteRange::between(self.floor(range.start()), self.ceil(range.end()))
    }

    /// The same for a write, which cannot write a part of a block.
    fn around_write(self, range: ByteRange) -> io::Result<ByteRange> {
        let start = self.floor(range.start());
        write_range(start, (self.ceil(range.end()) - start) as usize)
    }

    /// Whether `range` is whole blocks.
    fn is_whole(self, range: ByteRange) -> bool {
        self.is_block(range.start()) && self.is_block(range.end())
    }

    /// Whether a buffer and an offset can be used as they are.
    fn fits(self, buf: &[u8], offset: u64) -> bool {
        self.is_block(offset) && buf.as_ptr().addr().is_multiple_of(self.memory)
    }
}

/// Decorator that turns any reads and writes into aligned ones.
#[derive(Debug)]
pub struct AlignedStorage<S> {
    inner: S,
    alignment: Alignment,
    /// Held for writing by what moves the end to or from the middle of a block.
    gate: RwLock<()>,
    in_flight: InFlight,
    pool: Mutex<Vec<PageBuffer>>,
}

impl<S: Storage> AlignedStorage<S> {
    /// Aligns for `inner`. Offsets, lengths and memory are refused unless they are powers of two up to 1 MiB.
    pub fn new(inner: S, alignment: Alignment) -> io::Result<AlignedStorage<S>> {
        let is_usable = |value: u64| value.is_power_of_two() && value <= BOUNCE;
        if !is_usable(alignment.block) || !is_usable(alignment.memory as u64) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the host wants reads and writes aligned in a way that is not supported",
            ));
        }
        let (gate, in_flight, pool) = (RwLock::new(()), InFlight::default(), Mutex::default());
        Ok(AlignedStorage { inner, alignment, gate, in_flight, pool })
    }

    fn exclusive(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `action` on a buffer of `len` bytes of any content.
    fn with_buffer<T>(&self, len: u64, action: impl FnOnce(&mut [u8]) -> T) -> T {
        let len = len as usize;
        let kept = self.lock_pool().pop().filter(|kept| kept.capacity() >= len);
        let mut buffer = kept.unwrap_or_else(|| PageBuffer::aligned(len, self.alignment.memory.max(4096)));
        buffer.resize(len);
        let result = action(&mut buffer);
        let mut pool = self.lock_pool();
        if pool.len() < KEPT_BUFFERS {
            pool.push(buffer);
        }
        result
    }

    fn lock_pool(&self) -> MutexGuard<'_, Vec<PageBuffer>> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the blocks around `wanted`, which is at most [`BOUNCE`] long, and copies what was asked for.
    fn read_around(&self, wanted: ByteRange, into: &mut [u8]) -> io::Result<usize> {
        let blocks = self.alignment.around(wanted);
        let skip = (wanted.start() - blocks.start()) as usize;
        self.with_buffer(blocks.len(), |buffer| {
            let there = self.inner.read_at(buffer, blocks.start())?.saturating_sub(skip).min(into.len());
            into[..there].copy_from_slice(&buffer[skip..skip + there]);
            Ok(there)
        })
    }

    /// Writes the first bytes of `bufs` at `offset`, as many as go through one buffer, and returns how many.
    fn write_around(&self, bufs: &[IoSlice<'_>], offset: u64, total: usize) -> io::Result<usize> {
        // Where there is more, the piece ends with a block, so that the next one reads nothing.
        let end = offset + total as u64;
        let most = self.alignment.floor(offset + BOUNCE);
        let range = ByteRange::between(offset, if end - offset > BOUNCE { most } else { end });
        let blocks = self.alignment.around_write(range)?;
        self.with_buffer(blocks.len(), |buffer| self.write_through(buffer, bufs, range, blocks))?;
        Ok(range.len() as usize)
    }

    fn write_through(
        &self,
        buffer: &mut [u8],
        bufs: &[IoSlice<'_>],
        range: ByteRange,
        blocks: ByteRange,
    ) -> io::Result<()> {
        let fill = |buffer: &mut [u8]| -> io::Result<()> {
            self.read_edges(buffer, range, blocks)?;
            let skip = (range.start() - blocks.start()) as usize;
            gather(bufs, &mut buffer[skip..skip + range.len() as usize]);
            Ok(())
        };
        {
            let _gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
            if blocks.end() == range.end() || blocks.end() <= self.inner.len()? {
                let _alone = self.in_flight.hold(blocks, Sharing::Alone);
                fill(buffer)?;
                return self.inner.write_all_at(buffer, blocks.start());
            }
        }
        let _gate = self.exclusive();
        let len = self.inner.len()?.max(range.end());
        fill(buffer)?;
        let written = self.inner.write_all_at(buffer, blocks.start());
        self.cut_to(len)?;
        written
    }

    /// Takes what was written past `len` for the sake of whole blocks off again.
    fn cut_to(&self, len: u64) -> io::Result<()> {
        if self.inner.len()? > len { self.inner.set_len(len) } else { Ok(()) }
    }

    /// Reads those of the first and the last block that `range` covers in part. What lies past the end is zero.
    fn read_edges(&self, buffer: &mut [u8], range: ByteRange, blocks: ByteRange) -> io::Result<()> {
        let block = self.alignment.block;
        let (head, tail) = (blocks.start() < range.start(), blocks.end() > range.end());
        let read = |into: &mut [u8], offset| {
            let n = self.inner.read_at(into, offset)?;
            into[n..].fill(0);
            io::Result::Ok(())
        };
        if head {
            read(&mut buffer[..block as usize], blocks.start())?;
        }
        if tail && !(head && blocks.len() == block) {
            let last = blocks.len() - block;
            read(&mut buffer[last as usize..], blocks.start() + last)?;
        }
        Ok(())
    }

    /// Makes the parts of blocks at the ends of `range`, which lies within the storage, read as zeroes; `middle` is
    /// left out. The gate is closed.
    fn zero_edges(&self, range: ByteRange, middle: ByteRange) -> io::Result<()> {
        let len = self.inner.len()?;
        let edges = if middle.is_empty() {
            [range, ByteRange::between(range.end(), range.end())]
        } else {
            [ByteRange::between(range.start(), middle.start()), ByteRange::between(middle.end(), range.end())]
        };
        for edge in edges.into_iter().filter(|edge| !edge.is_empty()) {
            let blocks = self.alignment.around_write(edge)?;
            let skip = (edge.start() - blocks.start()) as usize;
            let written = self.with_buffer(blocks.len(), |buffer| {
                self.read_edges(buffer, edge, blocks)?;
                buffer[skip..skip + edge.len() as usize].fill(0);
                self.inner.write_all_at(buffer, blocks.start())
            });
            self.cut_to(len)?;
            written?;
        }
        Ok(())
    }
}

impl<S: Storage> Storage for AlignedStorage<S> {
    fn len(&self) -> io::Result<u64> {
        let _gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        self.inner.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let _gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        let room = self.inner.len()?.saturating_sub(offset).min(buf.len() as u64) as usize;
        let buf = &mut buf[..room];
        if self.alignment.fits(buf, offset) && self.alignment.is_block(room as u64) {
            return self.inner.read_at(buf, offset);
        }
        let mut done = 0;
        while done < room {
            let at = offset + done as u64;
            let end = self.alignment.floor(at + BOUNCE).min(offset + room as u64);
            let wanted = ByteRange::between(at, end);
            match self.read_around(wanted, &mut buf[done..done + wanted.len() as usize])? {
                0 => break,
                n => done += n,
            }
        }
        Ok(done)
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        let total: usize = bufs.iter().map(|buf| buf.len()).sum();
        if bufs.len() < 2 || total as u64 > BOUNCE {
            // One buffer after the other, ending at the first that is short.
            let mut done = 0;
            for buf in bufs {
                let n = self.read_at(buf, offset.saturating_add(done as u64))?;
                done += n;
                if n < buf.len() {
                    break;
                }
            }
            return Ok(done);
        }
        let mut joined = vec![0; total];
        let n = self.read_at(&mut joined, offset)?;
        let mut rest = &joined[..n];
        for buf in bufs {
            let (first, after) = rest.split_at(rest.len().min(buf.len()));
            buf[..first.len()].copy_from_slice(first);
            rest = after;
        }
        Ok(n)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        write_range(offset, buf.len())?;
        if buf.is_empty() {
            return Ok(0);
        }
        let whole = self.alignment.floor(buf.len() as u64);
        if whole == 0 || !self.alignment.fits(buf, offset) {
            return self.write_around(&[IoSlice::new(buf)], offset, buf.len());
        }
        let _gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        let blocks = ByteRange::between(offset, offset + whole);
        let _others = self.in_flight.hold(blocks, Sharing::WithWholeBlocks);
        self.inner.write_at(&buf[..whole as usize], offset)
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let total = bufs.iter().map(|buf| buf.len()).sum();
        write_range(offset, total)?;
        match bufs {
            [] => Ok(0),
            [only] => self.write_at(only, offset),
            _ if total == 0 => Ok(0),
            _ => self.write_around(bufs, offset, total),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        check_len(len)?;
        let _gate = self.exclusive();
        self.inner.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    fn is_read_only(&self) -> bool {
        self.inner.is_read_only()
    }

    fn write_zeroes(&self, range: ByteRange) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        if self.alignment.is_whole(range) {
            let _gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
            if range.end() <= self.inner.len()? {
                let _others = self.in_flight.hold(range, Sharing::WithWholeBlocks);
                return self.inner.write_zeroes(range);
            }
        }
        let _gate = self.exclusive();
        let len = self.inner.len()?;
        if len < range.end() {
            // What is added reads as zeroes.
            self.inner.set_len(range.end())?;
        }
        let there = range.intersection(ByteRange::between(0, len));
        let middle = there.shrink_to(self.alignment.block);
        if !middle.is_empty() {
            self.inner.write_zeroes(middle)?;
        }
        self.zero_edges(there, middle)
    }

    fn punch_hole(&self, range: ByteRange) -> io::Result<bool> {
        if self.alignment.is_whole(range) {
            let _gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
            if range.end() <= self.inner.len()? {
                let _others = self.in_flight.hold(range, Sharing::WithWholeBlocks);
                return self.inner.punch_hole(range);
            }
        }
        let _gate = self.exclusive();
        let len = self.inner.len()?;
        let range = range.intersection(ByteRange::between(0, len));
        // The last block is whole if nothing of it stays.
        let end = if range.end() == len { len } else { self.alignment.floor(range.end()) };
        let middle = ByteRange::between(self.alignment.ceil(range.start()), end);
        if !self.inner.punch_hole(middle)? {
            return Ok(false);
        }
        self.zero_edges(range, middle)?;
        Ok(true)
    }

    fn allocate(&self, range: ByteRange) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let _gate = self.exclusive();
        let len = self.inner.len()?;
        let blocks = self.alignment.around_write(range)?;
        // An inner storage that writes zeroes in place of allocating starts at the end, which must be a block's then.
        if blocks.end() > len && !self.alignment.is_block(len) {
            self.inner.set_len(self.alignment.ceil(len))?;
        }
        let allocated = self.inner.allocate(blocks);
        self.cut_to(if allocated.is_ok() { len.max(range.end()) } else { len })?;
        allocated
    }

    fn extent_at(&self, offset: u64) -> io::Result<Option<StorageExtent>> {
        let _gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        self.inner.extent_at(offset)
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.inner.allocated_bytes()
    }
}

/// Copies the first bytes of `bufs`, joined, until `into` is full.
fn gather(bufs: &[IoSlice<'_>], into: &mut [u8]) {
    let mut rest = into;
    for buf in bufs {
        let n = buf.len().min(rest.len());
        rest[..n].copy_from_slice(&buf[..n]);
        rest = &mut rest[n..];
    }
}

/// With whom a write to some blocks may run at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sharing {
    /// With others that write whole blocks.
    WithWholeBlocks,
    /// With nobody: it puts back bytes that it has read.
    Alone,
}

/// The blocks that are being written.
#[derive(Debug, Default)]
struct InFlight {
    held: Mutex<Vec<(ByteRange, Sharing)>>,
    released: Condvar,
}

/// The right to write some blocks; dropping it gives it back.
#[derive(Debug)]
#[must_use]
struct Held<'a> {
    of: &'a InFlight,
    entry: (ByteRange, Sharing),
}

impl InFlight {
    /// Waits until nobody is left that must not run at the same time.
    fn hold(&self, blocks: ByteRange, sharing: Sharing) -> Held<'_> {
        let is_in_the_way = |(other, theirs): &(ByteRange, Sharing)| {
            let both_whole = sharing == Sharing::WithWholeBlocks && *theirs == Sharing::WithWholeBlocks;
            !both_whole && other.overlaps(blocks)
        };
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let mut held = self
            .released
            .wait_while(held, |held| held.iter().any(is_in_the_way))
            .unwrap_or_else(PoisonError::into_inner);
        let entry = (blocks, sharing);
        held.push(entry);
        Held { of: self, entry }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut held = self.of.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = held.iter().position(|entry| *entry == self.entry) {
            held.swap_remove(at);
        }
        drop(held);
        self.of.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{MemoryStorage, conformance};

    /// Refuses what is not aligned, as a file does that bypasses the host's cache.
    #[derive(Debug)]
    struct Strict {
        memory: MemoryStorage,
        alignment: Alignment,
        can_punch: bool,
    }

    impl Strict {
        fn new(alignment: Alignment) -> Strict {
            Strict { memory: MemoryStorage::new(), alignment, can_punch: true }
        }

        fn check(&self, buf: &[u8], offset: u64) -> io::Result<()> {
            let Alignment { block, memory } = self.alignment;
            let is_aligned = offset.is_multiple_of(block)
                && (buf.len() as u64).is_multiple_of(block)
                && buf.as_ptr().addr().is_multiple_of(memory);
            if is_aligned { Ok(()) } else { Err(io::Error::other("not aligned")) }
        }
    }

    impl Storage for Strict {
        fn len(&self) -> io::Result<u64> {
            self.memory.len()
        }

        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            self.check(buf, offset)?;
            self.memory.read_at(buf, offset)
        }

        fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
            self.check(buf, offset)?;
            // Time for others to come in between a read and the write that puts back what it read.
            std::thread::yield_now();
            self.memory.write_at(buf, offset)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.memory.set_len(len)
        }

        fn sync(&self) -> io::Result<()> {
            Ok(())
        }

        fn is_read_only(&self) -> bool {
            false
        }

        fn write_zeroes(&self, range: ByteRange) -> io::Result<()> {
            assert!(self.alignment.is_whole(range));
            self.memory.write_zeroes(range)
        }

        fn punch_hole(&self, range: ByteRange) -> io::Result<bool> {
            if self.can_punch { self.memory.punch_hole(range) } else { Ok(false) }
        }

        fn allocate(&self, range: ByteRange) -> io::Result<()> {
            assert!(self.alignment.is_whole(range));
            self.memory.allocate(range)
        }

        fn extent_at(&self, offset: u64) -> io::Result<Option<StorageExtent>> {
            self.memory.extent_at(offset)
        }
    }

    const ALIGNMENTS: [Alignment; 4] = [
        Alignment { block: 1, memory: 1 },
        Alignment { block: 512, memory: 4 },
        Alignment { block: 4096, memory: 512 },
        Alignment { block: 65536, memory: 8192 },
    ];

    #[test]
    fn it_conforms_whatever_the_alignment() {
        for alignment in ALIGNMENTS {
            conformance::run(&mut || {
                Box::new(AlignedStorage::new(Strict::new(alignment), alignment).unwrap())
            });
            conformance::run(&mut || {
                let inner = Strict { can_punch: false, ..Strict::new(alignment) };
                Box::new(AlignedStorage::new(inner, alignment).unwrap())
            });
        }
    }

    #[test]
    fn alignments_that_no_host_has_are_refused() {
        for (block, memory) in [(0, 1), (1, 0), (513, 1), (512, 3), (1 << 21, 1)] {
            assert!(AlignedStorage::new(MemoryStorage::new(), Alignment { block, memory }).is_err());
        }
    }

    /// Eight threads share every block: each owns an eighth of it and writes nothing else.
    #[test]
    fn neighbours_in_one_block_do_not_lose_each_others_bytes() {
        let alignment = Alignment { block: 4096, memory: 512 };
        let storage = AlignedStorage::new(Strict::new(alignment), alignment).unwrap();
        storage.set_len(3 * 4096 + 700).unwrap();
        let slots: Vec<u64> = (0..3 * 8).map(|slot| slot * 512).collect();
        std::thread::scope(|scope| {
            for owner in 0..8_u8 {
                let (storage, slots) = (&storage, &slots);
                scope.spawn(move || {
                    for round in 1..=60_u8 {
                        for slot in slots.iter().skip(usize::from(owner)).step_by(8) {
                            storage.write_all_at(&[owner * 16 + round % 16; 512], *slot).unwrap();
                            let mut seen = [0; 512];
                            storage.read_exact_at(&mut seen, *slot).unwrap();
                            assert_eq!(seen, [owner * 16 + round % 16; 512], "slot {slot} of {owner}");
                        }
                    }
                });
            }
            // And one that grows the storage within a block, again and again, and cuts it.
            scope.spawn(|| {
                for round in 0..60 {
                    storage.write_all_at(&[1; 10], 3 * 4096 + 700 + round * 7).unwrap();
                    assert!(!storage.len().unwrap().is_multiple_of(4096));
                }
            });
        });
        let mut bytes = vec![0; 3 * 4096];
        storage.read_exact_at(&mut bytes, 0).unwrap();
        for (slot, piece) in bytes.chunks(512).enumerate() {
            let expected = (slot % 8) as u8 * 16 + 60 % 16;
            assert!(piece.iter().all(|byte| *byte == expected), "slot {slot}");
        }
        assert_eq!(storage.len().unwrap(), 3 * 4096 + 700 + 59 * 7 + 10);
    }

    #[test]
    fn a_write_of_whole_blocks_from_aligned_memory_is_not_copied() {
        let alignment = Alignment { block: 512, memory: 512 };
        let storage = AlignedStorage::new(Strict::new(alignment), alignment).unwrap();
        let mut buffer = PageBuffer::new(5000);
        let bytes = &mut *buffer;
        bytes.fill(7);
        assert_eq!(storage.write_at(bytes, 512).unwrap(), 4608, "the rest takes another call");
        assert!(storage.lock_pool().is_empty());
        assert_eq!(storage.read_at(&mut bytes[..4096], 1024).unwrap(), 4096);
        assert!(storage.lock_pool().is_empty());
        storage.write_all_at(bytes, 512).unwrap();
        assert_eq!(storage.len().unwrap(), 5512);
        assert_eq!(storage.lock_pool().len(), 1);
    }

    #[test]
    fn a_failed_write_within_the_last_block_leaves_the_length() {
        use crate::storage::{Fault, FaultyStorage, OperationKind};
        let inner = FaultyStorage::new(MemoryStorage::with_bytes([1; 1000]));
        let storage = AlignedStorage::new(inner, Alignment { block: 512, memory: 1 }).unwrap();
        storage.inner.inject(Fault::short(1024).on(&[OperationKind::Write]));
        storage.inner.inject(Fault::errno(28).on(&[OperationKind::Write]).after(1));
        let error = storage.write_at(&[2; 600], 500).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(storage.len().unwrap() <= 1100);
    }
}
