//! An entry of an L2 table: where a guest cluster is, and how it is stored.
//!
//! ```text
//! standard, bit 62 clear:
//! bit    63  62  61     56 55                      9 8      1  0
//!      | C | 0 | reserved | bits 9-55 of the offset | reserved | Z |
//!
//! C (copied): the cluster's refcount is exactly one, so it may be written in place. Right in tables that the
//!             active L1 table reaches only.
//! Z (zero):   the cluster reads as zeroes; the offset may name space kept for it. Never set in version 2.
//! Z clear and offset 0: unallocated, the backing file answers.
//!
//! compressed, bit 62 set, with x = 62 - (cluster_bits - 8):
//! bit    63  62  61                   x x-1                  0
//!      | 0 | 1 | additional sectors    | offset of the first byte |
//!
//! cluster_bits   9    16    21
//! x             61    54    49    (offset bits above 55 must be 0 all the same)
//! ```
//!
//! In images with extended entries a second word follows (`subclusters`), and bit 0 means nothing.
//!
//! Compressed bytes start anywhere and end somewhere in their last 512-byte sector; the decompressor knows where.

use std::ops::RangeInclusive;

use super::address::{HostCluster, HostOffset};
use super::geometry::Geometry;
use super::header::Version;
use super::subclusters::{Divided, Subclusters};

/// Raw bit 63 of L1 and L2 entries.
pub(super) const COPIED: u64 = 1 << 63;
/// Raw bit 62 of L2 entries.
const COMPRESSED: u64 = 1 << 62;
/// Raw bit 0 of L2 entries.
const ZERO: u64 = 1;
/// Bits 9 to 55 of L1 and L2 entries.
pub(super) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Unit of a compressed run's length.
const SECTOR_SIZE: u64 = 512;
const SECTOR_BITS: u32 = 9;
/// Entries name offsets below 2^56.
const OFFSET_BITS: u32 = 56;

/// A whole cluster that the image file has for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Allocated {
    /// Where it starts, at a cluster boundary.
    pub host: HostOffset,
    /// Whether its refcount is exactly one, so that it may be written in place.
    pub copied: bool,
}

impl Allocated {
    /// The bits of an L1 or L2 entry that say this.
    pub(super) fn bits(self) -> u64 {
        debug_assert_eq!(self.host.0 & !OFFSET_MASK, 0, "no table entry can name this offset");
        (self.host.0 & OFFSET_MASK) | if self.copied { COPIED } else { 0 }
    }
}

/// The bytes of one compressed cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CompressedRun {
    /// The first byte, which may be anywhere.
    pub host: HostOffset,
    /// 512-byte sectors beyond the one that holds the first byte.
    pub sectors: u64,
}

impl CompressedRun {
    /// The run that holds `len` bytes from `host` on. `len` is at least 1 and at most the cluster size: an entry has
    /// no room for more.
    pub fn for_bytes(host: HostOffset, len: u64, g: &Geometry) -> CompressedRun {
        let last = (host.0 % SECTOR_SIZE).saturating_add(len.saturating_sub(1));
        let sectors = last / SECTOR_SIZE;
        debug_assert!(sectors <= max_sectors(*g), "a compressed cluster is not larger than a cluster");
        CompressedRun { host, sectors: sectors.min(max_sectors(*g)) }
    }

    /// Bytes that may be read from `host` on: to the end of the last sector.
    pub const fn max_len(&self) -> u64 {
        let to_end_of_first = SECTOR_SIZE.saturating_sub(self.host.0 % SECTOR_SIZE);
        self.sectors.saturating_mul(SECTOR_SIZE).saturating_add(to_end_of_first)
    }

    /// The first and the last of the host clusters that the run touches. A decoded run touches at most three.
    pub fn clusters(&self, g: &Geometry) -> RangeInclusive<HostCluster> {
        let last_byte = self.host.0.saturating_add(self.max_len().saturating_sub(1));
        g.host_cluster(self.host)..=g.host_cluster(HostOffset(last_byte))
    }

    /// Offsets from here on cannot be named by a compressed entry: the larger the clusters, the fewer bits are left
    /// for the offset.
    pub fn offset_limit(g: &Geometry) -> u64 {
        1 << compressed_offset_bits(*g).min(OFFSET_BITS)
    }
}

