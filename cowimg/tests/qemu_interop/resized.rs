//! A disk that was grown reads as before and then as zeroes, and one that shrank as before: as it does when `qemu-img
//! resize` did it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use cowimg::progress::{Control, Progress};
use cowimg::{
    Access, ErrorKind, Format, Image, NewSnapshot, Preallocation, ResizeOptions, Shrink, SnapshotSelector,
    SnapshotSize,
};

use crate::model::{Model, Operations};
use crate::qemu_tools::{self, assert_same_bytes};
use crate::seeded::noise;
use crate::subject::{self, Discarded};

const OLD_SIZE: u64 = 1024 * 1024 + 1536;

/// Sizes to grow to, one after the other: within the last cluster, within an L2 table, into new tables, far.
const NEW_SIZES: [u64; 4] = [OLD_SIZE + 512, 2 * 1024 * 1024 + 512, 9 * 1024 * 1024, 1 << 30];

/// Sizes up to this one are compared byte by byte.
const COMPARED: u64 = 16 * 1024 * 1024;

fn grow(path: &Path, size: u64) {
    let image = subject::open_writable(path);
    image.resize(size, &ResizeOptions::default()).expect("the resize succeeds");
    assert_eq!(image.size(), size);
    image.close().expect("the image closes");
}

fn create(path: &Path, words: &str, size: u64) {
    qemu_tools::img(&format!("create -q -f qcow2 {words}"), &[path, Path::new(&size.to_string())]);
}

fn operate(path: &Path, model: &mut Model, cluster: u64) {
    let purpose = format!("resized {cluster} {}", model.size());
    let mut operations = Operations::new(purpose, model.size(), cluster);
    let image = subject::open_writable(path);
    for _ in 0..30 {
        subject::apply(&image, model, operations.next(), (Discarded::Zero, cluster));
    }
    image.close().expect("the image closes");
}

/// Stops the job at its first word.
#[derive(Default)]
struct Stopper(AtomicBool);

impl Progress for Stopper {
    fn advanced(&self, _: u64, _: u64) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_preallocation_that_is_stopped_leaves_the_disk_as_it_was() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    for (format, cluster) in [(Format::Qcow2, 4096), (Format::Raw, 0)] {
        for preallocation in [Preallocation::Falloc, Preallocation::Full] {
            let path = folder.path().join("image");
            match format {
                Format::Qcow2 => create(&path, &format!("-o cluster_size={cluster}"), OLD_SIZE),
                Format::Raw => std::fs::write(&path, vec![1; OLD_SIZE as usize]).expect("the file is made"),
                other => panic!("{other} is not resized here"),
            }
            let options = Image::options().format(format).access(Access::ReadWrite);
            let image = options.open(&path).expect("the image opens");
            let once = Stopper::default();
            let control = Control { progress: Some(&once), cancel: Some(&once.0) };
            let options = ResizeOptions { preallocation, ..ResizeOptions::default() };
            let stopped = image.resize_with(4 << 30, &options, &control).expect_err("it was stopped");
            assert!(matches!(stopped.kind(), ErrorKind::Cancelled), "{stopped}");
            assert_eq!(image.size(), OLD_SIZE);
            image.close().expect("the image closes");
            if format == Format::Qcow2 {
                qemu_tools::assert_check_clean(&path);
                grow(&path, 1 << 30);
                qemu_tools::assert_check_clean(&path);
            } else {
                assert_eq!(std::fs::read(&path).expect("the file is read"), vec![1; OLD_SIZE as usize]);
            }
            std::fs::remove_file(&path).expect("the image is removed");
        }
    }
}

#[test]
fn a_grown_disk_reads_as_before_and_then_as_zeroes() {
    for (cluster, compat) in [(512, "1.1"), (512, "0.10"), (4096, "1.1"), (65536, "1.1"), (2097152, "0.10")] {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("image.qcow2");
        create(&path, &format!("-o cluster_size={cluster},compat={compat}"), OLD_SIZE);
        let mut model = Model::zeroed(OLD_SIZE);
        operate(&path, &mut model, cluster);
        for size in NEW_SIZES {
            grow(&path, size);
            qemu_tools::assert_check_clean(&path);
            subject::assert_own_check_clean(&subject::open(&path));
            if size <= COMPARED {
                model = model.overlay(size);
                subject::assert_agreement(&path, &model);
                operate(&path, &mut model, cluster);
            }
        }
        let info = qemu_tools::img("info -f qcow2", &[&path]);
        assert!(info.contains("1 GiB (1073741824 bytes)"), "{info}");
    }
}

