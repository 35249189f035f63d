//! The snapshot table: one entry after the other, each of its own length.
//!
//! ```text
//! offset  size  field
//!  0      8     offset of the snapshot's L1 table, at a cluster boundary
//!  8      4     entries in that table
//! 12      2     length i of the ID
//! 14      2     length n of the name
//! 16      4     time of the snapshot: seconds since 1970
//! 20      4     and nanoseconds
//! 24      8     time that the guest had been running, in nanoseconds
//! 32      4     size of the VM state in bytes (0: none)
//! 36      4     length e of the extra data
//! 40      e     extra data, of which the following is known; a later field may be missing:
//!                 0  8  size of the VM state, instead of the field above
//!                 8  8  size of the disk in bytes
//!                16  8  instruction count of record and replay, all ones for none
//! 40+e    i     ID
//! ..      n     name
//! ..      0-7   padding to a multiple of 8
//! ```

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::address::HostOffset;
use super::geometry::{Geometry, TABLE_ENTRY_SIZE};
use super::header::Header;

/// A snapshot's entry in the table.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Snapshot {
    /// Where the L1 table of the snapshot starts.
    pub l1_table: HostOffset,
    /// Entries in that table.
    pub l1_entries: u32,
    /// What the snapshot is known by to programs: a decimal number, where QEMU made it. At most 65535 bytes.
    pub id: Vec<u8>,
    /// What it is known by to people. At most 65535 bytes.
    pub name: Vec<u8>,
    /// When it was taken, in seconds since 1970.
    pub date_sec: u32,
    /// And the nanoseconds of that.
    pub date_nsec: u32,
    /// How long the guest had been running, in nanoseconds.
    pub vm_clock_nsec: u64,
    /// The size of the VM state as the 32-bit field has it; [`Snapshot::vm_state_size`] is the one that counts.
    pub vm_state_size_32: u32,
    /// The optional fields.
    pub extra: SnapshotExtra,
}

/// Optional fields of a snapshot. A field is missing only when all after it are, for their places are fixed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct SnapshotExtra {
    /// Size of the VM state in bytes.
    pub vm_state_size: Option<u64>,
    /// Size of the disk in bytes at the time of the snapshot.
    pub disk_size: Option<u64>,
    /// Instruction count of record and replay; all ones for none.
    pub icount: Option<u64>,
    /// What follows the fields that are there, kept as it is.
    pub unknown: Vec<u8>,
}

/// Why a snapshot table was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The bytes end within an entry.
    #[error("an entry needs {needed} bytes, and {len} are there")]
    Truncated {
        /// Bytes from the start of the entry on.
        len: usize,
        /// Bytes that are needed to go on; the entry may turn out to be longer still.
        needed: usize,
    },
    /// More extra data than any writer has reason for; QEMU's limit.
    #[error("an entry has {len} bytes of extra data; the limit is {}", Snapshot::MAX_EXTRA)]
    ExtraTooLarge {
        /// Length of the extra data in bytes.
        len: u32,
    },
    /// More snapshots than an image may have.
    #[error("it has {count} snapshots; the limit is {}", Header::MAX_SNAPSHOTS)]
    TooMany {
        /// Number of snapshots.
        count: u32,
    },
    /// An L1 table larger than an image may have.
    #[error("a snapshot's L1 table has {entries} entries, more than an L1 table may have")]
    L1TooLarge {
        /// Number of entries.
        entries: u32,
    },
    /// An L1 table where none can be.
    #[error("a snapshot's L1 table is at file offset {host:#x}, where no table can be")]
    L1Place {
        /// Where it is said to be.
        host: u64,
    },
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawSnapshot {
    l1_table: U64,
    l1_entries: U32,
    id_len: U16,
    name_len: U16,
    date_sec: U32,
    date_nsec: U32,
    vm_clock_nsec: U64,
    vm_state_size: U32,
    extra_len: U32,
}

const FIXED_LEN: usize = size_of::<RawSnapshot>();

impl Snapshot {
    /// The most bytes of extra data that an entry may have; QEMU's limit.
    pub const MAX_EXTRA: u32 = 1024;
    /// The most bytes that an entry takes in the file, padding included.
    pub const MAX_LEN: usize =
        (FIXED_LEN + Self::MAX_EXTRA as usize + 2 * u16::MAX as usize).next_multiple_of(8);

