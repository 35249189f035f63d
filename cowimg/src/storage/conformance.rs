//! What every [`Storage`] promises, as one suite of assertions. Run it on a storage of your own:
//!
//! ```
//! use cowimg::storage::{MemoryStorage, conformance};
//!
//! conformance::run(&mut || Box::new(MemoryStorage::new()));
//! ```
//!
//! Each function below is one promise, and starts with a fresh storage.

use std::io::{IoSlice, IoSliceMut};

use super::{MemoryStorage, Storage, StorageExt, StorageExtentKind};
use crate::range::ByteRange;

type Make<'a> = &'a mut dyn FnMut() -> Box<dyn Storage>;

/// Runs the whole suite. `make` gives a storage of no bytes, open for writing, that shares nothing with those that it
/// gave before. At most a few MiB are written to each.
///
/// # Panics
///
/// Where the storage breaks a promise.
pub fn run(make: &mut dyn FnMut() -> Box<dyn Storage>) {
    let promises: [fn(Make<'_>); 18] = [
        fresh_storage_is_empty_and_writable,
        written_bytes_are_read_back,
        reads_are_short_only_at_the_end,
        a_gap_before_a_write_reads_as_zeroes,
        a_cut_forgets_the_bytes_past_it,
        zeroes_replace_bytes_and_grow_the_storage,
        a_punched_hole_reads_as_zeroes_and_keeps_the_length,
        allocation_keeps_bytes_and_grows_the_storage,
        extents_cover_everything_and_holes_are_zero,
        vectored_io_is_io_on_the_joined_buffers,
        more_buffers_than_a_host_takes_at_once_are_fine,
        operations_on_no_bytes_change_nothing,
        offsets_that_no_file_has_are_refused,
        sync_keeps_everything_in_place,
        disjoint_writers_do_not_disturb_each_other,
        growing_by_zeroes_does_not_cut_other_writers,
        large_transfers_are_whole,
        copies_are_what_the_source_has,
    ];
    for promise in promises {
        promise(make);
    }
}

/// Runs the part of the suite that a read-only storage can pass. The storage holds `expected`.
///
/// # Panics
///
/// Where the storage breaks a promise.
pub fn run_read_only(storage: &dyn Storage, expected: &[u8]) {
    let len = expected.len() as u64;
    assert!(storage.is_read_only());
    assert_eq!(storage.len().unwrap_or(u64::MAX), len);
    assert_same(&content(storage), expected, "at first");
    assert_reads_end_at(storage, expected);
    assert_extents_cover(storage);
    assert!(storage.write_at(&[1], 0).is_err(), "a write was taken");
    assert!(storage.write_vectored_at(&[IoSlice::new(&[1])], 0).is_err(), "a vectored write was taken");
    assert!(storage.set_len(len / 2).is_err(), "a cut was taken");
    assert!(storage.write_zeroes(ByteRange::between(0, 1)).is_err(), "zeroing was taken");
    assert!(!matches!(storage.punch_hole(ByteRange::between(0, 1)), Ok(true)), "a hole was punched");
    assert!(storage.allocate(ByteRange::between(len, len + 1)).is_err(), "allocation was taken");
    assert_same(&content(storage), expected, "after refused changes");
}

/// All the bytes, read in pieces that are not aligned to anything.
fn content(storage: &dyn Storage) -> Vec<u8> {
    let len = storage.len().expect("the length is known") as usize;
    let mut bytes = vec![0xee; len];
    for (i, piece) in bytes.chunks_mut(70_001).enumerate() {
        storage.read_exact_at(piece, i as u64 * 70_001).expect("bytes within the length can be read");
    }
    bytes
}

fn len_of(storage: &dyn Storage) -> u64 {
    storage.len().expect("the length is known")
}

fn write(storage: &dyn Storage, bytes: &[u8], offset: u64) {
    storage.write_all_at(bytes, offset).expect("a write is taken");
}

/// Says where the two differ, not all that they hold.
fn assert_same(found: &[u8], expected: &[u8], when: &str) {
    assert_eq!(found.len(), expected.len(), "the length, {when}");
    if let Some(at) = found.iter().zip(expected).position(|(found, expected)| found != expected) {
        panic!("byte {at} is {:#x} and should be {:#x}, {when}", found[at], expected[at]);
    }
}

/// Bytes that differ from their neighbours, from other seeds', and from zero.
fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 31 + i / 251 + usize::from(seed) * 7) % 255) as u8 + 1).collect()
}

