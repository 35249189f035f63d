//! What a conversion can be told beyond source and target: several sources, ranges, unreadable sectors, a rate, a host that
//! copies, a backing file.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cowimg::job::{
    self, Compression, ConvertOptions, Copying, Part, ReadErrors, TargetContent, convert_parts,
};
use cowimg::progress::{Control, Progress};
use cowimg::storage::{Fault, FaultyStorage, MemoryStorage, OperationKind};
use cowimg::{Access, ByteRange, CreateOptions, Error, Format, Image};

use crate::model::Model;
use crate::qemu_tools;
use crate::seeded::noise;
use crate::subject;

fn open_raw(path: &Path) -> Image {
    Image::options().format(Format::Raw).open(path).expect("the raw image opens")
}

fn new_target(path: &Path, format: Format, size: u64) -> Image {
    let options = CreateOptions { size: Some(size), ..CreateOptions::new(format) };
    Image::create(path, &options).expect("the target is created")
}

/// Runs of noise and of zeroes, from a few sectors to a few clusters long.
fn patchy(salt: u64, len: usize) -> Vec<u8> {
    let mut bytes = noise(salt, len);
    for (index, chunk) in bytes.chunks_mut(40_000).enumerate() {
        if index % 3 == 1 {
            chunk.fill(0);
        }
    }
    bytes
}

#[test]
fn sources_and_ranges_are_joined_whatever_the_unit() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let sizes = [3 * 512, 300 * 512, 65536, 5000 * 512];
    let contents: Vec<Vec<u8>> =
        sizes.iter().enumerate().map(|(nth, &len)| patchy(nth as u64 + 1, len)).collect();
    let images: Vec<Image> = contents
        .iter()
        .enumerate()
        .map(|(nth, bytes)| {
            let path = folder.path().join(format!("{nth}.raw"));
            std::fs::write(&path, bytes).expect("the source can be written");
            open_raw(&path)
        })
        .collect();
    let mut parts: Vec<Part<'_>> = images.iter().map(Part::whole).collect();
    parts.push(Part { image: &images[3], range: ByteRange::between(700, 100_001) });
    parts.push(Part { image: &images[0], range: ByteRange::between(1, 1) });
    let mut expected = contents.concat();
    expected.extend_from_slice(&contents[3][700..100_001]);
    expected.resize(expected.len().next_multiple_of(512), 0);
    for compression in [Compression::Off, Compression::On] {
        for sparse_size in [0, 4096] {
            let path = folder.path().join(format!("{compression:?}-{sparse_size}.qcow2"));
            let target = new_target(&path, Format::Qcow2, expected.len() as u64);
            let target_content = TargetContent::Zeroes;
            let options = ConvertOptions { compression, sparse_size, target_content, ..Default::default() };
            convert_parts(&parts, &target, &options, &Control::default()).expect("the conversion succeeds");
            subject::close_and_compare(target, &path, &Model::holding(expected.clone()));
        }
    }
}

#[test]
fn a_part_outside_its_image_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let source = new_target(&folder.path().join("a.raw"), Format::Raw, 4096);
    let target = new_target(&folder.path().join("b.raw"), Format::Raw, 65536);
    let parts = [Part { image: &source, range: ByteRange::between(4000, 4097) }];
    assert!(convert_parts(&parts, &target, &ConvertOptions::default(), &Control::default()).is_err());
}

/// The ranges that a job could not read.
#[derive(Default)]
struct Unreadable(Mutex<Vec<ByteRange>>);

impl Progress for Unreadable {
    fn advanced(&self, _: u64, _: u64) {}

    fn unreadable(&self, range: ByteRange, _: &Error) {
        self.0.lock().expect("nobody panics").push(range);
    }
}

#[test]
fn sectors_that_cannot_be_read_become_zeroes_and_are_told() {
    let bytes = noise(9, 3 << 20);
    let storage = FaultyStorage::new(MemoryStorage::with_bytes(&bytes));
    let broken = ByteRange::between((1 << 20) + 4096, (1 << 20) + 4096 + 1024);
    storage.inject(Fault::errno(5).on(&[OperationKind::Read]).within(broken).forever());
    let source = Image::options().format(Format::Raw).open_storage(Arc::new(storage)).expect("it opens");
    let target_of = || {
        let target = Arc::new(MemoryStorage::with_bytes(vec![7; bytes.len()]));
        let options = Image::options().format(Format::Raw).access(Access::ReadWrite);
        (options.open_storage(Arc::clone(&target) as _).expect("it opens"), target)
    };
    let (target, _) = target_of();
    assert!(job::convert(&source, &target, &ConvertOptions::default(), &Control::default()).is_err());

    let told = Unreadable::default();
    let control = Control { progress: Some(&told), cancel: None };
    let (target, storage) = target_of();
    let options = ConvertOptions { read_errors: ReadErrors::Zero, ..ConvertOptions::default() };
    let report = job::convert(&source, &target, &options, &control).expect("it goes on over the error");
    assert_eq!(report.unreadable_bytes, broken.len());
    assert_eq!(*told.0.lock().expect("nobody panics"), [broken]);
    let mut expected = bytes;
    expected[broken.start() as usize..broken.end() as usize].fill(0);
    qemu_tools::assert_same_bytes(&storage.to_vec(), &expected, "what could be read");
}

