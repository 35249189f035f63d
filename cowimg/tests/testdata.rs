//! Images that real tools have made read as those tools read them, and `check` counts what they count.
//!
//! `testdata/README.md` says what the images are and what the columns of the manifest mean.

use std::fs;
use std::path::{Path, PathBuf};

use cowimg::Image;

/// One row of the manifest, without what only a person needs.
struct Row {
    file: String,
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
        let report = open(&row.file).check().unwrap_or_else(|error| panic!("{}: {error}", row.file));
        assert_eq!(report.corruptions, row.corruptions, "{}: corruptions", row.file);
        assert_eq!(report.leaks, row.leaks, "{}: leaks", row.file);
    }
}

#[test]
fn every_image_has_a_row_in_the_manifest() {
    let rows: Vec<String> = manifest().map(|row| row.file).collect();
    for entry in fs::read_dir(folder()).expect("the folder can be listed") {
        let name = entry.expect("an entry can be read").file_name().to_string_lossy().into_owned();
        let is_image = Path::new(&name).extension().is_some_and(|extension| extension == "qcow2");
        assert!(!is_image || rows.contains(&name), "{name} has no row: make it with testdata/generate");
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata")
}

fn open(file: &str) -> Image {
    Image::open(folder().join(file)).unwrap_or_else(|error| panic!("{error}"))
}

fn manifest() -> impl Iterator<Item = Row> {
    let text = fs::read_to_string(folder().join("manifest.tsv")).expect("the manifest is text");
    let rows: Vec<Row> = text.lines().filter(|line| !line.starts_with('#')).map(row).collect();
    assert!(rows.len() >= 8, "the manifest has lost rows");
    rows.into_iter()
}

fn row(line: &str) -> Row {
    let columns: Vec<&str> = line.split('\t').collect();
    let number = |index: usize| columns[index].parse().unwrap_or_else(|error| panic!("{line}: {error}"));
    Row {
        file: columns[0].to_owned(),
        size: number(3),
        crc32: u32::from_str_radix(columns[4], 16).unwrap_or_else(|error| panic!("{line}: {error}")),
        corruptions: number(5),
        leaks: number(6),
    }
}
