//! Dirty bitmaps: whenever the power fails each is marked in use, or calls every sector dirty that is not what it was
//! when the bitmap was saved.

use std::sync::Arc;

use cowimg::check::check_storage;
use cowimg::storage::{CrashChoice, Fault, FaultyStorage, MemoryStorage, OperationKind, Storage};
use cowimg::{Access, Image, NewBitmap, Recording};

use crate::lab::{Dice, SECTOR, SHAPES, Shape, carry_out, choices, guest_call, open, sectors_of};

/// Bitmaps that are there from the start, with their granularities; the last does not record.
const BITMAPS: [(&str, u64, Recording); 3] =
    [("fine", 512, Recording::On), ("coarse", 4096, Recording::On), ("idle", 1024, Recording::Off)];

/// The shapes that can have bitmaps.
fn shapes() -> impl Iterator<Item = Shape> {
    SHAPES.into_iter().filter(|shape| shape.version == cowimg::Version::V3)
}

/// An image with data and clean bitmaps, and what its sectors hold.
fn start(shape: Shape) -> (MemoryStorage, Vec<u8>) {
    let storage = Arc::new(shape.fresh());
    let image = open(storage.clone(), Access::ReadWrite).unwrap();
    image.write_at(&vec![200; 40 * SECTOR as usize], 30 * SECTOR).unwrap();
    for (name, granularity, recording) in BITMAPS {
        image.add_bitmap(name, &NewBitmap { granularity: Some(granularity), recording }).unwrap();
    }
    let sectors = sectors_of(&image);
    image.close().unwrap();
    (MemoryStorage::clone(&storage), sectors)
}

/// A guest's calls in several uses of the image, between them bitmaps that come and go; up to the use that meets an error,
/// for after a sync that failed the next would start from a cache that the disk does not have.
fn use_it(storage: &Arc<FaultyStorage>, seed: u64) -> cowimg::Result<()> {
    let mut dice = Dice(seed);
    for round in 0..3 {
        let image = open(storage.clone(), Access::ReadWrite)?;
        let called: Vec<_> =
            (0..5).map(|nth| carry_out(&image, guest_call(&mut dice, round * 5 + nth))).collect();
        let edited = match round {
            0 => image.add_bitmap("extra", &NewBitmap::default()),
            1 => image.merge_bitmap("extra", &image, "fine").and_then(|()| image.disable_bitmap("extra")),
            _ => image.remove_bitmap("extra"),
        };
        let closed = image.close();
        called.into_iter().chain([edited, closed]).collect::<cowimg::Result<()>>()?;
    }
    Ok(())
}

/// Which sectors a bitmap calls dirty.
fn dirty(image: &Image, name: &[u8], sectors: usize) -> Vec<bool> {
    let mut dirty = vec![false; sectors];
    for range in image.bitmap_ranges(name).unwrap() {
        let range = range.unwrap();
        dirty[(range.start() / SECTOR) as usize..range.end().div_ceil(SECTOR) as usize].fill(true);
    }
    dirty
}

/// Holds one state against the promise.
fn judge(state: MemoryStorage, before: &[u8], context: &str) -> usize {
    let report = check_storage(&state).unwrap_or_else(|error| panic!("{context}: check: {error}"));
    assert!(report.corruptions == 0 && report.check_errors == 0, "{context}: {:?}", report.issues);
    let storage: Arc<dyn Storage> = Arc::new(state);
    let trusted = compare(&storage, before, context);
    // What is left must be good to work on.
    let image = open(storage.clone(), Access::ReadWrite).unwrap_or_else(|error| panic!("{context}: {error}"));
    for sector in (0..before.len() as u64).step_by(7) {
        image.write_at(&[251; SECTOR as usize], sector * SECTOR).unwrap();
    }
    image.close().unwrap_or_else(|error| panic!("{context}: {error}"));
    let report = check_storage(&*storage).unwrap();
    assert!(report.corruptions == 0, "{context}: after writing on: {:?}", report.issues);
    assert_eq!(compare(&storage, before, context), trusted, "{context}: bitmaps to trust after writing on");
    trusted
}