#[test]
fn a_rate_holds_the_writes_back() {
    let bytes = noise(9, 1 << 20);
    let source = Image::options()
        .format(Format::Raw)
        .open_storage(Arc::new(MemoryStorage::with_bytes(&bytes)))
        .expect("it opens");
    let target = Arc::new(MemoryStorage::with_bytes(vec![7; bytes.len()]));
    let options = Image::options().format(Format::Raw).access(Access::ReadWrite);
    let target = options.open_storage(target).expect("it opens");
    let rate = std::num::NonZeroU64::new(1 << 18);
    let begun = Instant::now();
    for _ in 0..2 {
        let options = ConvertOptions { rate, ..ConvertOptions::default() };
        let parts = [Part::whole(&source)];
        convert_parts(&parts, &target, &options, &Control::default()).expect("the conversion succeeds");
    }
    // One piece each, of four seconds: the first of a run does not wait.
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    let rate = std::num::NonZeroU64::new(4 << 20);
    let options = ConvertOptions { rate, sparse_size: 512, threads: 1, ..ConvertOptions::default() };
    let parts: Vec<Part<'_>> = (0..8)
        .map(|nth| Part { image: &source, range: ByteRange::between(nth * 4096, (nth + 32) * 4096) })
        .collect();
    let begun = Instant::now();
    convert_parts(&parts, &target, &options, &Control::default()).expect("the conversion succeeds");
    // 8 pieces of 128 KiB, of which the last seven wait: 224 ms.
    assert!(begun.elapsed() > Duration::from_millis(200), "{:?}", begun.elapsed());
}

#[test]
fn what_the_host_copies_is_what_was_there() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let raw = folder.path().join("source.raw");
    let bytes = patchy(5, 6 * 1024 * 1024 + 512 * 3);
    std::fs::write(&raw, &bytes).expect("the source can be written");
    let compressed = folder.path().join("source.qcow2");
    qemu_tools::img("convert -f raw -O qcow2", &[&raw, &compressed]);
    qemu_tools::io(
        &compressed,
        &["write -P 9 1M 200k".into(), "discard 3M 64k".into(), "write -c -P 3 3M 64k".into()],
    );
    let changed = qemu_tools::content(&compressed);
    let overlay = folder.path().join("overlay.qcow2");
    qemu_tools::img("create -q -f qcow2 -F raw -b source.raw", &[&overlay, Path::new("7M")]);
    qemu_tools::io(&overlay, &["write -P 4 4k 700k".into()]);
    let sources = [
        (open_raw(&raw), bytes),
        (subject::open(&compressed), changed),
        (subject::open(&overlay), qemu_tools::content(&overlay)),
    ];
    for (nth, (source, expected)) in sources.iter().enumerate() {
        for format in [Format::Raw, Format::Qcow2] {
            for used in [false, true] {
                let path = folder.path().join(format!("{nth}-{used}.{format}"));
                let target = new_target(&path, format, source.size());
                if used {
                    target.write_at(&noise(77, source.size() as usize), 0).expect("the target is filled");
                }
                let target_content = if used { TargetContent::Anything } else { TargetContent::Zeroes };
                let options = ConvertOptions { copying: Copying::Host, target_content, ..Default::default() };
                job::convert(source, &target, &options, &Control::default())
                    .expect("the conversion succeeds");
                target.close().expect("the target closes");
                if format == Format::Qcow2 {
                    qemu_tools::assert_check_clean(&path);
                    qemu_tools::assert_same_bytes(&qemu_tools::content(&path), expected, "a qcow2 target");
                } else {
                    let found = std::fs::read(&path).expect("the target can be read");
                    qemu_tools::assert_same_bytes(&found, expected, "a raw target");
                }
            }
        }
    }
}

#[test]
fn an_overlay_over_another_base_gets_what_qemu_img_gives_it() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("old.raw"), noise(1, 2 << 20)).expect("the base can be written");
    std::fs::write(at("new.raw"), noise(2, 1 << 20)).expect("the base can be written");
    let source = at("source.qcow2");
    qemu_tools::img("create -q -f qcow2 -F raw -b old.raw", &[&source, Path::new("3M")]);
    qemu_tools::io(&source, &["write -P 4 100k 700k".into(), "write -z 1500k 300k".into()]);
    let theirs = at("theirs.qcow2");
    qemu_tools::img("convert -O qcow2 -F raw -B new.raw", &[&source, &theirs]);
    let mut create = CreateOptions::overlay("new.raw");
    create.size = Some(3 << 20);
    let target = Image::create(at("ours.qcow2"), &create).expect("the target is created");
    let options = ConvertOptions { target_content: TargetContent::SameBacking, ..ConvertOptions::default() };
    job::convert(&subject::open(&source), &target, &options, &Control::default()).expect("it succeeds");
    target.close().expect("the target closes");
    let ours = qemu_tools::content(&at("ours.qcow2"));
    qemu_tools::assert_same_bytes(
        &ours,
        &qemu_tools::content(&theirs),
        "the same differences over another base",
    );
}
