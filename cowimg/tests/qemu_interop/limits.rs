//! Images at the limits of the format, beside real `qemu-img`: as large as they can be made and one sector more, with the
//! longest names and one byte more, with as many snapshots and bitmaps as there can be and one more.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use cowimg::{
    Access, BackingOptions, ByteRange, CreateOptions, ErrorKind, Format, Image, NewBitmap, NewSnapshot,
    ResizeOptions, SnapshotSelector, Verification, Version, ZeroMode,
};
use tempfile::TempDir;

use crate::qemu_tools;
use crate::seeded::{Rng, is_soak};
use crate::subject;

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder can be made")
}

/// Whether `qemu-img` makes it.
fn qemu_makes(options: &str, path: &Path, size: u64) -> bool {
    let (path, size) = (path.display().to_string(), size.to_string());
    qemu_tools::answer_of("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, &path, &size]).code == 0
}

fn options(cluster_size: u64, extended_l2: bool, size: u64) -> CreateOptions {
    let mut options = CreateOptions::qcow2(size);
    options.qcow2.cluster_size = cluster_size;
    options.qcow2.extended_l2 = extended_l2;
    options
}

/// The largest disk that an L1 table of 32 MiB can map: cluster size, extended L2 entries, size.
const LARGEST: [(u64, bool, u64); 6] = [
    (512, false, 128 << 30),
    (4096, false, 8 << 40),
    (16384, true, 64 << 40),
    (65536, false, 2 << 50),
    (65536, true, 1 << 50),
    (2 << 20, false, 2 << 60),
];

/// One of them, or all where there is time: their tables are large.
fn some_of_the_largest(purpose: &str) -> Vec<(u64, bool, u64)> {
    if is_soak() { LARGEST.to_vec() } else { vec![*Rng::new(purpose).pick(&LARGEST)] }
}

#[test]
fn the_largest_disk_of_each_cluster_size_is_made_and_a_sector_more_is_not() {
    for (cluster, extended, largest) in some_of_the_largest("largest disks made") {
        let folder = folder();
        let words = format!("cluster_size={cluster},extended_l2={}", if extended { "on" } else { "off" });
        for (size, fits) in [(largest, true), (largest + 512, false), (largest * 2, false)] {
            let [ours, theirs] = ["ours", "theirs"].map(|name| folder.path().join(format!("{name}.{size}")));
            assert_eq!(qemu_makes(&words, &theirs, size), fits, "QEMU: {words}, {size}");
            let made = cowimg::create(&ours, &options(cluster, extended, size));
            assert_eq!(made.is_ok(), fits, "{words}, {size}: {made:?}");
        }
        let grown = folder.path().join("grown");
        cowimg::create(&grown, &options(cluster, extended, 1 << 20)).expect("a small one is made");
        let image = subject::open_writable(&grown);
        image.resize(largest, &ResizeOptions::default()).expect("it grows to the largest");
        image.resize(largest + 512, &ResizeOptions::default()).expect_err("and no further");
        image.close().expect("it closes");
        qemu_tools::img_answer("resize -q", &[&grown, Path::new("+512")]);
        assert_eq!(subject::open(&grown).size(), largest);
    }
}

/// Both ends, the middle, and where one L2 table ends and the next begins.
#[test]
fn the_largest_disks_are_written_by_both_and_read_by_both() {
    for (cluster, extended, size) in some_of_the_largest("largest disks written") {
        let folder = folder();
        let path = folder.path().join("image.qcow2");
        let image = Image::create(&path, &options(cluster, extended, size)).expect("it is made");
        let places = [0, size / 2 - 4096, size - 8192];
        for (nth, place) in places.into_iter().enumerate() {
            image.write_at(&[nth as u8 + 1; 8192], place).expect("it is written");
        }
        image.write_zeroes(ByteRange::between(size - 4096, size), ZeroMode::KeepSpace).expect("zeroed");
        image.create_snapshot(&NewSnapshot { name: b"a".to_vec(), ..Default::default() }).expect("taken");
        image.write_at(&[9; 512], size - 8192).expect("it is written");
        image.close().expect("it closes");
        let commands = [
            "read -q -P 1 0 8k".to_owned(),
            format!("read -q -P 2 {} 8k", size / 2 - 4096),
            format!("read -q -P 9 {} 512", size - 8192),
            format!("read -q -P 3 {} 3584", size - 8192 + 512),
            format!("read -q -P 0 {} 4k", size - 4096),
            format!("write -q -P 7 {} 512", size - 512),
        ];
        qemu_tools::io(&path, &commands);
        qemu_tools::assert_check_clean(&path);
        let image = subject::open(&path);
        let mut last = [0; 8192];
        image.read_at(&mut last, size - 8192).expect("it can be read");
        assert!(last[..512] == [9; 512] && last[512..4096] == [3; 3584] && last[7680..] == [7; 512]);
        subject::assert_own_check_clean(&image);
        let reached = image.extents(ByteRange::between(0, size)).last().expect("there are extents");
        assert_eq!(reached.expect("the mapping can be read").range.end(), size);
    }
}

#[test]
fn the_longest_names_are_taken_and_a_byte_more_is_not() {
    let folder = folder();
    let path = folder.path().join("image.qcow2");
    let name = |len: usize| "n".repeat(len);
    let text = path.display().to_string();
    let qemu = |words: &[&str]| qemu_tools::answer_of("qemu-img", words).code == 0;
    for (len, fits) in [(1, true), (1022, true), (1023, true), (1024, false)] {
        // A backing file's name.
        let backing = BackingOptions {
            format: Some(Format::Raw),
            verification: Verification::Trust,
            ..BackingOptions::new(name(len))
        };
        let overlay = CreateOptions {
            backing: Some(backing),
            overwrite: cowimg::Overwrite::Replace,
            ..CreateOptions::qcow2(1 << 20)
        };
        let made = cowimg::create(&path, &overlay);
        assert_eq!(made.is_ok(), fits, "a backing name of {len} bytes: {made:?}");
        let words = ["create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", &name(len), &text, "1M"];
        assert_eq!(qemu(&words), fits, "QEMU: a backing name of {len} bytes");

        // A bitmap's.
        qemu_makes("cluster_size=64k", &path, 1 << 20);
        let image = subject::open_writable(&path);
        let added = image.add_bitmap(name(len), &NewBitmap::default());
        image.close().expect("it closes");
        assert_eq!(added.is_ok(), fits, "a bitmap's name of {len} bytes: {added:?}");
        qemu_tools::assert_check_clean(&path);
        let words = ["bitmap", "--add", &text, &name(len).replace('n', "m")];
        assert_eq!(qemu(&words), fits, "QEMU: a bitmap's name of {len} bytes");
        assert_eq!(subject::open(&path).bitmaps().expect("listed").len(), if fits { 2 } else { 0 });
    }
    // A snapshot's: as long as its field can say.
    qemu_makes("cluster_size=64k", &path, 1 << 20);
    let image = subject::open_writable(&path);
    for (len, fits) in [(255, true), (256, true), (65535, true), (65536, false)] {
        let taken = image.create_snapshot(&NewSnapshot { name: name(len).into(), ..Default::default() });
        assert_eq!(taken.is_ok(), fits, "a snapshot's name of {len} bytes");
    }
    image.close().expect("it closes");
    assert!(qemu(&["check", &text]) && qemu(&["snapshot", "-l", &text]));
}

/// An image whose snapshot table has `count` entries without tables of their own, counted by a repair.
fn crowded_with_snapshots(folder: &Path, count: u32) -> PathBuf {
    let path = folder.join(format!("snapshots.{count}"));
    qemu_tools::img("create -q -f qcow2", &[&path, Path::new("1M")]);
    let mut table = Vec::new();
    for nth in 1..=count {
        let (id, name) = (nth.to_string(), format!("s{nth}"));
        let start = table.len();
        table.extend_from_slice(&[0; 12]);
        table.extend_from_slice(&(id.len() as u16).to_be_bytes());
        table.extend_from_slice(&(name.len() as u16).to_be_bytes());
        table.extend_from_slice(&[0; 20]);
        table.extend_from_slice(&16_u32.to_be_bytes());
        table.extend_from_slice(&0_u64.to_be_bytes());
        table.extend_from_slice(&(1_u64 << 20).to_be_bytes());
        table.extend_from_slice(id.as_bytes());
        table.extend_from_slice(name.as_bytes());
        table.resize((table.len() - start).next_multiple_of(8) + start, 0);
    }
    let file = File::options().read(true).write(true).open(&path).expect("the image opens");
    let place = file.metadata().expect("its length").len().next_multiple_of(65536);
    table.resize(table.len().next_multiple_of(65536), 0);
    file.write_all_at(&table, place).expect("the table is written");
    file.write_all_at(&count.to_be_bytes(), 60).expect("the header is written");
    file.write_all_at(&place.to_be_bytes(), 64).expect("the header is written");
    cowimg::check::repair_file(&path, &Image::options(), cowimg::check::Repair::All).expect("it is repaired");
    path
}

#[test]
fn there_are_as_many_snapshots_as_in_qemu_and_no_more() {
    let folder = folder();
    let path = crowded_with_snapshots(folder.path(), 65535);
    let new = |name: &str| NewSnapshot { name: name.into(), ..Default::default() };
    let image = subject::open_writable(&path);
    assert_eq!(image.snapshots().expect("they are listed").len(), 65535);
    image.create_snapshot(&new("last")).expect("there is room for one");
    let error = image.create_snapshot(&new("too many")).expect_err("and for no more");
    assert!(matches!(error.kind(), ErrorKind::Unsupported(_) | ErrorKind::LimitExceeded { .. }), "{error}");
    if is_soak() {
        // QEMU reads such a table in small pieces, which takes it half a minute.
        image.flush().expect("it is written");
        qemu_tools::assert_check_finds_at_most_leaks(&path);
        let answer = qemu_tools::img_answer("snapshot -c more", &[&copied(&path)]);
        assert_ne!(answer.code, 0, "QEMU takes no more either");
    }
    image.delete_snapshot(&SnapshotSelector::Name(b"s77".to_vec())).expect("one can be deleted");
    image.close().expect("it closes");
    let image = subject::open(&path);
    subject::assert_own_check_clean(&image);
    assert_eq!(image.snapshots().expect("they are listed").len(), 65535);
}

fn copied(path: &Path) -> PathBuf {
    let copy = path.with_extension("copy");
    std::fs::copy(path, &copy).expect("the image can be copied");
    copy
}

/// A refcount table of 8 MiB, each entry of which names the one block, in which all is in use: there is no space left, and
/// no larger table. (QEMU 10.0.2 makes one, and cannot open the image again.)
#[test]
fn a_full_refcount_table_of_the_largest_size_ends_the_writing() {
    let folder = folder();
    let path = folder.path().join("image.qcow2");
    qemu_tools::img("create -q -f qcow2 -o cluster_size=512,refcount_bits=64", &[&path, Path::new("1M")]);
    let file = File::options().read(true).write(true).open(&path).expect("the image opens");
    let place = file.metadata().expect("its length").len().next_multiple_of(512);
    let mut block = Vec::new();
    for _ in 0..64 {
        block.extend_from_slice(&1_u64.to_be_bytes());
    }
    file.write_all_at(&block, place).expect("the block is written");
    let table: Vec<u8> = std::iter::repeat_n(place.to_be_bytes(), 1 << 20).flatten().collect();
    file.write_all_at(&table, place + 512).expect("the table is written");
    file.write_all_at(&(place + 512).to_be_bytes(), 48).expect("the header is written");
    file.write_all_at(&16384_u32.to_be_bytes(), 56).expect("the header is written");
    let image = Image::options().access(Access::ReadWrite).open(&path).expect("it opens");
    let error = image.write_at(&[1; 512], 0).expect_err("there is no room");
    assert!(matches!(error.kind(), ErrorKind::LimitExceeded { limit: 8388608, .. }), "{error}");
    image.read_at(&mut [0; 512], 0).expect("it can be read");
}

/// Version 2 as old tools left it: no way to say zero, refcounts of 16 bits, snapshots that do not record their size.
#[test]
fn version_2_has_none_of_what_came_later() {
    let folder = folder();
    let path = folder.path().join("image.qcow2");
    let mut options = CreateOptions::qcow2(1 << 20);
    options.qcow2.version = Version::V2;
    let image = Image::create(&path, &options).expect("it is made");
    image.write_at(&vec![1; 1 << 16], 0).expect("written");
    image.write_zeroes(ByteRange::between(0, 1 << 16), ZeroMode::KeepSpace).expect("zeroed");
    image.add_bitmap("b", &NewBitmap::default()).expect_err("no bitmaps");
    image.create_snapshot(&NewSnapshot { name: b"a".to_vec(), ..Default::default() }).expect("taken");
    for size in [1 << 19, 1 << 21] {
        let options = ResizeOptions { shrink: cowimg::Shrink::Allow, ..Default::default() };
        image.resize(size, &options).expect_err("no other size with snapshots");
    }
    image.close().expect("it closes");
    qemu_tools::assert_check_clean(&path);
    for words in ["resize -q --shrink", "bitmap --add"] {
        let answer = qemu_tools::img_answer(words, &[&path, Path::new("512k")]);
        assert_ne!(answer.code, 0, "QEMU refuses {words}, too");
    }
    assert!(subject::content(&path).iter().all(|&byte| byte == 0));
}
