//! What a fresh image looks like: where each structure sits and which bytes the file starts its life with.
//!
//! [`plan`] answers with the same bytes and the same file length that `qemu-img create` of QEMU 10 writes for the same
//! options, so that a tool which compares files, or relies on a place, sees no difference. Nothing is read or written
//! here: the caller writes [`FreshImage::pieces`], sets the length to [`FreshImage::file_len`], and gives
//! [`FreshImage::data_area`] its space. The first piece starts with the header: a file without it is no image yet.
//!
//! ```text
//! no preallocation        header | refcount table | refcount block | L1 table
//! metadata                ... | L1 table | L2 table | data | L2 table | data ...      refcount blocks where they fell
//! falloc, full            header | first L2 table | refcount block | L1 table | refcount table | data | L2 tables
//! ```
//!
//! An image is held as runs of clusters: its memory follows the number of tables, never that of guest clusters.

mod allocator;
mod cluster_set;
mod full_size;
mod pieces;
mod preallocate;
mod refcount_space;

use self::allocator::{Allocation, Allocator};
use self::preallocate::Mapping;
use super::{
    Autoclear, Compatible, CompressionType, CryptMethod, Extension, Geometry, Header, HeaderError,
    HostCluster, HostOffset, Incompatible, TABLE_ENTRY_SIZE, Version, name_table_extension,
};
use crate::range::ByteRange;

pub use self::full_size::{check_disk_size, full_size};
pub use self::pieces::{Piece, Pieces};
pub use self::refcount_space::{Headroom, RefcountSpace};

/// Longest L1 table that readers accept.
const MAX_L1_BYTES: u64 = 32 << 20;
/// Size of the guest's smallest unit; disks are whole multiples of it.
const SECTOR_SIZE: u64 = 512;
/// Up to this cluster size the table of feature names is left out, to leave room for a backing file's name.
const MAX_CLUSTER_WITHOUT_NAMES: u64 = 4096;
/// Width of refcounts that version 2 fixes, as a power of two.
const VERSION_2_REFCOUNT_ORDER: u32 = 4;
/// Length of a version 2 header.
const VERSION_2_HEADER_LENGTH: u32 = 72;
/// Length of a version 3 header with its compression type.
const VERSION_3_HEADER_LENGTH: u32 = 112;

/// What is given its place when an image is made, before a guest writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Preallocation {
    /// Nothing: clusters get a place when they are written.
    #[default]
    Off,
    /// Every guest cluster has a place in the file, which the host may keep as a hole.
    Metadata,
    /// As `Metadata`, all data in one row, with space taken from the host.
    Falloc,
    /// As `Falloc`, with zeroes written.
    Full,
}

/// The name that an image keeps of its backing file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackingName {
    /// The name, as it is to be stored.
    pub name: Vec<u8>,
    /// The backing file's format, as it is to be stored.
    pub format: Option<Vec<u8>>,
}

/// What kind of image to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FreshParams {
    /// Version of the format.
    pub version: Version,
    /// Cluster size, refcount width, and whether L2 entries are extended.
    pub geometry: Geometry,
    /// Size of the guest's disk in bytes; rounded up to a multiple of 512.
    pub size: u64,
    /// Whether writers may leave refcounts behind until the image is closed.
    pub lazy_refcounts: LazyRefcounts,
    /// How clusters are compressed, when they are.
    pub compression: CompressionType,
    /// What gets its place now.
    pub preallocation: Preallocation,
    /// The backing file. Whether it goes together with a preallocation is not asked here.
    pub backing: Option<BackingName>,
    /// The external data file.
    pub data_file: Option<DataFileName>,
    /// How the guest's data is encrypted.
    pub encryption: FreshEncryption,
}

/// The name that an image keeps of its external data file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataFileName {
    /// The name, as it is to be stored.
    pub name: Vec<u8>,
    /// Whether the file is to be a raw image of the disk at all times.
    pub raw: bool,
}

/// How the data of a new image is encrypted, as far as that has a place in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum FreshEncryption {
    /// Not at all.
    #[default]
    None,
    /// With the legacy method.
    Aes,
    /// With LUKS, whose header and key material take this many bytes.
    Luks {
        /// Bytes up to where a LUKS volume's data would start.
        header_len: u64,
    },
}

/// Whether writers may leave refcounts behind until the image is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum LazyRefcounts {
    /// Refcounts are kept up to date.
    #[default]
    Off,
    /// Refcounts may be behind while the image is marked dirty.
    On,
}

