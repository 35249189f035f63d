//! A limit on how fast a job moves bytes.

use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::progress::Control;

/// How long a sleep may be before a cancelled job is noticed.
const NAP: Duration = Duration::from_millis(50);

/// Holds a job to a number of bytes in a second.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_second: Option<NonZeroU64>,
    /// When the next bytes may be moved.
    free_at: Mutex<Instant>,
}

impl Pace {
    /// No limit, or this one.
    pub(super) fn new(bytes_per_second: Option<NonZeroU64>) -> Pace {
        Pace { bytes_per_second, free_at: Mutex::new(Instant::now()) }
    }

    /// Waits until `bytes` may be moved. What was not used before is not saved up.
    pub(super) fn wait(&self, bytes: u64, control: &Control<'_>) -> Result<()> {
        let Some(rate) = self.bytes_per_second else { return Ok(()) };
        let start = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let start = (*free_at).max(Instant::now());
            let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(rate.get());
            let taken = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
            *free_at = start.checked_add(taken).unwrap_or(start);
            start
        };
        loop {
            control.check()?;
            let left = start.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(NAP));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_wait_for_those_before_them() {
        let started = Instant::now();
        let pace = Pace::new(NonZeroU64::new(1_000_000));
        for _ in 0..5 {
            pace.wait(25_000, &Control::default()).unwrap();
        }
        assert!(started.elapsed() >= Duration::from_millis(100));
        Pace::new(None).wait(u64::MAX, &Control::default()).unwrap();
    }
}
