//! Images that real tools have made read as those tools read them, and `check` counts what they count.
//!
//! `testdata/README.md` says what the images are and what the columns of the manifest mean.

use std::fs;
use std::path::{Path, PathBuf};

use cowimg::encryption::Passphrase;
use cowimg::{Access, ErrorKind, Format, Image, SnapshotSelector, SnapshotSize};
use sha2::{Digest, Sha256};

/// One row of the manifest, without what only a person needs.
struct Row {
    file: String,
    sha256: String,
    size: u64,
    crc32: u32,
    corruptions: u64,
    leaks: u64,
}

#[test]
fn every_image_reads_as_the_tool_that_made_it_reads_it() {
    for row in manifest() {
        let image = open(&row.file);
        assert_eq!(image.size(), row.size, "{}: the virtual size", row.file);
        let mut guest = vec![0; usize::try_from(row.size).expect("the images are small")];
        image.read_at(&mut guest, 0).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(crc32fast::hash(&guest), row.crc32, "{}: the guest's content", row.file);
    }
}

/// Small pieces at odd places take other ways through the engine than one read of everything.
#[test]
fn a_read_in_odd_pieces_is_the_read_of_the_whole() {
    for row in manifest() {
        let image = open(&row.file);
        let mut hasher = crc32fast::Hasher::new();
        let mut offset = 0;
        for piece in [1, 511, 4097, 777, 65537].into_iter().cycle() {
            let len = piece.min(row.size - offset);
            let mut buffer = vec![0; usize::try_from(len).expect("a piece is small")];
            image.read_at(&mut buffer, offset).unwrap_or_else(|error| panic!("{error}"));
            hasher.update(&buffer);
            offset += len;
            if offset == row.size {
                break;
            }
        }
        assert_eq!(hasher.finalize(), row.crc32, "{}: the guest's content", row.file);
    }
}

#[test]
fn check_counts_what_qemu_img_counts() {
    for row in manifest() {
        let image = open(&row.file);
        if image.format() != Format::Qcow2 {
            let refused = image.check().expect_err("other formats have nothing to check");
            assert!(matches!(refused.kind(), ErrorKind::Unsupported(_)), "{}: {refused}", row.file);
            continue;
        }
        let report = image.check().unwrap_or_else(|error| panic!("{}: {error}", row.file));
        assert_eq!(report.corruptions, row.corruptions, "{}: corruptions", row.file);
        assert_eq!(report.leaks, row.leaks, "{}: leaks", row.file);
    }
}

#[test]
fn every_file_is_the_one_that_was_made() {
    for row in manifest() {
        let bytes = fs::read(folder().join(&row.file)).expect("the file can be read");
        let sum = row.sha256.as_bytes().as_chunks::<2>().0.iter().map(|digits| {
            let digits = std::str::from_utf8(digits).expect("hex digits");
            u8::from_str_radix(digits, 16).expect("hex digits")
        });
        assert!(Sha256::digest(&bytes).iter().copied().eq(sum), "{}: its SHA-256", row.file);
    }
}

#[test]
fn what_is_special_about_an_image_is_seen() {
    let told = |file: &str| open(file).info().expect("it says what it is").qcow2.expect("it is qcow2");
    assert!(told("corrupt.qcow2").corrupt && !told("v2.qcow2").corrupt);
    let writable = tempfile::tempdir().expect("a folder");
    let copy = writable.path().join("corrupt.qcow2");
    fs::copy(folder().join("corrupt.qcow2"), &copy).expect("the file can be copied");
    let marked = Image::options().access(Access::ReadWrite).open(&copy);
    let error = marked.expect_err("it is opened for reading only");
    assert!(matches!(error.kind(), ErrorKind::MarkedCorrupt { met: None }), "{error}");

    let bitmaps = open("bitmaps.qcow2").bitmaps().expect("they are listed");
    let flags: Vec<_> = bitmaps.iter().map(|b| (b.in_use, b.auto, b.granularity)).collect();
    assert_eq!(flags, [(true, true, 4096), (false, true, 512), (false, false, 65536)]);
    let image = open("bitmaps.qcow2");
    let bits: u64 = image
        .bitmap_ranges("recording")
        .expect("it can be read")
        .map(|range| range.expect("its bits can be read").len())
        .sum();
    assert_eq!(bits, 10 * 1024 + 4096, "what was written and discarded since");

    let snapshots = open("machine-state.qcow2").snapshots().expect("they are listed");
    assert_eq!(snapshots[0].vm_state_size(), 16384);
    let running = SnapshotSelector::Name(b"running".to_vec());
    let view = Image::options().snapshot(running).snapshot_size(SnapshotSize::Own);
    assert_eq!(view.open(folder().join("machine-state.qcow2")).expect("it opens").size(), 65536);

    for file in ["luks.qcow2", "aes.qcow2"] {
        let error = Image::open(folder().join(file)).expect_err("it is encrypted");
        assert!(matches!(error.kind(), ErrorKind::PassphraseNeeded), "{error}");
    }
}

#[test]
fn every_image_has_a_row_in_the_manifest() {
    let rows: Vec<String> = manifest().map(|row| row.file).collect();
    for entry in fs::read_dir(folder()).expect("the folder can be listed") {
        let name = entry.expect("an entry can be read").file_name().to_string_lossy().into_owned();
        let is_image =
            Path::new(&name).extension().is_some_and(|extension| extension == "qcow2" || extension == "qcow");
        assert!(!is_image || rows.contains(&name), "{name} has no row: make it with testdata/generate");
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata")
}

/// Opens an image, with the one passphrase and, where there is one, the data file of its name.
fn open(file: &str) -> Image {
    let path = folder().join(file);
    let data = path.with_extension("raw");
    let mut options = Image::options().passphrase(Passphrase::new("open-sesame"));
    if data.exists() {
        options = options.data_file(data);
    }
    options.open(path).unwrap_or_else(|error| panic!("{error}"))
}

fn manifest() -> impl Iterator<Item = Row> {
    let text = fs::read_to_string(folder().join("manifest.tsv")).expect("the manifest is text");
    let rows: Vec<Row> = text.lines().filter(|line| !line.starts_with('#')).map(row).collect();
    assert!(rows.len() >= 16, "the manifest has lost rows");
    rows.into_iter()
}

fn row(line: &str) -> Row {
    let columns: Vec<&str> = line.split('\t').collect();
    let number = |index: usize| columns[index].parse().unwrap_or_else(|error| panic!("{line}: {error}"));
    Row {
        file: columns[0].to_owned(),
        sha256: columns[2].to_owned(),
        size: number(3),
        crc32: u32::from_str_radix(columns[4], 16).unwrap_or_else(|error| panic!("{line}: {error}")),
        corruptions: number(5),
        leaks: number(6),
    }
}
