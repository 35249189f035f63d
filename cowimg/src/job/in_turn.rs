//! Work in pieces by several threads: each piece is prepared beside others (reading, comparing, compressing) and applied
//! in order (writing), so that a target is laid out alike whatever the threads do.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use crate::error::Result;
use crate::progress::Control;
use crate::storage::PageBuffer;

/// What threads share while they take turns.
struct Turns<N> {
    /// The number of the next piece, and where it comes from.
    source: Mutex<(u64, N)>,
    next: Mutex<u64>,
    moved: Condvar,
    stopped: AtomicBool,
}

impl<N> Turns<N> {
    /// Waits for the turn of `number`, unless the run has been stopped; whether it got it.
    fn wait(&self, number: u64) -> bool {
        let next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = |next: &mut u64| *next != number && !self.stopped.load(Ordering::Acquire);
        let next = self.moved.wait_while(next, waiting).unwrap_or_else(PoisonError::into_inner);
        *next == number && !self.stopped.load(Ordering::Acquire)
    }

    fn pass(&self, number: u64) {
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) = number + 1;
        self.moved.notify_all();
    }

    fn stop(&self) {
        let _held = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        self.stopped.store(true, Ordering::Release);
        self.moved.notify_all();
    }
}

/// Takes pieces from `next` until there are none: `prepare` runs in `threads` threads, each with a buffer of its own,
/// `apply` in the order of the pieces. The first error stops every thread, and so does a cancelled `control`.
pub(super) fn work_in_turn<P: Send, R>(
    threads: usize,
    control: &Control<'_>,
    next: impl FnMut() -> Result<Option<P>> + Send,
    prepare: impl Fn(&P, &mut PageBuffer) -> Result<R> + Sync,
    apply: impl Fn(&P, R, &[u8]) -> Result<()> + Sync,
) -> Result<()> {
    let turns = Turns {
        source: Mutex::new((0, next)),
        next: Mutex::new(0),
        moved: Condvar::new(),
        stopped: AtomicBool::new(false),
    };
    let take = || -> Result<Option<(u64, P)>> {
        let mut source = turns.source.lock().unwrap_or_else(PoisonError::into_inner);
        let (number, next) = &mut *source;
        let piece = next()?;
        *number += 1;
        Ok(piece.map(|piece| (*number - 1, piece)))
    };
    let work_through = || -> Result<()> {
        let mut buf = PageBuffer::default();
        while !turns.stopped.load(Ordering::Acquire) {
            control.check()?;
            let Some((number, piece)) = take()? else { return Ok(()) };
            let prepared = prepare(&piece, &mut buf)?;
            if !turns.wait(number) {
                // Another thread has failed, and says why.
                return Ok(());
            }
            apply(&piece, prepared, &buf)?;
            turns.pass(number);
        }
        Ok(())
    };
    let work = || work_through().inspect_err(|_| turns.stop());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let own = work();
        workers.into_iter().map(|worker| worker.join().unwrap_or_else(panicked)).fold(own, Result::and)
    })
}

/// A panic of a worker goes on in the caller's thread.
fn panicked(payload: Box<dyn std::any::Any + Send>) -> Result<()> {
    std::panic::resume_unwind(payload)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::error::{Error, ErrorKind};

    #[test]
    fn pieces_are_applied_in_order_whatever_the_threads_do() {
        let mut left = 0..200_u64;
        let applied = Mutex::new(Vec::new());
        work_in_turn(
            4,
            &Control::default(),
            || Ok(left.next()),
            |piece, _| {
                std::thread::sleep(std::time::Duration::from_micros(piece * 7 % 50));
                Ok(piece * 2)
            },
            |_, double, _| {
                applied.lock().unwrap().push(double);
                Ok(())
            },
        )
        .unwrap();
        assert_eq!(applied.into_inner().unwrap(), (0..200).map(|nth| nth * 2).collect::<Vec<_>>());
    }

    #[test]
    fn the_first_error_stops_everything_and_is_the_answer() {
        let mut left = 0..;
        let applied = AtomicU64::new(0);
        let failed = work_in_turn(
            4,
            &Control::default(),
            || Ok(left.next()),
            |piece: &u64, _| if *piece == 10 { Err(Error::invalid("ten")) } else { Ok(()) },
            |_, (), _| {
                applied.fetch_add(1, Ordering::Relaxed);
                Ok(())
            },
        );
        assert!(failed.unwrap_err().to_string().contains("ten"));
        assert!(applied.into_inner() <= 10);
    }

    #[test]
    fn a_cancelled_run_ends_with_that_error() {
        let cancel = AtomicBool::new(true);
        let control = Control { cancel: Some(&cancel), ..Control::default() };
        let ended = work_in_turn(2, &control, || Ok(Some(1)), |_, _| Ok(()), |_, (), _| Ok(()));
        assert!(matches!(ended.unwrap_err().kind(), ErrorKind::Cancelled));
    }
}
