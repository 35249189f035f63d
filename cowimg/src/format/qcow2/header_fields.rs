//! Header fields that change while an image is in use, each as one write within the header's first sector (rule W5).
//!
//! | bytes | fields | changes |
//! |---|---|---|
//! | 24..72 | all of the table's next three lines | a change of many tables at once (a snapshot) |
//! | 24..48 | size, crypt_method, l1_size, l1_table_offset | resize |
//! | 48..60 | refcount_table_offset, refcount_table_clusters | the refcount table moves |
//! | 60..72 | nb_snapshots, snapshots_offset | with the above |
//! | 72..80 | incompatible_features | an image is repaired |
//! | 88..96 | autoclear_features | before the first change of an image |

use super::address::HostOffset;
use super::features::{Autoclear, Incompatible};
use super::header::Header;

/// Offset within the file, and the bytes to write there.
pub type FieldWrite = (u64, Vec<u8>);

/// The fields that say how large the disk is and where its L1 table stands.
pub fn size_and_l1_table(header: &Header) -> FieldWrite {
    let mut bytes = header.size.to_be_bytes().to_vec();
    bytes.extend(header.crypt_method.code().to_be_bytes());
    bytes.extend(header.l1_entries.to_be_bytes());
    bytes.extend(header.l1_table.get().to_be_bytes());
    (24, bytes)
}

/// The pointer to the refcount table.
pub fn refcount_table(offset: HostOffset, clusters: u32) -> FieldWrite {
    let mut bytes = offset.get().to_be_bytes().to_vec();
    bytes.extend(clusters.to_be_bytes());
    (48, bytes)
}

/// The fields that say how large the disk is and where all tables stand.
pub fn size_and_tables(header: &Header) -> FieldWrite {
    let (start, mut bytes) = size_and_l1_table(header);
    bytes.extend(refcount_table(header.refcount_table, header.refcount_table_clusters).1);
    bytes.extend(header.snapshot_count.to_be_bytes());
    bytes.extend(header.snapshot_table.get().to_be_bytes());
    (start, bytes)
}

/// The incompatible feature bits (version 3 only).
pub fn incompatible(features: Incompatible) -> FieldWrite {
    (72, features.0.to_be_bytes().to_vec())
}

/// The autoclear feature bits (version 3 only).
pub fn autoclear(features: Autoclear) -> FieldWrite {
    (88, features.0.to_be_bytes().to_vec())
}