/// Why an image of the kind that was asked for cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// The L1 table would be longer than readers accept.
    #[error(
        "the disk is too large for its cluster size: {l1_entries} L1 entries are needed, {max} are possible"
    )]
    DiskTooLarge {
        /// L1 entries that the disk needs.
        l1_entries: u64,
        /// Most entries of an L1 table.
        max: u64,
    },
    /// The refcount table would be longer than readers accept.
    #[error("the refcount table would take {clusters} clusters, more than {max_bytes} bytes")]
    RefcountTableTooLarge {
        /// Clusters of the table.
        clusters: u64,
        /// Most bytes of a refcount table.
        max_bytes: u64,
    },
    /// With everything preallocated, the file would be longer than the tables can say.
    #[error("the file would be longer than {max_bytes} bytes, which is as far as the tables reach")]
    FileTooLarge {
        /// Most bytes of a file.
        max_bytes: u64,
    },
    /// Something was asked for that version 2 of the format does not have.
    #[error("version 2 of the format has no {feature}")]
    NeedsVersion3 {
        /// What was asked for.
        feature: &'static str,
    },
    /// The header cannot be written.
    #[error(transparent)]
    Header(#[from] HeaderError),
}

/// An image that has been laid out.
#[derive(Debug, Clone)]
pub struct FreshImage {
    header: Header,
    header_bytes: Vec<u8>,
    allocation: Allocation,
    mapping: Mapping,
    parts: Vec<pieces::Part>,
    data_area: Option<ByteRange>,
    luks_area: Option<ByteRange>,
}

/// Lays out a fresh image.
pub fn plan(params: &FreshParams) -> Result<FreshImage, LayoutError> {
    check_version(params)?;
    let geometry = params.geometry;
    let size = params.size.checked_next_multiple_of(SECTOR_SIZE).unwrap_or(u64::MAX);
    let l1_entries = l1_entries(geometry, size)?;
    let mut allocator = Allocator::new(geometry);
    let l1_table = place_l1(geometry, &mut allocator, l1_entries)?;
    let clusters = geometry.clusters_for(size);
    let is_external = params.data_file.is_some();
    let is_raw = params.data_file.as_ref().is_some_and(|file| file.raw);
    let (mapping, data_area) = match params.preallocation {
        // A raw data file is all data from the start.
        Preallocation::Off if !is_raw => (Mapping::default(), None),
        _ if is_external => (Mapping::external(&mut allocator, clusters)?, None),
        Preallocation::Off => (Mapping::default(), None),
        Preallocation::Metadata => (Mapping::interleaved(&mut allocator, size)?, None),
        Preallocation::Falloc | Preallocation::Full => {
            let (mapping, area) = Mapping::contiguous(&mut allocator, clusters)?;
            (mapping, Some(area).filter(|area| !area.is_empty()))
        }
    };
    let luks_area = place_luks(params.encryption, &mut allocator)?;
    let allocation = allocator.finish();
    let mut header = header(params, size);
    if let Some(area) = luks_area {
        let place = [area.start().to_be_bytes(), area.len().to_be_bytes()].concat();
        header.insert_extension(Extension { kind: Extension::ENCRYPTION, data: place });
    }
    header.l1_entries = l1_entries;
    header.l1_table = geometry.host_offset(HostCluster(l1_table));
    header.refcount_table = geometry.host_offset(HostCluster(allocation.table.first));
    header.refcount_table_clusters = u32::try_from(allocation.table.clusters).unwrap_or(u32::MAX);
    let header_bytes = header.encode()?;
    let parts = pieces::parts(&header, &allocation, &mapping);
    Ok(FreshImage { header, header_bytes, allocation, mapping, parts, data_area, luks_area })
}

impl FreshImage {
    /// The header, as it is in the file.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Cluster size, refcount width, and whether L2 entries are extended.
    pub fn geometry(&self) -> Geometry {
        self.header.geometry()
    }

    /// Length of the file, data included. It can pass the end of the last piece.
    pub fn file_len(&self) -> u64 {
        self.allocation.file_len
    }

    /// Where the LUKS header and its key material go; no piece lies there.
    pub fn luks_area(&self) -> Option<ByteRange> {
        self.luks_area
    }

    /// Bytes of the file that the guest's data has been given and that the preallocation wants backed by space of the
    /// host: to be allocated for [`Preallocation::Falloc`], written with zeroes for [`Preallocation::Full`]. No piece
    /// lies in it.
    pub fn data_area(&self) -> Option<ByteRange> {
        self.data_area
    }

    /// What is to be written, in ascending order of offsets and merged where it touches, made as it is asked for.
    pub fn pieces(&self) -> Pieces<'_> {
        Pieces::new(self)
    }
}

