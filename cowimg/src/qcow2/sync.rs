//! What `in_flight` and `table_cache` are made of. They take it from here, so that `cowimg/races` can compile them over the
//! primitives of loom and shuttle, which try every order of steps.

pub(super) use std::hint::spin_loop;
pub(super) use std::sync::{Arc, Condvar, Mutex};

pub(super) mod atomic {
    //! Atomics and their fences.

    pub(in crate::qcow2) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
}
