//! The primitives that loom watches.

pub(super) use loom::hint::spin_loop;
pub(super) use loom::sync::{Arc, Mutex};

/// As few as there can be, for each is one more step to be put in every order.
pub(super) const STRIPES: usize = 2;

/// The number of the model's thread.
pub(super) fn own_stripe() -> usize {
    let id = format!("{:?}", loom::thread::current().id());
    id.chars().filter_map(|digit| digit.to_digit(10)).fold(0, |number, digit| number * 10 + digit as usize)
}

pub(super) mod atomic {
    //! Atomics and their fences.

    pub(in crate::under_loom) use loom::sync::atomic::{AtomicU64, Ordering, fence};
}
