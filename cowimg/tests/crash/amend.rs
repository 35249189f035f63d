//! Images that are amended: what they hold stays, in the old form or the new one, whenever the power fails.

use std::sync::Arc;

use cowimg::check::check_storage;
use cowimg::progress::Control;
use cowimg::storage::{CrashChoice, Fault, FaultyStorage, MemoryStorage, OperationKind, Storage};
use cowimg::{Access, AmendOptions, LazyRefcounts, Version};

use crate::lab::{Dice, SECTOR, SHAPES, State, carry_out, choices, guest_call, image_with_snapshot, open};

/// Amendments of an image of version 3 with refcounts of any width, one after the other.
fn amendments() -> Vec<AmendOptions> {
    let width = |bits| AmendOptions { refcount_bits: Some(bits), ..AmendOptions::default() };
    let version = |version| AmendOptions { version: Some(version), ..AmendOptions::default() };
    vec![
        width(64),
        AmendOptions { lazy_refcounts: Some(LazyRefcounts::On), ..width(4) },
        AmendOptions { refcount_bits: Some(16), ..version(Version::V2) },
        version(Version::V3),
        AmendOptions { size: Some(200 * SECTOR), ..width(8) },
    ]
}

/// An image with what a guest has done to it, zero clusters among it.
fn used(start: MemoryStorage, seed: u64) -> MemoryStorage {
    let storage = Arc::new(start);
    let image = open(storage.clone(), Access::ReadWrite).unwrap();
    let mut dice = Dice(seed);
    for nth in 0..20 {
        carry_out(&image, guest_call(&mut dice, nth)).unwrap();
    }
    image.close().unwrap();
    MemoryStorage::clone(&storage)
}

fn amend(storage: Arc<dyn Storage>, wanted: &AmendOptions) -> cowimg::Result<()> {
    let mut image = open(storage, Access::ReadWrite)?;
    image.amend(wanted, &Control::default())?;
    image.close()
}

fn state_of(storage: &Arc<dyn Storage>) -> State {
    State::of(&open(storage.clone(), Access::ReadOnly).unwrap(), storage)
}

/// Holds one state against the promise, and amends it once more.
fn judge(state: MemoryStorage, (before, after): (&State, &State), wanted: &AmendOptions, context: &str) {
    let report = check_storage(&state).unwrap_or_else(|error| panic!("{context}: check: {error}"));
    assert!(report.corruptions == 0 && report.check_errors == 0, "{context}: {:?}", report.issues);
    let storage: Arc<dyn Storage> = Arc::new(state);
    let found = state_of(&storage);
    assert!(found == *before || found == *after, "{context}: what the image holds has changed");
    amend(storage.clone(), wanted).unwrap_or_else(|error| panic!("{context}: again: {error}"));
    let report = check_storage(&*storage).unwrap();
    assert!(report.corruptions == 0, "{context}: amended again: {:?}", report.issues);
    assert!(state_of(&storage) == *after, "{context}: amended again it holds something else");
}

/// Amends the image step by step; tries every moment of each, and the failure of every change.
fn try_amendments(name: &str, start: MemoryStorage, seed: u64) -> usize {
    let mut states = 0;
    let mut dice = Dice(seed);
    let mut start = start;
    for wanted in amendments() {
        let before = state_of(&(Arc::new(start.clone()) as Arc<dyn Storage>));
        let storage = Arc::new(FaultyStorage::new(start.clone()));
        amend(storage.clone(), &wanted).unwrap_or_else(|error| panic!("{name}: {wanted:?}: {error}"));
        let whole = storage.crash(CrashChoice::All);
        let after = state_of(&(Arc::new(whole.clone()) as Arc<dyn Storage>));
        let report = check_storage(&whole).unwrap();
        assert!(report.is_clean(), "{name}: {wanted:?}: {:?}", report.issues);
        for moment in 0..=storage.log_len() {
            for choice in choices(&mut dice, storage.unsynced_at(moment)) {
                let context = format!("{name}, {wanted:?}, moment {moment}, {choice:?}");
                judge(storage.crash_at(moment, choice), (&before, &after), &wanted, &context);
                states += 1;
            }
        }
        for nth in 0.. {
            let storage = Arc::new(FaultyStorage::new(start.clone()));
            storage.inject(Fault::error(std::io::ErrorKind::Other).after(nth));
            let _failed_where_it_mattered = amend(storage.clone(), &wanted);
            if OperationKind::ALL.iter().map(|kind| storage.count(*kind)).sum::<u64>() <= nth {
                break;
            }
            storage.clear_faults();
            for choice in [CrashChoice::Synced, CrashChoice::All] {
                let context = format!("{name}, {wanted:?}, change {nth} failed, {choice:?}");
                judge(storage.crash(choice), (&before, &after), &wanted, &context);
                states += 1;
            }
        }
        start = whole;
    }
    states
}

/// Tries an image of one of the shapes.
pub(crate) fn try_seed(seed: u64) -> usize {
    let shapes: Vec<_> = SHAPES.into_iter().filter(|shape| shape.version == Version::V3).collect();
    let shape = shapes[seed as usize % shapes.len()];
    try_amendments(&format!("amend, {shape:?}, seed {seed}"), used(shape.fresh(), seed), seed)
}

#[test]
fn an_amended_image_holds_what_it_held_whenever_the_power_fails() {
    let mut states = 0;
    for (shape, seed) in SHAPES.into_iter().filter(|shape| shape.version == Version::V3).zip(51..) {
        states += try_amendments(&format!("{shape:?}"), used(shape.fresh(), seed), seed);
    }
    states += try_amendments("with a snapshot", used(image_with_snapshot(), 61), 41);
    println!("{states} states after a crash, none lost, none corrupt");
    assert!(states > 500, "only {states} states were tried");
}
