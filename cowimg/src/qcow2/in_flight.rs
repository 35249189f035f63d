//! What keeps operations that run at the same time out of each other's way without a lock around their I/O.
//!
//! * [`Epochs`]: every operation that does data I/O runs inside an epoch. A cluster that nothing refers to any
//!   more is reused only when every operation that may still hold its offset has ended (rule W3 says when it may
//!   be reused as far as the disk goes; this says when as far as memory goes).
//!   A change of many tables at once closes the epochs: it waits for the operations that run, and those that come
//!   wait for it.
//! * [`ClusterLocks`]: an operation that changes a guest cluster's mapping holds that cluster. Reads, and writes
//!   to clusters that stay where they are, take no such lock.

use std::sync::PoisonError;

use super::striped::Striped;
use super::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use super::sync::{Condvar, Mutex};

/// Epoch-based reclamation with two slots: the current epoch's operations and the one before's.
#[derive(Debug, Default)]
pub(super) struct Epochs {
    current: AtomicU64,
    /// How many operations run in each slot, of each stripe of threads. What is to be seen of all is seen stripe by stripe: an
    /// operation stays in its own.
    active: Striped<[AtomicUsize; 2]>,
    closed: AtomicBool,
    /// Held to wait on `changed`, for operations to end or for the epochs to open.
    door: Mutex<()>,
    changed: Condvar,
}

/// An operation in flight; ends when dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct EpochGuard<'a> {
    epochs: &'a Epochs,
    /// Where it is counted.
    counter: &'a AtomicUsize,
}

impl Drop for EpochGuard<'_> {
    fn drop(&mut self) {
        self.epochs.leave(self.counter);
    }
}

/// No operation runs while this is held.
#[derive(Debug)]
#[must_use]
pub(super) struct ClosedEpochs<'a> {
    epochs: &'a Epochs,
}

impl Drop for ClosedEpochs<'_> {
    fn drop(&mut self) {
        let _door = self.epochs.door.lock().unwrap_or_else(PoisonError::into_inner);
        self.epochs.closed.store(false, SeqCst);
        self.epochs.changed.notify_all();
    }
}

impl Epochs {
    /// Starts an operation.
    pub(super) fn enter(&self) -> EpochGuard<'_> {
        let slots = self.active.own();
        loop {
            let epoch = self.current.load(SeqCst);
            let counter = &slots[(epoch & 1) as usize];
            counter.fetch_add(1, SeqCst);
            // The epoch may have moved on between the two lines above; then this slot may have been found empty by
            // `try_advance`, and being counted there would protect nothing. Nor may it be entered when it is closed:
            // counted first and looked at second, so that either side sees the other.
            let is_closed = self.closed.load(SeqCst);
            if self.current.load(SeqCst) == epoch && !is_closed {
                return EpochGuard { epochs: self, counter };
            }
            self.leave(counter);
            if is_closed {
                self.wait_while(|| self.closed.load(SeqCst));
            }
        }
    }

    /// Lets no operation start, and returns when those that run have ended. A caller is in no epoch itself, holds no
    /// lock that an operation waits for, and is the only one who closes.
    pub(super) fn close(&self) -> ClosedEpochs<'_> {
        self.closed.store(true, SeqCst);
        self.wait_while(|| self.active.all().flatten().any(|slot| slot.load(SeqCst) > 0));
        ClosedEpochs { epochs: self }
    }

    fn leave(&self, counter: &AtomicUsize) {
        counter.fetch_sub(1, SeqCst);
        if self.closed.load(SeqCst) {
            let _door = self.door.lock().unwrap_or_else(PoisonError::into_inner);
            self.changed.notify_all();
        }
    }

    fn wait_while(&self, condition: impl Fn() -> bool) {
        let mut door = self.door.lock().unwrap_or_else(PoisonError::into_inner);
        while condition() {
            door = self.changed.wait(door).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The current epoch, to be remembered with what is retired in it.
    pub(super) fn now(&self) -> u64 {
        self.current.load(SeqCst)
    }

    /// Moves to the next epoch if no operation of the one before the current is left. Callers hold the metadata
    /// lock, so that two never advance at once.
    pub(super) fn try_advance(&self) {
        let epoch = self.current.load(SeqCst);
        let before = ((epoch + 1) & 1) as usize;
        if self.active.all().all(|slots| slots[before].load(SeqCst) == 0) {
            self.current.store(epoch + 1, SeqCst);
        }
    }

    /// Whether every operation that ran when something was retired in `epoch` has ended.
    pub(super) fn has_passed(&self, epoch: u64) -> bool {
        self.now() >= epoch + 2
    }
}

/// Exclusive locks on ranges of guest clusters.
#[derive(Debug, Default)]
pub(super) struct ClusterLocks {
    held: Mutex<Held>,
    released: Condvar,
}

#[derive(Debug, Default)]
struct Held {
    /// First and one past the last cluster of each range that is held.
    ranges: Vec<(u64, u64)>,
    /// How many wait for a release: waking nobody would be a system call, too.
    waiting: usize,
}

/// A held range of guest clusters; released when dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct ClusterLock<'a> {
    locks: &'a ClusterLocks,
    range: (u64, u64),
}