/// `x` of the table above: 61 to 49.
#[allow(clippy::arithmetic_side_effects, reason = "a geometry's cluster_bits are 9 to 21")]
fn compressed_offset_bits(g: Geometry) -> u32 {
    62 - (g.cluster_bits() - 8)
}

/// The largest number of additional sectors that an entry has room for.
#[allow(clippy::arithmetic_side_effects, reason = "a geometry's cluster_bits are 9 to 21")]
fn max_sectors(g: Geometry) -> u64 {
    (1 << (g.cluster_bits() - SECTOR_BITS + 1)) - 1
}

/// What an L2 entry says of its guest cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum L2Entry {
    /// Nothing: the backing file answers, and where there is none the cluster reads as zeroes.
    Unallocated,
    /// It reads as zeroes; a cluster may be kept for it.
    Zero(Option<Allocated>),
    /// It is stored as it is.
    Standard(Allocated),
    /// It is stored compressed.
    Compressed(CompressedRun),
    /// Its subclusters are not all the same; only where entries are extended.
    Divided(Divided),
}

/// An entry as it stands in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct RawL2Entry {
    /// The first word.
    pub descriptor: u64,
    /// The second word; 0 where entries are not extended.
    pub subclusters: u64,
}

impl RawL2Entry {
    /// The same entry with the copied flag as stated. Only for entries that name a whole cluster.
    #[must_use]
    pub const fn with_copied(self, copied: bool) -> RawL2Entry {
        let descriptor = if copied { self.descriptor | COPIED } else { self.descriptor & !COPIED };
        RawL2Entry { descriptor, ..self }
    }
}

impl From<u64> for RawL2Entry {
    /// An entry that is not extended.
    fn from(descriptor: u64) -> RawL2Entry {
        RawL2Entry { descriptor, subclusters: 0 }
    }
}

/// Why an L2 entry was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum L2EntryError {
    /// The cluster does not start at a cluster boundary.
    #[error("the data cluster at file offset {host:#x} does not start at a cluster boundary")]
    Unaligned {
        /// Where the entry points.
        host: u64,
    },
    /// The zero flag in an image of version 2.
    #[error("the zero flag is set, which version 2 does not have")]
    ZeroInVersion2,
    /// A compressed cluster at an offset of 2^56 or more, which small clusters have bits for.
    #[error(
        "the compressed cluster at file offset {host:#x} lies past the largest offset that an entry may name"
    )]
    CompressedPastLimit {
        /// Where the entry points.
        host: u64,
    },
    /// A compressed cluster in an image whose data is in a file of its own.
    #[error("the cluster is compressed, and the image has an external data file")]
    CompressedExternally,
    /// A second word that says two things of one subcluster, or speaks of data where there is no cluster, or of
    /// subclusters of a compressed cluster.
    #[error("the subclusters ({subclusters:#018x}) contradict each other or the cluster")]
    Subclusters {
        /// The second word.
        subclusters: u64,
    },
}

impl L2EntryError {
    /// The reason as a clause, without the values.
    pub const fn why(&self) -> &'static str {
        match self {
            L2EntryError::Unaligned { .. } => "the data cluster does not start at a cluster boundary",
            L2EntryError::ZeroInVersion2 => "the zero flag is set, which version 2 does not have",
            L2EntryError::CompressedPastLimit { .. } => {
                "the compressed cluster lies past the largest offset that an entry may name"
            }
            L2EntryError::CompressedExternally => {
                "the cluster is compressed, and the image has an external data file"
            }
            L2EntryError::Subclusters { .. } => "its subclusters contradict each other or the cluster",
        }
    }
}

impl L2Entry {
    /// Offsets from here on cannot be named by an entry of an L1 or L2 table (64 PiB).
    pub const OFFSET_LIMIT: u64 = 1 << OFFSET_BITS;

