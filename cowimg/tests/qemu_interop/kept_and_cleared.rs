//! What this library does not know is kept byte for byte, cleared when the specification says so, and never left
//! valid and stale.

use std::path::{Path, PathBuf};

use cowimg::{ByteRange, CreateOptions, Image, ResizeOptions, ZeroMode};
use tempfile::TempDir;

use crate::header_bytes::{self, AUTOCLEAR, COMPATIBLE};
use crate::qemu_tools::{self, assert_same_bytes};
use crate::subject;

const SIZE: u64 = 4 * 1024 * 1024;
const AUTOCLEAR_BITMAPS: u64 = 1;
const UNKNOWN_BIT: u64 = 1 << 21;
const UNKNOWN_KIND: u32 = 0x1234abcd;

fn created(words: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("image.qcow2");
    qemu_tools::img(words, &[&path, Path::new(&SIZE.to_string())]);
    (folder, path)
}

#[test]
fn a_bitmap_is_never_left_valid_and_stale() {
    let (_folder, path) = created("create -q -f qcow2");
    qemu_tools::img("bitmap --add", &[&path, Path::new("changes")]);
    assert_eq!(header_bytes::features(&path, AUTOCLEAR) & AUTOCLEAR_BITMAPS, AUTOCLEAR_BITMAPS);

    let image = subject::open_writable(&path);
    image.write_at(&[7; 1000], 70_000).expect("the write succeeds");
    image.close().expect("the image closes");

    // Kept up to date: what it says of the write is compared bit by bit in `bitmaps`.
    assert_eq!(header_bytes::features(&path, AUTOCLEAR) & AUTOCLEAR_BITMAPS, AUTOCLEAR_BITMAPS);
    let image = subject::open(&path);
    let dirty: Vec<ByteRange> =
        image.bitmap_ranges("changes").expect("the bitmap is valid").map(Result::unwrap).collect();
    assert_eq!(dirty, [ByteRange::between(65536, 131_072)]);
    qemu_tools::assert_check_clean(&path);
    let bytes = qemu_tools::content(&path);
    assert_same_bytes(&bytes[70_000..71_000], &[7; 1000], "what was written");
}

#[test]
fn a_bitmap_stays_valid_when_nothing_is_written() {
    let (_folder, path) = created("create -q -f qcow2");
    qemu_tools::img("bitmap --add", &[&path, Path::new("changes")]);
    let before = std::fs::read(&path).expect("the image can be read");
    let image = subject::open_writable(&path);
    subject::content_of(&image);
    image.flush().expect("a flush succeeds");
    image.close().expect("the image closes");
    assert_same_bytes(&std::fs::read(&path).expect("the image can be read"), &before, "the file");
    qemu_tools::assert_check_clean(&path);
}

/// What may be done first to an image that is open for writing.
type Change = fn(&Image);

const CHANGES: [(&str, Change); 4] = [
    ("a write", |image| image.write_at(&[1; 10], 5).expect("the write succeeds")),
    ("zeroing", |image| {
        let range = ByteRange::between(0, 65536);
        image.write_zeroes(range, ZeroMode::Unmap).expect("zeroing succeeds");
    }),
    ("a discard", |image| image.discard(ByteRange::between(1 << 20, 1 << 21)).expect("the discard succeeds")),
    ("a resize", |image| image.resize(2 * SIZE, &ResizeOptions::default()).expect("the resize succeeds")),
];

#[test]
fn unknown_autoclear_bits_are_cleared_by_the_first_change() {
    for (name, change) in CHANGES {
        let (_folder, path) = created("create -q -f qcow2");
        qemu_tools::io(&path, &["write -P 3 1M 1M".to_string()]);
        header_bytes::set_features(&path, AUTOCLEAR, UNKNOWN_BIT);
        let image = subject::open_writable(&path);
        change(&image);
        image.flush().expect("a flush succeeds");
        assert_eq!(header_bytes::features(&path, AUTOCLEAR), 0, "after {name} and a flush");
        image.close().expect("the image closes");
        qemu_tools::assert_check_clean(&path);
    }
}

#[test]
fn unknown_autoclear_bits_are_kept_when_the_image_is_only_read() {
    let (_folder, path) = created("create -q -f qcow2");
    header_bytes::set_features(&path, AUTOCLEAR, UNKNOWN_BIT);
    subject::content(&path);
    assert_eq!(header_bytes::features(&path, AUTOCLEAR), UNKNOWN_BIT, "open for reading");
    let image = subject::open_writable(&path);
    subject::content_of(&image);
    image.flush().expect("a flush succeeds");
    image.close().expect("the image closes");
    assert_eq!(header_bytes::features(&path, AUTOCLEAR), UNKNOWN_BIT, "open for writing, not written");
}

/// An overlay with everything that a header may hold besides what we know.
fn with_unknown_parts() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let base = folder.path().join("base.raw");
    std::fs::write(&base, vec![9; SIZE as usize]).expect("the base can be written");
    let path = folder.path().join("image.qcow2");
    cowimg::create(&path, &CreateOptions::overlay("base.raw")).expect("the image is created");
    header_bytes::add_extension(&path, UNKNOWN_KIND, b"thirteen byte");
    header_bytes::add_extension(&path, UNKNOWN_KIND + 1, b"");
    header_bytes::set_features(&path, COMPATIBLE, UNKNOWN_BIT);
    (folder, path)
}

#[test]
fn unknown_extensions_and_compatible_bits_survive_changes_of_the_header() {
    let (_folder, path) = with_unknown_parts();
    let before = header_bytes::extensions(&path);
    assert!(before.contains(&(UNKNOWN_KIND, b"thirteen byte".to_vec())), "{before:?}");

    for round in 1..4 {
        let image = subject::open_writable(&path);
        image.write_at(&vec![3; 100_000], 1_000_000 * round).expect("the write succeeds");
        image.resize(SIZE * (round + 1), &ResizeOptions::default()).expect("the resize succeeds");
        image.close().expect("the image closes");
        assert_eq!(header_bytes::extensions(&path), before);
        assert_eq!(header_bytes::features(&path, COMPATIBLE) & UNKNOWN_BIT, UNKNOWN_BIT);
        qemu_tools::assert_check_clean(&path);
    }
    let content = qemu_tools::content(&path);
    assert_eq!(content.len() as u64, 4 * SIZE);
    assert_same_bytes(&subject::content(&path), &content, "both readers");
}

#[test]
fn fields_of_a_longer_header_survive() {
    let (_folder, path) = created("create -q -f qcow2");
    // The extensions move 16 bytes on, and the header is 16 bytes longer, as in a future version of the format.
    let mut bytes = std::fs::read(&path).expect("the image can be read");
    let extensions = bytes[112..1024].to_vec();
    bytes[112..128].copy_from_slice(b"future fields!!!");
    bytes[128..1040].copy_from_slice(&extensions);
    bytes[103] = 128;
    std::fs::write(&path, bytes).expect("the image can be written");

    let image = subject::open_writable(&path);
    image.write_at(&[5; 5000], 0).expect("the write succeeds");
    image.resize(2 * SIZE, &ResizeOptions::default()).expect("the resize succeeds");
    image.close().expect("the image closes");
    let after = std::fs::read(&path).expect("the image can be read");
    assert_eq!(&after[112..128], b"future fields!!!");
    assert_same_bytes(&after[128..1040], &extensions, "the extensions");
    qemu_tools::assert_check_clean(&path);
}
