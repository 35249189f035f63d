//! Images with several damaged fields at once, drawn at random where tables have their entries: a repair ends, what could
//! be read reads the same, a second repair has nothing to do, and what is clean for us is clean for `qemu-img`.
//! `COWIMG_REPAIRS` sets how many images of each kind are tried, `COWIMG_TEST_SEED` which.

mod qemu_tools;

use std::sync::Arc;

use cowimg::check::{Remedy, Repair, check_storage, plan_storage, repair_storage};
use cowimg::storage::{MemoryStorage, Storage};
use cowimg::{Format, Image, SnapshotSelector};
use qemu_tools::damage::{Kind, Sound};

const CLUSTER: u64 = 4096;
/// Images of each kind.
const IMAGES: u64 = 150;
/// One in so many of the repaired images is shown to `qemu-img`.
const SHOWN: u64 = 10;

struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(usual)
}

/// Overwrites some words: entries of tables with places and flags, or with anything, and fields of the header.
fn damaged(sound: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = sound.to_vec();
    let clusters = bytes.len() as u64 / CLUSTER;
    for _ in 0..=dice.roll(6) {
        let at = match dice.roll(5) {
            0 => 24 + 8 * dice.roll(9),
            // Tables begin with what they say.
            1..=3 => CLUSTER * dice.roll(clusters) + 8 * dice.roll(24),
            _ => 8 * dice.roll(bytes.len() as u64 / 8),
        } as usize;
        let old = u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let flags = (dice.roll(4) << 62) | dice.roll(2);
        let value = match dice.roll(7) {
            0 => 0,
            1 => old ^ (1 << dice.roll(64)),
            2 => (CLUSTER * (clusters + dice.roll(8))) | flags,
            3 => dice.roll(u64::MAX) >> dice.roll(64),
            _ => (CLUSTER * dice.roll(clusters)) | flags,
        };
        bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
    }
    if dice.roll(8) == 0 {
        bytes.truncate(dice.roll(bytes.len() as u64) as usize);
    }
    bytes
}

/// The disk and the snapshot in clusters, those that cannot be read being `None`.
fn content(bytes: &[u8]) -> Vec<Option<Vec<u8>>> {
    let mut found = Vec::new();
    for name in [None, Some(b"one".to_vec())] {
        let mut options = Image::options().format(Format::Qcow2).no_backing();
        if let Some(name) = name {
            options = options.snapshot(SnapshotSelector::Name(name));
        }
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::with_bytes(bytes));
        let image = options.open_storage(storage).ok();
        for at in (0..32 * CLUSTER).step_by(CLUSTER as usize) {
            let mut piece = vec![0; CLUSTER as usize];
            let image = image.as_ref().filter(|image| at + CLUSTER <= image.size());
            found.push(image.and_then(|image| image.read_at(&mut piece, at).ok()).map(|()| piece));
        }
    }
    found
}

fn try_kind(kind: Kind) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("image.qcow2");
    let sound = Sound::with_clusters(kind, &path, CLUSTER);
    let images = setting("COWIMG_REPAIRS", IMAGES);
    let first = 1 + setting("COWIMG_TEST_SEED", 0).saturating_mul(images);
    let (mut repaired, mut checked) = (0, 0);
    for seed in first..first + images {
        let bytes = damaged(&sound.bytes, &mut Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1));
        let what = format!("{kind:?}, seed {seed}");
        let storage = MemoryStorage::with_bytes(&bytes);
        let Ok(plan) = plan_storage(&storage, Repair::All) else {
            assert!(check_storage(&storage).is_err(), "{what}: what can be checked can be planned for");
            continue;
        };
        assert!(storage.to_vec() == bytes, "{what}: a plan changes nothing");
        checked += 1;
        let before = content(&bytes);
        let Ok(report) = repair_storage(&storage, Repair::All) else { continue };
        assert_eq!(report.before, plan.report, "{what}");
        assert_eq!(check_storage(&storage).expect("it can be checked"), report.after, "{what}");
        let bytes = storage.to_vec();
        // Through another table than the image's own, what was read was not the disk.
        let was_another = plan.steps.iter().any(|step| matches!(step.remedy, Remedy::FindL1 { .. }));
        for (nth, (before, after)) in before.iter().zip(content(&bytes)).enumerate() {
            assert!(before.is_none() || was_another || *before == after, "{what}: piece {nth} differs");
        }
        let again = repair_storage(&storage, Repair::All).expect("it can be repaired again");
        if !report.after.is_clean() {
            assert!(again.after.corruptions <= report.after.corruptions, "{what}: it gets worse");
            continue;
        }
        repaired += 1;
        assert!(storage.to_vec() == bytes, "{what}: a second repair has nothing to do");
        if seed % SHOWN == 0 {
            std::fs::write(&path, &bytes).expect("the image can be written");
            let answer = qemu_tools::img_answer("check -f qcow2", &[&path]);
            // A feature that the damage has made up is none of the check's business.
            let is_refused =
                ["encryption", "data file", "xtension"].iter().any(|it| answer.text.contains(it));
            assert!(answer.code == 0 || is_refused, "{what}: qemu-img check: {}", answer.text);
        }
    }
    println!("{kind:?}: {images} images, {checked} could be checked, {repaired} are clean after the repair");
    assert!(repaired * 10 >= checked * 8, "{repaired} of {checked} were repaired");
}

#[test]
fn version_3() {
    try_kind(Kind::Version3);
}

#[test]
fn version_2() {
    try_kind(Kind::Version2);
}

#[test]
fn with_a_bitmap() {
    try_kind(Kind::Bitmap);
}