    /// The entry at the start of `bytes`, and how many bytes it takes. The padding counts, and may itself be missing
    /// at the end of `bytes`. On [`SnapshotError::Truncated`] a caller who has more bytes may try again.
    pub fn decode(bytes: &[u8]) -> Result<(Snapshot, usize), SnapshotError> {
        let cut = |needed| SnapshotError::Truncated { len: bytes.len(), needed };
        let (raw, rest) = RawSnapshot::ref_from_prefix(bytes).map_err(|_| cut(FIXED_LEN))?;
        let extra_len = raw.extra_len.get();
        if extra_len > Snapshot::MAX_EXTRA {
            return Err(SnapshotError::ExtraTooLarge { len: extra_len });
        }
        let (id_len, name_len) = (usize::from(raw.id_len.get()), usize::from(raw.name_len.get()));
        // Bounded by MAX_LEN, so that nothing saturates.
        let used =
            FIXED_LEN.saturating_add(extra_len as usize).saturating_add(id_len).saturating_add(name_len);
        let (extra, rest) = rest.split_at_checked(extra_len as usize).ok_or(cut(used))?;
        let (id, rest) = rest.split_at_checked(id_len).ok_or(cut(used))?;
        let name = rest.get(..name_len).ok_or(cut(used))?;
        let snapshot = Snapshot {
            l1_table: HostOffset(raw.l1_table.get()),
            l1_entries: raw.l1_entries.get(),
            id: id.to_vec(),
            name: name.to_vec(),
            date_sec: raw.date_sec.get(),
            date_nsec: raw.date_nsec.get(),
            vm_clock_nsec: raw.vm_clock_nsec.get(),
            vm_state_size_32: raw.vm_state_size.get(),
            extra: SnapshotExtra::decode(extra),
        };
        Ok((snapshot, used.next_multiple_of(8)))
    }

    /// The `count` entries at the start of `bytes`, and how many bytes they take (see [`Snapshot::decode`]).
    pub fn decode_table(bytes: &[u8], count: u32) -> Result<(Vec<Snapshot>, usize), SnapshotError> {
        if count > Header::MAX_SNAPSHOTS {
            return Err(SnapshotError::TooMany { count });
        }
        // Grows with what is found, not with what `count` promises.
        let mut snapshots = Vec::new();
        let mut used: usize = 0;
        for _ in 0..count {
            let (snapshot, len) = Snapshot::decode(bytes.get(used..).unwrap_or_default())?;
            snapshots.push(snapshot);
            used = used.saturating_add(len);
        }
        Ok((snapshots, used))
    }

    /// Refuses an L1 table that no image of this geometry can have.
    pub fn validate(&self, g: &Geometry) -> Result<(), SnapshotError> {
        let bytes = u64::from(self.l1_entries).saturating_mul(TABLE_ENTRY_SIZE);
        if bytes > Header::MAX_L1_BYTES {
            return Err(SnapshotError::L1TooLarge { entries: self.l1_entries });
        }
        let host = self.l1_table.0;
        let in_header = self.l1_entries > 0 && host < g.cluster_size();
        // Safe from here on: the table's end does not overflow.
        let past_limit = host > (i64::MAX as u64).saturating_sub(bytes);
        if in_header || past_limit || !g.is_aligned(host) {
            return Err(SnapshotError::L1Place { host });
        }
        Ok(())
    }

    /// Size of the VM state in bytes: the 64-bit field where there is one.
    pub fn vm_state_size(&self) -> u64 {
        self.extra.vm_state_size.unwrap_or(u64::from(self.vm_state_size_32))
    }

    /// The entry as it stands in the file, padded. ID, name and unknown extra data past their limits are cut.
    pub fn encode(&self) -> Vec<u8> {
        let id = self.id.get(..usize::from(u16::MAX)).unwrap_or(&self.id);
        let name = self.name.get(..usize::from(u16::MAX)).unwrap_or(&self.name);
        let extra = self.extra.encode();
        let raw = RawSnapshot {
            l1_table: self.l1_table.0.into(),
            l1_entries: self.l1_entries.into(),
            id_len: u16::try_from(id.len()).unwrap_or(u16::MAX).into(),
            name_len: u16::try_from(name.len()).unwrap_or(u16::MAX).into(),
            date_sec: self.date_sec.into(),
            date_nsec: self.date_nsec.into(),
            vm_clock_nsec: self.vm_clock_nsec.into(),
            vm_state_size: self.vm_state_size_32.into(),
            extra_len: u32::try_from(extra.len()).unwrap_or(Self::MAX_EXTRA).into(),
        };
        let mut out = [raw.as_bytes(), &extra, id, name].concat();
        out.resize(out.len().next_multiple_of(8), 0);
        out
    }
}

