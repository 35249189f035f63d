//! Images with one damaged field: after the repair real `qemu-img check` finds nothing, and what could be read is what it
//! was. A plan made before says what is done about each finding, and changes nothing.

mod qemu_tools;

use std::path::Path;
use std::sync::Arc;

use cowimg::check::{
    Finding, L1Problem, L2Problem, Repair, RepairReport, check_storage, plan_storage, repair_storage,
};
use cowimg::storage::{MemoryStorage, Storage};
use cowimg::{FilePolicy, Format, Image, SnapshotSelector};
use qemu_tools::damage::{BACKING_BYTE, Damage, Kind, Sound, Survives};

const CLUSTER: usize = 64 << 10;

/// The disk in pieces of a cluster, those that cannot be read being `None`.
type Pieces = Vec<Option<Vec<u8>>>;

fn pieces(image: &Image) -> Pieces {
    let count = (image.size() as usize).div_ceil(CLUSTER);
    let read = |piece: usize| {
        let mut bytes = vec![0; CLUSTER.min(image.size() as usize - piece * CLUSTER)];
        image.read_at(&mut bytes, (piece * CLUSTER) as u64).ok().map(|()| bytes)
    };
    (0..count).map(read).collect()
}

/// What this library reads of the disk and of the snapshot "one" before the repair; `None` where it does not open.
fn readable(bytes: &[u8], folder: &Path, snapshot: Option<&str>) -> Option<Pieces> {
    let path = folder.join("readable.qcow2");
    std::fs::write(&path, bytes).expect("the image can be written");
    let mut options = Image::options().format(Format::Qcow2).backing(FilePolicy::AllowAll);
    if let Some(name) = snapshot {
        options = options.snapshot(SnapshotSelector::Name(name.as_bytes().to_vec()));
    }
    options.open(&path).ok().map(|image| pieces(&image))
}

/// Holds `after` against what could be read before and against the sound image.
fn judge(what: &str, survives: Survives, (before, sound, after): (Option<Pieces>, &[u8], &[u8])) {
    if survives == Survives::All {
        return qemu_tools::assert_same_bytes(after, sound, what);
    }
    let Some(before) = before else { return };
    for (piece, ((before, sound), after)) in
        before.iter().zip(sound.chunks(CLUSTER)).zip(after.chunks(CLUSTER)).enumerate()
    {
        match before {
            Some(before) => assert!(before == after, "{what}: cluster {piece} differs"),
            None => assert!(
                after == sound
                    || [0, BACKING_BYTE].iter().any(|given_up| after.iter().all(|byte| byte == given_up)),
                "{what}: cluster {piece}, which could not be read, is something else now"
            ),
        }
    }
}

fn repair(what: &str, bytes: &[u8]) -> (Vec<u8>, RepairReport) {
    let storage = MemoryStorage::with_bytes(bytes);
    let plan = plan_storage(&storage, Repair::All).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(storage.to_vec() == bytes, "{what}: a plan changes nothing");
    let unrepaired: Vec<_> = plan.steps.iter().filter(|step| !step.remedy.changes()).collect();
    assert!(unrepaired.is_empty(), "{what}: nothing is planned for {unrepaired:?}");
    let report = repair_storage(&storage, Repair::All).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(report.after.is_clean(), "{what}: {:?}", report.after);
    assert_eq!(report.before, plan.report, "{what}: the plan is of the same check");
    (storage.to_vec(), report)
}

fn try_one(damage: &Damage, path: &Path, (disk, snapshot): (&[u8], Option<&[u8]>)) {
    let folder = path.parent().expect("the image is in a folder");
    let what = &damage.name;
    let before = readable(&damage.bytes, folder, None);
    let snapshot_before = snapshot.and_then(|_| readable(&damage.bytes, folder, Some("one")));
    let (repaired, _) = repair(what, &damage.bytes);
    std::fs::write(path, &repaired).expect("the image can be written");
    let answer = qemu_tools::img_answer("check -f qcow2", &[path]);
    assert_eq!(answer.code, 0, "{what}: qemu-img check: {}", answer.text);
    judge(what, damage.survives, (before, disk, &qemu_tools::content(path)));
    let Some(snapshot) = snapshot else { return };
    let what = format!("{what}: the snapshot");
    let is_there = qemu_tools::img("snapshot -l", &[path]).contains(" one ");
    assert!(is_there || damage.survives == Survives::Readable, "{what} went");
    assert!(
        is_there || snapshot_before.is_none_or(|pieces| pieces.iter().all(Option::is_none)),
        "{what} went"
    );
    if is_there {
        let before = readable(&damage.bytes, folder, Some("one"));
        judge(&what, damage.survives, (before, snapshot, &qemu_tools::snapshot_content(path, "one")));
    }
}