fn assert_reads_end_at(storage: &dyn Storage, expected: &[u8]) {
    let len = expected.len();
    let mut buf = vec![0xee; 8192];
    for start in [0, len / 3, len.saturating_sub(1), len, len + 1, len + 5000] {
        let n = storage.read_at(&mut buf, start as u64).expect("reads past the end are no error");
        let there = expected.get(start..).unwrap_or(&[]);
        let there = &there[..there.len().min(buf.len())];
        assert_same(&buf[..n], there, &format!("in a read of {} bytes at {start} of {len}", buf.len()));
    }
    for offset in [u64::MAX, u64::MAX - 100, ByteRange::MAX_END, ByteRange::MAX_END + 1, 1 << 62] {
        let n = storage.read_at(&mut buf, offset).expect("reads far past the end are no error");
        assert_eq!(n, 0, "bytes at {offset:#x}");
        let n = storage
            .read_vectored_at(&mut [IoSliceMut::new(&mut buf)], offset)
            .expect("reads far past the end are no error");
        assert_eq!(n, 0, "bytes at {offset:#x}");
    }
    let past = storage.read_exact_at(&mut buf, len as u64);
    assert_eq!(past.map_err(|error| error.kind()), Err(std::io::ErrorKind::UnexpectedEof));
    storage.read_padded_at(&mut buf, len as u64).expect("a padded read is taken");
    assert!(buf.iter().all(|byte| *byte == 0), "what a padded read adds is zero");
}

/// Extents follow each other without a gap from the first byte to the last, and holes are zero.
fn assert_extents_cover(storage: &dyn Storage) {
    let len = len_of(storage);
    let mut offset = 0;
    while let Some(extent) = storage.extent_at(offset).expect("extents can be asked for") {
        assert_eq!(extent.range.start(), offset, "an extent starts where it was asked for");
        assert!(!extent.range.is_empty(), "an extent at {offset} is empty");
        assert!(extent.range.end() <= len, "{} passes the end {len}", extent.range);
        if extent.kind == StorageExtentKind::Hole {
            let mut bytes = vec![0xee; extent.range.len().min(1 << 20) as usize];
            storage.read_exact_at(&mut bytes, offset).expect("holes can be read");
            assert!(bytes.iter().all(|byte| *byte == 0), "the hole {} is not zero", extent.range);
        }
        // Any offset may be asked for, not only a start.
        let middle = offset + extent.range.len() / 2;
        let half =
            storage.extent_at(middle).expect("extents can be asked for").expect("a byte has an extent");
        assert_eq!(half.range.start(), middle);
        offset = extent.range.end();
    }
    assert_eq!(offset, len, "extents end before the storage");
    for past in [len, len + 1, ByteRange::MAX_END, u64::MAX] {
        assert_eq!(storage.extent_at(past).expect("extents can be asked for"), None, "an extent at {past}");
    }
}

fn fresh_storage_is_empty_and_writable(make: Make<'_>) {
    let storage = make();
    assert_eq!(len_of(&*storage), 0);
    assert!(storage.is_empty().expect("the length is known"));
    assert!(!storage.is_read_only());
    assert_reads_end_at(&*storage, &[]);
    assert_extents_cover(&*storage);
}

fn written_bytes_are_read_back(make: Make<'_>) {
    let storage = make();
    let mut expected = pattern(1, 20_000);
    write(&*storage, &expected, 0);
    for (seed, at, len) in [(2, 0, 1), (3, 4095, 2), (4, 4096, 4096), (5, 511, 9000), (6, 19_999, 1)] {
        let bytes = pattern(seed, len);
        write(&*storage, &bytes, at as u64);
        expected[at..at + len].copy_from_slice(&bytes);
    }
    assert_same(&content(&*storage), &expected, "after all writes");
}

fn reads_are_short_only_at_the_end(make: Make<'_>) {
    for len in [1, 511, 512, 4096, 10_000] {
        let storage = make();
        let expected = pattern(1, len);
        write(&*storage, &expected, 0);
        assert_reads_end_at(&*storage, &expected);
    }
}