/// Compares the bitmaps that are not marked in use with what the disk holds; gives their number.
fn compare(storage: &Arc<dyn Storage>, before: &[u8], context: &str) -> usize {
    let image = open(storage.clone(), Access::ReadOnly).unwrap();
    let sectors = sectors_of(&image);
    let listed = image.bitmaps().unwrap();
    for (name, ..) in BITMAPS {
        assert!(listed.iter().any(|bitmap| bitmap.name == name.as_bytes()), "{context}: {name} is gone");
    }
    let trusted = listed.iter().filter(|bitmap| !bitmap.in_use);
    for bitmap in trusted.clone() {
        let dirty = dirty(&image, &bitmap.name, sectors.len());
        let name = String::from_utf8_lossy(&bitmap.name);
        match &*name {
            "idle" => assert!(dirty.iter().all(|dirty| !dirty), "{context}: {name} was never written to"),
            // It came later, so that it has less to say.
            "extra" => {}
            _ => {
                for (sector, is_dirty) in dirty.into_iter().enumerate() {
                    let changed = sectors[sector] != before[sector];
                    assert!(is_dirty || !changed, "{context}: {name} has missed sector {sector}");
                }
            }
        }
    }
    trusted.count()
}

/// Tries every moment of a workload that the seed determines; how many states there were, and bitmaps to trust in them.
fn try_shape(shape: Shape, seed: u64) -> (usize, usize) {
    let (start, before) = start(shape);
    let storage = Arc::new(FaultyStorage::new(start));
    use_it(&storage, seed).unwrap();
    let mut dice = Dice(seed);
    let (mut states, mut trusted) = (0, 0);
    for moment in 0..=storage.log_len() {
        for choice in choices(&mut dice, storage.unsynced_at(moment)) {
            let context = format!("bitmaps, {shape:?}, seed {seed}, moment {moment}, {choice:?}");
            trusted += judge(storage.crash_at(moment, choice), &before, &context);
            states += 1;
        }
    }
    (states, trusted)
}

/// Tries every moment of a workload on one of the shapes.
pub(crate) fn try_seed(seed: u64) -> usize {
    let shape = shapes().nth(seed as usize % shapes().count()).unwrap();
    try_shape(shape, seed).0
}

#[test]
fn no_bitmap_that_can_be_trusted_has_missed_a_change_whenever_the_power_fails() {
    let (mut states, mut trusted) = (0, 0);
    for (nth, shape) in shapes().enumerate() {
        for seed in 1..=2 {
            let (more, to_trust) = try_shape(shape, seed * 4099 + nth as u64);
            states += more;
            trusted += to_trust;
        }
    }
    println!("{states} states after a crash, with {trusted} bitmaps to trust, none too clean");
    assert!(states > 2_000 && trusted > states, "only {states} states were tried, {trusted} bitmaps trusted");
}

#[test]
fn a_failing_disk_leaves_bitmaps_in_use_or_right() {
    let mut failures = 0;
    for (shape, seed) in shapes().zip(31..) {
        let (start, before) = start(shape);
        for nth in 0.. {
            let storage = Arc::new(FaultyStorage::new(start.clone()));
            storage.inject(Fault::error(std::io::ErrorKind::StorageFull).after(nth));
            let _failed_where_it_mattered = use_it(&storage, seed);
            if OperationKind::ALL.iter().map(|kind| storage.count(*kind)).sum::<u64>() <= nth {
                break;
            }
            failures += 1;
            storage.clear_faults();
            let context = format!("{shape:?}, change {nth} failed");
            judge(storage.crash(CrashChoice::All), &before, &context);
            judge(storage.crash(CrashChoice::Synced), &before, &format!("{context}, power cut"));
        }
    }
    println!("{failures} failures, none lost, none corrupt");
    assert!(failures > 100, "only {failures} failures were met");
}
