//! Compressing the clusters of a piece.

use crate::chain::Image;
use crate::error::{Error, Result};
use crate::zero_scan::is_zero;

/// Compresses for a target.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packing<'a> {
    target: &'a Image,
    pub(super) cluster_size: u64,
}

/// What became of a cluster.
#[derive(Debug)]
pub(super) enum Packed {
    /// It is all zeroes, and need not be stored.
    Zero,
    /// It does not get smaller.
    TooLarge,
    /// Its compressed bytes.
    Bytes(Vec<u8>),
}

impl<'a> Packing<'a> {
    /// The target's way.
    pub(super) fn of(target: &'a Image) -> Result<Packing<'a>> {
        match target.cluster_size().filter(|_| target.compression().is_some()) {
            Some(cluster_size) => Ok(Packing { target, cluster_size }),
            None => Err(Error::unsupported("a raw image cannot be compressed; use the format qcow2")),
        }
    }

    /// The clusters of `buf`, compressed; the last one may be the last of a disk and shorter than others.
    pub(super) fn pack_all(self, buf: &[u8], zeroes: Zeroes) -> Result<Vec<Packed>> {
        buf.chunks(self.cluster_size as usize)
            .map(|cluster| match zeroes {
                Zeroes::LeftOut if is_zero(cluster) => Ok(Packed::Zero),
                _ => Ok(self.target.pack(cluster)?.map_or(Packed::TooLarge, Packed::Bytes)),
            })
            .collect()
    }
}

/// What becomes of clusters that are all zeroes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Zeroes {
    /// They are not stored.
    LeftOut,
    /// They are stored as any other.
    Stored,
}
