//! The primitives that loom watches.

pub(super) use loom::hint::spin_loop;
pub(super) use loom::sync::{Arc, Mutex};

pub(super) mod atomic {
    //! Atomics and their fences.

    pub(in crate::under_loom) use loom::sync::atomic::{AtomicU64, Ordering, fence};
}