fn check_version(params: &FreshParams) -> Result<(), LayoutError> {
    let feature = if params.lazy_refcounts == LazyRefcounts::On {
        "lazy refcounts"
    } else if params.compression != CompressionType::Deflate {
        "other compression than zlib"
    } else if params.geometry.refcount_order() != VERSION_2_REFCOUNT_ORDER {
        "refcounts of another width than 16 bits"
    } else if params.geometry.has_subclusters() {
        "extended L2 entries"
    } else if params.data_file.is_some() {
        "external data files"
    } else {
        return Ok(());
    };
    match params.version {
        Version::V2 => Err(LayoutError::NeedsVersion3 { feature }),
        Version::V3 => Ok(()),
    }
}

fn l1_entries(geometry: Geometry, size: u64) -> Result<u32, LayoutError> {
    let entries = geometry.l1_entries_for(size);
    let max = MAX_L1_BYTES / TABLE_ENTRY_SIZE;
    u32::try_from(entries)
        .ok()
        .filter(|&entries| u64::from(entries) <= max)
        .ok_or(LayoutError::DiskTooLarge { l1_entries: entries, max })
}

/// Places the L1 table and returns its first cluster; an empty one is at 0. Only the entries themselves are written,
/// not the rest of the last cluster.
#[allow(
    clippy::arithmetic_side_effects,
    reason = "the table has at most 32 MiB and starts at most 2 GiB into the file"
)]
fn place_l1(geometry: Geometry, allocator: &mut Allocator, entries: u32) -> Result<u64, LayoutError> {
    if entries == 0 {
        return Ok(0);
    }
    let bytes = u64::from(entries) * TABLE_ENTRY_SIZE;
    let first = allocator.allocate(geometry.clusters_for(bytes))?;
    allocator.note_written_bytes(first * geometry.cluster_size() + bytes);
    Ok(first)
}

/// Finds the place of the LUKS header.
#[allow(clippy::arithmetic_side_effects, reason = "it is about 2 MiB long, wherever it is")]
fn place_luks(
    encryption: FreshEncryption,
    allocator: &mut Allocator,
) -> Result<Option<ByteRange>, LayoutError> {
    let FreshEncryption::Luks { header_len } = encryption else { return Ok(None) };
    let geometry = allocator.geometry();
    let clusters = geometry.clusters_for(header_len);
    let first = allocator.allocate(clusters)?;
    allocator.note_written(first + clusters);
    let start = geometry.host_offset(HostCluster(first)).get();
    Ok(Some(ByteRange::between(start, start + header_len)))
}

/// The header without the places of the tables.
fn header(params: &FreshParams, size: u64) -> Header {
    let geometry = params.geometry;
    let version3 = params.version == Version::V3;
    let mut header = Header {
        version: params.version,
        cluster_bits: geometry.cluster_bits(),
        size,
        crypt_method: CryptMethod::None,
        l1_entries: 0,
        l1_table: HostOffset(0),
        refcount_table: HostOffset(0),
        refcount_table_clusters: 0,
        snapshot_count: 0,
        snapshot_table: HostOffset(0),
        incompatible: Incompatible(0),
        compatible: Compatible(0),
        autoclear: Autoclear(0),
        refcount_order: geometry.refcount_order(),
        compression: params.compression,
        unknown_fields: Vec::new(),
        header_length: if version3 { VERSION_3_HEADER_LENGTH } else { VERSION_2_HEADER_LENGTH },
        extensions: Vec::new(),
        backing_file: None,
    };
    if params.compression != CompressionType::Deflate {
        header.incompatible = header.incompatible.with(Incompatible::COMPRESSION);
    }
    if geometry.has_subclusters() {
        header.incompatible = header.incompatible.with(Incompatible::EXTENDED_L2);
    }
    if params.lazy_refcounts == LazyRefcounts::On {
        header.compatible = header.compatible.with(Compatible::LAZY_REFCOUNTS);
    }
    if version3 && geometry.cluster_size() > MAX_CLUSTER_WITHOUT_NAMES {
        header.extensions.push(name_table_extension());
    }
    if let Some(file) = &params.data_file {
        header.incompatible = header.incompatible.with(Incompatible::DATA_FILE);
        if file.raw {
            header.autoclear = header.autoclear.with(Autoclear::DATA_FILE_RAW);
        }
        header.insert_extension(Extension { kind: Extension::DATA_FILE, data: file.name.clone() });
    }
    header.crypt_method = match params.encryption {
        FreshEncryption::None => CryptMethod::None,
        FreshEncryption::Aes => CryptMethod::Aes,
        FreshEncryption::Luks { .. } => CryptMethod::Luks,
    };
    if let Some(backing) = &params.backing {
        header.set_backing(Some(&backing.name), backing.format.as_deref());
    }
    header
}

