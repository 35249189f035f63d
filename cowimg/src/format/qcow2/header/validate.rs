//! What a header must be for the engine to rely on it.

use super::{CompressionType, Header, HeaderError, Version};
use crate::format::qcow2::address::HostOffset;
use crate::format::qcow2::extensions::{self, BitmapsExtension, Extension};
use crate::format::qcow2::features::{Autoclear, Compatible, Incompatible};
use crate::format::qcow2::geometry::{Geometry, TABLE_ENTRY_SIZE};

/// Subclusters have at least 512 bytes, and a cluster has 32 of them.
const MIN_EXTENDED_L2_CLUSTER_BITS: u32 = 14;
/// An entry of the snapshot table has at least this many bytes.
const MIN_SNAPSHOT_LEN: u64 = 40;

impl Header {
    /// Every check that the fields allow without the file. [`Header::decode`] and [`Header::encode`] do it; it is
    /// idempotent and cheap.
    pub(super) fn validate(&self) -> Result<(), HeaderError> {
        let extended_l2 = self.incompatible.contains(Incompatible::EXTENDED_L2);
        let geometry = Geometry::new(self.cluster_bits, self.refcount_order)?.with_extended_l2(extended_l2);
        self.check_version()?;
        self.check_features(geometry)?;
        self.check_tables(geometry)?;
        extensions::check_list(&self.extensions)?;
        self.check_bitmaps(geometry)?;
        self.check_data_file()?;
        self.check_backing_name()
    }

    /// Version 2 has no room for what version 3 added; it would be lost without a word.
    fn check_version(&self) -> Result<(), HeaderError> {
        if self.version == Version::V3 {
            return Ok(());
        }
        let no_features = (Incompatible(0), Compatible(0), Autoclear(0));
        let what = if (self.incompatible, self.compatible, self.autoclear) != no_features {
            "feature bits"
        } else if self.refcount_order != 4 {
            "refcounts of any width but 16 bits"
        } else if self.compression != CompressionType::Deflate {
            "a compression type"
        } else if !self.unknown_fields.is_empty() {
            "fields past its 72 bytes"
        } else {
            return Ok(());
        };
        Err(HeaderError::NeedsVersion3 { what })
    }

    fn check_features(&self, g: Geometry) -> Result<(), HeaderError> {
        if g.has_subclusters() && self.cluster_bits < MIN_EXTENDED_L2_CLUSTER_BITS {
            return Err(HeaderError::SubclusterSize { cluster_size: g.cluster_size() });
        }
        let bit = self.incompatible.contains(Incompatible::COMPRESSION);
        if bit != (self.compression != CompressionType::Deflate) {
            return Err(HeaderError::CompressionBit { compression: self.compression });
        }
        Ok(())
    }

    fn check_tables(&self, g: Geometry) -> Result<(), HeaderError> {
        if self.refcount_table_clusters == 0 {
            return Err(HeaderError::NoRefcountTable);
        }
        let refcount_table = Table {
            name: "refcount table",
            host: self.refcount_table,
            bytes: u64::from(self.refcount_table_clusters).saturating_mul(g.cluster_size()),
            limit: Header::MAX_REFCOUNT_TABLE_BYTES,
        };
        refcount_table.check(g)?;
        if self.snapshot_count > Header::MAX_SNAPSHOTS {
            return Err(HeaderError::TooManySnapshots { count: self.snapshot_count });
        }
        let snapshot_table = Table {
            name: "snapshot table",
            host: self.snapshot_table,
            bytes: u64::from(self.snapshot_count).saturating_mul(MIN_SNAPSHOT_LEN),
            limit: u64::MAX,
        };
        snapshot_table.check(g)?;
        let l1_table = Table {
            name: "L1 table",
            host: self.l1_table,
            bytes: u64::from(self.l1_entries).saturating_mul(TABLE_ENTRY_SIZE),
            limit: Header::MAX_L1_BYTES,
        };
        l1_table.check(g)?;
        let needed = g.l1_entries_for(self.size);
        if u64::from(self.l1_entries) < needed {
            return Err(HeaderError::L1TooSmall { entries: self.l1_entries, needed, size: self.size });
        }
        Ok(())
    }

    fn check_bitmaps(&self, g: Geometry) -> Result<(), HeaderError> {
        if !self.autoclear.contains(Autoclear::BITMAPS) {
            return Ok(());
        }
        // The bit without the extension says that no bitmap is out of date, which is true of none.
        if let Some(extension) = self.extensions.iter().find(|extension| extension.kind == Extension::BITMAPS)
        {
            BitmapsExtension::decode(&extension.data, g).map_err(|why| HeaderError::Bitmaps { why })?;
        }
        Ok(())
    }

    fn check_data_file(&self) -> Result<(), HeaderError> {
        let is_raw = self.autoclear.contains(Autoclear::DATA_FILE_RAW);
        if is_raw && !self.incompatible.contains(Incompatible::DATA_FILE) {
            return Err(HeaderError::NoRawDataFile);
        }
        Ok(())
    }

    fn check_backing_name(&self) -> Result<(), HeaderError> {
        let room = Header::MAX_BACKING_NAME;
        match self.backing_file.as_ref().map(|name| name.len() as u64) {
            Some(len) if len == 0 || len > room => Err(HeaderError::BackingNameLength { len, room }),
            _ => Ok(()),
        }
    }
}

/// A table that the header points at.
struct Table {
    name: &'static str,
    host: HostOffset,
    /// Its size, or the least that it can have.
    bytes: u64,
    limit: u64,
}

impl Table {
    /// Safe from here on: the table fits in memory, and its end does not overflow.
    fn check(&self, g: Geometry) -> Result<(), HeaderError> {
        let Table { name: table, host: HostOffset(host), bytes, limit } = *self;
        if bytes > limit {
            return Err(HeaderError::TableTooLarge { table, bytes, limit });
        }
        if !g.is_aligned(host) {
            return Err(HeaderError::TableUnaligned { table, host });
        }
        if bytes > 0 && host < g.cluster_size() {
            return Err(HeaderError::TableInHeader { table, host });
        }
        if host > (i64::MAX as u64).saturating_sub(bytes) {
            return Err(HeaderError::TablePastLimit { table, host });
        }
        Ok(())
    }
}
