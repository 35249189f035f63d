//! What a power cut or a failing disk may do to an image, tried at every moment of a workload.
//!
//! [`history`] has the method for what guests do, [`job`] the one for work between images, [`faults`] that for files that
//! fail; the other modules have workloads. What is drawn at random is drawn from printed seeds, the same ones in every run;
//! `make soak` draws others, up to a number of states.
#![allow(clippy::unwrap_used, reason = "what cannot fail here is part of what is tested")]

mod amend;
mod bitmaps;
mod chain;
mod convert;
mod exhaustive;
mod faults;
mod files;
mod history;
mod job;
mod keys;
mod kinds;
mod known;
mod lab;
mod marked;
mod power;
#[path = "../power_cut/mod.rs"]
mod power_cut;
#[path = "../qemu_tools/mod.rs"]
mod qemu_tools;
mod repair;
mod resize;
mod snapshots;
mod soak;
mod subject;

use std::sync::Arc;

use cowimg::storage::{Fault, FaultyStorage, Operation, OperationKind};
use cowimg::{Access, ErrorKind};

use faults::fail_every_change;
use history::try_every_moment;
use lab::{Dice, SHAPES, image_with_snapshot, open, workload};

/// Tries every moment of a guest's calls on one of the shapes, or on an image that a snapshot shares.
fn try_seed(seed: u64) -> usize {
    match seed as usize % (SHAPES.len() + 1) {
        nth if nth < SHAPES.len() => {
            let calls = workload(&mut Dice(seed), 40);
            try_every_moment(&format!("{:?}", SHAPES[nth]), SHAPES[nth].fresh(), seed, &calls)
        }
        _ => {
            let calls = workload(&mut Dice(seed), 30);
            try_every_moment("a snapshot's clusters", image_with_snapshot(), seed, &calls)
        }
    }
}

#[test]
fn nothing_flushed_is_lost_and_nothing_is_corrupt_whenever_the_power_fails() {
    let mut states = 0;
    for (nth, shape) in SHAPES.into_iter().enumerate() {
        for seed in 1..=3 {
            let seed = seed * 7919 + nth as u64;
            let calls = workload(&mut Dice(seed), 40);
            states += try_every_moment(&format!("{shape:?}"), shape.fresh(), seed, &calls);
        }
    }
    println!("{states} states after a crash, none lost, none corrupt");
    assert!(states > 5_000, "only {states} states were tried");
}

#[test]
fn what_a_snapshot_shares_is_copied_safely_whenever_the_power_fails() {
    let start = image_with_snapshot();
    let try_one = |seed| try_every_moment("snapshot", start.clone(), seed, &workload(&mut Dice(seed), 30));
    let states: usize = (1..=4).map(|seed| try_one(seed * 31)).sum();
    println!("{states} states after a crash, none lost, none corrupt");
    assert!(states > 800, "only {states} states were tried");
}

/// The order itself, from the log: between two syncs there are either changes that nothing in the file refers to yet, or
/// changes to references, never the two that depend on each other. Seen from outside: a flush of a workload that maps
/// new clusters and takes new tables has at least two syncs, and ends with one.
#[test]
fn a_flush_ends_with_a_sync_and_writes_no_reference_before_one() {
    let storage = Arc::new(FaultyStorage::new(SHAPES[0].fresh()));
    let image = open(storage.clone(), Access::ReadWrite).unwrap();
    image.write_at(&[1; 4096], 0).unwrap();
    storage.restart_log();
    image.flush().unwrap();
    let log = storage.log();
    let syncs = log.iter().filter(|operation| matches!(operation, Operation::Sync)).count();
    assert!(syncs >= 2, "{log:?}");
    assert!(matches!(log.last(), Some(Operation::Sync)), "{log:?}");
}

#[test]
fn a_failing_disk_costs_the_call_that_met_it_and_no_flushed_byte() {
    let mut failures = 0;
    for (shape, seed) in SHAPES.into_iter().zip(11..) {
        for (seed, kind) in [(seed, std::io::ErrorKind::StorageFull), (seed + 100, std::io::ErrorKind::Other)]
        {
            let name = format!("{shape:?}, seed {seed}");
            failures += fail_every_change(&name, shape.fresh(), &workload(&mut Dice(seed), 25), kind);
        }
    }
    println!("{failures} failures, none lost, none corrupt");
    assert!(failures > 200, "only {failures} failures were met");
}

/// Rule W8: after a sync that failed nobody knows what is in the file, so that writes stop.
#[test]
fn an_image_whose_commit_failed_refuses_writes_and_still_reads() {
    let storage = Arc::new(FaultyStorage::new(SHAPES[0].fresh()));
    let image = open(storage.clone(), Access::ReadWrite).unwrap();
    image.write_at(&[7; 1024], 1024).unwrap();
    storage.inject(Fault::error(std::io::ErrorKind::Other).on(&[OperationKind::Sync]));
    assert!(image.flush().is_err());
    let refused = image.write_at(&[8; 512], 0).unwrap_err();
    assert!(matches!(refused.kind(), ErrorKind::Failed { .. }), "{refused}");
    assert!(matches!(image.flush().unwrap_err().kind(), ErrorKind::Failed { .. }));
    let mut bytes = [0; 1024];
    image.read_at(&mut bytes, 1024).unwrap();
    assert_eq!(bytes, [7; 1024]);
}