#[test]
fn the_end_of_a_disk_that_grew_by_far_can_be_written() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("image.qcow2");
    create(&path, "-o cluster_size=512", OLD_SIZE);
    let image = subject::open_writable(&path);
    let size = 1 << 30;
    image.resize(size, &ResizeOptions::default()).expect("the resize succeeds");
    image.write_at(&[0x5a; 700], size - 700).expect("the write succeeds");
    image.close().expect("the image closes");
    qemu_tools::assert_check_clean(&path);
    let tail = qemu_tools::run(
        "qemu-io",
        &[
            "-f".as_ref(),
            "qcow2".as_ref(),
            "-c".as_ref(),
            format!("read -P 0x5a {} 700", size - 700).as_ref(),
            path.as_os_str(),
        ],
    );
    assert!(!tail.contains("verification failed"), "{tail}");
}

/// An overlay that is smaller than its base, whose end lies within a cluster.
fn overlay_of_larger_base(folder: &Path, words: &str) -> (PathBuf, Vec<u8>) {
    let bytes = noise(3, 6 * 1024 * 1024);
    std::fs::write(folder.join("base.raw"), &bytes).expect("the base can be written");
    let path = folder.join("image.qcow2");
    create(&path, &format!("-F raw -b base.raw {words}"), OLD_SIZE);
    (path, bytes)
}

#[test]
fn growing_over_a_larger_base_does_not_uncover_it() {
    for (cluster, compat) in [(512, "1.1"), (65536, "1.1"), (65536, "0.10"), (2097152, "1.1")] {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let words = format!("-o cluster_size={cluster},compat={compat}");
        let (path, base) = overlay_of_larger_base(folder.path(), &words);
        let theirs = folder.path().join("theirs.qcow2");
        std::fs::copy(&path, &theirs).expect("the image can be copied");
        for size in [OLD_SIZE + 512, 4 * 1024 * 1024, 8 * 1024 * 1024] {
            grow(&path, size);
            let model = Model::holding(base[..OLD_SIZE as usize].to_vec()).overlay(size);
            let what = format!("cluster {cluster}, compat {compat}, size {size}");
            // QEMU refuses this for version 2, which has no way to say "zero" without writing zeroes.
            if compat != "0.10" {
                qemu_tools::img("resize -q -f qcow2", &[&theirs, Path::new(&size.to_string())]);
                let content = qemu_tools::content(&theirs);
                assert_same_bytes(&content, model.bytes(), &format!("QEMU's own: {what}"));
            }
            assert_same_bytes(&qemu_tools::content(&path), model.bytes(), &what);
            subject::assert_agreement(&path, &model);
        }
    }
}

#[test]
fn a_disk_grows_between_writes_of_one_open_image() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let (path, base) = overlay_of_larger_base(folder.path(), "-o cluster_size=4k");
    let mut model = Model::holding(base).overlay(OLD_SIZE);
    let mut operations = Operations::new("grows while open", OLD_SIZE, 4096);
    let image = subject::open_writable(&path);
    for step in 1..12 {
        for _ in 0..15 {
            subject::apply(&image, &mut model, operations.next(), (Discarded::Zero, 4096));
        }
        let size = OLD_SIZE + step * 500 * 1024;
        image.resize(size, &ResizeOptions::default()).expect("the resize succeeds");
        model = model.overlay(size);
        operations.set_size(size);
    }
    subject::close_and_compare(image, &path, &model);
}

/// Preallocation where the disk grows, leave to shrink where it does not.
fn options_for(growing: bool, preallocation: Preallocation) -> ResizeOptions {
    let preallocation = if growing { preallocation } else { Preallocation::Off };
    ResizeOptions { preallocation, shrink: Shrink::Allow }
}

const PREALLOCATIONS: [Preallocation; 4] =
    [Preallocation::Off, Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full];