fn a_gap_before_a_write_reads_as_zeroes(make: Make<'_>) {
    let storage = make();
    write(&*storage, &[1, 2, 3], 0);
    write(&*storage, &[4], 300_000);
    let mut expected = vec![0; 300_001];
    expected[..3].copy_from_slice(&[1, 2, 3]);
    expected[300_000] = 4;
    assert_same(&content(&*storage), &expected, "after all writes");
    assert_extents_cover(&*storage);
}

fn a_cut_forgets_the_bytes_past_it(make: Make<'_>) {
    for cut in [0, 1, 4096, 5000, 9999, 10_000] {
        let storage = make();
        let mut expected = pattern(1, 10_000);
        write(&*storage, &expected, 0);
        storage.set_len(cut).expect("a cut is taken");
        assert_eq!(len_of(&*storage), cut);
        storage.set_len(20_000).expect("growth is taken");
        expected[cut as usize..].fill(0);
        expected.resize(20_000, 0);
        assert_same(&content(&*storage), &expected, &format!("after a cut to {cut}"));
        assert_extents_cover(&*storage);
    }
}

fn zeroes_replace_bytes_and_grow_the_storage(make: Make<'_>) {
    for (start, end) in [(0, 1), (100, 200), (4096, 8192), (1, 9999), (9000, 30_000), (15_000, 15_001)] {
        let storage = make();
        let mut expected = pattern(1, 10_000);
        write(&*storage, &expected, 0);
        storage.write_zeroes(ByteRange::between(start, end)).expect("zeroing is taken");
        expected.resize(expected.len().max(end as usize), 0);
        expected[start as usize..end as usize].fill(0);
        assert_same(&content(&*storage), &expected, &format!("after zeroes over {start}..{end}"));
        assert_extents_cover(&*storage);
    }
}

fn a_punched_hole_reads_as_zeroes_and_keeps_the_length(make: Make<'_>) {
    let cases = [
        (0, 1),
        (100, 200),
        (4096, 8192),
        (1, 99_999),
        (90_000, 300_000),
        (100_000, 100_001),
        (1 << 40, 1 << 41),
    ];
    for (start, end) in cases {
        let storage = make();
        let mut expected = pattern(1, 100_000);
        write(&*storage, &expected, 0);
        let done = storage.punch_hole(ByteRange::between(start, end)).expect("punching is no error");
        if done {
            let within = |at: u64| at.min(100_000) as usize;
            expected[within(start)..within(end)].fill(0);
        }
        assert_same(
            &content(&*storage),
            &expected,
            &format!("after a hole at {start}..{end} (done: {done})"),
        );
        assert_extents_cover(&*storage);
        // A hole takes bytes again.
        write(&*storage, &[7; 50], 120);
        expected[120..170].fill(7);
        assert_same(&content(&*storage), &expected, "after all writes");
    }
}

fn allocation_keeps_bytes_and_grows_the_storage(make: Make<'_>) {
    for (start, end) in [(0, 10), (4096, 8192), (9000, 50_000), (60_000, 70_000)] {
        let storage = make();
        let mut expected = pattern(1, 10_000);
        write(&*storage, &expected, 0);
        storage.allocate(ByteRange::between(start, end)).expect("allocation is taken");
        expected.resize(expected.len().max(end as usize), 0);
        assert_same(&content(&*storage), &expected, &format!("after allocating {start}..{end}"));
        assert_extents_cover(&*storage);
    }
}

fn extents_cover_everything_and_holes_are_zero(make: Make<'_>) {
    let storage = make();
    let mib = 1 << 20;
    write(&*storage, &pattern(1, 100_000), 0);
    write(&*storage, &pattern(2, 5), mib);
    write(&*storage, &pattern(3, 200_000), 2 * mib + 77);
    storage.set_len(4 * mib + 1).expect("growth is taken");
    assert_extents_cover(&*storage);
    _ = storage.punch_hole(ByteRange::between(2 * mib, 2 * mib + 100_000)).expect("punching is no error");
    assert_extents_cover(&*storage);
    storage.write_zeroes(ByteRange::between(50_000, mib)).expect("zeroing is taken");
    assert_extents_cover(&*storage);
    storage.allocated_bytes().expect("the space is known");
}

