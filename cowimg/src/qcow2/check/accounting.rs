//! Refcounts made right in the blocks where they stand.

use super::Examined;
use super::stored::Block;
use crate::error::{Error, Result};
use crate::format::qcow2::{HostOffset, refcounts};
use crate::storage::StorageExt;

/// Bytes of a refcount block that are looked at, and written, at a time.
const PIECE: u64 = 64 << 10;

/// Which refcounts are changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// Refcounts that are too low.
    Raise,
    /// Refcounts that are too high.
    Lower,
}

/// Makes the refcounts that are too low, or too high, what the references say; returns how many.
pub(super) fn change_refcounts(examined: &Examined<'_>, direction: Direction) -> Result<u64> {
    let Examined { subject, ledger, stored, .. } = examined;
    if direction == Direction::Lower && !ledger.complete {
        return Ok(0);
    }
    let geometry = subject.geometry;
    let piece_len = PIECE.min(geometry.cluster_size());
    let per_piece = piece_len * 8 / u64::from(geometry.refcount_bits());
    let clusters = ledger.references.clusters();
    let mut bytes = vec![0; piece_len as usize];
    let mut changed = 0;
    for index in 0..stored.table().len() as u64 {
        let first = index * geometry.refcounts_per_block();
        if first >= clusters {
            break;
        }
        let Some(host) = sound_block(examined, index) else { continue };
        let end = clusters.min(first + geometry.refcounts_per_block());
        for (piece, first) in (0..).zip((first..end).step_by(per_piece as usize)) {
            let at = host + piece * piece_len;
            // What cannot be read is in the report already.
            if subject.read(&mut bytes, at).is_err() {
                continue;
            }
            let range = first..end.min(first + per_piece);
            let in_piece = change_piece(examined, &mut bytes, range, direction);
            if in_piece > 0 {
                subject
                    .storage
                    .write_all_at(&bytes, at)
                    .map_err(|error| Error::io("write the repaired refcounts", error))?;
            }
            changed += in_piece;
        }
    }
    if changed > 0 {
        subject.storage.sync().map_err(|error| Error::io("sync the repaired refcounts", error))?;
    }
    Ok(changed)
}

/// Changes the refcounts of `clusters` in the piece of a block that has them.
fn change_piece(
    examined: &Examined<'_>,
    bytes: &mut [u8],
    clusters: std::ops::Range<u64>,
    direction: Direction,
) -> u64 {
    let geometry = examined.subject.geometry;
    let mut changed = 0;
    for (position, cluster) in (0..).zip(clusters) {
        let references = examined.ledger.references.get(cluster).min(geometry.refcount_max());
        let Some(refcount) = refcounts::get(bytes, geometry.refcount_order(), position) else { continue };
        let is_wrong = match direction {
            Direction::Raise => refcount < references,
            Direction::Lower => refcount > references,
        };
        if is_wrong && refcounts::set(bytes, geometry.refcount_order(), position, references) {
            changed += 1;
        }
    }
    changed
}

/// Where refcount block `index` is, if it is nothing else besides. The file may end within it.
fn sound_block(examined: &Examined<'_>, index: u64) -> Option<u64> {
    let Examined { subject, ledger, stored, .. } = examined;
    let geometry = subject.geometry;
    let Block::At(host) = stored.block(index) else { return None };
    let entry = *stored.table().get(usize::try_from(index).ok()?)?;
    let is_alone = ledger.references.get(geometry.host_cluster(HostOffset(host)).get()) == 1;
    let is_sound = host < subject.file_len && is_alone && refcounts::table_entry_reserved_bits(entry) == 0;
    is_sound.then_some(host)
}
