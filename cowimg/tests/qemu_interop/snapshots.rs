//! Internal snapshots that QEMU took keep their content, whatever is written to the image afterwards.

use std::path::Path;

use cowimg::{ByteRange, ZeroMode};

use crate::model::{Model, Operation, Operations};
use crate::qemu_tools::{self, assert_same_bytes};
use crate::seeded::noise;
use crate::subject::{self, Discarded};

#[derive(Debug, Clone, Copy)]
struct Made {
    cluster: u64,
    refcount_bits: u32,
    compat: &'static str,
}

const SIZE: u64 = 3 * 1024 * 1024 + 1536;

/// The narrowest refcount that counts two snapshots and the disk itself has two bits.
const MADE: [Made; 7] = [
    Made { cluster: 512, refcount_bits: 2, compat: "1.1" },
    Made { cluster: 4096, refcount_bits: 4, compat: "1.1" },
    Made { cluster: 4096, refcount_bits: 16, compat: "0.10" },
    Made { cluster: 65536, refcount_bits: 2, compat: "1.1" },
    Made { cluster: 65536, refcount_bits: 8, compat: "1.1" },
    Made { cluster: 65536, refcount_bits: 64, compat: "1.1" },
    Made { cluster: 2097152, refcount_bits: 32, compat: "1.1" },
];

/// An image whose disk holds noise, compressed or not, with holes.
fn create(folder: &Path, made: Made, convert: &str) -> (std::path::PathBuf, Model) {
    let (raw, path) = (folder.join("source.raw"), folder.join("image.qcow2"));
    let mut bytes = noise(9, SIZE as usize);
    bytes[500_000..1_200_000].fill(0);
    bytes[2_000_000..2_600_000].fill(0x44);
    std::fs::write(&raw, &bytes).expect("the source can be written");
    let Made { cluster, refcount_bits, compat } = made;
    let words = format!(
        "{convert} -f raw -O qcow2 -o cluster_size={cluster},refcount_bits={refcount_bits},compat={compat}"
    );
    qemu_tools::img(&words, &[&raw, &path]);
    (path, Model::holding(bytes))
}

fn operate(path: &Path, model: &mut Model, operations: &mut Operations, cluster: u64) {
    let image = subject::open_writable(path);
    for _ in 0..50 {
        subject::apply(&image, model, operations.next(), (Discarded::Zero, cluster));
    }
    image.close().expect("the image closes");
}

fn assert_snapshot(path: &Path, name: &str, model: &Model) {
    assert_same_bytes(&qemu_tools::snapshot_content(path, name), model.bytes(), &format!("snapshot {name}"));
}

/// Goes back to `name` in a copy of the image: the snapshot's tables are whole, not its data alone.
fn assert_can_go_back(path: &Path, name: &str, model: &Model) {
    let copy = path.with_extension("copy");
    std::fs::copy(path, &copy).expect("the image can be copied");
    qemu_tools::img(&format!("snapshot -a {name}"), &[&copy]);
    subject::assert_agreement(&copy, model);
}

fn try_made(made: Made, convert: &str) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let (path, mut model) = create(folder.path(), made, convert);
    let mut operations = Operations::new(format!("snapshots {made:?} {convert}"), SIZE, made.cluster);

    let first = model.clone();
    qemu_tools::img("snapshot -c first", &[&path]);
    operate(&path, &mut model, &mut operations, made.cluster);
    subject::assert_agreement(&path, &model);
    assert_snapshot(&path, "first", &first);

    let second = model.clone();
    qemu_tools::img("snapshot -c second", &[&path]);
    operate(&path, &mut model, &mut operations, made.cluster);
    subject::assert_agreement(&path, &model);
    assert_snapshot(&path, "first", &first);
    assert_snapshot(&path, "second", &second);
    // On the way back QEMU counts one reference more for a moment, which two bits have no room for.
    if made.refcount_bits > 2 {
        assert_can_go_back(&path, "first", &first);
        assert_can_go_back(&path, "second", &second);
    }

    // Deleting lowers refcounts to one: the entries must say so, or the next write goes wrong.
    qemu_tools::img("snapshot -d first", &[&path]);
    operate(&path, &mut model, &mut operations, made.cluster);
    subject::assert_agreement(&path, &model);
    assert_snapshot(&path, "second", &second);
}

#[test]
fn snapshots_keep_their_content() {
    for made in MADE {
        try_made(made, "convert");
    }
}

#[test]
fn snapshots_of_compressed_clusters_keep_their_content() {
    // Many compressed clusters share one of the host's, and each counts: narrow refcounts run over.
    for made in [MADE[2], MADE[5], MADE[6]] {
        try_made(made, "convert -c");
    }
}

#[test]
fn wiping_the_whole_disk_leaves_a_snapshot_whole() {
    let all = ByteRange::between(0, SIZE);
    let wipes = [
        Operation::Discard(all),
        Operation::Zeroes(all, ZeroMode::Unmap),
        Operation::Zeroes(all, ZeroMode::KeepSpace),
        Operation::Write(all, crate::model::Fill::Noise(12)),
    ];
    for wipe in wipes {
        for made in [MADE[0], MADE[2], MADE[4]] {
            let folder = tempfile::tempdir().expect("a temporary folder can be made");
            let (path, mut model) = create(folder.path(), made, "convert");
            let before = model.clone();
            qemu_tools::img("snapshot -c before", &[&path]);
            let image = subject::open_writable(&path);
            subject::apply(&image, &mut model, wipe, (Discarded::Zero, made.cluster));
            subject::close_and_compare(image, &path, &model);
            assert_snapshot(&path, "before", &before);
            assert_can_go_back(&path, "before", &before);
        }
    }
}

#[test]
fn snapshots_are_told_of() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let (path, _) = create(folder.path(), MADE[4], "convert");
    qemu_tools::img("snapshot -c first", &[&path]);
    qemu_tools::img("snapshot -c second", &[&path]);
    let info = subject::open(&path).info().expect("the image tells of itself");
    let names: Vec<_> =
        info.snapshots.iter().map(|snapshot| String::from_utf8_lossy(&snapshot.name).into_owned()).collect();
    assert_eq!(names, ["first", "second"]);
}
