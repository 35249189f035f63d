//! Headers that are wrong about the active L1 table: it is found again where the whole image says where it is, grows where
//! the disk has none of it, and is left alone where nobody can tell.

mod qemu_tools;

use std::path::Path;

use cowimg::check::{Remedy, Repair, RepairReport, check_storage, plan_storage, repair_storage};
use cowimg::storage::MemoryStorage;
use qemu_tools::assert_same_bytes;

const CLUSTER: usize = 512;
const DISK: usize = 4 << 20;
const SIZE: usize = 24;
const ENTRIES: usize = 36;
const PLACE: usize = 40;

/// An image whose L1 table has two clusters, made by QEMU, and what it holds.
fn sound(folder: &Path) -> (Vec<u8>, Vec<u8>) {
    let path = folder.join("sound.qcow2");
    qemu_tools::img(&format!("create -q -f qcow2 -o cluster_size={CLUSTER},size={DISK}"), &[&path]);
    let writes = ["write -q -P 5 100k 200k", "write -q -P 0 600k 64k", "write -q -P 7 3M 300k"];
    qemu_tools::io(&path, &writes.map(str::to_owned));
    qemu_tools::img("snapshot -c one", &[&path]);
    qemu_tools::io(&path, &["write -q -P 6 150k 100k".to_owned()]);
    (std::fs::read(&path).expect("the image can be read"), qemu_tools::content(&path))
}

fn with(bytes: &[u8], at: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + value.len()].copy_from_slice(value);
    bytes
}

/// Repairs the image; real tools find nothing wrong then, and read `disk`.
fn assert_repaired(what: &str, bytes: &[u8], disk: &[u8], folder: &Path) -> RepairReport {
    let storage = MemoryStorage::with_bytes(bytes);
    let plan = plan_storage(&storage, Repair::All).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(storage.to_vec() == bytes, "{what}: a plan changes nothing");
    assert!(plan.steps.iter().all(|step| step.remedy.changes()), "{what}: {:?}", plan.steps);
    let report = repair_storage(&storage, Repair::All).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(report.after.is_clean(), "{what}: {:?}", report.after);
    let path = folder.join("repaired.qcow2");
    std::fs::write(&path, storage.to_vec()).expect("the image can be written");
    let answer = qemu_tools::img_answer("check -f qcow2", &[path.as_path()]);
    assert_eq!(answer.code, 0, "{what}: qemu-img check: {}", answer.text);
    assert_same_bytes(&qemu_tools::content(&path), disk, what);
    report
}

#[test]
fn a_table_that_the_header_does_not_name_is_found() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let (bytes, disk) = sound(folder.path());
    let places = (0..bytes.len() + 4 * CLUSTER).step_by(CLUSTER).step_by(53);
    for place in places.chain([1, 513, 1 << 40, 1 << 62]) {
        let damaged = with(&bytes, PLACE, &(place as u64).to_be_bytes());
        assert_repaired(&format!("an L1 table at {place:#x}"), &damaged, &disk, folder.path());
    }
}

#[test]
fn a_table_is_found_whose_length_is_wrong_as_well() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let (bytes, disk) = sound(folder.path());
    for place in [0, 1, 1 << 40] {
        for entries in [0, 1, 100, 1 << 20, u32::MAX] {
            let damaged = with(&bytes, PLACE, &u64::to_be_bytes(place));
            let damaged = with(&damaged, ENTRIES, &entries.to_be_bytes());
            assert_repaired(&format!("{entries} entries at {place:#x}"), &damaged, &disk, folder.path());
        }
    }
}

#[test]
fn the_table_of_an_empty_disk_is_found() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("empty.qcow2");
    qemu_tools::img("create -q -f qcow2 -o size=1M", &[&path]);
    let bytes = std::fs::read(&path).expect("the image can be read");
    for place in [0, 0x200, 1 << 30] {
        let damaged = with(&bytes, PLACE, &u64::to_be_bytes(place));
        assert_repaired(&format!("{place:#x}"), &damaged, &vec![0; 1 << 20], folder.path());
    }
}

#[test]
fn the_length_of_the_table_is_what_the_disk_needs() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let (bytes, disk) = sound(folder.path());
    for entries in [0_u32, 1, 63, 64, 65, 127, 129, 500, 1 << 20, u32::MAX] {
        let damaged = with(&bytes, ENTRIES, &entries.to_be_bytes());
        let what = format!("an L1 table of {entries} entries");
        let storage = MemoryStorage::with_bytes(&damaged);
        // A table that is a little too long is sound where what follows reads as no entries.
        if !check_storage(&storage).expect("the header can be read").is_clean() {
            assert_repaired(&what, &damaged, &disk, folder.path());
        }
    }
}

#[test]
fn a_table_that_has_never_been_as_long_as_the_disk_gets_zeroes() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let (bytes, mut disk) = sound(folder.path());
    let size = 64_u64 << 20;
    disk.resize(size as usize, 0);
    let damaged = with(&bytes, SIZE, &size.to_be_bytes());
    let storage = MemoryStorage::with_bytes(&damaged);
    let plan = plan_storage(&storage, Repair::All).expect("there is a plan");
    assert!(plan.steps.iter().any(|step| step.remedy == Remedy::FitL1), "{:?}", plan.steps);
    assert_repaired("a larger disk", &damaged, &disk, folder.path());
}

#[test]
fn what_only_looks_leaked_is_not_given_back() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let (bytes, disk) = sound(folder.path());
    let zeroes = (bytes.chunks(CLUSTER)).rposition(|cluster| cluster.iter().all(|&byte| byte == 0));
    let place = (zeroes.expect("the image has clusters of zeroes") * CLUSTER) as u64;
    let damaged = with(&bytes, PLACE, &place.to_be_bytes());
    let storage = MemoryStorage::with_bytes(&damaged);
    let report = repair_storage(&storage, Repair::Leaks).expect("the image can be checked");
    assert!(storage.to_vec() == damaged, "nothing has changed");
    assert_eq!((report.leaks_fixed, &report.after), (0, &report.before));
    assert_repaired("repaired whole", &damaged, &disk, folder.path());
}

#[test]
fn a_table_is_not_guessed_where_more_is_wrong() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let (bytes, _) = sound(folder.path());
    let damaged = with(&bytes, PLACE, &[0; 8]);
    let table = u64::from_be_bytes(bytes[48..56].try_into().expect("eight bytes")) as usize;
    let block = u64::from_be_bytes(bytes[table..table + 8].try_into().expect("eight bytes")) as usize;
    let before = with(&damaged, block + 300, &[0, 9]);
    let storage = MemoryStorage::with_bytes(&before);
    let plan = plan_storage(&storage, Repair::All).expect("there is a plan");
    let left = plan.steps.iter().any(|step| matches!(step.remedy, Remedy::Leave { .. }));
    assert!(left, "{:?}", plan.steps);
    let report = repair_storage(&storage, Repair::All).expect("the image can be checked");
    assert!(!report.after.is_clean());
    assert!(storage.to_vec() == before, "what nobody can tell stays as it is");
}
