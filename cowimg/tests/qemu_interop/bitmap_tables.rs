//! Bitmaps at their edges: every granularity, merged both ways; table entries that stand for all bits or none; as many
//! bitmaps as there can be.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use cowimg::format::qcow2::{BitmapEntry, BitmapsExtension, Header, HostOffset};
use cowimg::{ByteRange, CreateOptions, Image, NewBitmap, Recording};
use tempfile::TempDir;

use crate::bitmaps::{as_qemu_sees, as_we_see};
use crate::qemu_tools;
use crate::seeded::Rng;
use crate::subject::{self, open_writable};

fn created(size: u64, cluster_size: u64) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("image.qcow2");
    let mut options = CreateOptions::qcow2(size);
    options.qcow2.cluster_size = cluster_size;
    cowimg::create(&path, &options).expect("it is created");
    (folder, path)
}

fn of_granularity(granularity: u64) -> NewBitmap {
    NewBitmap { granularity: Some(granularity), recording: Recording::On }
}

/// What a bitmap of this granularity says when `ranges` were changed, on a disk of `size` bytes.
fn rounded(ranges: &[ByteRange], granularity: u64, size: u64) -> Vec<ByteRange> {
    let mut all: Vec<ByteRange> = ranges
        .iter()
        .map(|range| {
            let end = range.end().next_multiple_of(granularity).min(size);
            ByteRange::between(range.start() / granularity * granularity, end)
        })
        .collect();
    all.sort_by_key(|range| range.start());
    let mut joined: Vec<ByteRange> = Vec::new();
    for range in all {
        match joined.last_mut() {
            Some(last) if last.end() >= range.start() => {
                *last = ByteRange::between(last.start(), last.end().max(range.end()));
            }
            _ => joined.push(range),
        }
    }
    joined
}

const GRANULARITIES: std::ops::RangeInclusive<u32> = 9..=31;

#[test]
fn every_granularity_records_and_is_merged_into_every_other() {
    let size = 48 * 1024 * 1024 + 512;
    let (_folder, path) = created(size, 4096);
    let changed = [
        ByteRange::between(3, 4),
        ByteRange::between(1 << 20, (1 << 20) + 512),
        ByteRange::between(5_000_000, 9_000_001),
        ByteRange::between(size - 1, size),
    ];
    let image = open_writable(&path);
    for bits in GRANULARITIES {
        image.add_bitmap(format!("g{bits}"), &of_granularity(1 << bits)).expect("it is added");
    }
    for bits in [8, 32] {
        image.add_bitmap("no", &of_granularity(1 << bits)).expect_err("there is no such granularity");
    }
    for range in changed {
        image.write_at(&vec![1; range.len() as usize], range.start()).expect("the write succeeds");
    }
    // Each of a few targets takes the bits of a few sources: the coarser of both is what is known.
    let mut rng = Rng::new("merged granularities");
    let mut merged = Vec::new();
    for _ in 0..40 {
        let [from, to] = [rng.between(9, 31), rng.between(9, 31)];
        let name = format!("m{from}-{to}");
        if image
            .add_bitmap(&name, &NewBitmap { recording: Recording::Off, ..of_granularity(1 << to) })
            .is_ok()
        {
            image.merge_bitmap(&name, &image, format!("g{from}")).expect("they are merged");
            merged.push((name, from, to));
        }
    }
    image.close().expect("the image closes");
    qemu_tools::assert_check_clean(&path);
    let image = subject::open(&path);
    for bits in GRANULARITIES {
        assert_eq!(as_we_see(&image, &format!("g{bits}")), rounded(&changed, 1 << bits, size), "2^{bits}");
    }
    for (name, from, to) in &merged {
        let expected = rounded(&rounded(&changed, 1 << from, size), 1 << to, size);
        assert_eq!(as_we_see(&image, name), expected, "{name}");
    }
    image.close().expect("the image closes");
    for bits in [9, 12, 20, 31] {
        assert_eq!(as_qemu_sees(&path, &format!("g{bits}")), rounded(&changed, 1 << bits, size), "2^{bits}");
    }
    for (name, from, to) in &merged[..4] {
        let expected = rounded(&rounded(&changed, 1 << from, size), 1 << to, size);
        assert_eq!(as_qemu_sees(&path, name), expected, "{name} as QEMU sees it");
        // And merged by QEMU.
        qemu_tools::img(&format!("bitmap --clear --merge g{from}"), &[&path, Path::new(name)]);
        assert_eq!(as_we_see(&subject::open(&path), name), expected, "{name} as QEMU merges it");
    }
    subject::assert_own_check_clean(&subject::open(&path));
}

/// An image's bitmaps as they stand in its file.
struct Directory {
    file: File,
    entries: Vec<BitmapEntry>,
}

impl Directory {
    fn read(path: &Path, cluster: usize) -> Directory {
        let file = File::options().read(true).write(true).open(path).expect("the image opens");
        let mut start = vec![0; cluster];
        file.read_exact_at(&mut start, 0).expect("the header can be read");
        let extension = Header::decode(&start).expect("it is a header").bitmaps().expect("there are bitmaps");
        let mut bytes = vec![0; extension.directory_size as usize];
        file.read_exact_at(&mut bytes, extension.directory.get()).expect("the directory can be read");
        let entries = BitmapEntry::decode_directory(&bytes, extension.count).expect("it is a directory");
        Directory { file, entries }
    }

