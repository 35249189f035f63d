//! What every request changes, once for each stripe of threads: two threads that change one place in memory at each request
//! take turns in having it, and wait longer for that than for all else that the library does.

use super::sync::{STRIPES, own_stripe};

/// On a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Apart<T>(T);

/// One value for each stripe. More threads than there are stripes share some.
#[derive(Debug, Default)]
pub(super) struct Striped<T> {
    values: [Apart<T>; STRIPES],
}

impl<T> Striped<T> {
    /// The stripe of the calling thread, always the same one, and its value.
    pub(super) fn own(&self) -> (usize, &T) {
        let stripe = own_stripe() % STRIPES;
        (stripe, self.of(stripe))
    }

    /// The value of a stripe that [`Striped::own`] gave.
    pub(super) fn of(&self, stripe: usize) -> &T {
        &self.values[stripe].0
    }

    /// All values.
    pub(super) fn all(&self) -> impl Iterator<Item = &T> {
        self.values.iter().map(|value| &value.0)
    }
}
