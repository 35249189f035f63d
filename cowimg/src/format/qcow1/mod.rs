//! The structures of a qcow file of version 1: bytes to values.
//!
//! ```text
//! header ──> L1 table ──> L2 tables ──> guest clusters
//!    └─────> name of the backing file
//! ```
//!
//! The format has no refcounts, no extensions and no alignment: a table or a compressed cluster may start at any byte.
//! All numbers are big-endian. Nothing here writes: images of this version are read, to be converted to a later one.
//!
//! Start at [`Header::decode`].

mod entry;
mod header;

pub use entry::{ClusterEntry, EntryError};
pub use header::{CryptMethod, Header, HeaderError};
