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

pub(super) mod atomic {
    //! Atomics and their fences.

    pub(in crate::qcow2) use super::primitives::atomic::{
        AtomicBool, AtomicU64, AtomicUsize, Ordering, fence,
    };
}