/// The snapshot holds what it did, in its own size. QEMU reads it in the size that the disk has now.
fn assert_kept(path: &Path, snapshot: &Model, disk: &Model) {
    let kept = || Image::options().snapshot(SnapshotSelector::Name(b"kept".to_vec()));
    let view = kept().open(path).expect("the snapshot opens");
    assert_same_bytes(&subject::content_of(&view), snapshot.bytes(), "the snapshot");
    let view = kept().snapshot_size(SnapshotSize::OfTheDisk).open(path).expect("the snapshot opens");
    let theirs = qemu_tools::snapshot_content(path, "kept");
    assert_eq!(theirs.len() as u64, disk.size());
    let common = theirs.len().min(snapshot.bytes().len());
    assert_same_bytes(&theirs[..common], &snapshot.bytes()[..common], "the snapshot as QEMU reads it");
    // What lay past the end of the snapshot's disk in its last cluster shows here, as it does in QEMU.
    assert_same_bytes(&subject::content_of(&view), &theirs, "the snapshot in the disk's size");
}

/// Resizes up and down, by us and by QEMU, between writes; with a snapshot of one of the sizes, which keeps it.
fn try_resizes(cluster: u64, words: &str) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("image.qcow2");
    create(&path, &format!("-o cluster_size={cluster},{words}"), OLD_SIZE);
    let mut model = Model::zeroed(OLD_SIZE);
    let mut operations = Operations::new(format!("resizes {cluster} {words}"), OLD_SIZE, cluster);
    let mut snapshot: Option<Model> = None;
    let mut cut_by_qemu = false;
    for step in 0..14 {
        operate(&path, &mut model, cluster);
        let size = (1 + operations.rng().below(4 * 1024 * 1024 / 512)) * 512;
        let growing = size > model.size();
        let preallocation = *operations.rng().pick(&PREALLOCATIONS);
        // Where QEMU cut a cluster it shows the rest again when it grows the disk: that is left to us.
        let by_qemu = operations.rng().below(4) == 0 && !(growing && cut_by_qemu);
        cut_by_qemu = !growing && (by_qemu || cut_by_qemu);
        if by_qemu {
            // Nor does it preallocate well where the file has free clusters: what they held shows, or it refuses.
            qemu_tools::img("resize -q --shrink", &[&path, Path::new(&size.to_string())]);
        } else {
            let image = subject::open_writable(&path);
            image.resize(size, &options_for(growing, preallocation)).expect("the resize succeeds");
            assert_eq!(image.size(), size);
            image.close().expect("the image closes");
        }
        model = model.overlay(size);
        subject::assert_agreement(&path, &model);
        if step == 4 && !words.contains("0.10") {
            let image = subject::open_writable(&path);
            image
                .create_snapshot(&NewSnapshot { name: b"kept".to_vec(), ..NewSnapshot::default() })
                .expect("it is taken");
            image.close().expect("the image closes");
            snapshot = Some(model.clone());
        }
        if let Some(snapshot) = &snapshot {
            assert_kept(&path, snapshot, &model);
        }
    }
    if let Some(snapshot) = snapshot {
        let image = subject::open_writable(&path);
        image.apply_snapshot(&SnapshotSelector::Name(b"kept".to_vec())).expect("it is applied, size and all");
        assert_eq!(image.size(), snapshot.size());
        subject::close_and_compare(image, &path, &snapshot);
    }
}

/// As it does after a shrink of its own, which leaves what was cut off in the last cluster.
#[test]
fn what_was_cut_off_stays_away_when_qemu_grows_the_disk() {
    let kinds = [
        ("cluster_size=64k", None),
        ("compat=0.10", None),
        ("extended_l2=on", None),
        ("cluster_size=64k", Some("a snapshot")),
        ("cluster_size=64k", Some("compressed")),
    ];
    for (words, kind) in kinds {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("image.qcow2");
        let bytes = noise(11, 512 << 10);
        let raw = folder.path().join("content.raw");
        std::fs::write(&raw, &bytes).expect("the content can be written");
        let compressed = if kind == Some("compressed") { "-c" } else { "" };
        qemu_tools::img(&format!("convert {compressed} -f raw -O qcow2 -o {words}"), &[&raw, &path]);
        if kind == Some("a snapshot") {
            qemu_tools::img("snapshot -c kept", &[&path]);
        }
        let size = (200 << 10) + 512;
        let image = subject::open_writable(&path);
        let options = ResizeOptions { shrink: Shrink::Allow, ..ResizeOptions::default() };
        image.resize(size, &options).expect("the resize succeeds");
        image.close().expect("the image closes");
        qemu_tools::img("resize -q -f qcow2", &[&path, Path::new("524288")]);
        let model = Model::holding(bytes[..size as usize].to_vec()).overlay(512 << 10);
        subject::assert_agreement(&path, &model);
        if kind == Some("a snapshot") {
            assert_same_bytes(&qemu_tools::snapshot_content(&path, "kept"), &bytes, "the snapshot");
        }
    }
}

