//! The library's side of every comparison: opening, operating, and what must hold of an image that was written.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::Path;

use cowimg::{Access, ByteRange, Image, Layer};

use crate::model::{Model, Operation};
use crate::qemu_tools::{self, assert_same_bytes};

/// What whole clusters may read as after they were discarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Discarded {
    /// Zeroes.
    Zero,
    /// Zeroes, or what they were: version 2 has no way to say "zero" over a backing file.
    ZeroOrFormer,
}

/// Opens an image, and everything behind it, for writing.
pub(crate) fn open_writable(path: &Path) -> Image {
    Image::options().access(Access::ReadWrite).open(path).expect("the image opens for writing")
}

/// Opens an image, and everything behind it, for reading.
pub(crate) fn open(path: &Path) -> Image {
    Image::open(path).expect("the image opens for reading")
}

/// The disk as the library reads it, in pieces of odd lengths.
pub(crate) fn content_of(image: &Image) -> Vec<u8> {
    let mut bytes = vec![0xee; image.size() as usize];
    let mut offset = 0;
    for piece in bytes.chunks_mut(700_001) {
        image.read_at(piece, offset).expect("the disk can be read");
        offset += piece.len() as u64;
    }
    bytes
}

/// The disk of the image at `path` as the library reads it.
pub(crate) fn content(path: &Path) -> Vec<u8> {
    content_of(&open(path))
}

/// Does `operation` to `image` and to `model`, and compares what can be compared at once.
pub(crate) fn apply(image: &Image, model: &mut Model, operation: Operation, rule: (Discarded, u64)) {
    match operation {
        Operation::Write(range, fill) => {
            let bytes = fill.bytes(range.len());
            image.write_at(&bytes, range.start()).expect("a write within the disk succeeds");
            model.write(range.start(), &bytes);
        }
        Operation::Zeroes(range, mode) => {
            image.write_zeroes(range, mode).expect("zeroing within the disk succeeds");
            model.zero(range);
        }
        Operation::Discard(range) => discard(image, model, range, rule),
        Operation::Read(range) => {
            assert_same_bytes(&read(image, range), model.at(range), &format!("read of {range}"));
        }
        Operation::Flush => image.flush().expect("a flush succeeds"),
    }
}

fn read(image: &Image, range: ByteRange) -> Vec<u8> {
    let mut bytes = vec![0xee; range.len() as usize];
    image.read_at(&mut bytes, range.start()).expect("a read within the disk succeeds");
    bytes
}

fn discard(image: &Image, model: &mut Model, range: ByteRange, (rule, cluster): (Discarded, u64)) {
    image.discard(range).expect("a discard within the disk succeeds");
    let now = read(image, range);
    let torn = now.iter().zip(model.at(range)).position(|(now, former)| *now != 0 && now != former);
    assert_eq!(torn, None, "after the discard of {range} a byte is neither zero nor what it was");
    let whole = range.shrink_to(cluster);
    if rule == Discarded::Zero && !whole.is_empty() {
        let skipped = (whole.start() - range.start()) as usize;
        let kept = now[skipped..skipped + whole.len() as usize].iter().position(|byte| *byte != 0);
        assert_eq!(kept, None, "whole clusters of the discarded {range} do not read as zeroes");
    }
    model.write(range.start(), &now);
}

/// Closes the image and holds everything that must be true of it against `model`.
pub(crate) fn close_and_compare(image: Image, path: &Path, model: &Model) {
    assert_same_bytes(&content_of(&image), model.bytes(), "read by the image that was written");
    image.close().expect("the image closes");
    assert_agreement(path, model);
}

/// QEMU and the library agree with `model`, and neither finds fault with the image.
pub(crate) fn assert_agreement(path: &Path, model: &Model) {
    qemu_tools::assert_check_clean(path);
    assert_same_bytes(&qemu_tools::content(path), model.bytes(), "read by QEMU");
    let image = open(path);
    assert_eq!(image.size(), model.size());
    assert_same_bytes(&content_of(&image), model.bytes(), "read after it was opened again");
    assert_own_check_clean(&image);
    assert_extents_agree(&image, model);
}

/// The library's own check finds neither an error nor a leak.
pub(crate) fn assert_own_check_clean(image: &Image) {
    let report = image.check().expect("the check runs");
    assert!(report.is_clean(), "the library's check: {report:?}");
}

/// The extents cover the disk without a gap, what they call zero is zero, and data is where they say.
pub(crate) fn assert_extents_agree(image: &Image, model: &Model) {
    let files: Vec<Vec<u8>> = image.layers().iter().map(file_of).collect();
    let mut reached = 0;
    for extent in image.extents(ByteRange::between(0, image.size())) {
        let extent = extent.expect("the mapping can be read");
        assert_eq!(extent.range.start(), reached, "extents leave a gap or overlap");
        assert!(!extent.range.is_empty(), "an empty extent at {reached}");
        reached = extent.range.end();
        if extent.is_zero() {
            let is_zero = model.at(extent.range).iter().all(|byte| *byte == 0);
            assert!(is_zero, "{extent:?} is not zero");
        } else if let Some(host) = extent.host {
            // The last cluster may reach past the end of its file, where it reads as zeroes.
            let stored = files[extent.depth].get(host as usize..).unwrap_or_default();
            let len = stored.len().min(extent.range.len() as usize);
            let (in_file, past) = model.at(extent.range).split_at(len);
            assert_same_bytes(&stored[..len], in_file, &format!("stored for {extent:?}"));
            assert!(past.iter().all(|byte| *byte == 0), "{extent:?} has bytes past the end of its file");
        }
    }
    assert_eq!(reached, image.size(), "the extents end before the disk does");
}

fn file_of(layer: &Layer) -> Vec<u8> {
    std::fs::read(layer.path().expect("it was opened by name")).expect("the layer can be read")
}
