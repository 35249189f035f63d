//! What every request changes, once for each stripe of threads: two threads that change one place in memory at each request
//! take turns in having it, which was up to a fifth of the time of small reads.

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
    /// The value of the calling thread's stripe; always the same one.
    pub(super) fn own(&self) -> &T {
        &self.values[own_stripe() % STRIPES].0
    }

    /// All values.
    pub(super) fn all(&self) -> impl Iterator<Item = &T> {
        self.values.iter().map(|value| &value.0)
    }
}