#[test]
fn a_disk_that_is_resized_up_and_down_keeps_what_it_should() {
    try_resizes(512, "compat=1.1");
    try_resizes(4096, "compat=0.10");
    try_resizes(4096, "refcount_bits=4");
    try_resizes(65536, "compat=1.1");
    try_resizes(16384, "extended_l2=on");
    try_resizes(2097152, "compat=0.10");
}

#[test]
fn the_file_of_a_disk_that_shrank_ends_where_qemus_would() {
    for cluster in [512, 4096, 65536] {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let (ours, theirs) = (folder.path().join("ours.qcow2"), folder.path().join("theirs.qcow2"));
        create(&ours, &format!("-o cluster_size={cluster}"), 64 << 20);
        qemu_tools::io(&ours, &["write -q -P 7 0 40M".to_owned()]);
        std::fs::copy(&ours, &theirs).expect("the image can be copied");
        qemu_tools::img("resize -q --shrink", &[&theirs, Path::new("1M")]);
        let image = subject::open_writable(&ours);
        image.resize(1 << 20, &options_for(false, Preallocation::Off)).expect("the resize succeeds");
        image.close().expect("the image closes");
        let len = |path: &Path| std::fs::metadata(path).expect("it is there").len();
        assert!(len(&ours) <= len(&theirs), "clusters of {cluster}: {} and {}", len(&ours), len(&theirs));
        subject::assert_agreement(&ours, &Model::holding(vec![7; 1 << 20]));
    }
}

/// What lies past the end of the disk in the tables must not become part of it.
#[test]
fn an_overlay_that_shrank_and_grew_again_shows_nothing_that_was() {
    for (cluster, compat) in [(512, "1.1"), (65536, "1.1"), (4096, "1.1")] {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let (path, base) =
            overlay_of_larger_base(folder.path(), &format!("-o cluster_size={cluster},compat={compat}"));
        let image = subject::open_writable(&path);
        let mut model = Model::holding(base).overlay(OLD_SIZE);
        let bytes = noise(8, 400_000);
        image.write_at(&bytes, 600_000).expect("the write succeeds");
        model.write(600_000, &bytes);
        for size in [700_416, 3 << 20, 512, 5 << 20] {
            let growing = size > model.size();
            image.resize(size, &options_for(growing, Preallocation::Off)).expect("the resize succeeds");
            model = model.overlay(size);
            assert_same_bytes(
                &subject::content_of(&image),
                model.bytes(),
                &format!("cluster {cluster}, {size}"),
            );
        }
        subject::close_and_compare(image, &path, &model);
    }
}

#[test]
fn what_qemu_refuses_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("image.qcow2");
    create(&path, "-o compat=0.10", OLD_SIZE);
    qemu_tools::img("snapshot -c s", &[&path]);
    let before = std::fs::read(&path).expect("the image can be read");
    let image = subject::open_writable(&path);
    let grown = ResizeOptions { preallocation: Preallocation::Full, ..ResizeOptions::default() };
    for (size, options) in [
        (OLD_SIZE * 2, ResizeOptions::default()),
        (512, options_for(false, Preallocation::Off)),
        (512, ResizeOptions::default()),
        (512, grown),
        (OLD_SIZE, grown),
        (1000, options_for(false, Preallocation::Off)),
        (u64::MAX / 512 * 512, ResizeOptions::default()),
    ] {
        let refused = image.resize(size, &options).unwrap_err();
        let is_refusal = matches!(refused.kind(), ErrorKind::InvalidArgument(_) | ErrorKind::Unsupported(_));
        assert!(is_refusal, "{size} {options:?}: {refused}");
    }
    image.close().expect("the image closes");
    assert!(std::fs::read(&path).expect("the image can be read") == before);
}
