//! What the library cannot handle is refused by name when the image is opened, and never read as if it were data.

use std::path::{Path, PathBuf};

use cowimg::{Access, Error, ErrorKind, Image};
use tempfile::TempDir;

use crate::header_bytes::{self, INCOMPATIBLE};
use crate::qemu_tools;

const DIRTY: u64 = 1;
const CORRUPT: u64 = 2;

fn created(words: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("image.qcow2");
    let words = words.replace("FOLDER", folder.path().to_str().expect("a plain path"));
    qemu_tools::img(&words, &[&path, Path::new("1M")]);
    (folder, path)
}

fn assert_unsupported(opened: Result<Image, Error>, named: &str) {
    let error = opened.expect_err("the image must be refused");
    assert!(matches!(error.kind(), ErrorKind::Unsupported(_)), "{error}");
    let text = error.to_string();
    assert!(text.to_lowercase().contains(named), "the refusal does not name {named:?}: {text}");
    assert!(text.contains("image.qcow2"), "the refusal does not name the file: {text}");
}

fn assert_refused_both_ways(path: &Path, named: &str) {
    assert_unsupported(Image::open(path), named);
    assert_unsupported(Image::options().access(Access::ReadWrite).open(path), named);
}

#[test]
fn an_unknown_feature_without_a_name() {
    let (_folder, path) = created("create -q -f qcow2 -o cluster_size=4k");
    header_bytes::set_features(&path, INCOMPATIBLE, 1 << 40);
    assert_refused_both_ways(&path, "40");
}

#[test]
fn an_unknown_feature_by_the_name_that_the_image_gives() {
    // Images with clusters this small have no feature name table of their own.
    let (_folder, path) = created("create -q -f qcow2 -o cluster_size=4k");
    header_bytes::name_incompatible_bit(&path, 13, "folded space");
    header_bytes::set_features(&path, INCOMPATIBLE, 1 << 13);
    assert_refused_both_ways(&path, "folded space");
}

#[test]
fn a_corrupt_image_for_writing_only() {
    let (_folder, path) = created("create -q -f qcow2");
    qemu_tools::io(&path, &["write -q -P 5 0 1M".to_string()]);
    header_bytes::set_features(&path, INCOMPATIBLE, CORRUPT);
    let before = std::fs::read(&path).expect("the image can be read");
    let error = Image::options().access(Access::ReadWrite).open(&path).expect_err("it must be refused");
    assert!(error.to_string().contains("corrupt"), "{error}");
    assert_eq!(crate::subject::content(&path), vec![5; 1 << 20]);
    assert!(std::fs::read(&path).expect("the image can be read") == before, "the file has changed");
}

#[test]
fn a_dirty_image_is_read_as_it_is_and_made_right_before_it_is_written() {
    let (_folder, path) = created("create -q -f qcow2 -o lazy_refcounts=on");
    qemu_tools::io(&path, &["write -q -P 5 0 1M".to_string()]);
    header_bytes::set_features(&path, INCOMPATIBLE, DIRTY);
    // A refcount that was not written in time.
    let mut bytes = std::fs::read(&path).expect("the image can be read");
    bytes[0x20000 + 2 * 6..][..2].fill(0);
    std::fs::write(&path, &bytes).expect("the image can be written");
    assert_eq!(crate::subject::content(&path), vec![5; 1 << 20]);
    assert!(std::fs::read(&path).expect("the image can be read") == bytes, "reading changes nothing");
    let image = Image::options().access(Access::ReadWrite).open(&path).expect("the image opens");
    image.write_at(&[7; 512], 0).expect("it can be written");
    image.close().expect("it closes");
    qemu_tools::assert_check_clean(&path);
    assert_eq!(crate::subject::content(&path)[512..], vec![5; (1 << 20) - 512]);
}

#[test]
fn a_refused_backing_file_refuses_the_overlay() {
    let (folder, path) = created("create -q -f qcow2 -o cluster_size=4k");
    header_bytes::set_features(&path, INCOMPATIBLE, 1 << 40);
    let overlay = folder.path().join("overlay.qcow2");
    qemu_tools::img("create -q -f qcow2 -u -F qcow2 -b image.qcow2", &[&overlay, Path::new("1M")]);
    assert_unsupported(Image::open(&overlay), "40");
    assert!(path.exists());
}