    /// What an entry says. Reserved bits are passed over: see [`L2Entry::reserved_bits`].
    pub fn decode(
        raw: impl Into<RawL2Entry>,
        g: &Geometry,
        version: Version,
    ) -> Result<L2Entry, L2EntryError> {
        let RawL2Entry { descriptor: raw, subclusters } = raw.into();
        if raw & COMPRESSED != 0 {
            if g.has_subclusters() && subclusters != 0 {
                return Err(L2EntryError::Subclusters { subclusters });
            }
            return decode_compressed(raw, *g).map(L2Entry::Compressed);
        }
        let zero = raw & ZERO != 0 && !g.has_subclusters();
        if zero && version == Version::V2 {
            return Err(L2EntryError::ZeroInVersion2);
        }
        let host = raw & OFFSET_MASK;
        if !g.is_aligned(host) {
            return Err(L2EntryError::Unaligned { host });
        }
        let allocated = Allocated { host: HostOffset(host), copied: raw & COPIED != 0 };
        // Offset 0 is the header's: it stands for "none" here, whatever the copied bit says.
        let space = (host != 0).then_some(allocated);
        if g.has_subclusters() {
            return decode_extended(space, subclusters);
        }
        Ok(match (zero, space) {
            (true, space) => L2Entry::Zero(space),
            (false, None) => L2Entry::Unallocated,
            (false, Some(allocated)) => L2Entry::Standard(allocated),
        })
    }

    /// What an entry of a version 3 image with an external data file says: the cluster at offset 0 of that file is like any
    /// other, and the copied flag tells it from none. A compressed cluster cannot be.
    pub fn decode_external(raw: RawL2Entry, g: &Geometry) -> Result<L2Entry, L2EntryError> {
        let is_first = raw.descriptor & (COMPRESSED | OFFSET_MASK) == 0 && raw.descriptor & COPIED != 0;
        if raw.descriptor & COMPRESSED != 0 {
            return Err(L2EntryError::CompressedExternally);
        }
        if !is_first {
            return L2Entry::decode(raw, g, Version::V3);
        }
        let space = Some(Allocated { host: HostOffset(0), copied: true });
        Ok(match (g.has_subclusters(), raw.descriptor & ZERO != 0) {
            (true, _) => return decode_extended(space, raw.subclusters),
            (false, true) => L2Entry::Zero(space),
            (false, false) => L2Entry::of_subclusters(space, Subclusters::ALL_DATA),
        })
    }

    /// The entry of a cluster with these subclusters, in its simplest form. Data needs a `space` to be in.
    pub fn of_subclusters(space: Option<Allocated>, subclusters: Subclusters) -> L2Entry {
        match (subclusters, space) {
            (Subclusters::NONE, None) => L2Entry::Unallocated,
            (Subclusters::ALL_ZERO, space) => L2Entry::Zero(space),
            (Subclusters::ALL_DATA, Some(allocated)) => L2Entry::Standard(allocated),
            (subclusters, space) => L2Entry::Divided(Divided { space, subclusters }),
        }
    }

    /// What each subcluster is and the cluster in the file, if there is one; `None` for a compressed cluster.
    pub fn subclusters(&self) -> Option<(Subclusters, Option<Allocated>)> {
        match self {
            L2Entry::Unallocated => Some((Subclusters::NONE, None)),
            L2Entry::Zero(space) => Some((Subclusters::ALL_ZERO, *space)),
            L2Entry::Standard(allocated) => Some((Subclusters::ALL_DATA, Some(*allocated))),
            L2Entry::Divided(divided) => Some((divided.subclusters, divided.space)),
            L2Entry::Compressed(_) => None,
        }
    }

    /// The whole cluster in the file that the entry names.
    pub fn space(&self) -> Option<Allocated> {
        self.subclusters().and_then(|(_, space)| space)
    }

    /// The clusters in the file that the entry refers to: the first, and how many. Others may share those of compressed bytes.
    pub fn clusters(&self, g: &Geometry) -> Option<(HostCluster, u64)> {
        match self {
            L2Entry::Compressed(run) => {
                let clusters = run.clusters(g);
                let more = clusters.end().get().saturating_sub(clusters.start().get());
                Some((*clusters.start(), more.saturating_add(1)))
            }
            entry => entry.space().map(|space| (g.host_cluster(space.host), 1)),
        }
    }

    /// The entry as it stands in the file. The offsets are below [`L2Entry::OFFSET_LIMIT`] or
    /// [`CompressedRun::offset_limit`].
    pub fn encode(&self, g: &Geometry) -> RawL2Entry {
        let space = |space: &Option<Allocated>| space.map_or(0, Allocated::bits);
        let (descriptor, subclusters) = match self {
            L2Entry::Unallocated => (0, Subclusters::NONE),
            L2Entry::Zero(kept) if g.has_subclusters() => (space(kept), Subclusters::ALL_ZERO),
            L2Entry::Zero(kept) => (ZERO | space(kept), Subclusters::NONE),
            L2Entry::Standard(allocated) => (allocated.bits(), Subclusters::ALL_DATA),
            L2Entry::Compressed(run) => (encode_compressed(*run, *g), Subclusters::NONE),
            L2Entry::Divided(divided) => (space(&divided.space), divided.subclusters),
        };
        let subclusters = if g.has_subclusters() { subclusters.encode() } else { 0 };
        RawL2Entry { descriptor, subclusters }
    }

