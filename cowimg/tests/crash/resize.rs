//! Disks that grow and shrink between writes, with snapshots of other sizes: they have the old size or the new one,
//! whenever the power fails, and nothing that was cut off comes to light again.

use std::io::ErrorKind::{Other, StorageFull};

use cowimg::ByteRange;
use cowimg::storage::StorageExt;

use crate::faults::fail_every_change;
use crate::history::try_every_moment;
use crate::lab::{Call, Dice, SECTOR, SHAPES, SIZE, Shape, guest_call};

/// The shapes of version 3: one with snapshots of version 2 is not resized.
fn shapes() -> impl Iterator<Item = Shape> {
    SHAPES.into_iter().filter(|shape| shape.version == cowimg::Version::V3)
}

fn workload(seed: u64, calls: usize, with_snapshots: bool) -> Vec<Call> {
    let mut dice = Dice(seed);
    let call = |nth| match dice.roll(8) {
        0 => Call::Resize((1 + dice.roll(2 * SIZE / SECTOR)) * SECTOR),
        1 => Call::Resize((1 + dice.roll(SIZE / SECTOR / 2)) * SECTOR),
        2 => Call::Preallocate((1 + dice.roll(2 * SIZE / SECTOR)) * SECTOR),
        3 if with_snapshots => {
            [Call::Take, Call::Apply(dice.roll(4) as usize), Call::Delete(0)][dice.roll(3) as usize]
        }
        _ => guest_call(&mut dice, nth),
    };
    (0..calls).map(call).collect()
}

/// Tries every moment of a workload on one of the shapes.
pub(crate) fn try_seed(seed: u64) -> usize {
    let shape = SHAPES[seed as usize % SHAPES.len()];
    let with_snapshots = shapes().any(|other| other == shape) && shape.refcount_order > 1;
    let calls = workload(seed, 15, with_snapshots);
    try_every_moment(&format!("resize, {shape:?}"), shape.fresh(), seed, &calls)
}

#[test]
fn a_resized_disk_has_one_size_or_the_other_whenever_the_power_fails() {
    let mut states = 0;
    for seed in 0..2 * SHAPES.len() as u64 {
        states += try_seed(seed + 4100);
    }
    println!("{states} states after a crash, none lost, none corrupt");
    assert!(states > 2_000, "only {states} states were tried");
}

/// What is behind an L1 table in its last cluster may be anything, and must not be taken for entries.
#[test]
fn what_is_behind_an_l1_table_is_no_entry_of_it_whenever_the_power_fails() {
    for (shape, seed) in shapes().zip(4200..) {
        let start = shape.fresh();
        let bytes = start.to_vec();
        let word = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let end = word(40) + (word(32) & 0xffff_ffff) * 8;
        let garbage = vec![0xff; (end.next_multiple_of(1 << shape.cluster_bits) - end) as usize];
        assert!(garbage.len() >= 8 * 8, "the table has room");
        start.write_all_at(&garbage, end).expect("memory takes it");
        // Five entries more.
        let larger = SIZE + 5 * (1 << (2 * shape.cluster_bits - 3));
        let at = |start| ByteRange::between(start, start + SECTOR);
        let growing =
            [Call::Write(at(0), 3), Call::Resize(larger), Call::Write(at(larger - SECTOR), 5), Call::Flush];
        let states = try_every_moment(&format!("{shape:?}"), start, seed, &growing);
        assert!(states > 20, "only {states} states were tried");
    }
}

#[test]
fn a_failing_disk_leaves_one_size_or_the_other() {
    let mut failures = 0;
    for (shape, seed) in SHAPES.into_iter().zip(31..) {
        for (seed, kind) in [(seed, StorageFull), (seed + 100, Other)] {
            let name = format!("{shape:?}, seed {seed}");
            failures += fail_every_change(&name, shape.fresh(), &workload(seed, 12, false), kind);
        }
    }
    println!("{failures} failures, none lost, none corrupt");
    assert!(failures > 200, "only {failures} failures were met");
}
