//! The engine on images that are built here byte by byte, sound and hostile ones.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{Qcow1, Qcow1Options, read_header};
use crate::codec::crypt::{Passphrase, SectorCipher};
use crate::corruption::Corruption;
use crate::disk::Disk;
use crate::error::{ErrorKind, Result};
use crate::extent::ExtentKind;
use crate::raw::Raw;
use crate::storage::MemoryStorage;

const SIZE: u64 = 256 << 10;
const CLUSTER: usize = 512;
const L1: usize = 48;
const L2: usize = 1024;
const DATA: usize = 4096;

/// An image with clusters of 512 bytes and L2 tables of 64 entries; its first table maps the clusters 0 and 1 to the
/// bytes at [`DATA`], which are 1 and 2, and the other tables are absent.
fn image() -> Vec<u8> {
    let mut bytes = vec![0; DATA + 2 * CLUSTER];
    bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x01");
    put(&mut bytes, 24, SIZE);
    bytes[32..34].copy_from_slice(&[9, 6]);
    put(&mut bytes, 40, L1 as u64);
    put(&mut bytes, L1, L2 as u64);
    put(&mut bytes, L2, DATA as u64);
    put(&mut bytes, L2 + 8, (DATA + CLUSTER) as u64);
    bytes[DATA..DATA + CLUSTER].fill(1);
    bytes[DATA + CLUSTER..].fill(2);
    bytes
}

fn put(bytes: &mut [u8], at: usize, word: u64) {
    bytes[at..at + 8].copy_from_slice(&word.to_be_bytes());
}

fn open_with(bytes: &[u8], backing: Option<Arc<dyn Disk>>, passphrase: Option<&Passphrase>) -> Result<Qcow1> {
    let storage = Arc::new(MemoryStorage::with_bytes(bytes));
    let header = read_header(&*storage)?;
    let options = Qcow1Options { writable: false, cache_bytes: 1 << 16, passphrase };
    Qcow1::open(storage, &header, backing, &options)
}

fn open(bytes: &[u8]) -> Result<Qcow1> {
    open_with(bytes, None, None)
}

fn read(disk: &Qcow1, offset: u64, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0xee; len];
    disk.read_at(&mut bytes, offset).map(|()| bytes)
}

#[test]
fn what_the_image_has_not_comes_from_below_and_from_nowhere_past_its_end() {
    let below = Arc::new(MemoryStorage::with_bytes([7; 2048]));
    let below: Arc<dyn Disk> = Arc::new(Raw::open(below, false).unwrap());
    let disk = open_with(&image(), Some(below), None).unwrap();
    let whole = read(&disk, 0, 4096).unwrap();
    let expected = [[1; 512], [2; 512], [7; 512], [7; 512], [0; 512]].concat();
    assert_eq!(whole[..2560], expected[..]);
    assert!(read(&disk, SIZE - 1, 1).is_ok() && read(&disk, SIZE, 1).is_err());
    let extents: Vec<_> = [0, 1024, 2048]
        .iter()
        .map(|&at| disk.extent_at(at, SIZE).unwrap())
        .map(|e| (e.kind, e.depth))
        .collect();
    let data = ExtentKind::Data;
    assert_eq!(extents, [(data, 0), (data, 1), (ExtentKind::Unallocated, 0)]);
    assert_eq!(disk.extent_at(512, SIZE).unwrap().host, Some((DATA + CLUSTER) as u64));
}

#[test]
fn the_legacy_encryption_numbers_sectors_by_the_guests_places() {
    let mut bytes = image();
    bytes[39] = 1;
    let sesame = Passphrase::new("sesame");
    let cipher = SectorCipher::legacy(&sesame).unwrap();
    // The second cluster of the guest holds what is encrypted by its number, 1.
    cipher.encrypt(&mut bytes[DATA + CLUSTER..], 1);
    let refused = open(&bytes).unwrap_err();
    assert!(matches!(refused.kind(), ErrorKind::PassphraseNeeded));
    let disk = open_with(&bytes, None, Some(&sesame)).unwrap();
    assert_eq!(read(&disk, 700, 100).unwrap(), [2; 100]);
    assert_ne!(read(&disk, 0, 512).unwrap(), [1; 512]);
    assert_eq!(disk.extent_at(0, SIZE).unwrap().host, None);
}

