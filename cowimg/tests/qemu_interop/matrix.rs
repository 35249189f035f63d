//! Images that the library makes and writes hold what was written to them, whoever reads, and no checker finds
//! fault: every cluster size, version and refcount width, over no backing file, a raw one and a qcow2 one.

use std::path::{Path, PathBuf};

use cowimg::{
    Access, BackingOptions, ByteRange, CreateOptions, ErrorKind, Format, Image, Qcow2CreateOptions,
    ResizeOptions, Version, ZeroMode,
};

use crate::model::{Model, Operations};
use crate::qemu_tools::{self, assert_same_bytes};
use crate::seeded::noise;
use crate::subject::{self, Discarded};

const OPERATIONS: usize = 150;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backing {
    None,
    Raw,
    Qcow2,
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    cluster: u64,
    version: Version,
    refcount_bits: u32,
    extended_l2: bool,
    backing: Backing,
}

impl Shape {
    /// No disk is a multiple of its clusters, where clusters are larger than sectors.
    fn size(self) -> u64 {
        match self.cluster {
            512 => 1955 * 512,
            4096 => 3 * 1024 * 1024 + 1536,
            65536 => 5 * 1024 * 1024 + 7 * 512,
            _ => 9 * 1024 * 1024 + 9 * 512,
        }
    }

    fn discarded(self) -> Discarded {
        match (self.version, self.backing) {
            (Version::V2, Backing::Raw | Backing::Qcow2) => Discarded::ZeroOrFormer,
            _ => Discarded::Zero,
        }
    }
}

/// What a base holds: noise with holes.
fn base_bytes(len: usize) -> Vec<u8> {
    let mut bytes = noise(77, len);
    for hole in (0..len).step_by(300_000) {
        let end = (hole + 130_000).min(len);
        bytes[hole..end].fill(0);
    }
    bytes
}

/// Writes the base into `folder`: a raw one that is shorter than the overlay and ends within a sector, a qcow2 one
/// that is longer.
fn write_base(folder: &Path, shape: Shape) -> (Option<BackingOptions>, Model) {
    let raw = folder.join("base.raw");
    let (len, name, format) = match shape.backing {
        Backing::None => return (None, Model::zeroed(shape.size())),
        Backing::Raw => (shape.size() / 2 + 333, "base.raw", Format::Raw),
        Backing::Qcow2 => (shape.size() + 1024 * 1024, "base.qcow2", Format::Qcow2),
    };
    let bytes = base_bytes(len as usize);
    std::fs::write(&raw, &bytes).expect("the base can be written");
    if shape.backing == Backing::Qcow2 {
        qemu_tools::img("convert -f raw -O qcow2 -o cluster_size=4k", &[&raw, &folder.join(name)]);
    }
    let options = BackingOptions { format: Some(format), ..BackingOptions::new(name) };
    (Some(options), Model::holding(bytes).overlay(shape.size()))
}

fn create(path: &Path, shape: Shape, backing: Option<BackingOptions>) -> Image {
    let qcow2 = Qcow2CreateOptions {
        version: shape.version,
        cluster_size: shape.cluster,
        refcount_bits: shape.refcount_bits,
        extended_l2: shape.extended_l2,
        ..Default::default()
    };
    let options = CreateOptions { qcow2, backing, ..CreateOptions::qcow2(shape.size()) };
    Image::create(path, &options).expect("the image is created")
}

fn try_shape(shape: Shape) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path: PathBuf = folder.path().join("image.qcow2");
    let (backing, mut model) = write_base(folder.path(), shape);
    let mut operations = Operations::new(format!("matrix {shape:?}"), shape.size(), shape.cluster);
    let image = create(&path, shape, backing);
    assert_same_bytes(&subject::content_of(&image), model.bytes(), "before the first write");
    for _ in 0..OPERATIONS / 2 {
        subject::apply(&image, &mut model, operations.next(), (shape.discarded(), shape.cluster));
    }
    let image = reopened_with_next_to_no_cache(image, &path, &model);
    for _ in 0..OPERATIONS / 2 {
        subject::apply(&image, &mut model, operations.next(), (shape.discarded(), shape.cluster));
    }
    subject::close_and_compare(image, &path, &model);
}

