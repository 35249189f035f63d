//! imago as it comes: asynchronous, on tokio. Its calls of the host block, so that tasks of one thread run one after the
//! other. An image can be shared by threads, its futures cannot: each thread has a runtime of its own.

use std::time::Instant;

use futures::future::try_join_all;
use imago::file::File;
use imago::io_buffers::IoBuffer;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate};
use tokio::runtime::{Builder, Runtime};

use crate::work::{Failure, Kind, Measured, REQUEST, Requests, Work, fill};

/// Does the work: in each thread a task for each request that is on its way at a time.
pub(crate) fn run(work: &Work) -> Result<Measured, Failure> {
    let runtime = runtime()?;
    let opening = Instant::now();
    let builder = Qcow2::<File>::builder_path(&work.image).write(work.kind == Kind::Write);
    let disk = FormatAccess::new(runtime.block_on(builder.open(PermissiveImplicitOpenGate::default()))?);
    let requests = Requests::new(work);
    let started = if work.kind == Kind::Open { opening } else { Instant::now() };
    let in_thread = |runtime: &Runtime| {
        let tasks = (0..work.depth).map(|_| send(&disk, &requests, work.kind));
        runtime.block_on(try_join_all(tasks)).map(drop)
    };
    std::thread::scope(|scope| {
        let others: Vec<_> =
            (1..work.threads).map(|_| scope.spawn(|| in_thread(&self::runtime()?))).collect();
        let mine = in_thread(&runtime);
        let joined = others.into_iter().map(|other| other.join().map_err(|_| Failure::from("panicked"))?);
        joined.fold(mine, Result::and)
    })?;
    if work.kind == Kind::Write {
        runtime.block_on(disk.flush())?;
    }
    Measured::since(started, requests.sum())
}

fn runtime() -> Result<Runtime, Failure> {
    Ok(Builder::new_current_thread().build()?)
}

async fn send(disk: &FormatAccess<File>, requests: &Requests<'_>, kind: Kind) -> Result<(), Failure> {
    let mut buf = IoBuffer::new(REQUEST, REQUEST)?;
    while let Some(offset) = requests.next() {
        if kind == Kind::Write {
            fill(buf.as_mut().into_slice(), offset);
            disk.write(&buf, offset).await?;
        } else {
            disk.read(&mut buf, offset).await?;
            requests.note(buf.as_ref().into_slice(), offset);
        }
    }
    Ok(())
}
