//! The bytes of the header to a [`Header`] and back; the table of the fields is at the top of the parent module.

use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{CompressionType, CryptMethod, Header, HeaderError, Version};
use crate::format::qcow2::address::HostOffset;
use crate::format::qcow2::extensions::{self, Extension};
use crate::format::qcow2::features::{Autoclear, Compatible, Incompatible};
use crate::format::qcow2::geometry::Geometry;
use crate::zero_scan::is_zero;

/// The fields that both versions have.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawBase {
    magic: [u8; 4],
    version: U32,
    backing_offset: U64,
    backing_len: U32,
    cluster_bits: U32,
    size: U64,
    crypt_method: U32,
    l1_entries: U32,
    l1_table: U64,
    refcount_table: U64,
    refcount_table_clusters: U32,
    snapshot_count: U32,
    snapshot_table: U64,
}

/// The fields that version 3 adds.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawVersion3 {
    incompatible: U64,
    compatible: U64,
    autoclear: U64,
    refcount_order: U32,
    header_length: U32,
}

impl RawVersion3 {
    /// What version 2 means by having none of the fields.
    const VERSION_2: RawVersion3 = RawVersion3 {
        incompatible: U64::ZERO,
        compatible: U64::ZERO,
        autoclear: U64::ZERO,
        refcount_order: U32::new(4),
        header_length: U32::new(LENGTH_V2),
    };
}

pub(super) const LENGTH_V2: u32 = 72;
/// The shortest header of version 3, without a compression type.
const MIN_LENGTH_V3: u32 = 104;
/// The shortest header with a compression type.
pub(super) const LENGTH_V3: u32 = 112;
/// Where the fields end that this library knows.
const KNOWN_LENGTH: usize = 105;
const COMPRESSION_OFFSET: usize = 104;

/// The header's cluster, cut where the file ends, and where its parts are.
struct Areas<'a> {
    /// The fields, all of `header_length`.
    fields: &'a [u8],
    extensions: &'a [u8],
    backing_name: Option<&'a [u8]>,
}

impl Header {
    /// The header in the first cluster of a file; `cluster` is that cluster, or as much of it as the file has.
    pub fn decode(cluster: &[u8]) -> Result<Header, HeaderError> {
        if !cluster.starts_with(&Header::MAGIC) {
            return Err(HeaderError::Magic);
        }
        let (base, rest) =
            RawBase::ref_from_prefix(cluster).map_err(|_| truncated(cluster, LENGTH_V2.into()))?;
        let number = base.version.get();
        let version = Version::from_number(number).ok_or(HeaderError::Version(number))?;
        let cluster_bits = base.cluster_bits.get();
        Geometry::new(cluster_bits, 0)?;
        let version_3 = match version {
            Version::V2 => RawVersion3::VERSION_2,
            Version::V3 => {
                let (fields, _) = RawVersion3::read_from_prefix(rest)
                    .map_err(|_| truncated(cluster, MIN_LENGTH_V3.into()))?;
                fields
            }
        };
        let geometry = Geometry::new(cluster_bits, version_3.refcount_order.get())?;
        let areas = Areas::find(cluster, base, version_3.header_length.get(), geometry)?;
        let unknown = areas.fields.get(KNOWN_LENGTH..).unwrap_or_default();
        let header = Header {
            version,
            cluster_bits,
            size: base.size.get(),
            crypt_method: CryptMethod::from_code(base.crypt_method.get()),
            l1_entries: base.l1_entries.get(),
            l1_table: HostOffset(base.l1_table.get()),
            refcount_table: HostOffset(base.refcount_table.get()),
            refcount_table_clusters: base.refcount_table_clusters.get(),
            snapshot_count: base.snapshot_count.get(),
            snapshot_table: HostOffset(base.snapshot_table.get()),
            incompatible: Incompatible(version_3.incompatible.get()),
            compatible: Compatible(version_3.compatible.get()),
            autoclear: Autoclear(version_3.autoclear.get()),
            refcount_order: version_3.refcount_order.get(),
            compression: decode_compression(areas.fields)?,
            unknown_fields: if is_zero(unknown) { Vec::new() } else { unknown.to_vec() },
            header_length: version_3.header_length.get(),
            extensions: extensions::decode_list(areas.extensions)?,
            backing_file: areas.backing_name.map(<[u8]>::to_vec),
        };
        header.validate()?;
        Ok(header)
    }

    /// Where the list of extensions ends that this was decoded from, with its end marker, in bytes from the start of the file.
    /// What was decoded from fewer bytes of the cluster may have had more extensions.
    pub(crate) fn extensions_end(&self) -> u64 {
        let extensions = self.extensions.iter().map(Extension::stored_len).fold(0, u64::saturating_add);
        u64::from(self.header_length)
            .saturating_add(extensions)
            .saturating_add(extensions::END_MARKER.len() as u64)
    }

