//! The primitives that shuttle schedules.

pub(super) use shuttle::sync::{Condvar, Mutex};

pub(super) mod atomic {
    //! Atomics.

    pub(in crate::under_shuttle) use shuttle::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
}