impl SnapshotExtra {
    fn decode(bytes: &[u8]) -> SnapshotExtra {
        let mut rest = bytes;
        let mut field = || {
            let (value, after) = rest.split_first_chunk()?;
            rest = after;
            Some(u64::from_be_bytes(*value))
        };
        let (vm_state_size, disk_size, icount) = (field(), field(), field());
        SnapshotExtra { vm_state_size, disk_size, icount, unknown: rest.to_vec() }
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for field in [self.vm_state_size, self.disk_size, self.icount].iter().map_while(|field| *field) {
            out.extend_from_slice(&field.to_be_bytes());
        }
        out.extend_from_slice(&self.unknown);
        out.truncate(Snapshot::MAX_EXTRA as usize);
        out
    }
}

#[cfg(test)]
#[allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test may fail"
)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    use proptest::collection::vec;

    /// The table of an image of 4 KiB clusters after two times `qemu-img snapshot -c`.
    const REAL_TABLE: &str = "
        000000000000400000000001000100056b010e7610463ab0000000000000000000000000000000180000000000000000
        0000000000100000000000000000000031666972737400000000000000006000000000010001000
        66b010e7611a20da800000000000000000000000000000018000000000000000000000000001000000000000000000000
        327365636f6e64";

    fn real_table() -> Vec<u8> {
        let digits: Vec<u32> = REAL_TABLE.chars().filter_map(|c| c.to_digit(16)).collect();
        digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect()
    }

    #[test]
    fn a_table_that_qemu_wrote_is_read_and_written_byte_for_byte() {
        let mut table = real_table();
        let (snapshots, used) = Snapshot::decode_table(&table, 2).unwrap();
        let first = Snapshot {
            l1_table: HostOffset(0x4000),
            l1_entries: 1,
            id: b"1".to_vec(),
            name: b"first".to_vec(),
            date_sec: 0x6b010e76,
            date_nsec: 0x10463ab0,
            vm_clock_nsec: 0,
            vm_state_size_32: 0,
            extra: SnapshotExtra {
                vm_state_size: Some(0),
                disk_size: Some(1 << 20),
                icount: Some(0),
                unknown: Vec::new(),
            },
        };
        assert_eq!(snapshots[0], first);
        assert_eq!((snapshots[1].id.as_slice(), snapshots[1].name.as_slice()), (&b"2"[..], &b"second"[..]));
        assert_eq!(used, 144);
        // QEMU leaves out the padding of the last entry.
        table.resize(used, 0);
        assert_eq!([snapshots[0].encode(), snapshots[1].encode()].concat(), table);
        let g = Geometry::new(12, 4).unwrap();
        assert_eq!(snapshots[0].validate(&g), Ok(()));
    }

    #[test]
    fn the_64_bit_size_of_the_vm_state_is_the_one_that_counts() {
        let mut snapshot = Snapshot { vm_state_size_32: 5, ..Snapshot::default() };
        assert_eq!(snapshot.vm_state_size(), 5);
        snapshot.extra.vm_state_size = Some(0);
        assert_eq!(snapshot.vm_state_size(), 0);
    }

    #[test]
    fn extra_data_may_end_within_a_field() {
        let mut snapshot = Snapshot::default();
        snapshot.extra.vm_state_size = Some(7);
        snapshot.extra.unknown = vec![1, 2, 3, 4];
        let bytes = snapshot.encode();
        assert_eq!(bytes.len(), 40 + 12 + 4);
        assert_eq!(bytes[39], 12);
        assert_eq!(Snapshot::decode(&bytes), Ok((snapshot, 56)));
    }

    #[test]
    fn a_table_that_ends_early_is_truncated_at_every_length() {
        let table = real_table();
        for len in 0..table.len() {
            match Snapshot::decode_table(&table[..len], 2) {
                Err(SnapshotError::Truncated { len, needed }) => assert!(needed > len),
                other => panic!("{len}: {other:?}"),
            }
        }
        assert!(Snapshot::decode_table(&table, 2).is_ok());
        assert!(Snapshot::decode_table(&table, 3).is_err());
        assert_eq!(Snapshot::decode_table(&[], 0), Ok((Vec::new(), 0)));
    }

    #[test]
    fn what_would_take_memory_without_reason_is_refused() {
        let mut bytes = Snapshot::default().encode();
        bytes[36..40].copy_from_slice(&1025_u32.to_be_bytes());
        assert_eq!(Snapshot::decode(&bytes), Err(SnapshotError::ExtraTooLarge { len: 1025 }));
        bytes[36..40].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(Snapshot::decode(&bytes), Err(SnapshotError::ExtraTooLarge { len: u32::MAX }));
        let count = u32::MAX;
        assert_eq!(Snapshot::decode_table(&bytes, count), Err(SnapshotError::TooMany { count }));
    }

    #[test]
    fn an_l1_table_where_none_can_be_is_refused() {
        let g = Geometry::new(12, 4).unwrap();
        let at = |host, l1_entries| {
            Snapshot { l1_table: HostOffset(host), l1_entries, ..Snapshot::default() }.validate(&g)
        };
        assert_eq!(at(0x4000, 4 << 20), Ok(()));
        assert_eq!(at(0, 0), Ok(()), "a disk of no bytes");
        assert!(matches!(at(0x4000, (4 << 20) + 1), Err(SnapshotError::L1TooLarge { .. })));
        for (host, entries) in [(0, 1), (0x4200, 1), (1 << 63, 1), (i64::MAX as u64 & !0xfff, 513)] {
            assert_eq!(at(host, entries), Err(SnapshotError::L1Place { host }));
        }
    }

    #[test]
    fn an_entry_is_never_longer_than_its_limit() {
        let snapshot = Snapshot {
            id: vec![b'i'; 70000],
            name: vec![b'n'; 70000],
            extra: SnapshotExtra { unknown: vec![0; 2000], ..SnapshotExtra::default() },
            ..Snapshot::default()
        };
        let bytes = snapshot.encode();
        assert_eq!(bytes.len(), Snapshot::MAX_LEN);
        let (again, used) = Snapshot::decode(&bytes).unwrap();
        assert_eq!((again.id.len(), again.name.len(), used), (65535, 65535, Snapshot::MAX_LEN));
    }

    /// Fields are missing from the last on, and what is unknown is shorter than the first missing one.
    fn any_extra() -> impl Strategy<Value = SnapshotExtra> {
        (0_usize..4, prop::array::uniform3(any::<u64>()), vec(any::<u8>(), 0..50)).prop_map(
            |(fields, values, mut unknown)| {
                if fields < 3 {
                    unknown.truncate(7);
                }
                let field = |index: usize| (index < fields).then(|| values[index]);
                SnapshotExtra { vm_state_size: field(0), disk_size: field(1), icount: field(2), unknown }
            },
        )
    }

    prop_compose! {
        fn any_snapshot()(
            l1_table: u64,
            (l1_entries, date_sec, date_nsec, vm_state_size_32) in any::<(u32, u32, u32, u32)>(),
            vm_clock_nsec: u64,
            id in vec(any::<u8>(), 0..12),
            name in vec(any::<u8>(), 0..30),
            extra in any_extra(),
        ) -> Snapshot {
            Snapshot {
                l1_table: HostOffset(l1_table),
                l1_entries,
                id,
                name,
                date_sec,
                date_nsec,
                vm_clock_nsec,
                vm_state_size_32,
                extra,
            }
        }
    }

    proptest! {
        #[test]
        fn a_table_survives_encoding(snapshots in vec(any_snapshot(), 0..6), after in vec(any::<u8>(), 0..20)) {
            let encoded: Vec<u8> = snapshots.iter().flat_map(Snapshot::encode).collect();
            let bytes = [encoded.as_slice(), &after].concat();
            let (decoded, used) = Snapshot::decode_table(&bytes, snapshots.len() as u32).unwrap();
            prop_assert_eq!(&decoded, &snapshots);
            prop_assert_eq!(used, encoded.len());
            let again: Vec<u8> = decoded.iter().flat_map(Snapshot::encode).collect();
            prop_assert_eq!(again, encoded);
        }

        #[test]
        fn decoding_never_panics(bytes in vec(prop_oneof![Just(0_u8), any::<u8>()], 0..400), count in 0_u32..8) {
            let _ = Snapshot::decode_table(&bytes, count);
        }

        /// A reader that has too little is told how much more to bring, and gets there.
        #[test]
        fn reading_as_much_as_is_needed_comes_to_an_end(snapshot in any_snapshot()) {
            let bytes = snapshot.encode();
            let mut len = 0;
            for _ in 0..3 {
                match Snapshot::decode(&bytes[..len]) {
                    Err(SnapshotError::Truncated { needed, .. }) => len = needed,
                    other => {
                        prop_assert_eq!(other, Ok((snapshot, bytes.len())));
                        return Ok(());
                    }
                }
            }
            prop_assert!(false, "three steps were not enough");
        }
    }
}
