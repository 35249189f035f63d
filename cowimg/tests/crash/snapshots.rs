//! Snapshots taken, applied and deleted between writes: each happens whole or not at all, whenever the power fails.

use std::io::ErrorKind::{Other, StorageFull};

use crate::faults::fail_every_change;
use crate::history::try_every_moment;
use crate::lab::{Call, Dice, SHAPES, Shape, guest_call, image_with_snapshot};

/// The shapes whose refcounts have room for snapshots.
fn shapes() -> impl Iterator<Item = Shape> {
    SHAPES.into_iter().filter(|shape| shape.refcount_order > 1)
}

/// A guest's calls with snapshots between them: the first is taken soon, so that the others have something to go by.
fn workload(seed: u64, calls: usize) -> Vec<Call> {
    let mut dice = Dice(seed);
    let call = |nth| match dice.roll(9) {
        _ if nth == 2 => Call::Take,
        0 | 1 => Call::Take,
        2 => Call::Apply(dice.roll(8) as usize),
        3 => Call::Delete(dice.roll(8) as usize),
        _ => guest_call(&mut dice, nth),
    };
    (0..calls).map(call).collect()
}

/// Tries every moment of a workload on one of the shapes.
pub(crate) fn try_seed(seed: u64) -> usize {
    let shape = shapes().nth(seed as usize % shapes().count()).unwrap();
    try_every_moment(&format!("snapshots, {shape:?}"), shape.fresh(), seed, &workload(seed, 20))
}

#[test]
fn a_snapshot_is_there_whole_or_not_at_all_whenever_the_power_fails() {
    let mut states = 0;
    for (nth, shape) in shapes().enumerate() {
        for seed in 1..=2 {
            let seed = seed * 6151 + nth as u64;
            states += try_every_moment(&format!("{shape:?}"), shape.fresh(), seed, &workload(seed, 20));
        }
    }
    states += try_every_moment("QEMU's snapshot", image_with_snapshot(), 77, &workload(77, 20));
    println!("{states} states after a crash, none lost, none corrupt");
    assert!(states > 2_000, "only {states} states were tried");
}

#[test]
fn a_failing_disk_leaves_every_snapshot_whole() {
    let mut failures = 0;
    for (shape, seed) in shapes().zip(21..) {
        for (seed, kind) in [(seed, StorageFull), (seed + 100, Other)] {
            let name = format!("{shape:?}, seed {seed}");
            failures += fail_every_change(&name, shape.fresh(), &workload(seed, 14), kind);
        }
    }
    println!("{failures} failures, none lost, none corrupt");
    assert!(failures > 200, "only {failures} failures were met");
}