    /// Those of the bits reserved for this kind of entry that are set; an image that is in order has none. A
    /// compressed entry has no reserved bits.
    pub const fn reserved_bits(raw: u64, version: Version) -> u64 {
        if raw & COMPRESSED != 0 {
            return 0;
        }
        let zero = match version {
            Version::V2 => 0,
            Version::V3 => ZERO,
        };
        raw & !(COPIED | OFFSET_MASK | zero)
    }
}

/// Entries that say the same of all subclusters are the same as without subclusters.
fn decode_extended(space: Option<Allocated>, raw: u64) -> Result<L2Entry, L2EntryError> {
    let contradiction = L2EntryError::Subclusters { subclusters: raw };
    let subclusters = Subclusters::decode(raw).ok_or(contradiction)?;
    if space.is_none() && subclusters.has_data() {
        return Err(contradiction);
    }
    Ok(L2Entry::of_subclusters(space, subclusters))
}

fn encode_compressed(run: CompressedRun, g: Geometry) -> u64 {
    let limit = CompressedRun::offset_limit(&g);
    debug_assert!(run.host.0 < limit && run.sectors <= max_sectors(g), "no entry can name this run");
    let sectors = run.sectors & max_sectors(g);
    COMPRESSED | sectors << compressed_offset_bits(g) | (run.host.0 & limit.saturating_sub(1))
}

