//! Writers that die, `qemu-io` with lazy refcounts and the library: what each leaves the other opens, repairs and writes on.

use std::path::{Path, PathBuf};

use cowimg::{Access, CreateOptions, Image, LazyRefcounts};
use tempfile::TempDir;

use crate::header_bytes::{self, INCOMPATIBLE};
use crate::model::{Model, Operation, Operations};
use crate::qemu_tools::{self, assert_same_bytes};
use crate::subject::{self, Discarded};

const DIRTY: u64 = 1;
const SIZE: u64 = 2 << 20;

/// Options of images whose refcounts may be left behind.
const MADE: [(&str, u64); 7] = [
    ("cluster_size=512", 512),
    ("cluster_size=4k,refcount_bits=1", 4096),
    ("cluster_size=4k,refcount_bits=64", 4096),
    ("cluster_size=64k", 65536),
    ("cluster_size=64k,extended_l2=on", 65536),
    ("cluster_size=2M,refcount_bits=8", 2 << 20),
    ("cluster_size=64k,compression_type=zstd", 65536),
];

fn created(options: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("image.qcow2");
    let size = SIZE.to_string();
    qemu_tools::img(
        &format!("create -q -f qcow2 -o lazy_refcounts=on,{options}"),
        &[&path, Path::new(&size)],
    );
    (folder, path)
}

fn is_dirty(path: &Path) -> bool {
    header_bytes::features(path, INCOMPATIBLE) & DIRTY != 0
}

/// Lets `qemu-io` write, flush what it has mapped, and die.
fn qemu_dies(path: &Path, model: &mut Model, operations: &mut Operations) {
    let mut commands = Vec::new();
    for _ in 0..10 {
        let range = operations.range();
        let byte = operations.rng().below(256) as u8;
        commands.push(format!("write -q -P {byte} {} {}", range.start(), range.len()));
        model.write(range.start(), &vec![byte; range.len() as usize]);
    }
    commands.extend(["flush".to_owned(), "abort".to_owned()]);
    let path = path.display().to_string();
    let mut arguments = vec!["-f", "qcow2"];
    for command in &commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(&path);
    let answer = qemu_tools::answer_of("qemu-io", &arguments);
    assert_ne!(answer.code, 0, "it aborts");
}

#[test]
fn what_qemu_leaves_dirty_is_read_as_it_is_and_repaired_before_it_is_written() {
    for (options, cluster) in MADE {
        let (_folder, path) = created(options);
        let mut model = Model::zeroed(SIZE);
        let mut operations = Operations::new(format!("died {options}"), SIZE, cluster);
        for round in 0..2 {
            qemu_dies(&path, &mut model, &mut operations);
            // Where nothing new is mapped, nothing is left behind.
            assert!(is_dirty(&path) || cluster >= SIZE, "{options}: QEMU leaves the image dirty");
            let before = std::fs::read(&path).expect("the image can be read");
            assert_same_bytes(
                &subject::content(&path),
                model.bytes(),
                &format!("{options}: read while dirty"),
            );
            assert!(
                std::fs::read(&path).expect("the image can be read") == before,
                "reading changes nothing"
            );
            let image = subject::open_writable(&path);
            assert!(!is_dirty(&path), "{options}: it is repaired when it is opened to be written");
            for _ in 0..10 {
                subject::apply(&image, &mut model, operations.next(), (Discarded::Zero, cluster));
            }
            if round == 0 {
                subject::close_and_compare(image, &path, &model);
            } else {
                we_die(image, &path, &model, options);
            }
        }
    }
}

/// The library dies after a flush: refcounts are right then, whatever an image allows.
fn we_die(image: Image, path: &Path, model: &Model, options: &str) {
    image.flush().expect("a flush succeeds");
    std::mem::forget(image);
    assert!(!is_dirty(path), "{options}: refcounts are never left behind");
    // The file stays locked: this process is still there.
    let copy = path.with_extension("copy");
    std::fs::copy(path, &copy).expect("the image can be copied");
    qemu_tools::assert_check_finds_at_most_leaks(&copy);
    assert_same_bytes(&qemu_tools::content(&copy), model.bytes(), &format!("{options}: read by QEMU"));
    qemu_tools::io(&copy, &["write -q -P 9 0 100k".to_owned()]);
    let mut model = model.clone();
    model.write(0, &vec![9; 100 << 10]);
    assert_same_bytes(&subject::content(&copy), model.bytes(), &format!("{options}: written by QEMU"));
}

#[test]
fn snapshots_compressed_clusters_and_bases_are_counted_in_the_repair() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let (base, path) = (folder.path().join("base.raw"), folder.path().join("image.qcow2"));
    std::fs::write(&base, vec![3; SIZE as usize]).expect("the base can be written");
    qemu_tools::img("create -q -f qcow2 -o lazy_refcounts=on -F raw -b base.raw", &[&path]);
    let mut model = Model::holding(vec![3; SIZE as usize]);
    let mut operations = Operations::new("died with everything", SIZE, 65536);
    qemu_tools::io(&path, &["write -q -c -P 4 0 256k".to_owned()]);
    model.write(0, &vec![4; 256 << 10]);
    qemu_tools::img("snapshot -c a", &[&path]);
    let snapshot = model.clone();
    qemu_dies(&path, &mut model, &mut operations);
    subject::open_writable(&path).close().expect("it opens, and closes");
    subject::assert_agreement(&path, &model);
    assert_same_bytes(&qemu_tools::snapshot_content(&path, "a"), snapshot.bytes(), "the snapshot");
}

#[test]
fn a_writer_that_dies_without_lazy_refcounts_leaves_leaks_at_most() {
    for (options, cluster) in MADE {
        let (_folder, path) = created(&format!("{options},lazy_refcounts=off"));
        let mut model = Model::zeroed(SIZE);
        let mut operations = Operations::new(format!("died eagerly {options}"), SIZE, cluster);
        qemu_dies(&path, &mut model, &mut operations);
        assert!(!is_dirty(&path));
        let image = subject::open_writable(&path);
        for _ in 0..10 {
            subject::apply(&image, &mut model, operations.next(), (Discarded::Zero, cluster));
        }
        image.close().expect("the image closes");
        qemu_tools::assert_check_finds_at_most_leaks(&path);
        assert_same_bytes(&qemu_tools::content(&path), model.bytes(), options);
    }
}

#[test]
fn images_that_allow_lazy_refcounts_are_kept_right_all_the_same() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("image.qcow2");
    let mut options = CreateOptions::qcow2(SIZE);
    options.qcow2.lazy_refcounts = LazyRefcounts::On;
    let image = Image::create(&path, &options).expect("the image is created");
    let mut model = Model::zeroed(SIZE);
    let mut operations = Operations::new("lazy and ours", SIZE, 65536);
    for _ in 0..20 {
        let change: Operation = operations.next_change();
        subject::apply(&image, &mut model, change, (Discarded::Zero, 65536));
    }
    we_die(image, &path, &model, "ours");
    let reopened = Image::options().access(Access::ReadOnly).lock(cowimg::LockMode::Off).open(&path);
    assert_same_bytes(&subject::content_of(&reopened.expect("it opens")), model.bytes(), "ours");
}
