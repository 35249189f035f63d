//! Damaged refcounts and copied flags, one field at a time: after the repair real `qemu-img check` finds nothing, and every
//! byte of the disk is what it was.

mod qemu_tools;

use std::path::Path;

use cowimg::check::{Repair, repair_storage};
use cowimg::storage::MemoryStorage;

/// An image with data, a snapshot that shares some of it, and its refcounts' place and width in bytes.
struct Patient {
    bytes: Vec<u8>,
    disk: Vec<u8>,
    snapshot: Vec<u8>,
    refcount_block: usize,
    width: usize,
    clusters: usize,
}

fn word(bytes: &[u8], at: usize) -> usize {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes")) as usize
}

fn patient(path: &Path, options: &str) -> Patient {
    qemu_tools::img(&format!("create -q -f qcow2 -o {options}"), &[path, Path::new("1M")]);
    qemu_tools::io(path, &["write -q -P 5 0 256k".to_owned()]);
    qemu_tools::img("snapshot -c one", &[path]);
    qemu_tools::io(path, &["write -q -P 6 64k 64k".to_owned(), "write -q -P 7 512k 64k".to_owned()]);
    let bytes = std::fs::read(path).expect("the image can be read");
    let cluster = 1_usize << u32::from_be_bytes(bytes[20..24].try_into().expect("four bytes"));
    let order = u32::from_be_bytes(bytes[96..100].try_into().expect("four bytes"));
    Patient {
        refcount_block: word(&bytes, word(&bytes, 48)),
        width: (1 << order) / 8,
        clusters: bytes.len().div_ceil(cluster),
        disk: qemu_tools::content(path),
        snapshot: qemu_tools::snapshot_content(path, "one"),
        bytes,
    }
}

fn try_all(options: &str) -> usize {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("image.qcow2");
    let patient = patient(&path, options);
    let mut damaged = Vec::new();
    for cluster in 0..patient.clusters {
        let at = patient.refcount_block + cluster * patient.width;
        // The last byte of the number: none, one too many, many too many.
        let last = at + patient.width - 1;
        for value in [0, patient.bytes[last] + 1, 200] {
            let mut bytes = patient.bytes.clone();
            bytes[last] = value;
            damaged.push((format!("refcount of cluster {cluster} is {value}"), bytes));
        }
    }
    let l1 = word(&patient.bytes, 40);
    let l2 = word(&patient.bytes, l1) & 0x00ff_ffff_ffff_fe00;
    let entry = if options.contains("extended_l2") { 16 } else { 8 };
    for (what, at) in [("L1", l1), ("L2", l2), ("L2", l2 + entry), ("L2", l2 + 2 * entry)] {
        let mut bytes = patient.bytes.clone();
        bytes[at] ^= 0x80;
        damaged.push((format!("copied flag of an {what} entry at {at}"), bytes));
    }
    for (what, bytes) in &damaged {
        let storage = MemoryStorage::with_bytes(bytes.clone());
        let report = repair_storage(&storage, Repair::All).expect("it can be repaired");
        assert!(report.after.is_clean(), "{options}: {what}: {:?}", report.after);
        std::fs::write(&path, storage.to_vec()).expect("the image can be written");
        qemu_tools::assert_check_clean(&path);
        assert!(qemu_tools::content(&path) == patient.disk, "{options}: {what}: the disk differs");
        let snapshot = qemu_tools::snapshot_content(&path, "one");
        assert!(snapshot == patient.snapshot, "{options}: {what}: the snapshot differs");
    }
    damaged.len()
}

#[test]
fn accounting_is_made_right_and_data_stay() {
    let tried: usize = [
        "cluster_size=64k",
        "cluster_size=64k,refcount_bits=64",
        "cluster_size=64k,refcount_bits=8",
        "cluster_size=64k,extended_l2=on",
    ]
    .into_iter()
    .map(try_all)
    .sum();
    assert!(tried >= 60, "{tried} images");
}

#[test]
fn leaks_alone_are_given_back() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("image.qcow2");
    let patient = patient(&path, "cluster_size=64k");
    let mut bytes = patient.bytes.clone();
    bytes[patient.refcount_block + 2 * patient.clusters + 1] = 1;
    bytes.resize((patient.clusters + 1) << 16, 0);
    let storage = MemoryStorage::with_bytes(bytes);
    let report = repair_storage(&storage, Repair::Leaks).expect("it can be repaired");
    assert_eq!((report.leaks_fixed, report.corruptions_fixed), (1, 0));
    assert!(report.after.is_clean());
}