fn decode_compressed(raw: u64, g: Geometry) -> Result<CompressedRun, L2EntryError> {
    let bits = compressed_offset_bits(g);
    let host = raw & !(u64::MAX << bits);
    // Past 2^56 nothing can be counted or freed again through the tables, and no file is that long.
    if host >= CompressedRun::offset_limit(&g) {
        return Err(L2EntryError::CompressedPastLimit { host });
    }
    Ok(CompressedRun { host: HostOffset(host), sectors: (raw >> bits) & max_sectors(g) })
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

    const VERSIONS: [Version; 2] = [Version::V2, Version::V3];

    fn geometry(cluster_bits: u32) -> Geometry {
        Geometry::new(cluster_bits, 4).unwrap()
    }

    fn any_geometry() -> impl Strategy<Value = Geometry> {
        (9_u32..=21).prop_map(geometry)
    }

    fn any_allocated(g: Geometry) -> impl Strategy<Value = Allocated> {
        let clusters = 1..L2Entry::OFFSET_LIMIT >> g.cluster_bits();
        (clusters, any::<bool>()).prop_map(move |(cluster, copied)| Allocated {
            host: g.host_offset(HostCluster(cluster)),
            copied,
        })
    }

    fn any_run(g: Geometry) -> impl Strategy<Value = CompressedRun> {
        (0..CompressedRun::offset_limit(&g), 0..=max_sectors(g))
            .prop_map(|(host, sectors)| CompressedRun { host: HostOffset(host), sectors })
    }

    fn any_entry(g: Geometry) -> impl Strategy<Value = L2Entry> {
        prop_oneof![
            Just(L2Entry::Unallocated),
            prop::option::of(any_allocated(g)).prop_map(L2Entry::Zero),
            any_allocated(g).prop_map(L2Entry::Standard),
            any_run(g).prop_map(L2Entry::Compressed),
        ]
    }

    #[test]
    fn the_four_kinds_are_told_apart() {
        let g = geometry(16);
        let decode = |raw| L2Entry::decode(raw, &g, Version::V3).unwrap();
        let allocated = |copied| Allocated { host: HostOffset(0x50000), copied };
        assert_eq!(decode(0), L2Entry::Unallocated);
        assert_eq!(decode(1), L2Entry::Zero(None));
        assert_eq!(decode(0x50001), L2Entry::Zero(Some(allocated(false))));
        assert_eq!(decode(COPIED | 0x50001), L2Entry::Zero(Some(allocated(true))));
        assert_eq!(decode(0x50000), L2Entry::Standard(allocated(false)));
        assert_eq!(decode(COPIED | 0x50000), L2Entry::Standard(allocated(true)));
        assert!(matches!(decode(COMPRESSED | 0x50000), L2Entry::Compressed(_)));
    }

    #[test]
    fn the_header_is_never_a_data_cluster() {
        let g = geometry(16);
        assert_eq!(L2Entry::decode(COPIED, &g, Version::V3), Ok(L2Entry::Unallocated));
        assert_eq!(L2Entry::decode(COPIED | ZERO, &g, Version::V3), Ok(L2Entry::Zero(None)));
    }

    #[test]
    fn what_an_entry_may_not_be_is_refused() {
        let g = geometry(16);
        for version in VERSIONS {
            let unaligned = L2Entry::decode(COPIED | 0x50200, &g, version).unwrap_err();
            assert_eq!(unaligned, L2EntryError::Unaligned { host: 0x50200 });
        }
        assert_eq!(L2Entry::decode(0x50201, &g, Version::V3), Err(L2EntryError::Unaligned { host: 0x50200 }));
        for raw in [1, 0x50001, COPIED | 0x50001] {
            assert_eq!(L2Entry::decode(raw, &g, Version::V2), Err(L2EntryError::ZeroInVersion2));
        }
        let past = COMPRESSED | 1 << 56;
        let error = L2Entry::decode(past, &geometry(9), Version::V3).unwrap_err();
        assert_eq!(error, L2EntryError::CompressedPastLimit { host: 1 << 56 });
    }

    #[test]
    fn extended_entries_say_what_each_subcluster_is() {
        let g = geometry(16).with_extended_l2(true);
        let space = Allocated { host: HostOffset(0x50000), copied: true };
        let decode = |descriptor, subclusters| {
            L2Entry::decode(RawL2Entry { descriptor, subclusters }, &g, Version::V3)
        };
        let named = COPIED | 0x50000;
        assert_eq!(decode(0, 0), Ok(L2Entry::Unallocated));
        assert_eq!(decode(0, u64::MAX << 32), Ok(L2Entry::Zero(None)));
        assert_eq!(decode(named, u64::MAX << 32), Ok(L2Entry::Zero(Some(space))));
        assert_eq!(decode(named, 0xffff_ffff), Ok(L2Entry::Standard(space)));
        // Bit 0 of the first word means nothing here.
        assert_eq!(decode(named | 1, 0xffff_ffff), Ok(L2Entry::Standard(space)));
        for word in [0, 1, 1 << 32, 1 << 63 | 7] {
            let entry = decode(named, word).unwrap();
            assert!(matches!(entry, L2Entry::Divided(divided) if divided.space == Some(space)), "{entry:?}");
            assert_eq!(entry.encode(&g), RawL2Entry { descriptor: named, subclusters: word });
        }
        for (descriptor, word) in [(0, 1), (named, 1 << 32 | 1), (COMPRESSED | 0x5000, 1)] {
            assert_eq!(decode(descriptor, word), Err(L2EntryError::Subclusters { subclusters: word }));
        }
    }

    /// Four neighbours in an image of 4 KiB clusters that `qemu-img convert -c` made.
    #[test]
    fn compressed_entries_that_qemu_wrote_follow_each_other() {
        let g = geometry(12);
        let raw: [u64; 4] = [0x5c00000000005000, 0x5000000000005ec5, 0x4c00000000006638, 0x4c00000000006d62];
        let runs = raw.map(|raw| match L2Entry::decode(raw, &g, Version::V3).unwrap() {
            L2Entry::Compressed(run) => run,
            other => panic!("{other:?}"),
        });
        assert_eq!(runs[0], CompressedRun { host: HostOffset(0x5000), sectors: 7 });
        assert_eq!(runs[1], CompressedRun { host: HostOffset(0x5ec5), sectors: 4 });
        assert_eq!(runs[1].max_len(), 5 * 512 - 0xc5);
        assert_eq!(runs[1].clusters(&g), HostCluster(5)..=HostCluster(6));
        for (run, raw) in runs.into_iter().zip(raw) {
            assert_eq!(L2Entry::Compressed(run).encode(&g), raw.into());
        }
        for pair in runs.windows(2) {
            let len = pair[1].host.0 - pair[0].host.0;
            assert_eq!(CompressedRun::for_bytes(pair[0].host, len, &g), pair[0]);
        }
    }

    #[test]
    fn offsets_of_compressed_clusters_are_limited_as_the_specification_says() {
        assert_eq!(CompressedRun::offset_limit(&geometry(21)), 1 << 49);
        assert_eq!(CompressedRun::offset_limit(&geometry(16)), 1 << 54);
        assert_eq!(CompressedRun::offset_limit(&geometry(14)), 1 << 56);
        assert_eq!(CompressedRun::offset_limit(&geometry(9)), 1 << 56);
    }

    #[test]
    fn reserved_bits_are_shown_and_passed_over() {
        let g = geometry(16);
        let raw = 0x3f00_0000_0005_01fe;
        let allocated = Allocated { host: HostOffset(0x50000), copied: false };
        for version in VERSIONS {
            assert_eq!(L2Entry::reserved_bits(raw, version), 0x3f00_0000_0000_01fe);
            assert_eq!(L2Entry::decode(raw, &g, version), Ok(L2Entry::Standard(allocated)));
            assert_eq!(L2Entry::reserved_bits(u64::MAX, version), 0);
        }
        assert_eq!(L2Entry::reserved_bits(1, Version::V3), 0);
        assert_eq!(L2Entry::reserved_bits(1, Version::V2), 1);
    }

    proptest! {
        #[test]
        fn an_entry_survives_encoding(
            (g, entry) in any_geometry().prop_flat_map(|g| (Just(g), any_entry(g))),
        ) {
            let raw = entry.encode(&g);
            prop_assert_eq!(L2Entry::decode(raw, &g, Version::V3), Ok(entry));
            prop_assert_eq!(L2Entry::reserved_bits(raw.descriptor, Version::V3), 0);
            if !matches!(entry, L2Entry::Zero(_)) {
                prop_assert_eq!(L2Entry::decode(raw, &g, Version::V2), Ok(entry));
            }
        }

        /// All but the reserved bits, and the copied bit of what has no cluster of its own.
        #[test]
        fn bits_that_mean_something_survive_decoding(g in any_geometry(), raw: u64, sparse: bool) {
            let raw = if sparse { raw & (COPIED | COMPRESSED | ZERO) } else { raw };
            for version in VERSIONS {
                let Ok(entry) = L2Entry::decode(raw, &g, version) else { continue };
                let meaningful = raw & !L2Entry::reserved_bits(raw, version);
                let expected = match entry {
                    L2Entry::Standard(_) | L2Entry::Zero(Some(_)) => meaningful,
                    _ => meaningful & !COPIED,
                };
                prop_assert_eq!(entry.encode(&g), expected.into());
            }
        }

        #[test]
        fn an_aligned_entry_is_always_understood(g in any_geometry(), raw: u64) {
            let raw = raw & !COMPRESSED & !(OFFSET_MASK & (g.cluster_size() - 1));
            prop_assert!(L2Entry::decode(raw, &g, Version::V3).is_ok());
        }

        #[test]
        fn a_run_holds_its_bytes_and_no_sector_more(
            g in any_geometry(),
            host in 0_u64..1 << 49,
            len in any::<prop::sample::Index>(),
        ) {
            let len = 1 + len.index(g.cluster_size() as usize) as u64;
            let run = CompressedRun::for_bytes(HostOffset(host), len, &g);
            prop_assert!(run.max_len() >= len && run.max_len() < len + 512);
            prop_assert_eq!((host + run.max_len()) % 512, 0);
            let raw = L2Entry::Compressed(run).encode(&g);
            prop_assert_eq!(L2Entry::decode(raw, &g, Version::V3), Ok(L2Entry::Compressed(run)));
        }

        #[test]
        fn a_decoded_run_is_bounded(g in any_geometry(), raw: u64) {
            if let Ok(L2Entry::Compressed(run)) = L2Entry::decode(raw | COMPRESSED, &g, Version::V3) {
                prop_assert!(run.max_len() <= 2 * g.cluster_size());
                let clusters = run.clusters(&g);
                let (first, last) = (clusters.start().0, clusters.end().0);
                prop_assert_eq!(first, run.host.0 / g.cluster_size());
                prop_assert_eq!(last, (run.host.0 + run.max_len() - 1) / g.cluster_size());
                prop_assert!(last - first < 3);
            }
        }

        /// Values that no decoded entry has: nothing overflows all the same.
        #[test]
        fn a_run_made_by_hand_never_panics(g in any_geometry(), host: u64, sectors: u64) {
            let run = CompressedRun { host: HostOffset(host), sectors };
            let _ = (run.max_len(), run.clusters(&g));
        }
    }
}
