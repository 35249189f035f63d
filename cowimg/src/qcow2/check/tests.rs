//! Images made by hand, in memory: each test says what is wrong with one, or what somebody wants to make of the check
//! with it. That numbers are QEMU's is for `tests/qemu_check.rs` to see.

use std::io;

use proptest::prelude::*;

use super::*;
use crate::error::ErrorKind;
use crate::format::qcow2::{
    Autoclear, BitmapsExtension, Compatible, CompressionType, CryptMethod, HostOffset, Incompatible,
    Snapshot, SnapshotExtra, Version, refcounts,
};
use crate::storage::MemoryStorage;

const COPIED: u64 = 1 << 63;

/// An image of 16-bit refcounts: header, refcount table, refcount block, L1 table, L2 table, then data.
struct Builder {
    header: Header,
    bytes: Vec<u8>,
}

impl Builder {
    /// An image with nothing but its metadata, which is counted.
    fn new(cluster_bits: u32, l1_entries: u32) -> Builder {
        let cluster = 1 << cluster_bits;
        let header = Header {
            version: Version::V3,
            cluster_bits,
            size: 1 << 20,
            crypt_method: CryptMethod::None,
            l1_entries,
            l1_table: HostOffset(3 * cluster),
            refcount_table: HostOffset(cluster),
            refcount_table_clusters: 1,
            snapshot_count: 0,
            snapshot_table: HostOffset(0),
            incompatible: Incompatible(0),
            compatible: Compatible(0),
            autoclear: Autoclear(0),
            refcount_order: 4,
            compression: CompressionType::Deflate,
            unknown_fields: Vec::new(),
            header_length: Header::default_length(Version::V3),
            extensions: Vec::new(),
            backing_file: None,
        };
        let mut image = Builder { header, bytes: Vec::new() };
        image.put(cluster, 2 * cluster);
        let clusters = 3 + (u64::from(l1_entries) * 8).div_ceil(cluster);
        (0..clusters).for_each(|cluster| image.set_refcount(cluster, 1));
        image.grow(clusters * cluster);
        image
    }

    fn cluster_size(&self) -> u64 {
        1 << self.header.cluster_bits
    }

    fn grow(&mut self, len: u64) {
        self.bytes.resize((len as usize).max(self.bytes.len()), 0);
    }

    /// Stores a 64-bit number.
    fn put(&mut self, host: u64, value: u64) {
        self.grow(host + 8);
        self.bytes[host as usize..host as usize + 8].copy_from_slice(&value.to_be_bytes());
    }

    fn set_refcount(&mut self, cluster: u64, refcount: u64) {
        let block = 2 * self.cluster_size();
        self.grow(block + self.cluster_size());
        let range = block as usize..(block + self.cluster_size()) as usize;
        assert!(refcounts::set(&mut self.bytes[range], 4, cluster, refcount));
    }

    /// Adds a cluster at the end, with a refcount, and returns where it is.
    fn add_cluster(&mut self, refcount: u64) -> u64 {
        let host = (self.bytes.len() as u64).next_multiple_of(self.cluster_size());
        self.grow(host + self.cluster_size());
        self.set_refcount(host / self.cluster_size(), refcount);
        host
    }

    /// Adds an L2 table for the first L1 entry and returns where it is.
    fn add_l2(&mut self) -> u64 {
        let table = self.add_cluster(1);
        self.put(self.header.l1_table.0, table | COPIED);
        table
    }

    fn storage(mut self) -> MemoryStorage {
        let header = self.header.encode().unwrap();
        self.grow(header.len() as u64);
        self.bytes[..header.len()].copy_from_slice(&header);
        MemoryStorage::with_bytes(self.bytes)
    }

    fn check(self) -> CheckReport {
        check_storage(&self.storage()).unwrap()
    }
}

fn lines(report: &CheckReport) -> Vec<String> {
    report.issues.iter().map(ToString::to_string).collect()
}

