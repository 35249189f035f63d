//! A limit on how fast a job moves bytes.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::progress::Control;

/// How long a sleep may be before a cancelled job is noticed.
const NAP: Duration = Duration::from_millis(50);

/// Holds a job to a number of bytes in a second, counted from its start.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_second: Option<u64>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    since: Instant,
    bytes: u64,
}

impl Pace {
    /// No limit, or this one; 0 is none.
    pub(super) fn new(bytes_per_second: Option<u64>) -> Pace {
        let state = State { since: Instant::now(), bytes: 0 };
        Pace { bytes_per_second: bytes_per_second.filter(|&rate| rate > 0), state: Mutex::new(state) }
    }

    /// Counts `bytes` that were moved, and waits until the job is no longer ahead of its pace.
    pub(super) fn moved(&self, bytes: u64, control: &Control<'_>) -> Result<()> {
        let Some(rate) = self.bytes_per_second else { return Ok(()) };
        let due = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.bytes = state.bytes.saturating_add(bytes);
            let nanoseconds = u128::from(state.bytes) * 1_000_000_000 / u128::from(rate);
            state.since + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
        };
        loop {
            control.check()?;
            let left = due.saturating_duration_since(Instant::now());
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
    fn a_job_takes_as_long_as_its_pace_says() {
        let started = Instant::now();
        let pace = Pace::new(Some(1_000_000));
        for _ in 0..4 {
            pace.moved(25_000, &Control::default()).unwrap();
        }
        assert!(started.elapsed() >= Duration::from_millis(100));
        Pace::new(None).moved(u64::MAX, &Control::default()).unwrap();
    }
}
