//! Headers changed by hand: what no tool would write, for images that other programs may have written.
//!
//! ```text
//!  offset  bytes  field (version 3)
//!      72      8  incompatible features
//!      80      8  compatible features
//!      88      8  autoclear features
//!     100      4  length of the header; the extensions start there
//!
//!  extension: kind (4), length (4), that many bytes, padding to a multiple of 8; kind 0 ends the list
//! ```

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

pub(crate) const INCOMPATIBLE: u64 = 72;
pub(crate) const COMPATIBLE: u64 = 80;
pub(crate) const AUTOCLEAR: u64 = 88;

const HEADER_LENGTH: usize = 100;
const BACKING_NAME_OFFSET: usize = 8;
const BACKING_NAME_LENGTH: usize = 16;

fn first_bytes(path: &Path) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    File::open(path).and_then(|file| file.read_exact_at(&mut bytes, 0)).expect("the header can be read");
    bytes
}

fn store(path: &Path, bytes: &[u8], offset: u64) {
    let file = File::options().write(true).open(path).expect("the image can be patched");
    file.write_all_at(bytes, offset).expect("the image can be patched");
}

fn u32_at(bytes: &[u8], offset: usize) -> usize {
    u32::from_be_bytes(bytes[offset..offset + 4].try_into().expect("four bytes")) as usize
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_be_bytes(bytes[offset..offset + 8].try_into().expect("eight bytes"))
}

/// One of the three sets of feature bits.
pub(crate) fn features(path: &Path, field: u64) -> u64 {
    u64_at(&first_bytes(path), field as usize)
}

/// Sets bits in one of the three sets.
pub(crate) fn set_features(path: &Path, field: u64, bits: u64) {
    store(path, &(features(path, field) | bits).to_be_bytes(), field);
}

/// The extensions in their order, and where the end marker starts.
fn extensions_and_end(bytes: &[u8]) -> (Vec<(u32, Vec<u8>)>, usize) {
    let mut found = Vec::new();
    let mut at = u32_at(bytes, HEADER_LENGTH);
    loop {
        let (kind, len) = (u32_at(bytes, at) as u32, u32_at(bytes, at + 4));
        if kind == 0 {
            return (found, at);
        }
        found.push((kind, bytes[at + 8..at + 8 + len].to_vec()));
        at += 8 + len.next_multiple_of(8);
    }
}

/// The extensions: their kinds and bytes.
pub(crate) fn extensions(path: &Path) -> Vec<(u32, Vec<u8>)> {
    extensions_and_end(&first_bytes(path)).0
}

/// Adds an extension behind those that are there, and moves the backing name out of its way.
pub(crate) fn add_extension(path: &Path, kind: u32, data: &[u8]) {
    let bytes = first_bytes(path);
    let (_, end) = extensions_and_end(&bytes);
    let mut added = Vec::new();
    added.extend_from_slice(&kind.to_be_bytes());
    added.extend_from_slice(&u32::try_from(data.len()).expect("a short extension").to_be_bytes());
    added.extend_from_slice(data);
    added.resize(added.len().next_multiple_of(8), 0);
    added.extend_from_slice(&[0; 8]);
    let name_at = u64_at(&bytes, BACKING_NAME_OFFSET) as usize;
    if name_at != 0 {
        let name = &bytes[name_at..name_at + u32_at(&bytes, BACKING_NAME_LENGTH)];
        store(path, &((end + added.len()) as u64).to_be_bytes(), BACKING_NAME_OFFSET as u64);
        added.extend_from_slice(name);
    }
    assert!(end + added.len() <= bytes.len(), "the header is full");
    store(path, &added, end as u64);
}

/// Gives an incompatible feature bit a name in a feature name table that holds nothing else. The image has none yet.
pub(crate) fn name_incompatible_bit(path: &Path, bit: u8, name: &str) {
    let mut entry = vec![0, bit];
    entry.extend_from_slice(name.as_bytes());
    entry.resize(48, 0);
    add_extension(path, 0x6803f857, &entry);
}
