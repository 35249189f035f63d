//! The primitives that shuttle schedules.

pub(super) use shuttle::sync::{Condvar, Mutex};

/// As few as there can be, for each is one more step to be put in every order.
pub(super) const STRIPES: usize = 2;

/// The number of the model's thread.
pub(super) fn own_stripe() -> usize {
    usize::from(shuttle::thread::current().id())
}

pub(super) mod atomic {
    //! Atomics.

    pub(in crate::under_shuttle) use shuttle::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
}