/// An image with one table and one data cluster, its entry, and where the table is.
fn with_data() -> (Builder, u64) {
    let mut image = Builder::new(12, 1);
    let table = image.add_l2();
    let data = image.add_cluster(1);
    image.put(table, data | COPIED);
    (image, table)
}

#[test]
fn an_image_in_order_is_clean_and_measured() {
    let (image, _) = with_data();
    let report = image.check();
    assert!(report.is_clean(), "{:?}", lines(&report));
    assert_eq!(
        (report.allocated_clusters, report.fragmented_clusters, report.compressed_clusters),
        (1, 0, 0)
    );
    assert_eq!(report.total_clusters, 256);
    assert_eq!(report.image_end_offset, 6 * 4096);
}

#[test]
fn wrong_refcounts_are_leaks_or_corruptions_in_the_well_known_words() {
    let (mut image, _) = with_data();
    image.set_refcount(5, 0);
    let leaked = image.add_cluster(1);
    assert_eq!(leaked, 6 * 4096);
    let report = image.check();
    assert_eq!((report.leaks, report.corruptions, report.check_errors), (1, 2, 0));
    assert_eq!(
        lines(&report),
        [
            "ERROR cluster 5 refcount=0 reference=1",
            "Leaked cluster 6 refcount=1 reference=0",
            "ERROR OFLAG_COPIED data cluster: l2_entry=8000000000005000 refcount=0",
        ]
    );
    assert_eq!(report.issues[0].severity, Severity::Corruption);
    assert_eq!(report.issues[1].severity, Severity::Leak);
    assert_eq!(report.image_end_offset, 7 * 4096);
}

#[test]
fn a_wrong_copied_flag_of_a_table_is_said_with_its_index() {
    let (mut image, table) = with_data();
    image.put(image.header.l1_table.0, table);
    let report = image.check();
    assert_eq!(lines(&report), ["ERROR OFLAG_COPIED L2 cluster: l1_index=0 l1_entry=4000 refcount=1"]);
}

#[test]
fn an_entry_says_where_it_is_and_what_it_maps() {
    let (mut image, table) = with_data();
    image.put(table + 8, 0x10);
    let report = image.check();
    let site = L2Site { table, index: 1, guest: Some(4096), entry: 0x10 };
    let finding = Finding::L2Entry { site, problem: L2Problem::ReservedBits };
    assert_eq!(report.issues, [CheckIssue { severity: Severity::Corruption, finding, times: 1 }]);
    assert_eq!(
        lines(&report),
        ["ERROR L2 entry 1 (0x10) of the table at offset 0x4000, guest offset 0x1000: reserved bits are set"]
    );
}

/// QEMU passes over both and, for the first, reads the header as an L2 table.
#[test]
fn what_qemu_misreads_is_a_corruption() {
    let (mut image, table) = with_data();
    image.header.l1_entries = 3;
    image.put(image.header.l1_table.0 + 8, COPIED);
    image.put(image.header.l1_table.0 + 16, 1);
    let report = image.check();
    assert_eq!((report.leaks, report.corruptions), (0, 2), "{:?}", lines(&report));

    let (mut image, _) = with_data();
    image.header.version = Version::V2;
    image.header.header_length = Header::default_length(Version::V2);
    image.put(table + 8, 1);
    let report = image.check();
    assert_eq!(report.corruptions, 1, "{:?}", lines(&report));
    assert!(matches!(
        report.issues[0].finding,
        Finding::L2Entry { problem: L2Problem::ZeroInVersion2, site: L2Site { index: 1, .. } }
    ));
}

#[test]
fn entries_that_point_past_the_end_are_corruptions_and_take_no_memory() {
    let (mut image, table) = with_data();
    for (index, host) in [1 << 30, 1 << 40, 1 << 55].into_iter().enumerate() {
        image.put(table + 8 * (index as u64 + 1), host);
    }
    image.put(table + 32, (1 << 62) | (1 << 57));
    let report = image.check();
    assert_eq!((report.leaks, report.corruptions), (0, 4), "{:?}", lines(&report));
    let is_past_end = |issue: &CheckIssue| {
        matches!(issue.finding, Finding::L2Entry { problem: L2Problem::PastEnd { .. }, .. })
    };
    assert!(report.issues.iter().all(is_past_end));
}