fn vectored_io_is_io_on_the_joined_buffers(make: Make<'_>) {
    let storage = make();
    let parts = [pattern(1, 700), Vec::new(), pattern(2, 1), pattern(3, 9000), Vec::new()];
    let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    storage.write_all_vectored_at(&mut slices, 300).expect("a vectored write is taken");
    let mut expected = vec![0; 300];
    expected.extend(parts.iter().flatten());
    assert_same(&content(&*storage), &expected, "after all writes");

    let (mut first, mut none, mut second, mut past) =
        (vec![0xee; 4000], Vec::new(), vec![0xee; 6000], vec![0xee; 9]);
    let n = storage
        .read_vectored_at(
            &mut [
                IoSliceMut::new(&mut none),
                IoSliceMut::new(&mut first),
                IoSliceMut::new(&mut second),
                IoSliceMut::new(&mut past),
            ],
            1,
        )
        .expect("a vectored read is taken");
    assert_eq!(n, expected.len() - 1);
    let read: Vec<u8> = [first, second].concat();
    assert_same(&read[..n], &expected[1..], "in a vectored read");
}

fn more_buffers_than_a_host_takes_at_once_are_fine(make: Make<'_>) {
    let storage = make();
    let expected = pattern(1, 3000);
    let mut slices: Vec<IoSlice<'_>> = vec![IoSlice::new(&[]); 2000];
    slices.extend(expected.chunks(1).map(IoSlice::new));
    storage.write_all_vectored_at(&mut slices, 0).expect("a vectored write is taken");
    let mut read = vec![0; 3000];
    let mut slices: Vec<IoSliceMut<'_>> = read.chunks_mut(1).map(IoSliceMut::new).collect();
    assert_eq!(storage.read_vectored_at(&mut slices, 0).expect("a vectored read is taken"), 3000);
    assert_same(&read, &expected, "in a vectored read");
}

fn operations_on_no_bytes_change_nothing(make: Make<'_>) {
    let storage = make();
    write(&*storage, &[1, 2, 3], 0);
    for offset in [0, 2, 3, 1000] {
        let none = ByteRange::between(offset, offset);
        assert_eq!(storage.write_at(&[], offset).expect("an empty write is taken"), 0);
        assert_eq!(storage.write_vectored_at(&[], offset).expect("an empty write is taken"), 0);
        let empty = [IoSlice::new(&[]), IoSlice::new(&[])];
        assert_eq!(storage.write_vectored_at(&empty, offset).expect("an empty write is taken"), 0);
        assert_eq!(storage.read_at(&mut [], offset).expect("an empty read is taken"), 0);
        assert_eq!(storage.read_vectored_at(&mut [], offset).expect("an empty read is taken"), 0);
        storage.write_all_at(&[], offset).expect("an empty write is taken");
        storage.write_all_vectored_at(&mut empty.clone(), offset).expect("an empty write is taken");
        storage.read_exact_at(&mut [], offset).expect("an empty read is taken");
        storage.write_zeroes(none).expect("zeroing nothing is taken");
        storage.allocate(none).expect("allocating nothing is taken");
        _ = storage.punch_hole(none).expect("punching nothing is taken");
        assert_same(&content(&*storage), &[1, 2, 3], &format!("after operations on no bytes at {offset}"));
    }
}

fn offsets_that_no_file_has_are_refused(make: Make<'_>) {
    let storage = make();
    write(&*storage, &[1, 2, 3], 0);
    let max = ByteRange::MAX_END;
    for offset in [max - 1, max, max + 1, u64::MAX - 1, u64::MAX] {
        assert!(storage.write_at(&[9, 9], offset).is_err(), "a write at {offset:#x} was taken");
        let buffers = [IoSlice::new(&[9]), IoSlice::new(&[9])];
        assert!(storage.write_vectored_at(&buffers, offset).is_err(), "a write at {offset:#x} was taken");
        assert!(storage.write_all_at(&[9, 9], offset).is_err(), "a write at {offset:#x} was taken");
    }
    for len in [max + 1, u64::MAX] {
        assert!(storage.set_len(len).is_err(), "the length {len:#x} was taken");
    }
    // Storage that can be this long may punch it; nobody may change what is there.
    _ = storage.punch_hole(ByteRange::between(3, max));
    assert_reads_end_at(&*storage, &[1, 2, 3]);
    assert_extents_cover(&*storage);
    assert_same(&content(&*storage), &[1, 2, 3], "after refused changes");
}