fn try_kind(kind: Kind, part: fn(usize) -> bool) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("image.qcow2");
    let sound = Sound::make(kind, &path);
    let disk = qemu_tools::content(&path);
    let snapshot = (kind != Kind::Bitmap).then(|| qemu_tools::snapshot_content(&path, "one"));
    let damages = sound.damages();
    assert!(damages.len() > 16, "{kind:?}: {} images", damages.len());
    for (_, damage) in damages.iter().enumerate().filter(|(nth, _)| part(*nth)) {
        try_one(damage, &path, (&disk, snapshot.as_deref()));
    }
}

#[test]
fn version_3_is_repaired_and_data_stay() {
    try_kind(Kind::Version3, |nth| nth % 2 == 0);
}

#[test]
fn version_3_is_repaired_and_data_stay_as_well() {
    try_kind(Kind::Version3, |nth| nth % 2 == 1);
}

#[test]
fn version_2_is_repaired_and_data_stay() {
    try_kind(Kind::Version2, |nth| nth % 2 == 0);
}

#[test]
fn version_2_is_repaired_and_data_stay_as_well() {
    try_kind(Kind::Version2, |nth| nth % 2 == 1);
}

#[test]
fn subclusters_are_repaired_and_data_stay() {
    try_kind(Kind::Extended, |nth| nth % 2 == 0);
}

#[test]
fn subclusters_are_repaired_and_data_stay_as_well() {
    try_kind(Kind::Extended, |nth| nth % 2 == 1);
}

#[test]
fn images_over_a_backing_file_are_repaired_and_data_stay() {
    try_kind(Kind::Backed, |nth| nth % 2 == 0);
}

#[test]
fn images_over_a_backing_file_are_repaired_and_data_stay_as_well() {
    try_kind(Kind::Backed, |nth| nth % 2 == 1);
}

#[test]
fn damaged_bitmaps_go_and_data_stay() {
    try_kind(Kind::Bitmap, |_| true);
}

/// The other repair changes refcounts that are too high, and never what data hang on.
#[test]
fn leaks_alone_are_given_back_where_nothing_else_is_wrong() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("image.qcow2");
    let sound = Sound::make(Kind::Version3, &path);
    for Damage { name, bytes, .. } in sound.damages() {
        let storage = MemoryStorage::with_bytes(&bytes);
        let before = check_storage(&storage).expect("it can be checked");
        let report = repair_storage(&storage, Repair::Leaks).expect("it can be repaired");
        assert_eq!(report.before, before, "{name}");
        assert!(report.after.corruptions <= before.corruptions, "{name}");
        assert!(report.after.leaks <= before.leaks, "{name}");
        if before.corruptions == 0 && before.check_errors == 0 {
            assert!(report.after.is_clean(), "{name}: {:?}", report.after);
        }
        let open = |bytes: Vec<u8>| {
            let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::with_bytes(bytes));
            Image::options().format(Format::Qcow2).open_storage(storage).ok().map(|image| pieces(&image))
        };
        assert!(open(bytes) == open(storage.to_vec()), "{name}: the disk differs");
    }
}

/// What a dirty image gets before it is written: no entry of a table is given up without a word.
#[test]
fn refcounts_are_made_right_and_tables_stay_as_they_are() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("image.qcow2");
    let sound = Sound::make(Kind::Version3, &path);
    let damages = sound.damages();
    let named = |name: &str| {
        let damage = damages.iter().find(|damage| damage.name.ends_with(name));
        damage.unwrap_or_else(|| panic!("there is no damage {name:?}"))
    };
    for name in ["no refcount block", "refcount block at an L2 table", "refcount table within a cluster"] {
        let storage = MemoryStorage::with_bytes(&named(name).bytes);
        let report = repair_storage(&storage, Repair::Refcounts).expect("it can be repaired");
        assert!(report.after.is_clean(), "{name}: {:?}", report.after);
    }
    for name in ["L2 entry far past the end", "L1 entry within a cluster"] {
        let storage = MemoryStorage::with_bytes(&named(name).bytes);
        let plan = plan_storage(&storage, Repair::Refcounts).expect("it can be planned");
        let report = repair_storage(&storage, Repair::Refcounts).expect("it can be repaired");
        assert_eq!(report.before, plan.report, "{name}");
        let is_entry = |finding: &Finding| {
            matches!(
                finding,
                Finding::L1Entry { problem: L1Problem::Unaligned, .. }
                    | Finding::L2Entry { problem: L2Problem::PastEnd { .. }, .. }
            )
        };
        let after = &report.after.issues;
        assert!(after.iter().any(|issue| is_entry(&issue.finding)), "{name}: {after:?}");
        assert_eq!(report.leaks_fixed, 0, "{name}: it may be what the entry refers to");
    }
}