    /// The table of the first bitmap.
    fn table(&self) -> Vec<u64> {
        let mut bytes = vec![0; self.entries[0].table_entries as usize * 8];
        self.file.read_exact_at(&mut bytes, self.entries[0].table.get()).expect("the table can be read");
        bytes.as_chunks::<8>().0.iter().map(|entry| u64::from_be_bytes(*entry)).collect()
    }

    fn put(&self, index: u64, entry: u64) {
        let at = self.entries[0].table.get() + index * 8;
        self.file.write_all_at(&entry.to_be_bytes(), at).expect("the table can be written");
    }
}

/// With clusters of 512 bytes and bits for 512 bytes, an entry stands for 2 MiB.
#[test]
fn table_entries_may_say_all_ones_and_all_zeroes() {
    const REGION: u64 = 2 << 20;
    let size = 4 * REGION + 1024;
    let (_folder, path) = created(size, 512);
    let image = open_writable(&path);
    image.add_bitmap("b", &of_granularity(512)).expect("it is added");
    image.write_at(&[1; 512], 0).expect("the write succeeds");
    image.close().expect("the image closes");
    let directory = Directory::read(&path, 512);
    assert!(directory.table()[0] > 1 && directory.table()[1..].iter().all(|&entry| entry == 0));
    directory.put(1, 1);
    directory.put(4, 1);
    drop(directory);

    let first = ByteRange::between(0, 512);
    let second = ByteRange::between(REGION, 2 * REGION);
    let last = ByteRange::between(4 * REGION, size);
    assert_eq!(as_we_see(&subject::open(&path), "b"), [first, second, last]);
    assert_eq!(as_qemu_sees(&path, "b"), [first, second, last]);
    qemu_tools::assert_check_clean(&path);
    subject::assert_own_check_clean(&subject::open(&path));

    // What records on keeps them, in our hands and then in QEMU's.
    let third = ByteRange::between(2 * REGION, 2 * REGION + 512);
    let image = open_writable(&path);
    image.write_at(&[2; 512], third.start()).expect("the write succeeds");
    image.write_at(&[2; 512], REGION + 4096).expect("the write succeeds");
    image.close().expect("the image closes");
    let grown = ByteRange::between(REGION, 2 * REGION + 512);
    assert_eq!(as_qemu_sees(&path, "b"), [first, grown, last]);
    assert_eq!(as_we_see(&subject::open(&path), "b"), [first, grown, last]);
    qemu_tools::io(&path, &[format!("write -q -P 3 {} 512", 3 * REGION)]);
    let fourth = ByteRange::between(3 * REGION, 3 * REGION + 512);
    assert_eq!(as_we_see(&subject::open(&path), "b"), [first, grown, fourth, last]);

    // Merged, cleared, and gone.
    let image = open_writable(&path);
    image.add_bitmap("copy", &of_granularity(65536)).expect("it is added");
    image.merge_bitmap("copy", &image, "b").expect("they are merged");
    image.clear_bitmap("b").expect("it is cleared");
    image.close().expect("the image closes");
    assert!(Directory::read(&path, 512).table().iter().all(|&entry| entry == 0));
    assert!(as_qemu_sees(&path, "b").is_empty());
    assert_eq!(as_qemu_sees(&path, "copy"), rounded(&[first, grown, fourth, last], 65536, size));
    qemu_tools::assert_check_clean(&path);
}

/// A directory of `count` bitmaps that all have the first one's table: nobody reads more than their names here.
fn crowded(path: &Path, count: u32) {
    let image = open_writable(path);
    image.add_bitmap("b0", &of_granularity(512)).expect("it is added");
    image.close().expect("the image closes");
    let directory = Directory::read(path, 512);
    let first = &directory.entries[0];
    let entries: Vec<BitmapEntry> = (0..count)
        .map(|nth| BitmapEntry { name: format!("b{nth}").into(), flags: 0, ..first.clone() })
        .collect();
    let bytes = BitmapEntry::encode_directory(&entries).expect("it can be encoded");
    let place = directory.file.metadata().expect("its length").len().next_multiple_of(512);
    directory.file.write_all_at(&bytes, place).expect("the directory is written");
    directory
        .file
        .set_len((place + bytes.len() as u64).next_multiple_of(512))
        .expect("it has whole clusters");
    let directory_size = bytes.len() as u64;
    let extension = BitmapsExtension { count, directory_size, directory: HostOffset(place) };
    let mut start = vec![0; 512];
    directory.file.read_exact_at(&mut start, 0).expect("the header can be read");
    let mut header = Header::decode(&start).expect("it is a header");
    let new = extension.to_extension();
    for old in header.extensions.iter_mut().filter(|old| old.kind == new.kind) {
        *old = new.clone();
    }
    directory.file.write_all_at(&header.encode().expect("it is valid"), 0).expect("the header is written");
    drop(directory);
    cowimg::check::repair_file(path, &Image::options(), cowimg::check::Repair::All).expect("it is repaired");
}

/// (Real qemu-img adds none either, and takes three minutes to say so.)
#[test]
fn there_are_as_many_bitmaps_as_in_qemu_and_no_more() {
    let (_folder, path) = created(4096, 512);
    crowded(&path, 65535);
    let image = open_writable(&path);
    assert_eq!(image.bitmaps().expect("they are listed").len(), 65535);
    let error = image.add_bitmap("one", &of_granularity(512)).expect_err("there are too many");
    assert!(error.to_string().contains("65535"), "{error}");
    image.remove_bitmap("b7").expect("one can be removed");
    image.add_bitmap("one", &of_granularity(512)).expect("and another takes its place");
    image.close().expect("the image closes");
    assert_eq!(subject::open(&path).bitmaps().expect("they are listed").len(), 65535);
}
