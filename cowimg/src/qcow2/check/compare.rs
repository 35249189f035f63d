//! The comparison of the references that were found with the refcounts that the image stores.

use std::ops::Range;

use super::issue::Finding;
use super::ledger::{Ledger, Role, Subject};
use super::sites::RefcountTableProblem;
use super::stored::{Block, StoredRefcounts};
use crate::format::qcow2::{
    Geometry, HostCluster, HostOffset, RefcountTableEntryError, decode_refcount_table_entry, refcounts,
};

/// Bytes of a refcount block that are compared at a time.
const PIECE: u64 = 64 << 10;

/// Counts the references to the refcount blocks. All others have been counted: nothing but the refcount table may refer
/// to a refcount block, and only once.
pub(super) fn refcount_blocks(subject: &Subject<'_>, stored: &StoredRefcounts<'_>, ledger: &mut Ledger) {
    let geometry = subject.geometry;
    for (index, &entry) in (0..).zip(stored.table()).filter(|&(_, &entry)| entry != 0) {
        let host = match block_of(entry, &geometry) {
            Ok(None) => continue,
            Ok(Some(host)) => host,
            Err(problem) => {
                ledger.needs_rebuild = true;
                ledger.report(Finding::RefcountTableEntry { index, entry, problem });
                continue;
            }
        };
        let cluster = geometry.host_cluster(host).0;
        if cluster >= ledger.references.clusters() {
            let problem = RefcountTableProblem::PastEnd;
            ledger.needs_rebuild = true;
            ledger.remember_past_end(host.0, geometry.cluster_size());
            ledger.report(Finding::RefcountTableEntry { index, entry, problem });
            continue;
        }
        ledger.add(Role::Refcounts, cluster, 1);
        let references = ledger.references.get(cluster).min(geometry.refcount_max());
        if references != 1 {
            ledger.needs_rebuild = true;
            ledger.report(Finding::SharedRefcountBlock { index, host: host.0, references });
        }
    }
    let structures = ledger.refcounts.counted(0..ledger.refcounts.clusters());
    ledger.needs_rebuild |= { structures }.any(|cluster| ledger.references.get(cluster) > 1);
}

/// The refcount block that an entry names.
fn block_of(entry: u64, geometry: &Geometry) -> Result<Option<HostOffset>, RefcountTableProblem> {
    if refcounts::table_entry_reserved_bits(entry) != 0 {
        return Err(RefcountTableProblem::ReservedBits);
    }
    decode_refcount_table_entry(entry, geometry).map_err(|error| match error {
        RefcountTableEntryError::Unaligned { .. } => RefcountTableProblem::Unaligned,
        RefcountTableEntryError::PastLimit { .. } => RefcountTableProblem::PastLimit,
    })
}

/// Compares, and returns the offset at which the highest cluster in use ends.
pub(super) fn compare(subject: &Subject<'_>, stored: &StoredRefcounts<'_>, ledger: &mut Ledger) -> u64 {
    let mut comparison = Comparison { subject, highest: 0 };
    let clusters = ledger.references.clusters();
    let per_block = subject.geometry.refcounts_per_block();
    let blocks = (stored.table().len() as u64).min(clusters.div_ceil(per_block));
    ledger.expect(blocks * subject.geometry.cluster_size());
    for index in 0..blocks {
        let first = index * per_block;
        if !ledger.advance(subject, subject.geometry.cluster_size()) {
            break;
        }
        let range = first..clusters.min(first + per_block);
        match stored.block(index) {
            Block::Absent => comparison.without_block(ledger, range),
            Block::Unusable { host, why } => {
                comparison.unknown(ledger, &UnknownBlock { index, host, why: why.to_owned() }, range);
            }
            Block::At(host) => comparison.with_block(ledger, index, host, range),
        }
    }
    let counted = (stored.table().len() as u64 * per_block).min(clusters);
    comparison.without_block(ledger, counted..clusters);
    subject.geometry.host_offset(HostCluster(comparison.highest + 1)).0
}

struct Comparison<'a> {
    subject: &'a Subject<'a>,
    /// The highest cluster with a refcount or a reference.
    highest: u64,
}

