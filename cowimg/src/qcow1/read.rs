//! The bytes of a range: each segment from where it is.

use std::sync::PoisonError;

use super::Qcow1;
use super::mapping::Source;
use crate::codec;
use crate::corruption::Corruption;
use crate::error::{Error, Result};
use crate::format::qcow2::CompressionType;
use crate::range::ByteRange;
use crate::storage::StorageExt;

/// The cluster that was decompressed last, and the part of the file that it came from.
#[derive(Debug, Default)]
pub(super) struct DecompressedCluster {
    packed: Option<(u64, u64)>,
    bytes: Vec<u8>,
}

impl Qcow1 {
    /// Fills `buf` from `offset`; the range lies within the disk.
    pub(super) fn read(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        while !buf.is_empty() {
            let range = ByteRange::between(offset, offset + buf.len() as u64);
            let segment = self.next_segment(range)?;
            let (part, rest) = buf.split_at_mut(segment.range.len() as usize);
            match segment.source {
                Source::Below => self.read_below(part, offset)?,
                Source::Host(host) => self.read_host(part, host, offset)?,
                Source::Compressed { host, len } => self.read_compressed(part, offset, (host, len))?,
            }
            offset += segment.range.len();
            buf = rest;
        }
        Ok(())
    }

    /// What the backing disk has, and zeroes past its end.
    fn read_below(&self, part: &mut [u8], offset: u64) -> Result<()> {
        let size = self.backing.as_ref().map_or(0, |backing| backing.size());
        let covered = size.saturating_sub(offset).min(part.len() as u64) as usize;
        let (below, past_end) = part.split_at_mut(covered);
        past_end.fill(0);
        match &self.backing {
            Some(backing) if !below.is_empty() => backing.read_at(below, offset).map_err(Error::of_below),
            _ => Ok(()),
        }
    }

    /// The file's last cluster may end before its boundary: what is missing is zeroes.
    fn read_host(&self, part: &mut [u8], host: u64, guest: u64) -> Result<()> {
        match &self.decrypted {
            None => self.storage.read_padded_at(part, host),
            // Sectors are numbered by their place on the guest's disk.
            Some(decrypted) => decrypted.read_shifted(part, host, guest.wrapping_sub(host)),
        }
        .map_err(|error| Error::io("read guest data", error))
    }

    /// Fills `part`, which lies within one cluster. A cluster that is asked for in pieces is decompressed once.
    fn read_compressed(&self, part: &mut [u8], offset: u64, packed: (u64, u64)) -> Result<()> {
        let cluster_size = self.cluster_size() as usize;
        if part.len() == cluster_size {
            return self.decompress(packed, offset, part);
        }
        let mut last = self.decompressed.lock().unwrap_or_else(PoisonError::into_inner);
        if last.packed != Some(packed) {
            last.packed = None;
            last.bytes.resize(cluster_size, 0);
            self.decompress(packed, offset, &mut last.bytes)?;
            last.packed = Some(packed);
        }
        let start = (offset & (self.cluster_size() - 1)) as usize;
        part.copy_from_slice(&last.bytes[start..start + part.len()]);
        Ok(())
    }

    fn decompress(&self, (host, len): (u64, u64), offset: u64, cluster: &mut [u8]) -> Result<()> {
        // Fewer than a cluster's bytes: the entry has no room for more.
        let mut packed = vec![0; len as usize];
        self.storage
            .read_padded_at(&mut packed, host)
            .map_err(|error| Error::io("read a compressed cluster", error))?;
        codec::decompress(CompressionType::Deflate, &packed, cluster).map_err(|_| {
            let guest = offset & !(self.cluster_size() - 1);
            Corruption::CompressedData { guest, host }.into()
        })
    }
}