    /// The header as it stands in the file: fields, extensions, end marker and the backing file's name, and nothing
    /// after that. What is left of the cluster is to be filled with zeroes.
    pub fn encode(&self) -> Result<Vec<u8>, HeaderError> {
        self.validate()?;
        let header_length = self.encoded_length();
        let extensions: u64 = self.extensions.iter().map(Extension::stored_len).fold(0, u64::saturating_add);
        let backing_name = self.backing_file.as_deref().unwrap_or_default();
        let name_offset = u64::from(header_length)
            .saturating_add(extensions)
            .saturating_add(extensions::END_MARKER.len() as u64);
        let bytes = name_offset.saturating_add(backing_name.len() as u64);
        let cluster_size = self.geometry().cluster_size();
        if bytes > cluster_size {
            return Err(HeaderError::TooLarge { bytes, cluster_size });
        }
        // Safe from here on: every length is below the cluster size.
        let mut out = Vec::with_capacity(usize::try_from(bytes).unwrap_or_default());
        out.extend_from_slice(self.raw_base(name_offset, backing_name).as_bytes());
        if self.version == Version::V3 {
            out.extend_from_slice(self.raw_version_3(header_length).as_bytes());
            out.push(self.compression.raw());
            out.extend_from_slice(&self.unknown_fields);
        }
        out.resize(header_length as usize, 0);
        for extension in &self.extensions {
            extension.encode_into(&mut out);
        }
        out.extend_from_slice(&extensions::END_MARKER);
        out.extend_from_slice(backing_name);
        Ok(out)
    }

    /// Length of the fields as they are written: as stored, or longer where they do not fit in that.
    fn encoded_length(&self) -> u32 {
        if self.version == Version::V2 {
            return LENGTH_V2;
        }
        let needed = match (self.compression, self.unknown_fields.len()) {
            (CompressionType::Deflate, 0) => MIN_LENGTH_V3,
            (_, unknown) => u32::try_from(KNOWN_LENGTH.saturating_add(unknown)).unwrap_or(u32::MAX),
        };
        let stored = if self.header_length < MIN_LENGTH_V3 { LENGTH_V3 } else { self.header_length };
        stored.max(needed).checked_next_multiple_of(8).unwrap_or(u32::MAX)
    }

    fn raw_base(&self, name_offset: u64, backing_name: &[u8]) -> RawBase {
        let name_offset = if self.backing_file.is_some() { name_offset } else { 0 };
        RawBase {
            magic: Header::MAGIC,
            version: self.version.number().into(),
            backing_offset: name_offset.into(),
            backing_len: u32::try_from(backing_name.len()).unwrap_or(u32::MAX).into(),
            cluster_bits: self.cluster_bits.into(),
            size: self.size.into(),
            crypt_method: self.crypt_method.code().into(),
            l1_entries: self.l1_entries.into(),
            l1_table: self.l1_table.0.into(),
            refcount_table: self.refcount_table.0.into(),
            refcount_table_clusters: self.refcount_table_clusters.into(),
            snapshot_count: self.snapshot_count.into(),
            snapshot_table: self.snapshot_table.0.into(),
        }
    }

    fn raw_version_3(&self, header_length: u32) -> RawVersion3 {
        RawVersion3 {
            incompatible: self.incompatible.0.into(),
            compatible: self.compatible.0.into(),
            autoclear: self.autoclear.0.into(),
            refcount_order: self.refcount_order.into(),
            header_length: header_length.into(),
        }
    }
}

impl<'a> Areas<'a> {
    fn find(
        cluster: &'a [u8],
        base: &RawBase,
        header_length: u32,
        g: Geometry,
    ) -> Result<Areas<'a>, HeaderError> {
        let cluster_size = g.cluster_size();
        check_length(base, header_length, cluster_size)?;
        let cluster = prefix(cluster, cluster_size);
        let fields =
            cluster.get(..header_length as usize).ok_or_else(|| truncated(cluster, header_length.into()))?;
        let (offset, len) = (base.backing_offset.get(), u64::from(base.backing_len.get()));
        // The length means nothing without an offset.
        if offset == 0 {
            let extensions = cluster.get(header_length as usize..).unwrap_or_default();
            return Ok(Areas { fields, extensions, backing_name: None });
        }
        if offset < u64::from(header_length) || offset > cluster_size {
            return Err(HeaderError::BackingNamePlace { offset });
        }
        let room = cluster_size.saturating_sub(offset).min(Header::MAX_BACKING_NAME);
        if len > room {
            return Err(HeaderError::BackingNameLength { len, room });
        }
        let end = offset.saturating_add(len);
        if len > 0 && end > cluster.len() as u64 {
            return Err(truncated(cluster, end));
        }
        let before_name = prefix(cluster, offset);
        let extensions = before_name.get(header_length as usize..).unwrap_or_default();
        let backing_name = prefix(cluster, end).get(before_name.len()..).filter(|name| !name.is_empty());
        Ok(Areas { fields, extensions, backing_name })
    }
}

