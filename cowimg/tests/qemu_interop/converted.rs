//! Conversions keep the disk, and the holes in it.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use cowimg::job::{self, Compression, ConvertOptions, Order, TargetContent};
use cowimg::progress::Control;
use cowimg::{CreateOptions, Format, Image, Preallocation};

use crate::model::{Model, Operations};
use crate::qemu_tools::{self, assert_same_bytes};
use crate::seeded::noise;
use crate::subject::{self, Discarded};

fn convert(source: &Image, path: &Path, mut options: CreateOptions) {
    options.size = Some(source.size());
    let target = Image::create(path, &options).expect("the target is created");
    job::convert(source, &target, &ConvertOptions::default(), &Control::default())
        .expect("the conversion succeeds");
    target.close().expect("the target closes");
}

fn open_raw(path: &Path) -> Image {
    Image::options().format(Format::Raw).open(path).expect("the raw image opens")
}

/// Raw to qcow2 to raw, through the library alone and then read by QEMU.
fn try_round_trip(folder: &Path, raw: &Path, cluster_size: u64) {
    let expected = std::fs::read(raw).expect("the source can be read");
    let (middle, back) =
        (folder.join(format!("{cluster_size}.qcow2")), folder.join(format!("{cluster_size}.raw")));
    let mut options = CreateOptions::new(Format::Qcow2);
    options.qcow2.cluster_size = cluster_size;
    convert(&open_raw(raw), &middle, options);
    let mut padded = expected.clone();
    padded.resize(padded.len().next_multiple_of(512), 0);
    subject::assert_agreement(&middle, &Model::holding(padded.clone()));
    convert(&subject::open(&middle), &back, CreateOptions::new(Format::Raw));
    assert_same_bytes(&std::fs::read(&back).expect("the result can be read"), &padded, "there and back");
}

#[test]
fn a_dense_disk_survives_the_round_trip() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let raw = folder.path().join("source.raw");
    std::fs::write(&raw, noise(4, 3_000_832)).expect("the source can be written");
    for cluster in [512, 65536, 2097152] {
        try_round_trip(folder.path(), &raw, cluster);
    }
}

#[test]
fn a_sparse_disk_survives_the_round_trip_and_stays_sparse() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let raw = folder.path().join("source.raw");
    let file = std::fs::File::create(&raw).expect("the source can be made");
    let len = 64 * 1024 * 1024;
    file.set_len(len).expect("the source can be grown");
    for (index, offset) in [0, 5_000_192, 33_000_000, len - 4096].into_iter().enumerate() {
        file.write_all_at(&noise(index as u64, 4096), offset).expect("the source can be written");
    }
    // Zeroes that are stored: a conversion leaves them out.
    file.write_all_at(&vec![0; 16 << 20], 40 << 20).expect("the source can be written");
    for cluster in [4096, 65536] {
        try_round_trip(folder.path(), &raw, cluster);
        for name in [format!("{cluster}.qcow2"), format!("{cluster}.raw")] {
            let taken = folder.path().join(&name).metadata().expect("the file is there").blocks() * 512;
            assert!(taken < 8 << 20, "{name} takes {taken} bytes");
        }
    }
}

#[test]
fn a_disk_that_ends_within_a_sector_is_rounded_up_as_qemu_does() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let raw = folder.path().join("source.raw");
    std::fs::write(&raw, noise(4, 1_000_001)).expect("the source can be written");
    let source = open_raw(&raw);
    let theirs = folder.path().join("theirs.qcow2");
    qemu_tools::img("convert -f raw -O qcow2", &[&raw, &theirs]);
    assert_eq!(source.size(), subject::open(&theirs).size());
}

#[test]
fn an_overlay_is_flattened() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let (base, overlay) = (folder.path().join("base.raw"), folder.path().join("overlay.qcow2"));
    let bytes = noise(8, 2 << 20);
    std::fs::write(&base, &bytes).expect("the base can be written");
    let size = 3 * 1024 * 1024 + 512;
    qemu_tools::img("create -q -f qcow2 -F raw -b base.raw", &[&overlay, Path::new(&size.to_string())]);
    let mut model = Model::holding(bytes).overlay(size);
    let image = subject::open_writable(&overlay);
    let mut operations = Operations::new("flattened", size, 65536);
    for _ in 0..40 {
        subject::apply(&image, &mut model, operations.next(), (Discarded::Zero, 65536));
    }
    image.close().expect("the image closes");

    let flat = folder.path().join("flat.qcow2");
    convert(&subject::open(&overlay), &flat, CreateOptions::new(Format::Qcow2));
    std::fs::remove_file(&base).expect("the base can be removed");
    subject::assert_agreement(&flat, &model);
}