#[test]
fn many_findings_are_counted_and_the_first_are_listed() {
    let mut image = Builder::new(16, 1);
    let table = image.add_l2();
    for index in 0..8192 {
        image.put(table + 8 * index, 0x10);
    }
    let second = image.add_cluster(1);
    image.header.l1_entries = 2;
    image.put(image.header.l1_table.0 + 8, second | COPIED);
    for index in 0..8192 {
        image.put(second + 8 * index, 0x12);
    }
    let report = image.check();
    assert_eq!(report.corruptions, 2 * 8192);
    assert_eq!(report.issues.len(), CheckReport::MAX_ISSUES);
}

/// 4 million L1 entries that lead to one table with 262144 entries would be 2^40 visits.
#[test]
fn a_table_that_is_named_a_million_times_is_read_once() {
    let mut image = Builder::new(21, 1 << 22);
    let table = image.add_cluster(1);
    for index in 0..1 << 22 {
        image.put(image.header.l1_table.0 + 8 * index, table);
    }
    let data = image.add_cluster(1);
    for index in 0..1 << 18 {
        image.put(table + 8 * index, data);
    }
    let report = image.check();
    assert_eq!(report.allocated_clusters, 1 << 40);
    assert_eq!(report.fragmented_clusters, ((1 << 18) - 1) << 22);
    // One reference to the table is right, and refcounts go to 65535.
    let too_many = (1 << 22) - 65535 + (1 << 40) - 65535;
    // Each copied flag is missing, for the refcount says one: of the table's entries, and of the cluster's.
    let copied = (1 << 22) + (1 << 40);
    assert_eq!(report.corruptions, too_many + 2 + copied);
}

/// The largest snapshot table, each of whose entries names the largest L1 table in the same place, would be 2 TiB to
/// read.
#[test]
fn overlapping_l1_tables_of_snapshots_are_read_once() {
    let mut image = Builder::new(16, 1);
    let table = image.add_l2();
    let data = image.add_cluster(1);
    image.put(table, data | COPIED);
    let l1_table = (image.bytes.len() as u64).next_multiple_of(1 << 16);
    image.put(l1_table, table);
    image.put(l1_table + 16, table);
    let snapshot_table = l1_table + (33 << 20);
    let snapshot = Snapshot {
        l1_table: HostOffset(l1_table),
        l1_entries: 1 << 22,
        extra: SnapshotExtra { vm_state_size: Some(0), disk_size: Some(1 << 20), ..SnapshotExtra::default() },
        ..Snapshot::default()
    };
    image.grow(snapshot_table);
    for nth in 0..65536 {
        // Half of them start one cluster later, past the first two entries.
        let l1_table = HostOffset(l1_table + (nth % 2) * (1 << 16));
        image.bytes.extend(Snapshot { l1_table, ..snapshot.clone() }.encode());
    }
    image.header.snapshot_count = 65536;
    image.header.snapshot_table = HostOffset(snapshot_table);
    let report = image.check();
    let references = |cluster| {
        let found = report.issues.iter().find_map(|issue| match issue.finding {
            Finding::TooManyReferences { cluster: c, references, .. } if c == cluster => Some(references),
            Finding::RefcountTooLow { cluster: c, references, .. } if c == cluster => Some(references),
            _ => None,
        });
        found.unwrap_or(1)
    };
    let twice_in_half_of_the_snapshots = 65536 / 2 * 2 + 1;
    assert_eq!(references(table >> 16), twice_in_half_of_the_snapshots);
    assert_eq!(references(data >> 16), twice_in_half_of_the_snapshots);
    assert_eq!(references(l1_table >> 16), 32768);
    assert_eq!(references((l1_table >> 16) + 1), 65536);
    assert_eq!(references((l1_table >> 16) + 512), 32768);
}