#[test]
fn entries_that_point_nowhere_are_damage() {
    let entry = |at, word| {
        let mut bytes = image();
        put(&mut bytes, at, word);
        let error = read(&open(&bytes).unwrap(), 0, 1024).unwrap_err();
        match error.kind() {
            ErrorKind::Corrupt(corruption) => corruption.clone(),
            other => panic!("{other}"),
        }
    };
    let end = image().len() as u64;
    assert!(matches!(entry(L1, end), Corruption::PastEnd { .. }));
    assert!(matches!(entry(L1, u64::MAX), Corruption::PastEnd { .. }));
    assert!(matches!(entry(L2, end), Corruption::L2EntryPastEnd { guest: 0, .. }));
    assert!(matches!(entry(L2, DATA as u64 + 1), Corruption::L2Entry { .. }));
    assert!(matches!(entry(L2 + 8, (1 << 63) | DATA as u64), Corruption::CompressedData { guest: 512, .. }));
    assert!(matches!(entry(L2 + 8, u64::MAX), Corruption::L2EntryPastEnd { .. }));
}

#[test]
fn a_disk_as_large_as_the_format_allows_takes_no_memory_for_its_tables() {
    let mut bytes = image();
    put(&mut bytes, 24, ((1 << 28) - 1) << 15);
    let disk = open(&bytes).unwrap();
    let started = Instant::now();
    assert_eq!(read(&disk, disk.size() - 512, 512).unwrap(), [0; 512]);
    assert_eq!(disk.extent_at(1 << 30, disk.size()).unwrap().kind, ExtentKind::Unallocated);
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn an_image_is_not_opened_to_be_written() {
    let storage = Arc::new(MemoryStorage::with_bytes(image()));
    let header = read_header(&*storage).unwrap();
    let options = Qcow1Options { writable: true, cache_bytes: 0, passphrase: None };
    let refused = Qcow1::open(storage, &header, None, &options).unwrap_err();
    assert!(matches!(refused.kind(), ErrorKind::Unsupported(_)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// Whatever is changed in a real image, reading it ends with success or with a typed error.
    #[test]
    fn no_damage_makes_it_panic(changes in proptest::collection::vec((0_usize..9000, any::<u8>()), 1..20)) {
        for real in [&include_bytes!("../../../testdata/v1-base.qcow")[..], include_bytes!("../../../testdata/v1-overlay.qcow")] {
            let mut bytes = real.to_vec();
            for &(at, byte) in &changes {
                bytes[at] = byte;
            }
            let Ok(disk) = open(&bytes) else { continue };
            let mut at = 0;
            while at < disk.size().min(1 << 20) {
                let Ok(extent) = disk.extent_at(at, 1 << 20) else { break };
                let len = extent.range.len().min(1 << 16) as usize;
                let _typed = read(&disk, at, len);
                at = extent.range.end();
            }
        }
    }
}

/// A disk that claims to be exabytes long, in a file that ends before its L1 table begins: one look tells all of it. An entry
/// at a time, its map took a quarter of a billion looks.
#[test]
fn a_table_past_the_end_of_the_file_is_one_hole() {
    let mut bytes = image();
    let size = 1 << 50;
    put(&mut bytes, 24, size);
    bytes[32..34].copy_from_slice(&[16, 13]);
    put(&mut bytes, 40, 1 << 20);
    let disk = open(&bytes).unwrap();
    let extent = disk.extent_at(4096, u64::MAX).unwrap();
    assert_eq!(
        (extent.kind, extent.range.start(), extent.range.end()),
        (ExtentKind::Unallocated, 4096, size)
    );
    assert_eq!(read(&disk, size - 700, 700).unwrap(), [0; 700]);
}
