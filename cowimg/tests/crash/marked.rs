//! An image in which damage is met while it is written: whenever the power fails, what was flushed is there, the damage is
//! the only one, and the image is marked corrupt or as it was. Once the call has failed, what was acknowledged before it
//! is there as well, and the mark.

use std::io::ErrorKind as IoErrorKind;
use std::sync::Arc;

use cowimg::check::check_storage;
use cowimg::format::qcow2::{Header, Incompatible};
use cowimg::storage::{CrashChoice, Fault, FaultyStorage, MemoryStorage, OperationKind, Storage, StorageExt};
use cowimg::{Access, Image, Version};

use crate::lab::{Dice, SECTOR, SHAPES, SIZE, Shape, choices, open};

const COPIED: u64 = 1 << 63;
/// Sectors of the disk: what is there before, flushed, acknowledged, and where the damage is.
const OLD: std::ops::Range<u64> = 0..60;
const FLUSHED: std::ops::Range<u64> = 8..20;
const ACKNOWLEDGED: std::ops::Range<u64> = 30..35;
const NEW: std::ops::Range<u64> = 100..103;
const DAMAGED: u64 = 64;

fn write(image: &Image, sectors: std::ops::Range<u64>, byte: u8) -> cowimg::Result<()> {
    let len = (sectors.end - sectors.start) * SECTOR;
    image.write_at(&vec![byte; len as usize], sectors.start * SECTOR)
}

fn word(storage: &dyn Storage, at: u64) -> u64 {
    let mut bytes = [0; 8];
    storage.read_exact_at(&mut bytes, at).unwrap();
    u64::from_be_bytes(bytes)
}

/// An image with data, and a cluster that is said to be in the L2 table itself.
fn damaged(shape: Shape) -> MemoryStorage {
    let storage = Arc::new(shape.fresh());
    let image = open(storage.clone(), Access::ReadWrite).unwrap();
    write(&image, OLD, 1).unwrap();
    write(&image, DAMAGED..DAMAGED + 1, 1).unwrap();
    let cluster = image.cluster_size().unwrap();
    image.close().unwrap();
    let (index, per_table) = (DAMAGED * SECTOR / cluster, cluster / 8);
    let l1 = word(&*storage, 40);
    let l2 = word(&*storage, l1 + index / per_table * 8) & !COPIED;
    storage.write_all_at(&(COPIED | l2).to_be_bytes(), l2 + index % per_table * 8).unwrap();
    MemoryStorage::with_bytes(storage.to_vec())
}

fn is_marked(storage: &MemoryStorage) -> bool {
    let bytes = storage.to_vec();
    let header = Header::decode(&bytes[..bytes.len().min(4096)]);
    header.expect("the header can be read").incompatible.contains(Incompatible::CORRUPT)
}

/// How far the work had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reached {
    Opened,
    /// The flush has returned.
    Flushed,
    /// The call has failed that met the damage.
    Met,
}

/// The work; `reached` is told how far it has come. An error is the first that is no damage's.
fn work(storage: Arc<dyn Storage>, mut reached: impl FnMut(Reached)) -> cowimg::Result<()> {
    let image = open(storage, Access::ReadWrite)?;
    write(&image, FLUSHED, 2)?;
    image.flush()?;
    reached(Reached::Flushed);
    write(&image, ACKNOWLEDGED, 3)?;
    write(&image, NEW, 3)?;
    write(&image, DAMAGED..DAMAGED + 1, 4).expect_err("data is never written over a table");
    reached(Reached::Met);
    write(&image, OLD, 5).expect_err("a damaged image takes no more changes");
    Ok(())
}

/// What a file that was left so must hold.
fn judge(state: &MemoryStorage, version: Version, (reached, baseline): (Reached, u64), context: &str) {
    let report = check_storage(state).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(report.corruptions <= baseline, "{context}: there is more damage: {report:?}");
    let image = open(Arc::new(state.clone()), Access::ReadOnly).unwrap();
    for sector in (0..SIZE / SECTOR).filter(|sector| !(DAMAGED..DAMAGED + 8).contains(sector)) {
        let mut bytes = vec![0; SECTOR as usize];
        image.read_at(&mut bytes, sector * SECTOR).unwrap_or_else(|error| panic!("{context}: {error}"));
        let old = u8::from(OLD.contains(&sector));
        let (new, from) = match sector {
            sector if FLUSHED.contains(&sector) => (2, Reached::Flushed),
            sector if ACKNOWLEDGED.contains(&sector) || NEW.contains(&sector) => (3, Reached::Met),
            _ => (old, Reached::Opened),
        };
        let is_right = bytes.iter().all(|byte| *byte == new || (reached < from && *byte == old));
        assert!(is_right, "{context}: sector {sector} holds {}", bytes[0]);
    }
    drop(image);
    let marked = version == Version::V3 && is_marked(state);
    assert!(marked || reached < Reached::Met || version == Version::V2, "{context}: the mark is lost");
    let writer = open(Arc::new(state.clone()), Access::ReadWrite);
    assert_eq!(writer.is_err(), marked, "{context}: marked is not to be written, and nothing else");
}

#[test]
fn an_image_is_marked_whenever_the_power_fails_and_nothing_acknowledged_is_lost() {
    let mut states = 0;
    for shape in SHAPES {
        let damaged = damaged(shape);
        let baseline = check_storage(&damaged).unwrap().corruptions;
        assert!(baseline > 0, "{shape:?}");
        let storage = Arc::new(FaultyStorage::new(damaged));
        let mut reached = vec![(0, Reached::Opened)];
        work(storage.clone(), |now| reached.push((storage.log_len(), now))).unwrap();
        for seed in 1..4 {
            let mut dice = Dice(seed);
            for moment in 0..=storage.log_len() {
                let at = reached.iter().rfind(|(from, _)| *from <= moment).unwrap().1;
                for choice in choices(&mut dice, storage.unsynced_at(moment)) {
                    let context = format!("{shape:?}, seed {seed}, moment {moment}, {at:?}, {choice:?}");
                    let state = storage.crash_at(moment, choice);
                    judge(&state, shape.version, (at, baseline), &context);
                    states += 1;
                }
            }
        }
    }
    println!("{states} states of images in which damage was met, nothing lost");
    assert!(states > 500, "only {states} states were tried");
}

#[test]
fn a_mark_that_cannot_be_written_costs_nothing_that_was_flushed() {
    let changes = [OperationKind::Write, OperationKind::Sync, OperationKind::SetLen];
    for shape in SHAPES {
        let damaged = damaged(shape);
        let baseline = check_storage(&damaged).unwrap().corruptions;
        let whole = Arc::new(FaultyStorage::new(damaged.clone()));
        work(whole.clone(), |_| {}).unwrap();
        for nth in 0..changes.iter().map(|kind| whole.count(*kind)).sum() {
            let storage = Arc::new(FaultyStorage::new(damaged.clone()));
            storage.inject(Fault::error(IoErrorKind::Other).on(&changes).after(nth));
            let mut reached = Reached::Opened;
            let done = work(storage.clone(), |now| reached = now);
            storage.clear_faults();
            for choice in [CrashChoice::Synced, CrashChoice::All] {
                let context = format!("{shape:?}, change {nth} failed, {done:?}, {choice:?}");
                let at = reached.min(Reached::Flushed);
                judge(&storage.crash(choice), shape.version, (at, baseline), &context);
            }
        }
    }
}
