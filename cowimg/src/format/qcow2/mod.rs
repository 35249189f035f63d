//! The structures of a qcow2 file: bytes to values and back.
//!
//! ```text
//! header ──> L1 table ──> L2 tables ──> guest clusters        header, l1_entry, l2_entry
//!    ├─────> refcount table ──> refcount blocks               refcounts
//!    ├─────> snapshot table ──> more L1 tables                snapshot
//!    └─ extensions: formats, names, bitmaps                   extensions, features, bitmap
//! ```
//!
//! What a value says is checked where it is decoded, as far as one structure alone can be checked. Whether two
//! structures agree (a table past the end of the file, two owners of one cluster) is for the engine to see.
//!
//! Start at [`Header::decode`]; [`Geometry`] has the arithmetic.

mod address;
mod bitmap;
mod extensions;
pub mod features;
mod geometry;
mod header;
pub mod header_fields;
mod l1_entry;
mod l2_entry;
pub mod layout;
pub mod refcounts;
mod snapshot;
mod subclusters;
mod words;

pub use address::{GuestCluster, GuestOffset, HostCluster, HostOffset};
pub use bitmap::{BitmapDirectoryError, BitmapEntry, BitmapTableEntry};
pub use extensions::{BitmapsExtension, Extension};
pub use features::{Autoclear, Compatible, FeatureKind, FeatureNames, Incompatible, name_table_extension};
pub use geometry::{
    Geometry, GeometryError, MAX_CLUSTER_BITS, MAX_REFCOUNT_ORDER, MIN_CLUSTER_BITS, SUBCLUSTERS,
    TABLE_ENTRY_SIZE,
};
pub use header::{CompressionType, CryptMethod, Header, HeaderError, Version};
pub use l1_entry::{L1Entry, L1EntryError};
pub use l2_entry::{Allocated, CompressedRun, L2Entry, L2EntryError, RawL2Entry};
pub use refcounts::{RefcountTableEntryError, decode_refcount_table_entry};
pub use snapshot::{Snapshot, SnapshotError, SnapshotExtra};
pub use subclusters::{Divided, SubclusterState, Subclusters};
pub use words::encode_words;