struct UnknownBlock {
    index: u64,
    host: u64,
    why: String,
}

impl Comparison<'_> {
    /// Clusters whose refcount is zero because there is no block: only those with references matter.
    fn without_block(&mut self, ledger: &mut Ledger, clusters: Range<u64>) {
        let mut next = ledger.references.next_counted(clusters.clone());
        while let Some(cluster) = next {
            ledger.needs_rebuild |= ledger.references.get(cluster) > 0;
            self.cluster(ledger, cluster, 0);
            next = ledger.references.next_counted(cluster + 1..clusters.end);
        }
    }

    fn with_block(&mut self, ledger: &mut Ledger, index: u64, host: u64, clusters: Range<u64>) {
        let geometry = self.subject.geometry;
        let piece_len = PIECE.min(geometry.cluster_size());
        let per_piece = piece_len * 8 / u64::from(geometry.refcount_bits());
        let mut bytes = vec![0; piece_len as usize];
        let mut first = clusters.start;
        for piece in 0.. {
            let end = clusters.end.min(first + per_piece);
            if first >= end {
                break;
            }
            match self.subject.read(&mut bytes, host + piece * piece_len) {
                Ok(()) => self.with_piece(ledger, &bytes, first..end),
                Err(error) => {
                    self.unknown(ledger, &UnknownBlock { index, host, why: error.to_string() }, first..end);
                }
            }
            first = end;
        }
    }

    /// Compares clusters whose refcounts are the first of `bytes`.
    fn with_piece(&mut self, ledger: &mut Ledger, bytes: &[u8], clusters: Range<u64>) {
        let order = self.subject.geometry.refcount_order();
        let mut next = clusters.start;
        while next < clusters.end {
            let count = (64 - next % 64).min(clusters.end - next);
            let position = next - clusters.start;
            // Nearly all clusters are referred to once or not at all, and their neighbours too.
            let common =
                Some(next).filter(|_| count == 64).and_then(|first| ledger.references.common_count(first));
            match common {
                Some(count) if refcounts::all_are(bytes, order, (position, 64), count) => {
                    self.highest = if count == 0 { self.highest } else { next + 63 };
                }
                _ => {
                    for cluster in next..next + count {
                        let refcount = refcounts::get(bytes, order, cluster - clusters.start);
                        self.cluster(ledger, cluster, refcount.unwrap_or(0));
                    }
                }
            }
            next += count;
        }
    }

    fn cluster(&mut self, ledger: &mut Ledger, cluster: u64, refcount: u64) {
        let all = ledger.references.get(cluster);
        if all == 0 && refcount == 0 {
            return;
        }
        self.highest = self.highest.max(cluster);
        let references = self.representable(ledger, cluster, all);
        if refcount < references {
            ledger.report(Finding::RefcountTooLow { cluster, refcount, references });
        } else if refcount > references && ledger.complete {
            ledger.report(Finding::Leaked { cluster, refcount, references });
        }
    }

    /// As many of the references to a cluster as its refcount can say; reports those that are too much.
    fn representable(&self, ledger: &mut Ledger, cluster: u64, references: u64) -> u64 {
        let max = self.subject.geometry.refcount_max();
        if references > max {
            ledger.issues.add(Finding::TooManyReferences { cluster, references, max }, references - max);
        }
        references.min(max)
    }

    fn unknown(&self, ledger: &mut Ledger, block: &UnknownBlock, clusters: Range<u64>) {
        ledger.needs_rebuild = true;
        let mut next = ledger.references.next_counted(clusters.clone());
        while let Some(cluster) = next {
            self.representable(ledger, cluster, ledger.references.get(cluster));
            next = ledger.references.next_counted(cluster + 1..clusters.end);
        }
        let (first_cluster, clusters) = (clusters.start, clusters.end - clusters.start);
        let UnknownBlock { index: block, host, ref why } = *block;
        let finding = Finding::RefcountsUnknown { block, host, first_cluster, clusters, why: why.clone() };
        ledger.issues.add(finding, clusters);
    }
}
