//! How much an image may ask for: a value that whoever opens images from strangers can lower.

use crate::error::{Error, ErrorKind, Result};

/// Bounds on what one image may cost the process that opens it. The default is the most that the format allows, so that every
/// image that other programs open is opened; a server lowers what its images do not need.
///
/// ```
/// # use cowimg::{Image, Limits};
/// let small = Limits::default().metadata_bytes(1 << 20).chain_depth(8).snapshots(16).bitmaps(4);
/// let options = Image::options().limits(small.key_iterations(20_000_000));
/// ```
///
/// What is cached of tables that are not in memory whole is bounded by
/// [`OpenOptions::cache_size`](crate::OpenOptions::cache_size), for each layer.
///
/// Checking, planning and repairing ([`CheckedFile`](crate::check::CheckedFile), [`crate::check`]) refuse the same images for the same
/// limits, and have [`Limits::check_bytes`] for what they count. Nothing is changed where one of them is passed before the
/// first change. Damage is no excuse: a table that a damaged header claims is judged as soon as it is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    metadata_bytes: u64,
    chain_depth: usize,
    snapshots: u32,
    bitmaps: u32,
    key_iterations: u64,
    check_bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            metadata_bytes: 64 << 20,
            chain_depth: 256,
            snapshots: 65_536,
            bitmaps: 65_535,
            key_iterations: u64::MAX,
            check_bytes: u64::MAX,
        }
    }
}

impl Limits {
    /// The most bytes of each table that is in memory whole: the L1 table, the refcount table, the snapshot table, the bitmap
    /// directory, and the tables of all bitmaps together; 64 MiB by default. (The format has lower ones for the first two:
    /// 32 MiB and 8 MiB.) An L1 table has 8 bytes for each 512 MiB of disk, with clusters of 64 KiB. A repair holds the
    /// tables to it that it makes anew. The tables of bitmaps are read in pieces by a check, and not judged there.
    #[must_use]
    pub fn metadata_bytes(self, bytes: u64) -> Limits {
        Limits { metadata_bytes: bytes, ..self }
    }

    /// The most layers of a chain, the image itself included; 256 by default. Each layer has a file open, and
    /// reading through many of them takes stack space in proportion.
    #[must_use]
    pub fn chain_depth(self, layers: usize) -> Limits {
        Limits { chain_depth: layers, ..self }
    }

    /// The most internal snapshots of an image; 65,536 by default, which is the most that the format is read with.
    #[must_use]
    pub fn snapshots(self, count: u32) -> Limits {
        Limits { snapshots: count, ..self }
    }

    /// The most persistent bitmaps of an image; 65,535 by default, which is the most that the format is read with.
    #[must_use]
    pub fn bitmaps(self, count: u32) -> Limits {
        Limits { bitmaps: count, ..self }
    }

    /// The most iterations of a hash that opening an encrypted image may take for each place that states a number of them: all
    /// key slots in use together, and the digest of the key. What the image says by default. A processor does some
    /// millions in a second; a slot is usually made to take two seconds.
    #[must_use]
    pub fn key_iterations(self, iterations: u64) -> Limits {
        Limits { key_iterations: iterations, ..self }
    }

    /// The most bytes of memory in which a check, a plan or a repair counts references to clusters; what it takes by default.
    /// That is half a byte for each cluster of the file that anything refers to, eight bytes with many snapshots, and
    /// 48 bytes for each thousand clusters of the file's length.
    /// A repair that looks for a lost L1 table may have three such counts at a time.
    #[must_use]
    pub fn check_bytes(self, bytes: u64) -> Limits {
        Limits { check_bytes: bytes, ..self }
    }

    /// The most layers of a chain.
    pub(crate) fn layers(&self) -> usize {
        self.chain_depth
    }

    /// The most bytes of one table.
    pub(crate) fn table_bytes(&self) -> u64 {
        self.metadata_bytes
    }

    /// The most bytes of memory of counted references.
    pub(crate) fn count_bytes(&self) -> u64 {
        self.check_bytes
    }

    /// Refuses counts of references that would take more bytes of memory than they may.
    pub(crate) fn check_counts(&self, bytes: u64) -> Result<()> {
        let what = "counting the references to its clusters";
        check((what, "bytes of memory"), bytes, ("check_bytes", self.check_bytes))
    }

    /// Refuses a table that would take more bytes of memory than one may.
    pub(crate) fn check_table(&self, what: &'static str, bytes: u64) -> Result<()> {
        check((what, "bytes of memory"), bytes, ("metadata_bytes", self.metadata_bytes))
    }

    /// Refuses more snapshots than there may be.
    pub(crate) fn check_snapshots(&self, count: u32) -> Result<()> {
        check(("the snapshot table", "snapshots"), count.into(), ("snapshots", self.snapshots.into()))
    }

    /// Refuses more bitmaps than there may be.
    pub(crate) fn check_bitmaps(&self, count: u32) -> Result<()> {
        check(("the bitmap directory", "bitmaps"), count.into(), ("bitmaps", self.bitmaps.into()))
    }

    /// Refuses keys that take longer than they may.
    pub(crate) fn check_iterations(&self, what: &'static str, iterations: u64) -> Result<()> {
        check((what, "iterations of the hash"), iterations, ("key_iterations", self.key_iterations))
    }
}

fn check(
    (what, unit): (&'static str, &'static str),
    amount: u64,
    (name, limit): (&'static str, u64),
) -> Result<()> {
    if amount <= limit {
        return Ok(());
    }
    Err(Error::new(ErrorKind::OverLimit { what, amount, unit, name, limit }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_says_what_is_refused_and_which_limit_it_is() {
        let limits = Limits::default().metadata_bytes(4096);
        limits.check_table("the L1 table", 4096).unwrap();
        let refused = limits.check_table("the L1 table", 4097).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the L1 table takes 4097 bytes of memory, and the limit metadata_bytes is 4096: raise it to open an image whose \
             maker is trusted"
        );
    }
}
