//! Storage that fails on request and remembers what a power cut could leave of it: for tests of engines and of whole
//! programs.
//!
//! Start at [`FaultyStorage`]. [`fault`] says which operations fail, [`journal`] what a crash leaves.

use std::io::{self, IoSlice, IoSliceMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{MemoryStorage, Storage, StorageExtent};
use crate::range::ByteRange;

mod fault;
mod journal;

use fault::{Armed, Verdict};
pub use fault::{Fault, Operation, OperationKind};
pub use journal::CrashChoice;
use journal::Journal;

/// Passes everything on to another storage, and on top of that
///
/// * fails or shortens the operations that a [`Fault`] picks ([`FaultyStorage::inject`]);
/// * keeps a log of every change and sync, so that a test can assert in which order they went out
///   ([`FaultyStorage::log`]);
/// * makes, for any moment of that log, the storage that a machine could find after losing power at that moment
///   ([`FaultyStorage::crash_at`]).
///
/// ```
/// use cowimg::storage::{CrashChoice, FaultyStorage, MemoryStorage, Storage};
///
/// let storage = FaultyStorage::new(MemoryStorage::new());
/// storage.write_at(b"kept", 0)?;
/// storage.sync()?;
/// storage.write_at(b"lost", 0)?;
/// assert_eq!(storage.crash(CrashChoice::Synced).to_vec(), b"kept");
/// assert_eq!(storage.crash(CrashChoice::All).to_vec(), b"lost");
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// What was written is kept in memory, all of it, until the log is restarted ([`FaultyStorage::restart_log`]).
///
/// The model of a disk is the harshest that one with 512-byte sectors allows: a change that no sync covers may survive
/// or not, whatever becomes of those before and after it, and of one that spans sectors any of them may survive. A
/// write within one sector survives as a whole or not at all. A failed sync gives up the changes before it: no later
/// sync covers them.
///
/// Changes and syncs go through one lock each in turn, so that the log's order is the order in which they happened.
#[derive(Debug)]
pub struct FaultyStorage<S = MemoryStorage> {
    inner: S,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    faults: Vec<Armed>,
    counts: [u64; OperationKind::ALL.len()],
    journal: Journal,
}

impl FaultyStorage {
    /// Over bytes in memory, which count as synced.
    pub fn new(inner: MemoryStorage) -> FaultyStorage {
        let base = inner.clone();
        FaultyStorage::with_base(inner, base)
    }
}

impl<S: Storage> FaultyStorage<S> {
    /// Over any storage. Its bytes are copied into memory, and count as synced.
    pub fn over(inner: S) -> io::Result<FaultyStorage<S>> {
        let base = MemoryStorage::copy_of(&inner)?;
        Ok(FaultyStorage::with_base(inner, base))
    }

    fn with_base(inner: S, base: MemoryStorage) -> FaultyStorage<S> {
        let state =
            State { faults: Vec::new(), counts: [0; OperationKind::ALL.len()], journal: Journal::new(base) };
        FaultyStorage { inner, state: Mutex::new(state) }
    }

    /// The storage below, as running programs see it.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    /// Arms a fault beside those that are armed already. Where several are due, the first armed one acts.
    pub fn inject(&self, fault: Fault) {
        self.state().faults.push(Armed::new(fault));
    }

    /// Disarms all faults.
    pub fn clear_faults(&self) {
        self.state().faults.clear();
    }

    /// How many operations of the kind were asked for, failed ones included.
    pub fn count(&self, kind: OperationKind) -> u64 {
        self.state().counts[kind as usize]
    }

    /// Every change and sync in the order in which they happened. Reads, changes that failed and holes that could not
    /// be punched leave no trace; failed syncs do.
    pub fn log(&self) -> Vec<Operation> {
        self.state().journal.operations().collect()
    }

    /// How many operations the log has.
    pub fn log_len(&self) -> usize {
        self.state().journal.len()
    }

    /// Empties the log and counts everything that was done as synced.
    pub fn restart_log(&self) {
        let mut state = self.state();
        let base = state.journal.crash(state.journal.len(), CrashChoice::All);
        state.journal = Journal::new(base);
    }

    /// How many changes a power cut now may lose.
    pub fn unsynced(&self) -> usize {
        let state = self.state();
        state.journal.unsynced(state.journal.len())
    }

    /// How many changes a power cut just after the first `operations` of the log may lose.
    pub fn unsynced_at(&self, operations: usize) -> usize {
        self.state().journal.unsynced(operations)
    }

    /// What a power cut now may leave.
    pub fn crash(&self, choice: CrashChoice) -> MemoryStorage {
        let state = self.state();
        state.journal.crash(state.journal.len(), choice)
    }

    /// What a power cut just after the first `operations` of the log may leave. A test that runs a scenario once and
    /// then asks for every number from 0 to [`FaultyStorage::log_len`] has tried every moment of it.
    pub fn crash_at(&self, operations: usize, choice: CrashChoice) -> MemoryStorage {
        self.state().journal.crash(operations, choice)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What becomes of a read of `len` bytes: how many of them to read.
    fn admit_read(&self, offset: u64, len: usize) -> io::Result<usize> {
        let range = ByteRange::between(offset, offset.saturating_add(len as u64));
        match self.state().judge(Operation::Read(range)) {
            Verdict::Pass => Ok(len),
            Verdict::Shorten(n) => Ok(len.min(n)),
            Verdict::Fail(error) => Err(error),
        }
    }

    /// Writes `buf` or the part of it that the faults let through, and logs what was written.
    fn write_and_log(
        &self,
        buf: &[u8],
        offset: u64,
        write: impl FnOnce(&S, &[u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let range = super::write_range(offset, buf.len())?;
        let mut state = self.state();
        let let_through = match state.judge(Operation::Write(range)) {
            Verdict::Pass => buf,
            Verdict::Shorten(n) => &buf[..buf.len().min(n)],
            Verdict::Fail(error) => return Err(error),
        };
        let n = write(&self.inner, let_through)?;
        if n > 0 {
            state.journal.push_write(offset, &buf[..n]);
        }
        Ok(n)
    }

    /// Makes a change that is not a write, and logs it where `run` says that it happened.
    fn change<T>(&self, operation: Operation, run: impl FnOnce() -> io::Result<(T, bool)>) -> io::Result<T> {
        let mut state = self.state();
        if let Verdict::Fail(error) = state.judge(operation) {
            return Err(error);
        }
        let (answer, happened) = run()?;
        if happened {
            state.journal.push(operation);
        }
        Ok(answer)
    }
}

impl State {
    /// Counts the operation and asks every armed fault about it.
    fn judge(&mut self, operation: Operation) -> Verdict {
        self.counts[operation.kind() as usize] += 1;
        let mut verdict = Verdict::Pass;
        for fault in &mut self.faults {
            let own = fault.judge(operation);
            if matches!(verdict, Verdict::Pass) {
                verdict = own;
            }
        }
        verdict
    }
}

impl<S: Storage> Storage for FaultyStorage<S> {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let n = self.admit_read(offset, buf.len())?;
        self.inner.read_at(&mut buf[..n], offset)
    }

    /// A fault that shortens reads does nothing to this one.
    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        self.admit_read(offset, bufs.iter().map(|buf| buf.len()).sum())?;
        self.inner.read_vectored_at(bufs, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        self.write_and_log(buf, offset, |inner, buf| inner.write_at(buf, offset))
    }

    /// One operation in the log, as if the buffers were one.
    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let joined: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        self.write_and_log(&joined, offset, |inner, let_through| {
            if let_through.len() == joined.len() {
                inner.write_vectored_at(bufs, offset)
            } else {
                inner.write_at(let_through, offset)
            }
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Operation::SetLen(len), || self.inner.set_len(len).map(|()| ((), true)))
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state();
        let done = match state.judge(Operation::Sync) {
            Verdict::Fail(error) => Err(error),
            Verdict::Pass | Verdict::Shorten(_) => self.inner.sync(),
        };
        state.journal.push(if done.is_ok() { Operation::Sync } else { Operation::FailedSync });
        done
    }

    fn is_read_only(&self) -> bool {
        self.inner.is_read_only()
    }

    fn write_zeroes(&self, range: ByteRange) -> io::Result<()> {
        self.change(Operation::WriteZeroes(range), || {
            self.inner.write_zeroes(range).map(|()| ((), !range.is_empty()))
        })
    }

    fn punch_hole(&self, range: ByteRange) -> io::Result<bool> {
        self.change(Operation::PunchHole(range), || {
            self.inner.punch_hole(range).map(|done| (done, done && !range.is_empty()))
        })
    }

    fn allocate(&self, range: ByteRange) -> io::Result<()> {
        self.change(Operation::Allocate(range), || {
            self.inner.allocate(range).map(|()| ((), !range.is_empty()))
        })
    }

    fn extent_at(&self, offset: u64) -> io::Result<Option<StorageExtent>> {
        self.inner.extent_at(offset)
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.inner.allocated_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;
    use crate::storage::{Access, FileStorage, StorageExt, conformance};

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::between(start, end)
    }

    #[test]
    fn without_faults_it_conforms() {
        conformance::run(&mut || Box::new(FaultyStorage::new(MemoryStorage::new())));
        conformance::run(&mut || {
            let file = FileStorage::from_file(tempfile::tempfile().unwrap(), Access::ReadWrite).unwrap();
            Box::new(FaultyStorage::over(file).unwrap())
        });
    }

    #[test]
    fn kinds_are_in_the_order_of_their_numbers() {
        for (at, kind) in OperationKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, at);
        }
    }

    #[test]
    fn the_nth_operation_of_a_kind_fails_once_and_changes_nothing() {
        let storage = FaultyStorage::new(MemoryStorage::new());
        storage.inject(Fault::error(ErrorKind::StorageFull).on(&[OperationKind::Write]).after(1));
        storage.write_at(b"a", 0).unwrap();
        storage.set_len(2).unwrap();
        assert_eq!(storage.write_at(b"b", 1).unwrap_err().kind(), ErrorKind::StorageFull);
        assert_eq!(storage.inner().to_vec(), b"a\0");
        storage.write_at(b"c", 1).unwrap();
        assert_eq!(storage.inner().to_vec(), b"ac");
        assert_eq!(storage.count(OperationKind::Write), 3);
        assert_eq!(
            storage.log(),
            [Operation::Write(range(0, 1)), Operation::SetLen(2), Operation::Write(range(1, 2))]
        );
    }

    #[test]
    fn a_lasting_fault_lasts_until_it_is_cleared() {
        let storage = FaultyStorage::new(MemoryStorage::with_bytes([0; 100]));
        storage.inject(Fault::errno(5).on(&OperationKind::CHANGES).after(1).forever());
        storage.write_at(b"a", 0).unwrap();
        for _ in 0..3 {
            assert_eq!(storage.write_at(b"b", 0).unwrap_err().raw_os_error(), Some(5));
            assert!(storage.write_vectored_at(&[IoSlice::new(b"b")], 0).is_err());
            assert!(storage.set_len(7).is_err());
            assert!(storage.write_zeroes(range(0, 1)).is_err());
            assert!(storage.punch_hole(range(0, 1)).is_err());
            assert!(storage.allocate(range(0, 1)).is_err());
            assert!(storage.sync().is_err());
            storage.read_exact_at(&mut [0; 100], 0).unwrap();
        }
        storage.clear_faults();
        storage.write_at(b"c", 0).unwrap();
    }

    #[test]
    fn a_fault_can_be_about_some_bytes() {
        let storage = FaultyStorage::new(MemoryStorage::with_bytes([0; 100]));
        storage.inject(Fault::error(ErrorKind::Other).within(range(50, 60)).forever());
        storage.write_at(&[1; 50], 0).unwrap();
        assert!(storage.write_at(&[1; 51], 0).is_err());
        assert!(storage.read_at(&mut [0; 1], 59).is_err());
        assert!(storage.read_vectored_at(&mut [IoSliceMut::new(&mut [0; 2])], 58).is_err());
        storage.read_at(&mut [0; 1], 60).unwrap();
        storage.sync().unwrap();
    }

    #[test]
    fn a_short_write_is_logged_as_long_as_it_was() {
        let storage = FaultyStorage::new(MemoryStorage::new());
        storage.inject(Fault::short(2));
        let buffers = [IoSlice::new(b"a"), IoSlice::new(b"bcd")];
        assert_eq!(storage.write_vectored_at(&buffers, 10).unwrap(), 2);
        assert_eq!(storage.log(), [Operation::Write(range(10, 12))]);
    }

    #[test]
    fn a_failed_sync_gives_up_what_came_before_it() {
        let storage = FaultyStorage::new(MemoryStorage::new());
        storage.write_at(b"a", 0).unwrap();
        storage.inject(Fault::error(ErrorKind::Other).on(&[OperationKind::Sync]));
        storage.sync().unwrap_err();
        storage.write_at(b"b", 1).unwrap();
        storage.sync().unwrap();
        assert_eq!(storage.log()[1], Operation::FailedSync);
        // The later sync covers the later write only.
        assert_eq!(storage.unsynced(), 1);
        assert_eq!(storage.crash(CrashChoice::Synced).to_vec(), b"\0b");
        assert_eq!(storage.crash(CrashChoice::All).to_vec(), b"ab");
    }

    #[test]
    fn a_torn_write_ends_at_a_sector_of_the_disk() {
        let storage = FaultyStorage::new(MemoryStorage::with_bytes([0; 2048]));
        storage.write_at(b"x", 5).unwrap();
        storage.write_at(&[1; 1200], 500).unwrap();
        let torn = |sectors| storage.crash(CrashChoice::Torn { whole: 1, sectors }).to_vec();
        for (sectors, end) in [(0, 500), (1, 512), (2, 1024), (3, 1536), (4, 1700), (9, 1700)] {
            let left = torn(sectors);
            assert_eq!(left[5], b'x');
            assert!(left[500..end].iter().all(|byte| *byte == 1));
            assert!(left[end..].iter().all(|byte| *byte == 0), "{sectors} sectors");
        }
    }

    #[test]
    fn any_subset_may_survive() {
        let storage = FaultyStorage::new(MemoryStorage::new());
        storage.write_at(b"abc", 0).unwrap();
        storage.set_len(1).unwrap();
        storage.write_at(b"z", 2).unwrap();
        let left = |mask| storage.crash(CrashChoice::Chosen { mask }).to_vec();
        assert_eq!(left(0b000), b"");
        assert_eq!(left(0b001), b"abc");
        assert_eq!(left(0b100), b"\0\0z");
        assert_eq!(left(0b101), b"abz");
        assert_eq!(left(0b111), b"a\0z");
    }

    #[test]
    fn random_crashes_lose_keep_and_tear() {
        let storage = FaultyStorage::new(MemoryStorage::with_bytes([0; 2048]));
        storage.write_at(&[1; 2048], 0).unwrap();
        let mut seen = std::collections::HashSet::new();
        for seed in 0..2000 {
            let left = storage.crash(CrashChoice::Random { seed }).to_vec();
            let sectors: Vec<u8> = left.chunks(512).map(|sector| sector[0]).collect();
            seen.insert(sectors);
        }
        assert_eq!(seen.len(), 16, "all ways in which four sectors can survive");
    }

    #[test]
    fn a_restarted_log_forgets_the_past() {
        let storage = FaultyStorage::new(MemoryStorage::new());
        storage.write_at(b"abc", 0).unwrap();
        storage.restart_log();
        assert_eq!(storage.log_len(), 0);
        storage.write_at(b"x", 0).unwrap();
        assert_eq!(storage.crash(CrashChoice::Synced).to_vec(), b"abc");
        assert_eq!(storage.crash_at(0, CrashChoice::All).to_vec(), b"abc");
    }
}