fn sync_keeps_everything_in_place(make: Make<'_>) {
    let storage = make();
    storage.sync().expect("empty storage can be synced");
    write(&*storage, &pattern(1, 5000), 0);
    storage.sync().expect("a sync is taken");
    storage.set_len(6000).expect("growth is taken");
    storage.sync().expect("a sync is taken");
    let mut expected = pattern(1, 5000);
    expected.resize(6000, 0);
    assert_same(&content(&*storage), &expected, "after all writes");
}

fn disjoint_writers_do_not_disturb_each_other(make: Make<'_>) {
    const WRITERS: usize = 8;
    const PIECE: usize = 1000;
    const ROUNDS: usize = 40;
    let storage = make();
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let storage = &*storage;
            scope.spawn(move || {
                // Interleaved, so that writers meet in the same pages and grow the storage in no order.
                for round in (0..ROUNDS).rev() {
                    let at = (round * WRITERS + writer) * PIECE;
                    write(storage, &pattern(writer as u8, PIECE), at as u64);
                }
            });
        }
    });
    let all: Vec<u8> = (0..WRITERS).flat_map(|writer| pattern(writer as u8, PIECE)).collect();
    assert_same(&content(&*storage), &all.repeat(ROUNDS), "after concurrent writes");
}

fn growing_by_zeroes_does_not_cut_other_writers(make: Make<'_>) {
    const ROUNDS: u64 = 60;
    const PIECE: u64 = 4096;
    let storage = make();
    std::thread::scope(|scope| {
        let storage = &*storage;
        scope.spawn(move || {
            for round in 0..ROUNDS {
                let at = 2 * round * PIECE;
                storage.write_zeroes(ByteRange::between(at, at + PIECE)).expect("zeroing is taken");
            }
        });
        scope.spawn(move || {
            for round in 0..ROUNDS {
                write(storage, &pattern(3, PIECE as usize), (2 * round + 1) * PIECE);
            }
        });
    });
    let mut both = vec![0; PIECE as usize];
    both.extend(pattern(3, PIECE as usize));
    assert_same(&content(&*storage), &both.repeat(ROUNDS as usize), "after concurrent growth");
}

fn large_transfers_are_whole(make: Make<'_>) {
    let storage = make();
    let expected = pattern(1, 3_000_001);
    write(&*storage, &expected, 11);
    let mut read = vec![0; expected.len()];
    assert_eq!(storage.read_at(&mut read, 11).expect("a read is taken"), expected.len());
    assert_same(&read, &expected, "in a large read");
}

