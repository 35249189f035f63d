//! One piece at a time, in order.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use super::Order;

/// Lets threads through one at a time, in the order of their pieces.
#[derive(Debug, Default)]
pub(super) struct Turnstile {
    next: Mutex<u64>,
    moved: Condvar,
}

impl Turnstile {
    /// Waits for its turn, unless the run has been stopped; whether it got it.
    pub(super) fn wait(&self, order: Order, number: u64, stopped: &AtomicBool) -> bool {
        if order == Order::Any {
            return true;
        }
        let next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = |next: &mut u64| *next != number && !stopped.load(Ordering::Acquire);
        let next = self.moved.wait_while(next, waiting).unwrap_or_else(PoisonError::into_inner);
        *next == number
    }

    /// The piece is done: the next one may be written.
    pub(super) fn pass(&self, number: u64) {
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) = number + 1;
        self.moved.notify_all();
    }

    /// Wakes everyone, after the run has been stopped.
    pub(super) fn open(&self) {
        let _held = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        self.moved.notify_all();
    }
}
