//! Work over a library whose calls return when they are done: as many threads as there are requests on their way.

use std::time::Instant;

use crate::work::{Failure, Kind, Measured, REQUEST, Requests, Work, fill};

/// A buffer that starts at a page, as hosts and libraries like it.
#[repr(align(4096))]
struct Aligned([u8; REQUEST]);

/// An open image.
pub trait Disk: Sync {
    fn read(&self, buf: &mut [u8], offset: u64) -> Result<(), Failure>;
    fn write(&self, buf: &[u8], offset: u64) -> Result<(), Failure>;
    /// Writes metadata to the file; no sync.
    fn flush(&self) -> Result<(), Failure>;
}

/// Opens the image and does the work.
pub fn run<D: Disk>(work: &Work, open: impl Fn() -> Result<D, Failure>) -> Result<Measured, Failure> {
    let opening = Instant::now();
    let disk = open()?;
    let requests = Requests::new(work);
    let started = if work.kind == Kind::Open { opening } else { Instant::now() };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..work.depth * work.threads)
            .map(|_| scope.spawn(|| send(&disk, &requests, work.kind)))
            .collect();
        let mine = send(&disk, &requests, work.kind);
        let joined =
            others.into_iter().map(|other| other.join().map_err(|_| Failure::from("a thread panicked"))?);
        joined.fold(mine, Result::and)
    })?;
    if work.kind == Kind::Write {
        disk.flush()?;
    }
    Measured::since(started, requests.sum())
}

fn send(disk: &impl Disk, requests: &Requests<'_>, kind: Kind) -> Result<(), Failure> {
    let mut buf = Box::new(Aligned([0; REQUEST]));
    while let Some(offset) = requests.next() {
        if kind == Kind::Write {
            fill(&mut buf.0, offset);
            disk.write(&buf.0, offset)?;
        } else {
            disk.read(&mut buf.0, offset)?;
            requests.note(&buf.0, offset);
        }
    }
    Ok(())
}