fn copies_are_what_the_source_has(make: Make<'_>) {
    const LEN: usize = 3 << 20;
    let cases = [
        (0, 0, 10_000),
        (100, 4096, 9000),
        (4095, 1, 20_000),
        (0, 30_000, 40_000),
        // Past the end of the source, in part and in whole: zeroes, over what was there too.
        (LEN as u64 - 700, 5000, 14_000),
        (LEN as u64 + 50_000, 100, 300),
        (u64::MAX - 10, 100, 300),
        (7, 30_000, 30_000),
        (511, 4096, 4096 + (2 << 20) + 77),
    ];
    for (from, start, end) in cases {
        let (source, in_memory, target) = (make(), MemoryStorage::new(), make());
        let mut there = pattern(2, LEN);
        // A hole in the middle, which the target may have as well.
        there[1 << 20..2 << 20].fill(0);
        for storage in [&*source, &in_memory] {
            write(storage, &there[..1 << 20], 0);
            write(storage, &there[2 << 20..], 2 << 20);
            let mut expected = pattern(1, 15_000);
            target.set_len(0).expect("a cut is taken");
            write(&*target, &expected, 0);
            target.copy_from(storage, from, ByteRange::between(start, end)).expect("a copy is taken");
            if end > start {
                expected.resize(expected.len().max(end as usize), 0);
            }
            for (at, byte) in (start..end).enumerate() {
                let from = usize::try_from(from).ok().and_then(|from| from.checked_add(at));
                expected[byte as usize] = from.and_then(|from| there.get(from)).copied().unwrap_or(0);
            }
            let when = format!("after a copy from {from} to {start}..{end}");
            assert_same(&content(&*target), &expected, &when);
            assert_same(&content(storage), &there, "the source, after a copy");
            assert_extents_cover(&*target);
            // What the two may share they share in silence.
            write(&*target, &[9; 50], start + 20);
            assert_same(&content(storage), &there, "the source, after a write to the copy");
        }
    }
    let storage = make();
    let mut expected = pattern(1, 20_000);
    write(&*storage, &expected, 0);
    storage.copy_from(&*storage, 1000, ByteRange::between(20_000, 25_000)).expect("a copy is taken");
    expected.extend_from_within(1000..6000);
    assert_same(&content(&*storage), &expected, "after a copy within the storage");
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

    use super::*;
    use crate::storage::StorageExtent;

    /// Memory with one of the faults that implementations have.
    #[derive(Debug, Default)]
    struct Broken {
        memory: MemoryStorage,
        fault: Fault,
        len: AtomicU64,
    }

    #[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
    enum Fault {
        #[default]
        None,
        CutBytesComeBack,
        EverythingIsAHole,
        ReadsPastTheEndFail,
        ZeroesStopAtTheEnd,
        CopiesStopAtTheSourcesEnd,
    }

    impl Storage for Broken {
        fn len(&self) -> io::Result<u64> {
            Ok(self.len.load(SeqCst))
        }

        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            let room = self.len()?.saturating_sub(offset).min(buf.len() as u64) as usize;
            if room == 0 && !buf.is_empty() && self.fault == Fault::ReadsPastTheEndFail {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.memory.read_padded_at(&mut buf[..room], offset)?;
            Ok(room)
        }

        fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
            let n = self.memory.write_at(buf, offset)?;
            if n > 0 {
                self.len.fetch_max(offset + n as u64, SeqCst);
            }
            Ok(n)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            if self.fault != Fault::CutBytesComeBack {
                self.memory.set_len(len)?;
            }
            crate::storage::check_len(len)?;
            self.len.store(len, SeqCst);
            Ok(())
        }

        fn sync(&self) -> io::Result<()> {
            Ok(())
        }

        fn is_read_only(&self) -> bool {
            false
        }

        fn write_zeroes(&self, range: ByteRange) -> io::Result<()> {
            let end = range.end().min(self.len()?);
            let range = if self.fault == Fault::ZeroesStopAtTheEnd {
                ByteRange::between(range.start(), end)
            } else {
                range
            };
            crate::storage::ext::write_zero_bytes(self, range)
        }

        fn copy_from(&self, source: &dyn Storage, from: u64, to: ByteRange) -> io::Result<()> {
            let room = source.len()?.saturating_sub(from);
            let to = match self.fault {
                Fault::CopiesStopAtTheSourcesEnd => {
                    ByteRange::between(to.start(), to.end().min(to.start() + room))
                }
                _ => to,
            };
            crate::storage::ext::copy_bytes(self, source, from, to)
        }

        fn extent_at(&self, offset: u64) -> io::Result<Option<StorageExtent>> {
            let kind = match self.fault {
                Fault::EverythingIsAHole => StorageExtentKind::Hole,
                _ => StorageExtentKind::Data,
            };
            let range = ByteRange::between(offset, self.len()?);
            Ok((!range.is_empty()).then_some(StorageExtent { range, kind }))
        }
    }

    fn passes(fault: Fault) -> bool {
        let suite = || run(&mut || Box::new(Broken { fault, ..Broken::default() }));
        std::panic::catch_unwind(suite).is_ok()
    }

    #[test]
    fn broken_promises_are_found() {
        assert!(passes(Fault::None));
        assert!(!passes(Fault::CutBytesComeBack));
        assert!(!passes(Fault::EverythingIsAHole));
        assert!(!passes(Fault::ReadsPastTheEndFail));
        assert!(!passes(Fault::ZeroesStopAtTheEnd));
        assert!(!passes(Fault::CopiesStopAtTheSourcesEnd));
    }
}