/// Without a data file it is no damage: refcounts may say that both have it.
#[test]
fn a_table_of_two_parts_of_a_disk_with_a_data_file_stays_the_first_ones() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    for data_file in [true, false] {
        let path = folder.path().join(format!("{data_file}.qcow2"));
        let named = format!("data_file={},", path.with_extension("raw").display());
        let options = format!("{}cluster_size=4k,size=4M", if data_file { &named } else { "" });
        qemu_tools::img(&format!("create -q -f qcow2 -o {options}"), &[&path]);
        qemu_tools::io(&path, &["write -q -P 5 0 100k".to_owned()]);
        let disk = qemu_tools::content(&path);
        let mut bytes = std::fs::read(&path).expect("the image can be read");
        let word =
            |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let l1 = word(&bytes, 40) as usize;
        let table = word(&bytes, l1) & 0x00ff_ffff_ffff_fe00;
        let refcount = (word(&bytes, word(&bytes, 48) as usize) + table / 4096 * 2) as usize;
        for entry in [l1, l1 + 8] {
            bytes[entry..entry + 8].copy_from_slice(&table.to_be_bytes());
        }
        bytes[refcount..refcount + 2].copy_from_slice(&2_u16.to_be_bytes());
        let found = check_storage(&MemoryStorage::with_bytes(&bytes)).expect("the image can be checked");
        let is_found = found.issues.iter().any(|issue| {
            matches!(issue.finding, Finding::L1Entry { problem: L1Problem::TableOfAnother, site } if site.index == Some(1))
        });
        assert_eq!(is_found, data_file, "{found:?}");
        if data_file {
            let (repaired, _) = repair("one table for two", &bytes);
            std::fs::write(&path, repaired).expect("the image can be written");
            qemu_tools::assert_check_clean(&path);
            qemu_tools::assert_same_bytes(&qemu_tools::content(&path), &disk, "one table for two");
        }
    }
}

#[test]
fn clusters_of_a_data_file_are_led_back_to_their_own_places() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    for (raw, extended) in [("off", "off"), ("on", "off"), ("off", "on"), ("on", "on")] {
        let path = folder.path().join(format!("{raw}-{extended}.qcow2"));
        let options = format!("data_file={},data_file_raw={raw}", path.with_extension("raw").display());
        let options = format!("{options},extended_l2={extended},size=1M");
        qemu_tools::img(&format!("create -q -f qcow2 -o {options}"), &[&path]);
        qemu_tools::io(&path, &["write -q -P 5 0 100k".to_owned(), "write -q -P 6 300k 200k".to_owned()]);
        let sound = std::fs::read(&path).expect("the image can be read");
        let disk = qemu_tools::content(&path);
        let word = |at: usize| u64::from_be_bytes(sound[at..at + 8].try_into().expect("eight bytes"));
        let l2 = (word(word(40) as usize) & 0x00ff_ffff_ffff_fe00) as usize;
        let size = if extended == "on" { 16 } else { 8 };
        for (nth, host) in [(0_usize, 1_u64), (1, 0), (5, 6), (6, 1 << 20)] {
            let what = format!("raw {raw}, extended {extended}: entry {nth} to cluster {host}");
            let mut bytes = sound.clone();
            let entry = (host * CLUSTER as u64) | (1 << 63);
            bytes[l2 + nth * size..][..8].copy_from_slice(&entry.to_be_bytes());
            let found = check_storage(&MemoryStorage::with_bytes(&bytes)).expect("the image can be checked");
            let is_found = |problem| {
                found.issues.iter().any(|issue| {
                    matches!(issue.finding, Finding::L2Entry { problem: found, .. } if found == problem)
                })
            };
            assert!(is_found(L2Problem::NotItsPlace), "{what}: {found:?}");
            let (repaired, _) = repair(&what, &bytes);
            std::fs::write(&path, repaired).expect("the image can be written");
            qemu_tools::assert_check_clean(&path);
            qemu_tools::assert_same_bytes(&qemu_tools::content(&path), &disk, &what);
        }
    }
}
