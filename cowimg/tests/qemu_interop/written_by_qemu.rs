//! Images that QEMU makes and writes read as they should, and both may write the same image in turn.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use cowimg::ByteRange;

use crate::model::{Fill, Model, Operation, Operations};
use crate::qemu_tools::{self, assert_same_bytes};
use crate::script::Script;
use crate::seeded::noise;
use crate::subject::{self, Discarded};

/// How QEMU is asked to make an image.
#[derive(Debug, Clone, Copy)]
struct Made {
    cluster: u64,
    size: u64,
    /// More of `qemu-img create -o`.
    options: &'static str,
}

const MADE: [Made; 8] = [
    Made { cluster: 512, size: 1501 * 512, options: "compat=1.1" },
    Made { cluster: 4096, size: 2 * 1024 * 1024 + 512, options: "compat=0.10" },
    Made { cluster: 4096, size: 2 * 1024 * 1024 + 3072, options: "refcount_bits=1" },
    Made { cluster: 65536, size: 4 * 1024 * 1024 + 1024, options: "compression_type=zstd" },
    Made { cluster: 65536, size: 4 * 1024 * 1024 + 1024, options: "refcount_bits=64,lazy_refcounts=on" },
    Made { cluster: 65536, size: 4 * 1024 * 1024, options: "preallocation=metadata" },
    Made { cluster: 65536, size: 4 * 1024 * 1024 + 512, options: "preallocation=falloc,refcount_bits=8" },
    Made { cluster: 2097152, size: 9 * 1024 * 1024 + 1536, options: "compression_type=zstd,refcount_bits=4" },
];

fn create(path: &Path, made: Made) {
    let Made { cluster, size, options } = made;
    let words = format!("create -q -f qcow2 -o cluster_size={cluster},{options}");
    qemu_tools::img(&words, &[path, Path::new(&size.to_string())]);
}

/// Compressed writes to some clusters of an image that is still empty; the last cluster of the disk, which is not
/// whole, is among them.
fn add_compressed(script: &mut Script, operations: &mut Operations, made: Made, model: &mut Model) {
    let clusters = made.size.div_ceil(made.cluster);
    let mut chosen = BTreeSet::from([clusters - 1]);
    for _ in 0..clusters.min(24) {
        chosen.insert(operations.rng().below(clusters));
    }
    for cluster in chosen {
        let start = cluster * made.cluster;
        let range = ByteRange::between(start, (start + made.cluster).min(made.size));
        script.add_compressed(range, operations.fill(), model);
    }
}

/// Images with preallocated clusters take no compressed writes.
fn takes_compressed(made: Made) -> bool {
    !made.options.contains("preallocation")
}

#[test]
fn what_qemu_wrote_is_read() {
    for made in MADE {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("image.qcow2");
        let mut operations = Operations::new(format!("written by qemu {made:?}"), made.size, made.cluster);
        let mut model = Model::zeroed(made.size);
        create(&path, made);
        let mut script = Script::new(made.cluster);
        if takes_compressed(made) {
            add_compressed(&mut script, &mut operations, made, &mut model);
        }
        for _ in 0..60 {
            script.add(operations.next_change(), &mut model);
        }
        script.run(&path);
        subject::assert_agreement(&path, &model);
    }
}

/// One turn of each: QEMU's operations in one process, then ours on one open image.
fn one_turn(path: &Path, operations: &mut Operations, model: &mut Model, cluster: u64) {
    let mut script = Script::new(cluster);
    for _ in 0..8 {
        script.add(operations.next(), model);
    }
    script.run(path);
    let image = subject::open_writable(path);
    for _ in 0..8 {
        subject::apply(&image, model, operations.next(), (Discarded::Zero, cluster));
    }
    image.close().expect("the image closes");
}

#[test]
fn both_write_the_same_image_in_turn() {
    for made in MADE {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("image.qcow2");
        let mut operations = Operations::new(format!("in turn {made:?}"), made.size, made.cluster);
        let mut model = Model::zeroed(made.size);
        create(&path, made);
        let mut script = Script::new(made.cluster);
        if takes_compressed(made) {
            add_compressed(&mut script, &mut operations, made, &mut model);
        }
        script.run(&path);
        for turn in 0..10 {
            one_turn(&path, &mut operations, &mut model, made.cluster);
            assert_same_bytes(&qemu_tools::content(&path), model.bytes(), &format!("{made:?}, turn {turn}"));
            qemu_tools::assert_check_clean(&path);
        }
        subject::assert_agreement(&path, &model);
    }
}

#[test]
fn both_write_the_same_overlay_in_turn() {
    for (cluster, base_cluster) in [(512, "64k"), (4096, "512"), (65536, "4k"), (2097152, "64k")] {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let (raw, base) = (folder.path().join("base.raw"), folder.path().join("base.qcow2"));
        let path = folder.path().join("image.qcow2");
        let (size, base_size) = (3 * 1024 * 1024 + 512 * 5, 2_500_096);
        let bytes = noise(5, base_size);
        std::fs::write(&raw, &bytes).expect("the base can be written");
        let words = format!("convert -c -f raw -O qcow2 -o cluster_size={base_cluster}");
        qemu_tools::img(&words, &[&raw, &base]);
        let words = format!("create -q -f qcow2 -F qcow2 -b base.qcow2 -o cluster_size={cluster}");
        qemu_tools::img(&words, &[&path, Path::new(&size.to_string())]);

        let mut model = Model::holding(bytes.clone()).overlay(size);
        let mut operations = Operations::new(format!("overlay in turn {cluster}"), size, cluster);
        for _ in 0..6 {
            one_turn(&path, &mut operations, &mut model, cluster);
            qemu_tools::assert_check_clean(&path);
        }
        subject::assert_agreement(&path, &model);
        assert_same_bytes(&subject::content(&base), &bytes, "the base");
    }
}

#[test]
fn discarding_everything_gives_the_space_back_and_may_be_repeated() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("image.qcow2");
    create(&path, MADE[3]);
    let size = MADE[3].size;
    let mut model = Model::zeroed(size);
    let all = ByteRange::between(0, size);
    let mut script = Script::new(MADE[3].cluster);
    script.add_compressed(ByteRange::between(0, 1048576), Fill::Noise(3), &mut model);
    script.run(&path);
    let image = subject::open_writable(&path);
    let upper_half = Operation::Write(ByteRange::between(2 << 20, size), Fill::Noise(4));
    for operation in [upper_half, Operation::Flush, Operation::Discard(all), Operation::Discard(all)] {
        subject::apply(&image, &mut model, operation, (Discarded::Zero, MADE[3].cluster));
    }
    subject::close_and_compare(image, &path, &model);
    let taken = path.metadata().expect("the file is there").blocks() * 512;
    // Compressed clusters may share one of the host's, so their megabyte stays.
    assert!(taken < 1_500_000, "the file still takes {taken} bytes");
}