/// A number as an index. A value that does not fit stays out of every slice.
fn index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(cluster_bits: u32, refcount_order: u32, size: u64) -> FreshParams {
        FreshParams {
            version: Version::V3,
            geometry: Geometry::new(cluster_bits, refcount_order).unwrap(),
            size,
            lazy_refcounts: LazyRefcounts::Off,
            compression: CompressionType::Deflate,
            preallocation: Preallocation::Off,
            backing: None,
            data_file: None,
            encryption: FreshEncryption::None,
        }
    }

    fn preallocated(preallocation: Preallocation) -> FreshImage {
        plan(&FreshParams { preallocation, ..params(16, 4, 1 << 30) }).unwrap()
    }

    #[test]
    fn a_default_image_has_four_clusters_of_which_the_last_is_cut() {
        let image = plan(&params(16, 4, 1 << 30)).unwrap();
        assert_eq!(image.file_len(), 3 * 65536 + 16);
        assert_eq!(image.header().l1_table, HostOffset(3 * 65536));
        assert_eq!(image.data_area(), None);
        let mut pieces = image.pieces();
        let piece = pieces.next().unwrap();
        assert_eq!(pieces.next(), None);
        assert_eq!(piece.bytes.len() as u64, image.file_len());
        assert_eq!(Header::decode(piece.bytes.get(..65536).unwrap()).as_ref(), Ok(image.header()));
    }

    #[test]
    fn metadata_puts_each_table_before_its_data() {
        let image = preallocated(Preallocation::Metadata);
        assert_eq!(image.mapping.l2_tables, [4, 8197]);
        let hosts: Vec<_> = image.mapping.runs.iter().map(|run| (run.guest, run.host, run.count)).collect();
        assert_eq!(hosts, [(0, 5, 8192), (8192, 8198, 8192)]);
        assert_eq!(image.file_len(), (8198 + 8192) * 65536);
    }

    #[test]
    fn falloc_puts_the_first_table_where_the_old_refcount_table_was() {
        let image = preallocated(Preallocation::Falloc);
        assert_eq!(image.header().refcount_table, HostOffset(4 * 65536));
        assert_eq!(image.mapping.l2_tables, [1, 16389]);
        assert_eq!(image.data_area(), Some(ByteRange::between(5 * 65536, 16389 * 65536)));
        assert_eq!(image.file_len(), 16390 * 65536);
    }

    #[test]
    fn memory_follows_the_tables_and_not_the_clusters() {
        let image =
            plan(&FreshParams { preallocation: Preallocation::Metadata, ..params(16, 4, 1 << 40) }).unwrap();
        assert_eq!(image.mapping.l2_tables.len(), 2048);
        assert!(image.mapping.runs.len() < 3000);
        assert!(image.parts.len() < 3000);
    }

    #[test]
    fn what_the_format_cannot_hold_is_refused_before_anything_is_searched() {
        let refused = |params: &FreshParams| plan(params).unwrap_err();
        let too_large = refused(&params(9, 4, (128 << 30) + 512));
        assert_eq!(too_large, LayoutError::DiskTooLarge { l1_entries: (4 << 20) + 1, max: 4 << 20 });
        let full = FreshParams { preallocation: Preallocation::Full, ..params(9, 6, 100 << 30) };
        assert!(matches!(refused(&full), LayoutError::RefcountTableTooLarge { .. }));
        let far = FreshParams { preallocation: Preallocation::Metadata, ..params(21, 4, 1 << 60) };
        assert_eq!(refused(&far), LayoutError::FileTooLarge { max_bytes: 1 << 56 });
        let old = FreshParams { version: Version::V2, ..params(16, 3, 1 << 30) };
        assert!(matches!(refused(&old), LayoutError::NeedsVersion3 { .. }));
        let backing = BackingName { name: vec![b'x'; 400], format: None };
        let long = FreshParams { backing: Some(backing), ..params(9, 4, 1 << 20) };
        assert!(matches!(refused(&long), LayoutError::Header(HeaderError::TooLarge { .. })));
        assert!(matches!(refused(&params(16, 4, u64::MAX)), LayoutError::DiskTooLarge { .. }));
    }

    #[test]
    fn a_size_within_a_sector_is_rounded_up() {
        assert_eq!(plan(&params(16, 4, 1)).unwrap().header().size, 512);
    }
}
