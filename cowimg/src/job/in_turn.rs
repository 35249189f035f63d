//! Work in pieces by several threads: each piece is prepared beside others (reading, comparing, compressing) and applied
//! in order (writing), so that a target is laid out alike whatever the threads do.
//!
//! A thread whose piece is not yet to be applied leaves it in the line and prepares another one; whoever is applying goes
//! on with what is in the line. So nobody is woken for his turn, and there is always somebody who applies.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::Result;
use crate::progress::Control;
use crate::storage::PageBuffer;

/// In which order pieces are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Order {
    /// In the order of the source, so that the target is laid out in order, and the same every time.
    #[default]
    Source,
    /// As the threads come to it.
    Any,
}

/// A piece that can be applied, what was prepared of it, and the buffer that it was prepared in.
struct Prepared<P, R>(P, R, PageBuffer);

/// The pieces that wait to be applied, and the buffers.
struct Waiting<P, R> {
    /// The number of the piece that is applied next.
    next: u64,
    /// Whether a thread applies.
    is_applied: bool,
    ready: BTreeMap<u64, Prepared<P, R>>,
    idle: Vec<PageBuffer>,
    /// Buffers that may still be made.
    buffers_left: usize,
}

/// What threads share while they work.
struct Line<N, P, R> {
    /// The number of the next piece, and where it comes from.
    source: Mutex<(u64, N)>,
    waiting: Mutex<Waiting<P, R>>,
    buffer_came_back: Condvar,
    stopped: AtomicBool,
}

impl<P, R, N: FnMut() -> Result<Option<P>>> Line<N, P, R> {
    fn new(next: N, threads: usize) -> Line<N, P, R> {
        // One for each thread, and one that waits while its thread prepares another.
        let buffers_left = if threads > 1 { threads + 1 } else { 1 };
        let waiting =
            Waiting { next: 0, is_applied: false, ready: BTreeMap::new(), idle: Vec::new(), buffers_left };
        Line {
            source: Mutex::new((0, next)),
            waiting: Mutex::new(waiting),
            buffer_came_back: Condvar::new(),
            stopped: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<P, R>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Ends the work of all threads, because one of them has failed and says why.
    fn stop(&self) {
        let _held = self.lock();
        self.stopped.store(true, Ordering::Release);
        self.buffer_came_back.notify_all();
    }

    /// A buffer of any content, once there is one; none when the work was stopped.
    ///
    /// The piece that is applied next has its buffer already, for pieces are taken after it: somebody gives one back.
    fn buffer(&self) -> Option<PageBuffer> {
        let mut waiting = self.lock();
        while !self.is_stopped() {
            if let Some(buffer) = waiting.idle.pop() {
                return Some(buffer);
            }
            if waiting.buffers_left > 0 {
                waiting.buffers_left -= 1;
                return Some(PageBuffer::default());
            }
            waiting = self.buffer_came_back.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    fn take(&self) -> Result<Option<(u64, P)>> {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        let (number, next) = &mut *source;
        let piece = next()?;
        *number += 1;
        Ok(piece.map(|piece| (*number - 1, piece)))
    }

    /// Puts a piece in the line, and applies what can be applied of it if no other thread does.
    fn put(
        &self,
        number: u64,
        prepared: Prepared<P, R>,
        apply: impl Fn(Prepared<P, R>) -> Result<PageBuffer>,
    ) -> Result<()> {
        let mut waiting = self.lock();
        waiting.ready.insert(number, prepared);
        if waiting.is_applied {
            return Ok(());
        }
        waiting.is_applied = true;
        while let Some(prepared) = {
            let next = waiting.next;
            waiting.ready.remove(&next).filter(|_| !self.is_stopped())
        } {
            drop(waiting);
            let buffer = apply(prepared)?;
            waiting = self.lock();
            waiting.next += 1;
            waiting.idle.push(buffer);
            self.buffer_came_back.notify_one();
        }
        waiting.is_applied = false;
        Ok(())
    }
}

/// Stops the others when a thread panics, who would wait for it.
struct StopsOnPanic<'a, N: FnMut() -> Result<Option<P>>, P, R>(&'a Line<N, P, R>);

impl<N: FnMut() -> Result<Option<P>>, P, R> Drop for StopsOnPanic<'_, N, P, R> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop();
        }
    }
}

/// The threads that work, and how they take turns.
#[derive(Debug, Clone, Copy)]
pub(super) struct Workers {
    pub(super) threads: usize,
    pub(super) order: Order,
}

impl Workers {
    /// So many threads, which apply pieces in order.
    pub(super) fn in_order(threads: usize) -> Workers {
        Workers { threads, order: Order::Source }
    }

    /// Takes pieces from `next` until there are none: `prepare` runs in all threads, each time with a buffer of any content,
    /// `apply` with the same buffer, one piece after the other; with [`Order::Any`] as they come, in several threads at
    /// once. The first error stops every thread, and so does a cancelled `control`.
    pub(super) fn work<P: Send, R: Send>(
        self,
        control: &Control<'_>,
        next: impl FnMut() -> Result<Option<P>> + Send,
        prepare: impl Fn(&P, &mut PageBuffer) -> Result<R> + Sync,
        apply: impl Fn(&P, R, &[u8]) -> Result<()> + Sync,
    ) -> Result<()> {
        let line = Line::new(next, self.threads);
        let apply = |Prepared(piece, prepared, buffer)| apply(&piece, prepared, &buffer).map(|()| buffer);
        let work_through = || -> Result<()> {
            while let Some(mut buffer) = line.buffer() {
                control.check()?;
                let Some((number, piece)) = line.take()? else { return Ok(()) };
                let prepared = prepare(&piece, &mut buffer)?;
                let prepared = Prepared(piece, prepared, buffer);
                match self.order {
                    Order::Source => line.put(number, prepared, apply)?,
                    Order::Any => {
                        let buffer = apply(prepared)?;
                        line.lock().idle.push(buffer);
                    }
                }
            }
            Ok(())
        };
        let work = || {
            let _stops = StopsOnPanic(&line);
            work_through().inspect_err(|_| line.stop())
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (1..self.threads).map(|_| scope.spawn(work)).collect();
            let own = work();
            workers.into_iter().map(|worker| worker.join().unwrap_or_else(panicked)).fold(own, Result::and)
        })
    }
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
        Workers::in_order(4)
            .work(
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
        let failed = Workers::in_order(4).work(
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
    fn a_thread_that_panics_leaves_nobody_waiting() {
        for at_apply in [false, true] {
            let mut left = 0..;
            let panics = |at: bool, piece: u64| assert!(at != at_apply || piece != 20, "piece 20");
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                Workers::in_order(3).work(
                    &Control::default(),
                    || Ok(left.next()),
                    |piece, _| {
                        panics(false, *piece);
                        Ok(())
                    },
                    |piece, (), _| {
                        panics(true, *piece);
                        Ok(())
                    },
                )
            }));
            assert!(ended.is_err());
        }
    }

    #[test]
    fn a_cancelled_run_ends_with_that_error() {
        let cancel = AtomicBool::new(true);
        let control = Control { cancel: Some(&cancel), ..Control::default() };
        let ended = Workers::in_order(2).work(&control, || Ok(Some(1)), |_, _| Ok(()), |_, (), _| Ok(()));
        assert!(matches!(ended.unwrap_err().kind(), ErrorKind::Cancelled));
    }
}