fn check_length(base: &RawBase, header_length: u32, cluster_size: u64) -> Result<(), HeaderError> {
    let is_version_2 = base.version.get() == Version::V2.number();
    let min = if is_version_2 { LENGTH_V2 } else { MIN_LENGTH_V3 };
    if header_length < min || !header_length.is_multiple_of(8) || u64::from(header_length) > cluster_size {
        return Err(HeaderError::HeaderLength { length: header_length, cluster_size });
    }
    Ok(())
}

fn decode_compression(fields: &[u8]) -> Result<CompressionType, HeaderError> {
    match fields.get(COMPRESSION_OFFSET) {
        None | Some(0) => Ok(CompressionType::Deflate),
        Some(1) => Ok(CompressionType::Zstd),
        Some(&other) => Err(HeaderError::CompressionType(other)),
    }
}

/// The first `len` bytes, or all where there are fewer.
fn prefix(bytes: &[u8], len: u64) -> &[u8] {
    usize::try_from(len).ok().and_then(|len| bytes.get(..len)).unwrap_or(bytes)
}

fn truncated(bytes: &[u8], needed: u64) -> HeaderError {
    HeaderError::Truncated { len: bytes.len() as u64, needed }
}

#[cfg(test)]
#[allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test may fail"
)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::format::qcow2::address::HostCluster;
    use crate::format::qcow2::features::name_table_extension;

    /// The first cluster of images that qemu-img 10.0 made, up to their last byte that is not zero: the options of
    /// `create -f qcow2`, the cluster size, and the bytes.
    const REAL_HEADERS: [(&str, usize, &str); 8] = [
        (
            "-o cluster_size=4096 base.qcow2 1M",
            4096,
            "514649fb000000030000000000000000000000000000000c000000000010000000000000000000010000000000003000
             000000000000100000000001000000000000000000000000000000000000000000000000000000000000000000000000
             0000000400000070",
        ),
        (
            "-o cluster_size=4096,compression_type=zstd,lazy_refcounts=on,refcount_bits=1 zstd.qcow2 1M",
            4096,
            "514649fb000000030000000000000000000000000000000c000000000010000000000000000000010000000000003000
             000000000000100000000001000000000000000000000000000000000000000800000000000000010000000000000000
             000000000000007001",
        ),
        (
            "-o cluster_size=4096,data_file=d.raw,data_file_raw=on data.qcow2 1M",
            4096,
            "514649fb000000030000000000000000000000000000000c000000000010000000000000000000010000000000003000
             000000000000100000000001000000000000000000000000000000000000000400000000000000000000000000000002
             000000040000007000000000000000004441544100000005642e726177",
        ),
        (
            "-o cluster_size=4096 -b base.qcow2 -F qcow2 bm.qcow2, then two times bitmap --add",
            4096,
            "514649fb0000000300000000000000a80000000a0000000c000000000010000000000000000000010000000000003000
             000000000000100000000001000000000000000000000000000000000000000000000000000000000000000000000001
             00000004000000700000000000000000e2792aca0000000571636f773200000023852875000000180000000200000000
             000000000000004000000000000080000000000000000000626173652e71636f7732",
        ),
        (
            "-o compat=0.10 -b base.qcow2 -F qcow2 v2.qcow2",
            65536,
            "514649fb0000000200000000000000600000000a00000010000000000010000000000000000000010000000000030000
             000000000001000000000001000000000000000000000000e2792aca0000000571636f77320000000000000000000000
             626173652e71636f7732",
        ),
        (
            "-o compat=0.10 v2plain.qcow2 1G",
            65536,
            "514649fb0000000200000000000000000000000000000010000000004000000000000000000000020000000000030000
             000000000001000000000001",
        ),
        (
            "-o cluster_size=4096,encrypt.format=luks,encrypt.key-secret=s luks.qcow2 1M",
            4096,
            "514649fb000000030000000000000000000000000000000c000000000010000000000002000000010000000000003000
             000000000000100000000001000000000000000000000000000000000000000000000000000000000000000000000000
             000000040000007000000000000000000537be7700000010000000000000400000000000001f9000",
        ),
        (
            "-b base.qcow2 -F qcow2 def.qcow2",
            65536,
            "514649fb0000000300000000000002100000000a00000010000000000010000000000000000000010000000000030000
             000000000001000000000001000000000000000000000000000000000000000000000000000000000000000000000000
             00000004000000700000000000000000e2792aca0000000571636f77320000006803f857000001800000646972747920
             626974000000000000000000000000000000000000000000000000000000000000000000000000000001636f72727570
             74206269740000000000000000000000000000000000000000000000000000000000000000000000000265787465726e
             616c20646174612066696c65000000000000000000000000000000000000000000000000000000000003636f6d707265
             7373696f6e20747970650000000000000000000000000000000000000000000000000000000000000004657874656e64
             6564204c3220656e747269657300000000000000000000000000000000000000000000000000000001006c617a792072
             6566636f756e7473000000000000000000000000000000000000000000000000000000000000000002006269746d6170
             730000000000000000000000000000000000000000000000000000000000000000000000000000000201726177206578
             7465726e616c206461746100000000000000000000000000000000000000000000000000000000000000000000000000
             626173652e71636f7732",
        ),
    ];

    fn real(name: &str) -> Vec<u8> {
        let (_, cluster_size, hex) = REAL_HEADERS.into_iter().find(|header| header.0.contains(name)).unwrap();
        let digits: Vec<u32> = hex.chars().filter_map(|c| c.to_digit(16)).collect();
        let mut cluster: Vec<u8> = digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect();
        cluster.resize(cluster_size, 0);
        cluster
    }

    fn padded(header: &Header) -> Vec<u8> {
        let mut cluster = header.encode().unwrap();
        cluster.resize(header.geometry().cluster_size() as usize, 0);
        cluster
    }

    /// A copy with the bytes at `offset` replaced.
    fn patched(cluster: &[u8], offset: usize, bytes: &[u8]) -> Vec<u8> {
        let mut cluster = cluster.to_vec();
        cluster[offset..offset + bytes.len()].copy_from_slice(bytes);
        cluster
    }

    #[test]
    fn a_header_that_qemu_wrote_is_encoded_again_byte_for_byte() {
        for (options, ..) in REAL_HEADERS {
            let cluster = real(options);
            let header = Header::decode(&cluster).unwrap_or_else(|error| panic!("{options}: {error}"));
            assert_eq!(padded(&header), cluster, "{options}");
        }
    }

    #[test]
    fn the_fields_of_a_version_2_header_with_a_backing_file_are_what_qemu_put_there() {
        let header = Header::decode(&real("v2.qcow2")).unwrap();
        let expected = Header {
            version: Version::V2,
            cluster_bits: 16,
            size: 1 << 20,
            crypt_method: CryptMethod::None,
            l1_entries: 1,
            l1_table: HostOffset(0x30000),
            refcount_table: HostOffset(0x10000),
            refcount_table_clusters: 1,
            snapshot_count: 0,
            snapshot_table: HostOffset(0),
            incompatible: Incompatible(0),
            compatible: Compatible(0),
            autoclear: Autoclear(0),
            refcount_order: 4,
            compression: CompressionType::Deflate,
            unknown_fields: Vec::new(),
            header_length: 72,
            extensions: vec![Extension { kind: Extension::BACKING_FORMAT, data: b"qcow2".to_vec() }],
            backing_file: Some(b"base.qcow2".to_vec()),
        };
        assert_eq!(header, expected);
        assert_eq!(header.backing_format(), Some(b"qcow2".as_slice()));
    }

    #[test]
    fn features_of_version_3_are_what_qemu_put_there() {
        let zstd = Header::decode(&real("zstd.qcow2")).unwrap();
        assert_eq!(zstd.compression, CompressionType::Zstd);
        assert_eq!(zstd.incompatible, Incompatible::COMPRESSION);
        assert_eq!(zstd.compatible, Compatible::LAZY_REFCOUNTS);
        assert_eq!(zstd.refcount_order, 0);
        assert_eq!(zstd.header_length, 112);

        let data = Header::decode(&real("data.qcow2")).unwrap();
        assert_eq!(data.data_file_name(), Some(b"d.raw".as_slice()));
        assert_eq!(data.incompatible, Incompatible::DATA_FILE);
        assert_eq!(data.autoclear, Autoclear::DATA_FILE_RAW);

        let luks = Header::decode(&real("luks.qcow2")).unwrap();
        assert_eq!(luks.crypt_method, CryptMethod::Luks);

        let bitmaps = Header::decode(&real("bm.qcow2")).unwrap().bitmaps().unwrap();
        assert_eq!((bitmaps.count, bitmaps.directory_size, bitmaps.directory), (2, 64, HostOffset(0x8000)));
    }

    #[test]
    fn the_name_table_is_the_one_that_qemu_writes() {
        let header = Header::decode(&real("def.qcow2")).unwrap();
        assert_eq!(header.extensions[1], name_table_extension());
        assert!(header.unknown_incompatible().is_empty());
    }

    #[test]
    fn bitmaps_without_their_feature_bit_are_not_shown() {
        let header = Header::decode(&patched(&real("bm.qcow2"), 95, &[0])).unwrap();
        assert_eq!(header.bitmaps(), None);
        assert_eq!(header.extensions.len(), 2, "the extension is kept all the same");
    }

    /// Images of before the compression type have headers of 104 bytes.
    #[test]
    fn a_header_of_104_bytes_is_read_and_written_as_one() {
        let mut cluster = patched(&real("base.qcow2"), 100, &104_u32.to_be_bytes());
        let header = Header::decode(&cluster).unwrap();
        assert_eq!(header.header_length, 104);
        assert_eq!(header.encode().unwrap().len(), 104 + 8);
        assert_eq!(padded(&header), cluster);
        // The byte that would be the compression type is the first of an extension here.
        cluster = patched(&cluster, 104, &[1, 2, 3, 4, 0, 0, 0, 0]);
        let header = Header::decode(&cluster).unwrap();
        assert_eq!(header.extensions, [Extension { kind: 0x01020304, data: Vec::new() }]);
        assert_eq!(padded(&header), cluster);
    }

    #[test]
    fn a_header_grows_when_it_needs_a_compression_type() {
        let mut header = Header::decode(&patched(&real("base.qcow2"), 100, &[0, 0, 0, 104])).unwrap();
        header.compression = CompressionType::Zstd;
        header.incompatible = Incompatible::COMPRESSION;
        let again = Header::decode(&header.encode().unwrap()).unwrap();
        assert_eq!(again.header_length, 112);
        assert_eq!(again.compression, CompressionType::Zstd);
    }

    #[test]
    fn fields_of_the_future_are_kept() {
        let base = real("base.qcow2");
        let longer = patched(&base, 100, &136_u32.to_be_bytes());
        assert_eq!(padded(&Header::decode(&longer).unwrap()), longer);
        let with_field = patched(&longer, 120, b"\x01future\0");
        let header = Header::decode(&with_field).unwrap();
        assert_eq!(header.unknown_fields.len(), 136 - 105);
        assert_eq!(padded(&header), with_field);
        // A small field may come to stand in what is padding today.
        let in_padding = patched(&base, 107, &[7]);
        assert_eq!(padded(&Header::decode(&in_padding).unwrap()), in_padding);
    }

    #[test]
    fn unknown_compatible_and_autoclear_bits_are_kept() {
        let cluster = patched(&patched(&real("base.qcow2"), 80, &[0xf0; 7]), 88, &[0x0f; 7]);
        let header = Header::decode(&cluster).unwrap();
        assert_eq!(header.compatible.unknown(), 0xf0f0_f0f0_f0f0_f000);
        assert_eq!(padded(&header), cluster);
    }

    #[test]
    fn unknown_incompatible_bits_are_named_and_not_refused() {
        let cluster = patched(&real("base.qcow2"), 72, &[0, 0, 1, 0, 0, 0, 0, 0x21]);
        let header = Header::decode(&cluster).unwrap();
        assert_eq!(header.unknown_incompatible(), ["bit 5", "bit 40"]);
        let mut table = vec![0, 40];
        table.extend(b"time \x1b[31mtravel");
        table.resize(48, 0);
        let mut header = header;
        header.extensions.push(Extension { kind: Extension::FEATURE_NAMES, data: table });
        assert_eq!(header.unknown_incompatible(), ["bit 5", "time \u{fffd}[31mtravel"]);
    }

    #[test]
    fn a_name_that_ends_with_the_cluster_is_read() {
        let base = real("base.qcow2");
        let mut cluster = patched(&base, 4096 - 5, b"x.raw");
        cluster = patched(&cluster, 8, &(4096_u64 - 5).to_be_bytes());
        cluster = patched(&cluster, 16, &5_u32.to_be_bytes());
        assert_eq!(Header::decode(&cluster).unwrap().backing_file, Some(b"x.raw".to_vec()));
        cluster = patched(&cluster, 16, &6_u32.to_be_bytes());
        assert_eq!(Header::decode(&cluster), Err(HeaderError::BackingNameLength { len: 6, room: 5 }));
    }

    #[test]
    fn an_empty_name_is_no_backing_file() {
        let cluster = patched(&real("bm.qcow2"), 16, &[0; 4]);
        assert_eq!(Header::decode(&cluster).unwrap().backing_file, None);
    }

    #[test]
    fn the_name_ends_the_extensions_where_the_marker_is_missing() {
        let mut cluster = real("v2.qcow2");
        // The marker's eight bytes become part of the name, as very old images have it.
        cluster = patched(&cluster, 8, &88_u64.to_be_bytes());
        cluster = patched(&cluster, 88, b"abcdefghij");
        let header = Header::decode(&cluster).unwrap();
        assert_eq!(header.backing_file, Some(b"abcdefghij".to_vec()));
        assert_eq!(header.extensions.len(), 1);
    }

    #[test]
    fn each_contradiction_is_refused_by_its_name() {
        let base = real("base.qcow2");
        let bm = real("bm.qcow2");
        let refused = |cluster: &[u8], offset, bytes: &[u8]| {
            Header::decode(&patched(cluster, offset, bytes)).expect_err("a contradiction")
        };
        let word = u32::to_be_bytes;
        let long = u64::to_be_bytes;
        assert_eq!(refused(&base, 0, b"QFI "), HeaderError::Magic);
        assert_eq!(refused(&base, 4, &word(1)), HeaderError::Version(1));
        assert_eq!(refused(&base, 4, &word(4)), HeaderError::Version(4));
        assert!(matches!(refused(&base, 20, &word(8)), HeaderError::Geometry(_)));
        assert!(matches!(refused(&base, 20, &word(22)), HeaderError::Geometry(_)));
        assert!(matches!(refused(&base, 20, &word(u32::MAX)), HeaderError::Geometry(_)));
        assert!(matches!(refused(&base, 96, &word(7)), HeaderError::Geometry(_)));
        for length in [0, 72, 96, 108, 113, 4104, u32::MAX - 7] {
            let expected = HeaderError::HeaderLength { length, cluster_size: 4096 };
            assert_eq!(refused(&base, 100, &word(length)), expected);
        }
        assert_eq!(refused(&base, 104, &[2]), HeaderError::CompressionType(2));
        let mismatch = |compression| HeaderError::CompressionBit { compression };
        assert_eq!(refused(&base, 104, &[1]), mismatch(CompressionType::Zstd));
        assert_eq!(refused(&base, 79, &[8]), mismatch(CompressionType::Deflate));
        assert_eq!(refused(&base, 79, &[16]), HeaderError::SubclusterSize { cluster_size: 4096 });
        assert_eq!(refused(&base, 95, &[2]), HeaderError::NoRawDataFile);
        assert_eq!(Header::decode(&patched(&base, 95, &[1])).unwrap().bitmaps(), None);
        assert!(matches!(refused(&bm, 136, &word(0)), HeaderError::Bitmaps { .. }));
        for offset in [1, 111, 4097, u64::MAX] {
            assert_eq!(refused(&base, 8, &long(offset)), HeaderError::BackingNamePlace { offset });
        }
        let too_long = HeaderError::BackingNameLength { len: 1024, room: 1023 };
        assert_eq!(refused(&bm, 16, &word(1024)), too_long);
        let cut = HeaderError::ExtensionTooLarge { kind: Extension::BITMAPS, len: 0x19, available: 32 };
        assert_eq!(refused(&patched(&bm, 135, &[0x19]), 8, &long(160)), cut);
        assert_eq!(refused(&bm, 8, &long(116)), HeaderError::ExtensionsCut { available: 4 });
        let twice = HeaderError::ExtensionTwice { kind: Extension::BACKING_FORMAT, name: "backing format" };
        assert_eq!(refused(&bm, 128, &word(Extension::BACKING_FORMAT)), twice);
    }

    #[test]
    fn tables_out_of_bounds_are_refused_by_their_name() {
        let base = real("base.qcow2");
        let refused = |offset, bytes: &[u8]| {
            Header::decode(&patched(&base, offset, bytes)).expect_err("a table out of bounds").to_string()
        };
        let word = u32::to_be_bytes;
        let long = u64::to_be_bytes;
        let past = 0x7fff_ffff_ffff_f000_u64;
        for (offset, table) in [(40, "L1 table"), (48, "refcount table"), (64, "snapshot table")] {
            let unaligned = format!("the {table} at file offset 0x1001 does not start at a cluster boundary");
            assert_eq!(refused(offset, &long(0x1001)), unaligned);
            let too_far =
                format!("the {table} at file offset {:#x} lies past the largest file offset", 1_u64 << 63);
            assert_eq!(refused(offset, &long(1 << 63)), too_far);
        }
        assert!(refused(48, &long(past)).contains("past the largest"), "its first byte is not, its last is");
        assert!(refused(40, &long(0)).contains("within the header's cluster"));
        assert!(refused(48, &long(0)).contains("within the header's cluster"));
        assert!(refused(60, &word(1)).contains("within the header's cluster"), "a snapshot, and no table");
        assert_eq!(refused(56, &word(0)), "the image has no refcount table");
        assert_eq!(refused(56, &word(2049)), "the refcount table has 8392704 bytes; the limit is 8388608");
        assert_eq!(
            refused(36, &word((4 << 20) + 1)),
            "the L1 table has 33554440 bytes; the limit is 33554432"
        );
        assert_eq!(refused(60, &word(65537)), "the image has 65537 snapshots; the limit is 65536");
        assert!(refused(36, &word(0)).contains("needs 1"));
        assert!(refused(24, &long(u64::MAX)).starts_with("the L1 table has 1 entries"));
        let at_limit = patched(&patched(&base, 36, &word(4 << 20)), 56, &word(2048));
        assert!(Header::decode(&at_limit).is_ok());
    }

    #[test]
    fn an_image_with_subclusters_needs_twice_the_l1_entries() {
        let mut header = Header::decode(&real("v2plain.qcow2")).unwrap();
        header.version = Version::V3;
        header.incompatible = Incompatible::EXTENDED_L2;
        assert!(matches!(header.encode(), Err(HeaderError::L1TooSmall { entries: 2, needed: 4, .. })));
        header.l1_entries = 4;
        assert!(header.encode().is_ok());
    }

    #[test]
    fn a_file_that_ends_within_its_header_is_truncated_and_nothing_worse() {
        let cluster = real("bm.qcow2");
        let end = 168 + 10;
        for len in 0..end {
            let error = Header::decode(&cluster[..len]).unwrap_err();
            match len {
                0..4 => assert_eq!(error, HeaderError::Magic),
                _ => assert!(matches!(error, HeaderError::Truncated { .. }), "{len}: {error}"),
            }
        }
        assert_eq!(Header::decode(&cluster[..end]), Header::decode(&cluster));
    }

    #[test]
    fn version_2_loses_nothing_without_a_word() {
        let mut header = Header::decode(&real("zstd.qcow2")).unwrap();
        header.version = Version::V2;
        assert!(matches!(header.encode(), Err(HeaderError::NeedsVersion3 { .. })));
    }

    #[test]
    fn a_header_that_does_not_fit_in_its_cluster_is_not_encoded() {
        let mut header = Header::decode(&real("base.qcow2")).unwrap();
        header.extensions.push(Extension { kind: 1, data: vec![1; 4096 - 112 - 8 - 8] });
        assert_eq!(header.encode().unwrap().len(), 4096);
        header.set_backing(Some(b"a"), None);
        assert_eq!(header.encode(), Err(HeaderError::TooLarge { bytes: 4097, cluster_size: 4096 }));
        header.set_backing(Some(&[b'a'; 1024]), None);
        assert_eq!(header.encode(), Err(HeaderError::BackingNameLength { len: 1024, room: 1023 }));
    }

    #[test]
    fn the_backing_format_goes_before_all_other_extensions() {
        let mut header = Header::decode(&real("bm.qcow2")).unwrap();
        header.extensions.reverse();
        header.set_backing(Some(b"other.img"), Some(b"raw"));
        assert_eq!(header.backing_file.as_deref(), Some(b"other.img".as_slice()));
        assert_eq!(header.backing_format(), Some(b"raw".as_slice()));
        assert_eq!(header.extensions[0].kind, Extension::BACKING_FORMAT);
        assert_eq!(header.extensions[1].kind, Extension::BITMAPS);
        header.set_backing(Some(b"other.img"), Some(b""));
        assert_eq!(header.backing_format(), Some(b"".as_slice()));
        header.set_backing(None, Some(b"raw"));
        assert_eq!((header.backing_file.as_ref(), header.backing_format()), (None, None));
        assert_eq!(header.extensions.len(), 1);
    }

    #[test]
    fn the_cluster_size_can_be_seen_before_the_rest_is_read() {
        let cluster = real("v2.qcow2");
        assert_eq!(Header::cluster_bits_of(&cluster[..24]), Some(16));
        assert_eq!(Header::cluster_bits_of(&cluster[..23]), None);
        assert_eq!(Header::cluster_bits_of(&patched(&cluster, 4, &[0, 0, 0, 1])), None);
        assert_eq!(Header::cluster_bits_of(&patched(&cluster, 0, b"X")), None);
        assert_eq!(Header::cluster_bits_of(&patched(&cluster, 23, &[8])), None);
    }

    #[test]
    fn fields_set_out_of_bounds_by_hand_do_no_harm() {
        let mut header = Header::decode(&real("base.qcow2")).unwrap();
        header.cluster_bits = u32::MAX;
        header.refcount_order = 99;
        assert_eq!(header.geometry(), Geometry::new(21, 6).unwrap());
        assert!(matches!(header.encode(), Err(HeaderError::Geometry(_))));
    }

    fn any_extension() -> impl Strategy<Value = Extension> {
        let kind = prop_oneof![
            select(vec![
                Extension::BACKING_FORMAT,
                Extension::FEATURE_NAMES,
                Extension::BITMAPS,
                Extension::ENCRYPTION,
                Extension::DATA_FILE,
            ]),
            1..=u32::MAX,
        ];
        (kind, vec(any::<u8>(), 0..40)).prop_map(|(kind, data)| Extension { kind, data })
    }

    /// Extensions with no known kind twice.
    fn any_extensions() -> impl Strategy<Value = Vec<Extension>> {
        vec(any_extension(), 0..4)
            .prop_filter("a known kind twice", |extensions| extensions::check_list(extensions).is_ok())
    }

    prop_compose! {
        /// Everything that both versions have.
        fn any_version_2()(
            cluster_bits in 9_u32..=21,
            l1_entries in 0_u32..=1 << 22,
            size in any::<prop::sample::Index>(),
            clusters in prop::array::uniform3(1_u64..1 << 40),
            (refcount_table_clusters, snapshot_count) in (1_u32..=4, 0_u32..=65536),
            crypt in prop_oneof![0_u32..3, any::<u32>()],
            extensions in any_extensions(),
            backing_file in prop::option::of(vec(any::<u8>(), 1..=60)),
        ) -> Header {
            let g = Geometry::new(cluster_bits, 4).unwrap();
            let [l1_table, refcount_table, snapshot_table] = clusters.map(|n| g.host_offset(HostCluster(n)));
            Header {
                version: Version::V2,
                cluster_bits,
                size: size.index(usize::MAX) as u64 % (u64::from(l1_entries) * g.l2_coverage() + 1),
                crypt_method: CryptMethod::from_code(crypt),
                l1_entries,
                l1_table,
                refcount_table,
                refcount_table_clusters,
                snapshot_count,
                snapshot_table,
                incompatible: Incompatible(0),
                compatible: Compatible(0),
                autoclear: Autoclear(0),
                refcount_order: 4,
                compression: CompressionType::Deflate,
                unknown_fields: Vec::new(),
                header_length: LENGTH_V2,
                extensions,
                backing_file,
            }
        }
    }

    prop_compose! {
        fn any_version_3()(
            base in any_version_2(),
            features in prop::array::uniform3(any::<u64>()),
            refcount_order in 0_u32..=6,
            compression in select(vec![CompressionType::Deflate, CompressionType::Zstd]),
            header_length in select(vec![104_u32, 112, 120, 136]),
            unknown_fields in vec(any::<u8>(), 31),
        ) -> Header {
            let [incompatible, compatible, autoclear] = features;
            let longest = (header_length as usize).saturating_sub(KNOWN_LENGTH);
            let compression = if longest == 0 { CompressionType::Deflate } else { compression };
            let incompatible = Incompatible(incompatible)
                .without(Incompatible::EXTENDED_L2)
                .without(Incompatible::COMPRESSION);
            let zstd = compression == CompressionType::Zstd;
            let unknown_fields = &unknown_fields[..longest];
            Header {
                version: Version::V3,
                incompatible: if zstd { incompatible.with(Incompatible::COMPRESSION) } else { incompatible },
                compatible: Compatible(compatible),
                autoclear: Autoclear(autoclear).without(Autoclear::BITMAPS).without(Autoclear::DATA_FILE_RAW),
                refcount_order,
                compression,
                unknown_fields: if is_zero(unknown_fields) { Vec::new() } else { unknown_fields.to_vec() },
                header_length,
                ..base
            }
        }
    }

    fn any_header() -> impl Strategy<Value = Header> {
        prop_oneof![any_version_2(), any_version_3()]
    }

    proptest! {
        #[test]
        fn a_header_survives_encoding(header in any_header()) {
            match header.encode() {
                Ok(bytes) => {
                    prop_assert_eq!(&Header::decode(&bytes).unwrap(), &header);
                    prop_assert_eq!(Header::decode(&padded(&header)).unwrap(), header);
                }
                Err(error) => {
                    let too_large = matches!(error, HeaderError::TooLarge { .. });
                    prop_assert!(too_large && header.cluster_bits == 9, "{}", error);
                }
            }
        }

        #[test]
        fn bytes_as_qemu_lays_them_out_survive_decoding(header in any_header()) {
            if let Ok(bytes) = header.encode() {
                prop_assert_eq!(Header::decode(&bytes).unwrap().encode().unwrap(), bytes);
            }
        }

        /// Whatever becomes of the bytes, decoding answers; and what it accepts means the same when it is written.
        #[test]
        fn a_damaged_header_is_refused_or_understood(
            header in any_header(),
            damage in vec((0_usize..200, any::<u8>()), 1..6),
            len in 0_usize..700,
        ) {
            let Ok(mut bytes) = header.encode() else { return Ok(()) };
            for (offset, value) in damage {
                if let Some(byte) = bytes.get_mut(offset) {
                    *byte = value;
                }
            }
            bytes.truncate(len);
            if let Ok(header) = Header::decode(&bytes) {
                match header.encode() {
                    Ok(again) => prop_assert_eq!(Header::decode(&again).unwrap(), header),
                    Err(error) => {
                        let too_large = matches!(error, HeaderError::TooLarge { .. });
                        prop_assert!(too_large, "{}", error);
                    }
                }
            }
        }

        #[test]
        fn decoding_never_panics(version in 2_u8..4, bits in 9_u8..22, rest in vec(any::<u8>(), 0..600)) {
            let mut bytes = rest;
            let start = [b'Q', b'F', b'I', 0xfb, 0, 0, 0, version];
            for (to, from) in bytes.iter_mut().zip(start) {
                *to = from;
            }
            for (to, from) in bytes.iter_mut().skip(20).zip([0, 0, 0, bits]) {
                *to = from;
            }
            let _ = Header::decode(&bytes);
            let _ = Header::cluster_bits_of(&bytes);
        }
    }
}