/// What was flushed is in the file for everybody; then the image is closed and opened again.
fn reopened_with_next_to_no_cache(image: Image, path: &Path, model: &Model) -> Image {
    image.flush().expect("a flush succeeds");
    qemu_tools::assert_check_finds_at_most_leaks(path);
    let seen = qemu_tools::content_while_written(path);
    assert_same_bytes(&seen, model.bytes(), "read by QEMU after a flush");
    image.close().expect("the image closes");
    qemu_tools::assert_check_clean(path);
    Image::options().access(Access::ReadWrite).cache_size(1).open(path).expect("the image opens again")
}

fn try_cluster_size(cluster: u64) {
    for backing in [Backing::None, Backing::Raw, Backing::Qcow2] {
        let plain = Shape { cluster, version: Version::V3, refcount_bits: 16, extended_l2: false, backing };
        try_shape(Shape { version: Version::V2, ..plain });
        for refcount_bits in [1, 16, 64] {
            try_shape(Shape { refcount_bits, ..plain });
        }
        if cluster >= 16384 {
            try_shape(Shape { extended_l2: true, ..plain });
        }
    }
}

#[test]
fn images_with_clusters_of_512_bytes_hold_what_was_written() {
    try_cluster_size(512);
}

#[test]
fn images_with_clusters_of_4_kib_hold_what_was_written() {
    try_cluster_size(4096);
}

#[test]
fn images_with_clusters_of_16_kib_hold_what_was_written() {
    try_cluster_size(16384);
}

#[test]
fn images_with_clusters_of_64_kib_hold_what_was_written() {
    try_cluster_size(65536);
}

#[test]
fn images_with_clusters_of_2_mib_hold_what_was_written() {
    try_cluster_size(2 * 1024 * 1024);
}

#[test]
fn what_does_not_lie_within_the_disk_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("image.qcow2");
    let shape = Shape {
        cluster: 65536,
        version: Version::V3,
        refcount_bits: 16,
        extended_l2: false,
        backing: Backing::None,
    };
    let image = create(&path, shape, None);
    let size = shape.size();
    let past_end = ByteRange::between(size - 10, size + 1);
    let far = ByteRange::between(1 << 62, (1 << 62) + 1);
    for range in [past_end, far] {
        let mut bytes = vec![7; range.len() as usize];
        let results = [
            image.write_at(&bytes, range.start()),
            image.read_at(&mut bytes, range.start()),
            image.write_zeroes(range, ZeroMode::Unmap),
            image.discard(range),
        ];
        for result in results {
            let error = result.expect_err("the range must be refused");
            assert!(matches!(error.kind(), ErrorKind::OutOfBounds { .. }), "{error}");
        }
    }
    let error = image.write_at(&[1; 2], u64::MAX).expect_err("the range must be refused");
    assert!(matches!(error.kind(), ErrorKind::OutOfBounds { .. }), "{error}");
    for offset in [0, 77, size] {
        image.write_at(&[], offset).expect("nothing can be written anywhere");
        image.read_at(&mut [], offset).expect("nothing can be read anywhere");
        image.discard(ByteRange::between(offset, offset)).expect("nothing can be discarded anywhere");
    }
    subject::close_and_compare(image, &path, &Model::zeroed(size));
}

#[test]
fn an_image_that_is_open_for_reading_takes_no_change() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("image.qcow2");
    let shape = Shape {
        cluster: 4096,
        version: Version::V3,
        refcount_bits: 16,
        extended_l2: false,
        backing: Backing::None,
    };
    create(&path, shape, None).close().expect("the image closes");
    let before = std::fs::read(&path).expect("the image can be read");
    let image = subject::open(&path);
    let range = ByteRange::between(0, 4096);
    let changes = [
        image.write_at(&[1; 10], 0),
        image.write_zeroes(range, ZeroMode::KeepSpace),
        image.discard(range),
        image.resize(shape.size() * 2, &ResizeOptions::default()),
    ];
    for change in changes {
        let error = change.expect_err("a change must be refused");
        assert!(matches!(error.kind(), ErrorKind::ReadOnly), "{error}");
    }
    image.flush().expect("there is nothing to flush");
    image.close().expect("the image closes");
    assert!(std::fs::read(&path).expect("the image can be read") == before, "the file has changed");
}