impl ClusterLocks {
    /// Waits until no cluster of `[first, end)` is held, and holds them all. An operation holds at most one range at
    /// a time, which is why this cannot deadlock.
    pub(super) fn lock(&self, first: u64, end: u64) -> ClusterLock<'_> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        while held.ranges.iter().any(|&(a, b)| a < end && first < b) {
            held.waiting += 1;
            held = self.released.wait(held).unwrap_or_else(PoisonError::into_inner);
            held.waiting -= 1;
        }
        held.ranges.push((first, end));
        ClusterLock { locks: self, range: (first, end) }
    }
}

impl Drop for ClusterLock<'_> {
    fn drop(&mut self) {
        let mut held = self.locks.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = held.ranges.iter().position(|&range| range == self.range) {
            held.ranges.swap_remove(at);
        }
        let is_awaited = held.waiting > 0;
        drop(held);
        if is_awaited {
            self.locks.released.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_passes_while_an_operation_of_its_time_runs() {
        let epochs = Epochs::default();
        let operation = epochs.enter();
        let retired = epochs.now();
        for _ in 0..4 {
            epochs.try_advance();
        }
        assert!(!epochs.has_passed(retired));
        drop(operation);
        epochs.try_advance();
        epochs.try_advance();
        assert!(epochs.has_passed(retired));
    }

    #[test]
    fn a_later_operation_does_not_hold_back_what_was_retired_before_it() {
        let epochs = Epochs::default();
        let retired = epochs.now();
        epochs.try_advance();
        epochs.try_advance();
        let _later = epochs.enter();
        assert!(epochs.has_passed(retired));
    }

    #[test]
    fn closed_epochs_wait_for_operations_and_operations_wait_for_them() {
        let epochs = Epochs::default();
        let operation = epochs.enter();
        let (entered, closed) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _closed = epochs.close();
                closed.store(true, SeqCst);
                std::thread::sleep(std::time::Duration::from_millis(50));
                assert!(!entered.load(SeqCst), "an operation ran while the epochs were closed");
            });
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert!(!closed.load(SeqCst), "the epochs closed over a running operation");
            drop(operation);
            while !closed.load(SeqCst) {
                std::thread::yield_now();
            }
            let _operation = epochs.enter();
            entered.store(true, SeqCst);
        });
    }

    #[test]
    fn overlapping_cluster_ranges_exclude_each_other_and_others_do_not() {
        let locks = ClusterLocks::default();
        let first = locks.lock(0, 4);
        let _beside = locks.lock(4, 8);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| drop(locks.lock(3, 4)));
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert!(!waiter.is_finished());
            drop(first);
            waiter.join().unwrap();
        });
    }
}