/// The length of a sparse file is an attacker's to choose.
#[test]
fn a_file_that_is_said_to_be_long_costs_no_more() {
    let (image, _) = with_data();
    let storage = image.storage();
    storage.set_len(1 << 42).unwrap();
    let report = check_storage(&storage).unwrap();
    assert!(report.is_clean(), "{:?}", lines(&report));
    assert_eq!(report.image_end_offset, 6 * 4096);

    storage.set_len(1 << 44).unwrap();
    let error = check_storage(&storage).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::LimitExceeded { .. }), "{error}");
}

#[test]
fn thousands_of_tables_beside_cluster_boundaries_are_not_all_read() {
    let mut image = Builder::new(12, 1 << 16);
    image.grow(image.bytes.len() as u64 + (40 << 20));
    for index in 0..1 << 16 {
        image.put(image.header.l1_table.0 + 8 * index, (1 << 20) + 512 + index * 512);
    }
    let report = image.check();
    assert!(report.check_errors > 0 && report.corruptions > 1 << 15);
    assert_eq!(report.leaks, 0);
}

/// Reads of some bytes fail, as on a bad sector.
#[derive(Debug)]
struct BadSector {
    storage: MemoryStorage,
    at: u64,
}

impl Storage for BadSector {
    fn len(&self) -> io::Result<u64> {
        self.storage.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        if (offset..offset + buf.len() as u64).contains(&self.at) {
            return Err(io::Error::other("bad sector"));
        }
        self.storage.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        self.storage.write_at(buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.storage.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.storage.sync()
    }

    fn is_read_only(&self) -> bool {
        true
    }
}

/// A table on a bad sector may refer to anything: what it owns must not be called leaked, or somebody frees it.
#[test]
fn nothing_is_leaked_while_a_table_cannot_be_read() {
    for (at, what) in [(4 * 4096 + 100, "an L2 table"), (3 * 4096, "the L1 table")] {
        let (image, _) = with_data();
        let storage = BadSector { storage: image.storage(), at };
        let report = check_storage(&storage).unwrap();
        assert_eq!(
            (report.leaks, report.corruptions, report.check_errors),
            (0, 0, 1),
            "{:?}",
            lines(&report)
        );
        assert_eq!(
            lines(&report),
            [format!("ERROR could not read {what} at offset {:#x}: bad sector", at / 4096 * 4096)]
        );
    }
}

#[test]
fn refcounts_on_a_bad_sector_are_unknown_and_the_rest_is_checked() {
    let (mut image, table) = with_data();
    image.put(table + 8, 0x10);
    let storage = BadSector { storage: image.storage(), at: 2 * 4096 };
    let report = check_storage(&storage).unwrap();
    assert_eq!((report.leaks, report.corruptions, report.check_errors), (0, 1, 6), "{:?}", lines(&report));
}

#[test]
fn a_snapshot_table_that_makes_no_sense_is_a_finding_and_leaks_nothing() {
    let (mut image, _) = with_data();
    let snapshot_table = image.add_cluster(1);
    image.bytes[snapshot_table as usize..][..64].fill(0xff);
    image.header.snapshot_count = 1;
    image.header.snapshot_table = HostOffset(snapshot_table);
    let report = image.check();
    assert_eq!((report.leaks, report.corruptions, report.check_errors), (0, 0, 1), "{:?}", lines(&report));
}

#[test]
fn bitmaps_count_while_the_image_vouches_for_them() {
    let (mut image, _) = with_data();
    let directory = image.add_cluster(1);
    let table = image.add_cluster(1);
    let bits = image.add_cluster(1);
    image.put(table, bits);
    image.put(directory, table);
    image.put(directory + 8, 1 << 32);
    image.put(directory + 16, 0x0110_0004_0000_0000);
    image.put(directory + 24, u64::from_be_bytes(*b"name\0\0\0\0"));
    let extension = BitmapsExtension { count: 1, directory_size: 32, directory: HostOffset(directory) };
    image.header.extensions.push(extension.to_extension());

    let forgotten = Builder { header: image.header.clone(), bytes: image.bytes.clone() }.check();
    assert_eq!((forgotten.leaks, forgotten.corruptions), (3, 0));

    image.header.autoclear = Autoclear::BITMAPS;
    let report = Builder { header: image.header.clone(), bytes: image.bytes.clone() }.check();
    assert!(report.is_clean(), "{:?}", lines(&report));

    image.put(table, bits | 1);
    let report = Builder { header: image.header.clone(), bytes: image.bytes.clone() }.check();
    assert_eq!((report.leaks, report.corruptions), (1, 1), "{:?}", lines(&report));

    // A table that cannot be found may be anywhere.
    image.put(directory, table + 512);
    let report = image.check();
    assert_eq!((report.leaks, report.corruptions, report.check_errors), (0, 0, 1), "{:?}", lines(&report));
}

#[test]
fn an_image_of_unknown_features_is_refused_by_their_names() {
    let (mut image, _) = with_data();
    image.header.incompatible = Incompatible(1 << 40);
    let error = check_storage(&image.storage()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unsupported(_)));
    assert!(error.to_string().contains("bit 40"), "{error}");
}

