//! Damaged images that are repaired: whenever the power fails or the disk does, another repair ends as the first would
//! have, and what could be read before reads the same at every moment.

use std::io::ErrorKind::{Interrupted, Other, StorageFull};
use std::sync::Arc;

use cowimg::check::{Remedy, Repair, check_storage, plan_storage, repair_storage};
use cowimg::storage::{CrashChoice, FaultyStorage, MemoryStorage, Storage};
use cowimg::{Format, Image, SnapshotSelector};

use crate::faults::Trouble;
use crate::files::Files;
use crate::lab::{Dice, choices};
use crate::qemu_tools::damage::{Kind, Sound};

const CLUSTER: u64 = 4096;
/// The most moments of a repair that are tried.
const MOMENTS: usize = 100;

/// How the operations of a repair fail, in turn from damage to damage.
const TROUBLES: [Trouble; 4] =
    [Trouble::Once(Other), Trouble::ForGood(StorageFull), Trouble::Once(Interrupted), Trouble::FullFor(2)];

/// A disk in clusters, those that cannot be read being `None`.
type Clusters = Vec<Option<Vec<u8>>>;

/// What is read of the disk and of the snapshot; `None` where that does not open.
type Content = [Option<Clusters>; 2];

fn content(storage: &MemoryStorage) -> Content {
    let of = |snapshot: Option<&[u8]>| {
        let storage: Arc<dyn Storage> = Arc::new(storage.clone());
        let mut options = Image::options().format(Format::Qcow2).no_backing();
        if let Some(name) = snapshot {
            options = options.snapshot(SnapshotSelector::Name(name.to_vec()));
        }
        let image = options.open_storage(storage).ok()?;
        let read = |at: u64| {
            let mut bytes = vec![0; CLUSTER as usize];
            image.read_at(&mut bytes, at).ok().map(|()| bytes)
        };
        Some((0..image.size()).step_by(CLUSTER as usize).map(read).collect())
    };
    [of(None), of(Some(b"one"))]
}

/// What a repair must keep. What is read through another table than the image's own is not the disk.
fn content_to_keep(damaged: &MemoryStorage) -> Content {
    let plan = plan_storage(damaged, Repair::All).unwrap();
    let is_another = plan.steps.iter().any(|step| matches!(step.remedy, Remedy::FindL1 { .. }));
    if is_another { [None, None] } else { content(damaged) }
}

/// What could be read reads the same.
fn assert_kept(before: &Content, after: &Content, context: &str) {
    for (which, (before, after)) in ["disk", "snapshot"].iter().zip(before.iter().zip(after)) {
        let Some(before) = before else { continue };
        for (cluster, bytes) in before.iter().enumerate().filter(|(_, bytes)| bytes.is_some()) {
            let after = after.as_ref().and_then(|after| after.get(cluster));
            assert!(after == Some(bytes), "{context}: cluster {cluster} of the {which} has changed");
        }
    }
}

/// Repairs what a crash has left, and holds it against the image before and the repair that was not cut.
fn judge(state: &MemoryStorage, (before, whole): (&Content, &Content), context: &str) {
    assert_kept(before, &content(state), &format!("{context}, as it was left"));
    let report = repair_storage(state, Repair::All).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(report.after.is_clean(), "{context}: {:?}", report.after);
    let after = content(state);
    assert_kept(before, &after, context);
    for (which, (after, whole)) in ["disk", "snapshot"].iter().zip(after.iter().zip(whole)) {
        let differing = |after: &Clusters, whole: &Clusters| {
            let pairs = after.iter().zip(whole).enumerate();
            pairs.filter(|(_, (after, whole))| after != whole).map(|(nth, _)| nth).collect::<Vec<_>>()
        };
        let differing = after.as_ref().zip(whole.as_ref()).map(|(after, whole)| differing(after, whole));
        assert!(after == whole, "{context}: another repair ends otherwise: {which}, clusters {differing:?}");
    }
}

/// Cuts the power at every moment of a repair.
fn cut(name: &str, damaged: &MemoryStorage, seed: u64) -> usize {
    let before = content_to_keep(damaged);
    let storage = FaultyStorage::new(damaged.clone());
    let report = repair_storage(&storage, Repair::All).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(report.after.is_clean(), "{name}: {:?}", report.after);
    let whole = content(storage.inner());
    let mut dice = Dice(seed);
    let mut states = 0;
    // Every moment, but where thousands of entries are mended: then some of them.
    for moment in (0..=storage.log_len()).step_by(1 + storage.log_len() / MOMENTS) {
        for choice in choices(&mut dice, storage.unsynced_at(moment)) {
            let context = format!("{name}, seed {seed}, moment {moment}, {choice:?}");
            judge(&storage.crash_at(moment, choice), (&before, &whole), &context);
            states += 1;
        }
    }
    states
}

/// Fails operations of a repair, reads among them.
fn fail(name: &str, damaged: &MemoryStorage, trouble: Trouble) -> usize {
    let before = content_to_keep(damaged);
    let whole = {
        let storage = damaged.clone();
        repair_storage(&storage, Repair::All).unwrap();
        content(&storage)
    };
    let sound = FaultyStorage::new(damaged.clone());
    repair_storage(&sound, Repair::All).unwrap();
    let operations: u64 = trouble.kinds().iter().map(|kind| sound.count(*kind)).sum();
    let mut states = 0;
    for nth in (0..operations).step_by(1 + operations as usize / MOMENTS) {
        let files = Files::new(std::slice::from_ref(damaged));
        trouble.arm(&files, 0, nth);
        // It may succeed: some looks are taken twice, and some are for speed.
        let _done = repair_storage(&*files.shared()[0], Repair::All);
        files.clear_faults();
        for choice in [CrashChoice::Synced, CrashChoice::All] {
            let context = format!("{name}, {trouble:?}, operation {nth} failed, {choice:?}");
            judge(&files.crash_now(choice)[0], (&before, &whole), &context);
            states += 1;
        }
    }
    states
}

/// Every third of the damages, from `first` on.
fn try_kind(kind: Kind, first: usize) {
    let folder = tempfile::tempdir().unwrap();
    let sound = Sound::with_clusters(kind, &folder.path().join("image.qcow2"), CLUSTER);
    let mut states = 0;
    for (nth, damage) in sound.damages().iter().enumerate().skip(first).step_by(3) {
        let damaged = MemoryStorage::with_bytes(&damage.bytes);
        if check_storage(&damaged).unwrap().is_clean() {
            continue;
        }
        states += cut(&damage.name, &damaged, nth as u64 + 71);
        states += fail(&damage.name, &damaged, TROUBLES[nth / 3 % TROUBLES.len()]);
    }
    println!("{states} states of a repair that was cut, all repaired, nothing lost");
    assert!(states > 300, "only {states} states were tried");
}

#[test]
fn a_repair_that_is_cut_is_finished_by_the_next() {
    try_kind(Kind::Version3, 0);
}

#[test]
fn a_repair_that_is_cut_is_finished_by_the_next_of_other_damages() {
    try_kind(Kind::Version3, 1);
}

#[test]
fn a_repair_that_is_cut_is_finished_by_the_next_of_further_damages() {
    try_kind(Kind::Version3, 2);
}

#[test]
fn a_repair_of_version_2_that_is_cut_is_finished_by_the_next() {
    try_kind(Kind::Version2, 0);
}
