//! qcow2-rs over its two engines for files that the host caches: `io_uring`, and the plain calls of the host.
//!
//! An image of it stays in one thread. So each thread opens the image anew, which goes for reading only.

use std::future::Future;
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use futures::future::try_join_all;
use qcow2_rs::dev::{Qcow2Dev, Qcow2DevParams};
use qcow2_rs::error::Qcow2Error;
use qcow2_rs::helpers::Qcow2IoBuf;
use qcow2_rs::ops::Qcow2IoOps;
use qcow2_rs::utils::{qcow2_setup_dev_sync, qcow2_setup_dev_uring};

use crate::work::{Failure, Kind, Measured, REQUEST, Requests, Work, fill};

/// Bits of the smallest request, here those of a sector.
const BLOCK_BITS: u8 = 9;

/// What stands between the crate and the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    Uring,
    Calls,
}

/// Does the work.
pub(crate) fn run(work: &Work, engine: Engine) -> Result<Measured, Failure> {
    if work.kind == Kind::Write && work.threads > 1 {
        return Err("one thread".into());
    }
    let requests = Requests::new(work);
    // Opening counts where it is the work; elsewhere it is small beside the requests of a thread.
    let started = Instant::now();
    let seconds: f64 = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..work.threads).map(|_| scope.spawn(|| in_thread(work, engine, &requests))).collect();
        let joined =
            threads.into_iter().map(|thread| thread.join().map_err(|_| Failure::from("panicked"))?);
        joined.collect::<Result<Vec<f64>, Failure>>().map(|each| each.into_iter().fold(0.0, f64::max))
    })?;
    Ok(Measured { seconds, ..Measured::since(started, requests.sum())? })
}

/// The seconds that the requests of a thread take.
fn in_thread(work: &Work, engine: Engine, requests: &Requests<'_>) -> Result<f64, Failure> {
    let parameters = Qcow2DevParams::new(BLOCK_BITS, None, None, work.kind != Kind::Write, false);
    let path = Path::new(&work.image);
    let opening = Instant::now();
    match engine {
        Engine::Uring => tokio_uring::start(async {
            let disk = qcow2_setup_dev_uring(path, &parameters).await.map_err(failure)?;
            send_all(Rc::new(disk), work, opening, requests).await
        }),
        Engine::Calls => futures::executor::block_on(async {
            let disk = qcow2_setup_dev_sync(path, &parameters).map_err(failure)?;
            disk.qcow2_prep_io().await.map_err(failure)?;
            send_all(Rc::new(disk), work, opening, requests).await
        }),
    }
}

async fn send_all<T: Qcow2IoOps>(
    disk: Rc<Qcow2Dev<T>>,
    work: &Work,
    opening: Instant,
    requests: &Requests<'_>,
) -> Result<f64, Failure> {
    let started = if work.kind == Kind::Open { opening } else { Instant::now() };
    let tasks = (0..work.depth).map(|_| send(&disk, work.kind, requests));
    finished(try_join_all(tasks)).await?;
    if work.kind == Kind::Write {
        disk.flush_meta().await.map_err(failure)?;
    }
    Ok(started.elapsed().as_secs_f64())
}

async fn finished(tasks: impl Future<Output = Result<Vec<()>, Failure>>) -> Result<(), Failure> {
    tasks.await.map(drop)
}

async fn send<T: Qcow2IoOps>(disk: &Qcow2Dev<T>, kind: Kind, requests: &Requests<'_>) -> Result<(), Failure> {
    let mut buf = Qcow2IoBuf::<u8>::new(REQUEST);
    while let Some(offset) = requests.next() {
        if kind == Kind::Write {
            fill(&mut buf, offset);
            disk.write_at(&buf, offset).await.map_err(failure)?;
        } else {
            disk.read_at(&mut buf, offset).await.map_err(failure)?;
            requests.note(&buf, offset);
        }
    }
    Ok(())
}

/// The crate's error as one of ours; it may not leave its thread.
#[allow(clippy::needless_pass_by_value, reason = "this is what map_err hands over")]
fn failure(error: Qcow2Error) -> Failure {
    format!("{error:?}").into()
}
