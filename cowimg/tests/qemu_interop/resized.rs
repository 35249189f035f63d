//! A disk that was grown reads as before and then as zeroes, as it does when `qemu-img resize` grows it.

use std::path::{Path, PathBuf};

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
    image.grow(size).expect("the resize succeeds");
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
    image.grow(size).expect("the resize succeeds");
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
        image.grow(size).expect("the resize succeeds");
        model = model.overlay(size);
        operations.set_size(size);
    }
    subject::close_and_compare(image, &path, &model);
}
