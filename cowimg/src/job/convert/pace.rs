//! Writing no faster than a rate.

use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::progress::Control;

/// The longest sleep between two looks at whether the caller wants to stop.
const NAP: Duration = Duration::from_millis(50);

/// Holds writers back.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_second: Option<NonZeroU64>,
    /// When the next write may start.
    free_at: Mutex<Instant>,
}

impl Pace {
    pub(super) fn new(bytes_per_second: Option<NonZeroU64>) -> Pace {
        Pace { bytes_per_second, free_at: Mutex::new(Instant::now()) }
    }

    /// Waits until `bytes` may be written. What was not used before is not saved up.
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
