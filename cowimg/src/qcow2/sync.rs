//! What threads meet in: every lock and atomic of the engine that is held, or looked at, across a step of another thread. The
//! engine takes them from here, so that `cowimg/races` can compile it over the primitives of shuttle (and parts of it over
//! those of loom), which try the orders of steps.
//!
//! Not here: locks that are held for a look at memory only (the metadata map) and what is set once (`failed`).

#[cfg(cowimg_shuttle)]
use shuttle::sync as primitives;
#[cfg(not(cowimg_shuttle))]
use std::sync as primitives;

pub(super) use primitives::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
pub(super) use std::hint::spin_loop;
pub(super) use std::sync::Arc;

/// Stripes of threads. In models as few as there can be: each is one more step to be put in every order.
pub(super) const STRIPES: usize = if cfg!(cowimg_shuttle) { 2 } else { 8 };

/// A number of the calling thread; consecutive threads have consecutive ones.
#[cfg(not(cowimg_shuttle))]
pub(super) fn own_stripe() -> usize {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: usize = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    OWN.with(|own| *own)
}

/// The same of the model's threads, which are one to the host.
#[cfg(cowimg_shuttle)]
pub(super) fn own_stripe() -> usize {
    usize::from(shuttle::thread::current().id())
}

pub(super) mod atomic {
    //! Atomics and their fences.

    pub(in crate::qcow2) use super::primitives::atomic::{
        AtomicBool, AtomicU64, AtomicUsize, Ordering, fence,
    };
}
