//! The cache modes of an image: whatever lies between a write and the disk, the bytes are the same; writes that go
//! through are durable when they return; past the host's cache any offset and length is fine.

mod qemu_tools;
mod seeded;

use std::path::Path;
use std::sync::Arc;

use cowimg::storage::{CrashChoice, FaultyStorage, MemoryStorage, OperationKind};
use cowimg::{
    Access, ByteRange, CacheMode, CreateOptions, ErrorKind, Format, Image, OpenOptions, StagedImage, ZeroMode,
};
use qemu_tools::assert_same_bytes;
use seeded::noise;

const MODES: [CacheMode; 5] = [
    CacheMode::WriteBack,
    CacheMode::WriteThrough,
    CacheMode::None,
    CacheMode::DirectSync,
    CacheMode::Unsafe,
];
const SIZE: u64 = 3 << 20;

fn writable(mode: CacheMode) -> OpenOptions {
    Image::options().access(Access::ReadWrite).cache_mode(mode)
}

/// Whether the temporary folder's file system refuses files past the host's cache; the error says so then.
fn is_refused(path: &Path, mode: CacheMode) -> bool {
    match writable(mode).open(path) {
        Ok(_) => false,
        Err(error) => {
            assert!(matches!(mode, CacheMode::None | CacheMode::DirectSync), "{mode}: {error}");
            assert!(error.to_string().contains("cache modes none and directsync"), "{mode}: {error}");
            true
        }
    }
}

/// Writes pieces of odd lengths at odd offsets, zeroes and discards, to the image and to `model`.
fn write_oddly(image: &Image, model: &mut [u8]) {
    let bytes = noise(1, 700_001);
    let mut at = 1;
    for (round, len) in [1, 511, 4097, 65_536, 100_003, 700_001].into_iter().cycle().take(24).enumerate() {
        let piece = &bytes[..len.min(model.len() - at)];
        image.write_at(piece, at as u64).expect("a write within the disk succeeds");
        model[at..at + piece.len()].copy_from_slice(piece);
        at = (at * 7 + round * 12_345) % (model.len() - 1);
    }
    let zeroes = ByteRange::between(300_001, 900_007);
    image.write_zeroes(zeroes, ZeroMode::Unmap).expect("zeroing within the disk succeeds");
    model[300_001..900_007].fill(0);
    image.flush().expect("a flush succeeds");
}

#[test]
fn every_mode_writes_and_reads_the_same_disk() {
    for mode in MODES {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        // A base that ends within a block and within a sector.
        let base = noise(9, 1_000_333);
        std::fs::write(folder.path().join("base.raw"), &base).expect("the base can be written");
        let path = folder.path().join("image.qcow2");
        let mut options = CreateOptions { size: Some(SIZE), ..CreateOptions::overlay("base.raw") };
        options.backing.as_mut().expect("it has a backing file").format = Some(Format::Raw);
        cowimg::create(&path, &options).expect("the image is created");
        if is_refused(&path, mode) {
            continue;
        }
        let mut model = base.clone();
        model.resize(SIZE as usize, 0);
        let image = writable(mode).open(&path).expect("the image opens");
        write_oddly(&image, &mut model);
        let mut seen = vec![0xee; model.len()];
        image.read_at(&mut seen, 0).expect("the disk can be read");
        assert_same_bytes(&seen, &model, &format!("read in mode {mode}"));
        image.close().expect("the image closes");
        qemu_tools::assert_check_clean(&path);
        assert_same_bytes(&qemu_tools::content(&path), &model, &format!("read by QEMU after mode {mode}"));
    }
}

#[test]
fn a_raw_image_that_ends_within_a_block_keeps_its_length() {
    for mode in MODES {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("image.raw");
        let mut model = noise(3, 1_000_448);
        std::fs::write(&path, &model).expect("the image can be written");
        if is_refused(&path, mode) {
            continue;
        }
        let image = writable(mode).format(Format::Raw).open(&path).expect("the image opens");
        write_oddly(&image, &mut model);
        image.write_at(&[5; 7], model.len() as u64 - 7).expect("the last bytes can be written");
        let end = model.len();
        model[end - 7..].fill(5);
        image.close().expect("the image closes");
        let file = std::fs::read(&path).expect("the file can be read");
        assert_same_bytes(&file, &model, &format!("in the file after mode {mode}"));
    }
}

/// A power cut that loses everything that was not synced, after every single write.
#[test]
fn writes_that_go_through_survive_a_power_cut_as_soon_as_they_return() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("fresh.qcow2");
    cowimg::create(&path, &CreateOptions::qcow2(SIZE)).expect("the image is created");
    let fresh = std::fs::read(&path).expect("the file can be read");
    for (mode, is_durable) in
        [(CacheMode::WriteThrough, true), (CacheMode::DirectSync, true), (CacheMode::WriteBack, false)]
    {
        let storage = Arc::new(FaultyStorage::new(MemoryStorage::with_bytes(&fresh)));
        let image = writable(mode).open_storage(Arc::clone(&storage) as _).expect("the image opens");
        image.write_at(&[7; 1000], 70_000).expect("a write succeeds");
        let after_power_cut = |at: u64| {
            let left = Arc::new(storage.crash(CrashChoice::Synced));
            let image = Image::options().open_storage(left).expect("the image opens after the power cut");
            let mut byte = [0];
            image.read_at(&mut byte, at).expect("the disk can be read");
            byte[0]
        };
        assert_eq!(after_power_cut(70_999) == 7, is_durable, "{mode}");
        image.write_at(&[8; 1000], 70_000).expect("a write succeeds");
        assert_eq!(after_power_cut(70_000) == 8, is_durable, "{mode}");
        let syncs = storage.count(OperationKind::Sync);
        image.write_zeroes(ByteRange::between(0, 131_072), ZeroMode::Unmap).expect("zeroing succeeds");
        assert_eq!(storage.count(OperationKind::Sync) > syncs, is_durable, "{mode}");
        assert_eq!(after_power_cut(70_000), 0, "{mode}");
    }
}

#[test]
fn a_new_image_is_written_in_the_mode_that_is_asked_for() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("new.qcow2");
    let staged = StagedImage::create(&path, &CreateOptions::qcow2(SIZE)).expect("the image is created");
    let other = folder.path().join("other");
    cowimg::create(&other, &CreateOptions::qcow2(SIZE)).expect("the image is created");
    let mode = if is_refused(&other, CacheMode::None) { CacheMode::Unsafe } else { CacheMode::None };
    let image = staged.open(&Image::options().cache_mode(mode)).expect("the image opens");
    image.write_at(&[1; 12345], 54321).expect("a write succeeds");
    image.close().expect("the image closes");
    staged.publish().expect("the image gets its name");
    qemu_tools::assert_check_clean(&path);
    assert_eq!(qemu_tools::content(&path)[54321..54321 + 12345], [1; 12345]);
}

/// A file system that has no such files: the one with the kernel's tables is at hand everywhere.
#[test]
fn where_the_host_refuses_the_error_says_why() {
    let path = Path::new("/proc/self/status");
    if !path.exists() {
        return;
    }
    let error = Image::options()
        .format(Format::Raw)
        .cache_mode(CacheMode::None)
        .open(path)
        .expect_err("the kernel's tables have no blocks");
    assert!(matches!(error.kind(), ErrorKind::Io { .. }));
    assert!(error.to_string().contains("bypass the host's cache"), "{error}");
}
