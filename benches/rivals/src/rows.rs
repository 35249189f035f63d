//! What is compared: a row is a piece of work that every contender does.

use crate::images::Start;
use crate::work::Kind;

/// A piece of work.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) start: Start,
    pub(crate) count: u64,
    /// Requests that each thread keeps on their way.
    pub(crate) depth: usize,
    pub(crate) threads: usize,
}

const READ: Row =
    Row { name: "", kind: Kind::Read, start: Start::Full, count: 200_000, depth: 1, threads: 1 };
const WRITE: Row = Row { kind: Kind::Write, count: 100_000, ..READ };

/// All rows.
pub(crate) const ROWS: &[Row] = &[
    Row { name: "reads, 1 at a time", ..READ },
    Row { name: "reads, 1 at a time, 2 threads", threads: 2, ..READ },
    Row { name: "reads, 32 at a time", depth: 32, ..READ },
    Row { name: "reads, 32 at a time, 2 threads", depth: 32, threads: 2, ..READ },
    Row { name: "writes, allocated, 1 at a time", ..WRITE },
    Row { name: "writes, allocated, 32 at a time", depth: 32, ..WRITE },
    Row { name: "writes, allocating, 1 at a time", start: Start::Empty, count: 20_000, ..WRITE },
    Row { name: "writes, allocating, 32 at a time", start: Start::Empty, count: 20_000, depth: 32, ..WRITE },
    Row { name: "writes, copying from below, 1 at a time", start: Start::Overlay, count: 10_000, ..WRITE },
    Row {
        name: "writes, copying from below, 32 at a time",
        start: Start::Overlay,
        count: 10_000,
        depth: 32,
        ..WRITE
    },
    Row { name: "reads through 64 layers", start: Start::Chain(64), count: 50_000, ..READ },
    Row { name: "reads through 200 layers", start: Start::Chain(200), count: 20_000, ..READ },
    Row { name: "open 200 layers", kind: Kind::Open, start: Start::Chain(200), count: 1, ..READ },
];
