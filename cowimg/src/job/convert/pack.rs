//! Compressing the clusters of a piece.

use super::super::zero_scan::is_zero;
use crate::chain::Image;
use crate::codec;
use crate::error::{Error, Result};
use crate::format::qcow2::CompressionType;

/// How the target compresses.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packing {
    kind: CompressionType,
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

impl Packing {
    /// The target's way.
    pub(super) fn of(target: &Image) -> Result<Packing> {
        match (target.compression(), target.cluster_size()) {
            (Some(kind), Some(cluster_size)) => Ok(Packing { kind, cluster_size }),
            _ => Err(Error::unsupported("a raw image cannot be compressed; use the format qcow2")),
        }
    }

    /// The clusters of `buf`, compressed; zeroes are told apart if `find_zeroes`.
    pub(super) fn pack_all(self, buf: &[u8], zeroes: Zeroes) -> Result<Vec<Packed>> {
        let cluster_size = self.cluster_size as usize;
        let mut room = vec![0; cluster_size - 1];
        buf.chunks(cluster_size).map(|cluster| self.pack(cluster, zeroes, &mut room)).collect()
    }

    /// Compresses one cluster; the last one of a disk is padded with zeroes.
    fn pack(self, cluster: &[u8], zeroes: Zeroes, room: &mut [u8]) -> Result<Packed> {
        if zeroes == Zeroes::LeftOut && is_zero(cluster) {
            return Ok(Packed::Zero);
        }
        let padded;
        let whole = if cluster.len() as u64 == self.cluster_size {
            cluster
        } else {
            padded = [cluster, &vec![0; self.cluster_size as usize - cluster.len()]].concat();
            &padded
        };
        let len = codec::compress(self.kind, whole, room)
            .map_err(|error| Error::unsupported(format!("could not compress a cluster: {error}")))?;
        Ok(len.map_or(Packed::TooLarge, |len| Packed::Bytes(room[..len].to_vec())))
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