/// An image with everything in it, for bytes to be broken at random.
fn varied(cluster_bits: u32, extended: bool) -> Builder {
    let mut image = Builder::new(cluster_bits, 4);
    image.header.size = 1 << 16;
    if extended {
        image.header.incompatible = Incompatible::EXTENDED_L2;
    }
    let table = image.add_l2();
    for index in 0..6 {
        let data = image.add_cluster(1);
        image.put(table + 16 * index, data | COPIED);
        image.put(table + 16 * index + 8, 1);
    }
    image.put(table + 96, (1 << 62) | (table + 777));
    let snapshot_table = image.add_cluster(1);
    let snapshot =
        Snapshot { l1_table: image.header.l1_table, l1_entries: 4, ..Snapshot::default() }.encode();
    image.bytes[snapshot_table as usize..][..snapshot.len()].copy_from_slice(&snapshot);
    image.header.snapshot_count = 2;
    image.header.snapshot_table = HostOffset(snapshot_table);
    let directory = image.add_cluster(1);
    image.put(directory, directory);
    image.put(directory + 8, 2 << 32);
    image.put(directory + 16, 0x0110_0004_0000_0000);
    let extension = BitmapsExtension { count: 1, directory_size: 32, directory: HostOffset(directory) };
    image.header.extensions.push(extension.to_extension());
    image.header.autoclear = Autoclear::BITMAPS;
    image
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_image_makes_the_check_panic(
        small in any::<bool>(),
        extended in any::<bool>(),
        damage in prop::collection::vec((any::<u16>(), any::<u64>(), 0_u32..64), 1..20),
        cut in any::<u16>(),
    ) {
        let image = varied(if small && !extended { 9 } else { 14 }, extended);
        let storage = image.storage();
        let words = storage.len().unwrap() / 8;
        for (place, value, shift) in damage {
            // The first words of a cluster are where tables say something.
            let at = (u64::from(place) * 61 % words) * 8;
            let at = if place % 2 == 0 { at & !511 } else { at };
            storage.write_at(&(value >> shift).to_be_bytes(), at).unwrap();
        }
        if cut % 4 == 0 {
            storage.set_len(u64::from(cut) % (words * 8)).unwrap();
        }
        let report = check_storage(&storage);
        if let Ok(report) = report {
            prop_assert!(report.issues.len() <= CheckReport::MAX_ISSUES);
            report.issues.iter().for_each(|issue| assert!(!issue.to_string().is_empty()));
        }
    }

    #[test]
    fn no_bytes_make_the_check_panic(bytes: Vec<u8>) {
        let mut image = Header::MAGIC.to_vec();
        image.extend([0, 0, 0, 3]);
        image.extend(bytes);
        let _ = check_storage(&MemoryStorage::with_bytes(image));
    }
}