#[test]
fn a_conversion_in_order_gives_the_same_file_every_time() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let raw = folder.path().join("source.raw");
    let mut bytes = noise(11, 24 << 20);
    for hole in (0..20_000_000).step_by(5_000_000) {
        bytes[hole..hole + 1_200_000].fill(0);
    }
    std::fs::write(&raw, &bytes).expect("the source can be written");
    for compression in [Compression::Off, Compression::On] {
        let files: Vec<Vec<u8>> = [1, 2, 5, 8]
            .into_iter()
            .map(|threads| {
                let path = folder.path().join(format!("{compression:?}-{threads}.qcow2"));
                let target =
                    Image::create(&path, &CreateOptions::qcow2(bytes.len() as u64)).expect("it is created");
                let options =
                    ConvertOptions { compression, threads, order: Order::Source, ..Default::default() };
                let control = Control::default();
                job::convert(&open_raw(&raw), &target, &options, &control).expect("the conversion succeeds");
                target.close().expect("the target closes");
                std::fs::read(&path).expect("the target can be read")
            })
            .collect();
        assert!(files.iter().all(|file| *file == files[0]), "{compression:?}: the files differ");
        subject::assert_agreement(
            &folder.path().join(format!("{compression:?}-8.qcow2")),
            &Model::holding(bytes.clone()),
        );
    }
}

#[test]
fn a_conversion_in_any_order_keeps_the_disk() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let (raw, path) = (folder.path().join("source.raw"), folder.path().join("target.qcow2"));
    let bytes = noise(12, 24 << 20);
    std::fs::write(&raw, &bytes).expect("the source can be written");
    let target = Image::create(&path, &CreateOptions::qcow2(bytes.len() as u64)).expect("it is created");
    let options = ConvertOptions { threads: 8, order: Order::Any, ..Default::default() };
    job::convert(&open_raw(&raw), &target, &options, &Control::default()).expect("the conversion succeeds");
    subject::close_and_compare(target, &path, &Model::holding(bytes));
}

#[test]
fn a_target_that_was_used_before_holds_the_source_afterwards() {
    let contents = [TargetContent::Anything, TargetContent::Similar];
    for (index, target_content) in contents.into_iter().enumerate() {
        for sparse_size in [0, 512, 4096, 65536] {
            let folder = tempfile::tempdir().expect("a temporary folder can be made");
            let (raw, path) = (folder.path().join("source.raw"), folder.path().join("target.qcow2"));
            let size = 2 * 1024 * 1024 + 512 * 3;
            let mut source = Model::zeroed(size);
            let mut operations = Operations::new(format!("used target {index} {sparse_size}"), size, 65536);
            for _ in 0..12 {
                let range = operations.range();
                source.write(range.start(), &operations.fill().bytes(range.len()));
            }
            std::fs::write(&raw, source.bytes()).expect("the source can be written");
            let target = Image::create(&path, &CreateOptions::qcow2(size)).expect("the target is created");
            target.write_at(&noise(6, size as usize), 0).expect("the target is filled");
            let options = ConvertOptions { sparse_size, target_content, ..Default::default() };
            job::convert(&open_raw(&raw), &target, &options, &Control::default())
                .expect("the conversion succeeds");
            subject::close_and_compare(target, &path, &source);
        }
    }
}

#[test]
fn preallocated_images_are_whole_and_take_the_space_that_was_asked_for() {
    let modes = [Preallocation::Off, Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full];
    for cluster_size in [4096, 65536, 2097152] {
        let taken = modes.map(|mode| try_preallocated(mode, cluster_size));
        let with_data = taken[0] + PREALLOCATED_SIZE;
        let has_data = taken.map(|bytes| bytes >= with_data);
        assert_eq!(has_data, [false, false, true, true], "clusters of {cluster_size}: {taken:?} bytes");
    }
}

const PREALLOCATED_SIZE: u64 = 6 * 1024 * 1024 + 512;

/// Creates an image, compares it, writes to it and compares it again; gives the space that it took at first.
fn try_preallocated(mode: Preallocation, cluster_size: u64) -> u64 {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("image.qcow2");
    let mut options = CreateOptions::qcow2(PREALLOCATED_SIZE);
    options.qcow2.cluster_size = cluster_size;
    options.preallocation = mode;
    cowimg::create(&path, &options).expect("the image is created");
    let mut model = Model::zeroed(PREALLOCATED_SIZE);
    subject::assert_agreement(&path, &model);
    let taken = path.metadata().expect("the file is there").blocks() * 512;

    let image = subject::open_writable(&path);
    let purpose = format!("preallocated {mode:?} {cluster_size}");
    let mut operations = Operations::new(purpose, PREALLOCATED_SIZE, cluster_size);
    for _ in 0..25 {
        subject::apply(&image, &mut model, operations.next(), (Discarded::Zero, cluster_size));
    }
    subject::close_and_compare(image, &path, &model);
    taken
}
