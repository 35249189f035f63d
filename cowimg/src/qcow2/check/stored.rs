//! The refcounts as the image stores them: the whole refcount table, and its blocks in small pieces as they are asked
//! for.
//!
//! Nothing is taken on trust here: a block that cannot be read has no refcounts, which is a finding of its own.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::ledger::Subject;
use crate::error::{Error, Result};
use crate::format::qcow2::{HostCluster, refcounts};

/// Offsets from here on cannot be read on any host; the room left lets every structure end below 2^63.
const OFFSET_LIMIT: u64 = (1 << 63) - (1 << 30);
/// Reserved bits of an entry of the refcount table. They are reported once, and passed over when a refcount is read.
const RESERVED: u64 = 0x1ff;
/// Bytes of a refcount block that are kept together (4 KiB), and how many such pieces are kept.
const PIECE_BITS: u32 = 12;
const PIECES: u64 = 1024;

/// Where the refcounts of some clusters are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Block {
    /// There is no block: they are all zero.
    Absent,
    /// In the block that starts here.
    At(u64),
    /// In a block that cannot be read.
    Unusable {
        /// Where it is said to start.
        host: u64,
        /// Why it cannot.
        why: &'static str,
    },
}

/// A piece of a block in memory.
#[derive(Debug)]
struct Piece {
    host: u64,
    bytes: Box<[u8]>,
}

/// The refcounts that an image stores.
#[derive(Debug)]
pub(super) struct StoredRefcounts<'a> {
    subject: Subject<'a>,
    table: Arc<[u64]>,
    pieces: Vec<Option<Piece>>,
}

impl<'a> StoredRefcounts<'a> {
    /// Reads the refcount table. Without it there is nothing to check against, so this fails where it cannot.
    pub(super) fn read(subject: Subject<'a>) -> Result<StoredRefcounts<'a>> {
        let header = subject.header;
        let len = u64::from(header.refcount_table_clusters) * subject.geometry.cluster_size();
        // Past the end of the file there are no entries; a table that is said to be there takes no memory.
        let len = len.min(subject.file_len.saturating_sub(header.refcount_table.0).next_multiple_of(8));
        let mut bytes = vec![0; len as usize];
        subject
            .read(&mut bytes, header.refcount_table.0)
            .map_err(|e| Error::io("read the refcount table", e))?;
        let table =
            bytes.chunks_exact(8).map(|raw| u64::from_be_bytes(raw.try_into().expect("chunks of eight")));
        let pieces = (0..PIECES).map(|_| None).collect();
        Ok(StoredRefcounts { subject, table: table.collect(), pieces })
    }

    /// The same refcounts, to be read apart from these.
    pub(super) fn again(&self) -> StoredRefcounts<'a> {
        let pieces = (0..PIECES).map(|_| None).collect();
        StoredRefcounts { subject: self.subject, table: Arc::clone(&self.table), pieces }
    }

    /// The image that they are in.
    pub(super) fn subject(&self) -> &Subject<'a> {
        &self.subject
    }

    /// The entries of the refcount table.
    pub(super) fn table(&self) -> &[u64] {
        &self.table
    }

    /// Where the refcounts are that the table's entry `index` is for.
    pub(super) fn block(&self, index: u64) -> Block {
        let geometry = self.subject.geometry;
        let raw = usize::try_from(index).ok().and_then(|index| self.table.get(index));
        match raw.map_or(0, |raw| raw & !RESERVED) {
            0 => Block::Absent,
            host if !geometry.is_aligned(host) => {
                Block::Unusable { host, why: "it does not start at a cluster boundary" }
            }
            host if host > OFFSET_LIMIT - geometry.cluster_size() => {
                Block::Unusable { host, why: "no file is that long" }
            }
            host => Block::At(host),
        }
    }

    /// The refcount of a cluster; `None` where it cannot be read.
    pub(super) fn get(&mut self, cluster: u64) -> Option<u64> {
        let geometry = self.subject.geometry;
        let host = match self.block(geometry.refcount_table_index(HostCluster(cluster))) {
            Block::Absent => return Some(0),
            Block::Unusable { .. } => return None,
            Block::At(host) => host,
        };
        let index = geometry.refcount_index(HostCluster(cluster));
        let piece_bits = PIECE_BITS.min(geometry.cluster_bits());
        let per_piece_bits = piece_bits + 3 - geometry.refcount_order();
        let bytes = self.piece(host + (index >> per_piece_bits << piece_bits), piece_bits).ok()?;
        refcounts::get(bytes, geometry.refcount_order(), index & ((1 << per_piece_bits) - 1))
    }

    /// Whether every one of `clusters` has a refcount that can be read and is exactly 1.
    pub(super) fn are_one(&mut self, clusters: Range<u64>) -> bool {
        let geometry = self.subject.geometry;
        let (order, piece_bits) = (geometry.refcount_order(), PIECE_BITS.min(geometry.cluster_bits()));
        let per_piece = 1 << (piece_bits + 3 - order);
        let mut first = clusters.start;
        while first < clusters.end {
            let Block::At(host) = self.block(geometry.refcount_table_index(HostCluster(first))) else {
                return false;
            };
            let index = geometry.refcount_index(HostCluster(first));
            let (piece, in_piece) = (index / per_piece, index % per_piece);
            let count = (per_piece - in_piece).min(clusters.end - first);
            let Ok(bytes) = self.piece(host + (piece << piece_bits), piece_bits) else { return false };
            if !refcounts::all_are(bytes, order, (in_piece, count), 1) {
                return false;
            }
            first += count;
        }
        true
    }

    fn piece(&mut self, host: u64, piece_bits: u32) -> io::Result<&[u8]> {
        let slot = ((host >> piece_bits) % PIECES) as usize;
        if self.pieces[slot].as_ref().is_none_or(|piece| piece.host != host) {
            let mut bytes = vec![0; 1 << piece_bits].into_boxed_slice();
            self.subject.read(&mut bytes, host)?;
            self.pieces[slot] = Some(Piece { host, bytes });
        }
        let piece = self.pieces[slot].as_ref().expect("the slot has just been filled");
        Ok(&piece.bytes)
    }
}
