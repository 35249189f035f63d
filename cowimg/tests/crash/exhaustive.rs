//! Small workloads of which every state is tried: each kind of call between two flushes, on each kind of image, with
//! every subset of the changes that are on their way at a moment.

use cowimg::{ByteRange, ZeroMode};

use crate::files::Cuts;
use crate::history::try_cuts;
use crate::kinds::KINDS;
use crate::lab::{Call, SECTOR, SHAPES, SIZE};
use crate::subject::Subject;

fn sectors(start: u64, end: u64) -> ByteRange {
    ByteRange::between(start * SECTOR, end * SECTOR)
}

/// Each kind of call, alone and beside another.
fn calls() -> Vec<Vec<Call>> {
    let old = |start, end| Call::Write(sectors(start, end), 1);
    let new = |start, end| Call::Write(sectors(start, end), 2);
    vec![
        vec![new(5, 6)],
        vec![new(0, 2), new(90, 91)],
        vec![old(3, 5), Call::Flush, new(4, 6)],
        vec![old(3, 5), Call::Flush, Call::Discard(sectors(0, 40)), new(70, 72)],
        vec![old(3, 5), Call::Flush, Call::Zero(sectors(2, 5), ZeroMode::Unmap), new(100, 101)],
        vec![old(3, 5), Call::Flush, Call::Zero(sectors(4, 9), ZeroMode::KeepSpace)],
        vec![old(3, 5), Call::Flush, Call::Discard(sectors(0, 40)), Call::Flush, new(0, 3)],
        vec![old(3, 5), Call::Resize(SIZE + 64 * SECTOR), new(4, 5)],
        vec![old(3, 5), Call::Resize(4 * SECTOR), Call::Resize(8 * SECTOR)],
        vec![old(190, 195), Call::Resize(SIZE - 7 * SECTOR)],
        vec![Call::Preallocate(SIZE + 4 * SECTOR)],
    ]
}

fn snapshot_calls() -> Vec<Vec<Call>> {
    let old = Call::Write(sectors(3, 5), 1);
    let new = Call::Write(sectors(4, 6), 2);
    vec![
        vec![old, Call::Take],
        vec![old, Call::Take, new],
        vec![old, Call::Take, new, Call::Apply(0)],
        vec![old, Call::Take, new, Call::Delete(0)],
        vec![old, Call::Take, Call::Resize(SIZE + 8 * SECTOR), Call::Apply(0)],
    ]
}

fn compressed_calls() -> Vec<Vec<Call>> {
    let packed = |start, byte| Call::Compressed(sectors(start, start + 1), byte);
    vec![
        vec![packed(0, 1)],
        vec![packed(0, 1), packed(8, 2), Call::Flush, packed(16, 3)],
        vec![packed(0, 1), Call::Flush, packed(0, 2)],
        vec![packed(0, 1), packed(8, 1), Call::Flush, Call::Write(sectors(1, 2), 2)],
        vec![packed(0, 1), Call::Flush, Call::Discard(sectors(0, 8)), packed(8, 2)],
    ]
}

fn try_all(name: &str, subject: &Subject, workloads: Vec<Vec<Call>>) -> usize {
    let try_one = |mut calls: Vec<Call>| {
        calls.push(Call::Flush);
        try_cuts(&format!("{name}, {calls:?}"), subject, (3, Cuts::Exhaustive), &calls)
    };
    workloads.into_iter().map(try_one).sum()
}

#[test]
fn every_state_of_small_workloads_keeps_the_promise() {
    let mut states = 0;
    for shape in SHAPES {
        let subject = Subject::from(shape.fresh());
        states += try_all(&format!("{shape:?}"), &subject, calls());
        if shape.refcount_order > 1 && shape.version == cowimg::Version::V3 {
            states += try_all(&format!("{shape:?}"), &subject, snapshot_calls());
        }
    }
    println!("{states} states after a crash, none lost, none corrupt");
    assert!(states > 2_000, "only {states} states were tried");
}

#[test]
fn every_state_of_small_workloads_on_other_images_keeps_the_promise() {
    let mut states = 0;
    for kind in KINDS.iter().filter(|kind| kind.is_quick()) {
        let subject = kind.subject();
        let workloads = calls().into_iter().filter(|calls| kind.bears(calls));
        states += try_all(kind.name, &subject, workloads.collect());
        if kind.has_snapshots() {
            states += try_all(kind.name, &subject, vec![snapshot_calls().remove(1)]);
        }
        if kind.compresses() {
            states += try_all(kind.name, &subject, compressed_calls());
        }
    }
    println!("{states} states after a crash, none lost, none corrupt");
    assert!(states > 2_000, "only {states} states were tried");
}
