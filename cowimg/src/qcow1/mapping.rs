//! What stands behind a range of the disk: entries looked up and joined where one goes on from the other.

use super::Qcow1;
use crate::corruption::Corruption;
use crate::error::{Error, Result};
use crate::extent::{Extent, ExtentKind};
use crate::format::qcow1::ClusterEntry;
use crate::range::ByteRange;

/// The most entries that one look takes in, so that it ends soon in a disk of any size.
const LOOKS: u64 = 1 << 14;

/// The longest piece of a range with one source.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    pub(super) range: ByteRange,
    pub(super) source: Source,
}

/// Where the bytes of a segment are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// In the backing file, if there is one.
    Below,
    /// In the file, as they are or encrypted, from this offset on.
    Host(u64),
    /// Somewhere in the cluster that is compressed here. Such a segment lies within one cluster.
    Compressed { host: u64, len: u64 },
}

impl Qcow1 {
    /// The segment at the start of `range`, which lies within the disk and is not empty.
    pub(super) fn next_segment(&self, range: ByteRange) -> Result<Segment> {
        let (source, mut end) = self.piece_at(range.start())?;
        let mut looks = 1;
        while end < range.end() && looks < LOOKS {
            let expected = match source {
                Source::Below => Source::Below,
                Source::Host(host) => Source::Host(host.saturating_add(end - range.start())),
                Source::Compressed { .. } => break,
            };
            match self.piece_at(end)? {
                (next, next_end) if next == expected => end = next_end,
                _ => break,
            }
            looks += 1;
        }
        Ok(Segment { range: ByteRange::between(range.start(), end.min(range.end())), source })
    }

    /// Where the byte at `guest` is, and the end of what one entry says.
    fn piece_at(&self, guest: u64) -> Result<(Source, u64)> {
        let header = &self.header;
        let l1_entry = header.l1_entry(guest);
        if l1_entry >= self.file_len {
            // The file ends before its table does: nothing is said of the rest of the disk, however large it claims to be.
            return Ok((Source::Below, header.size));
        }
        let l2_table = self.table_word(l1_entry)?;
        if l2_table == 0 {
            return Ok((Source::Below, end_of_unit(guest, header.l2_coverage())));
        }
        let place = l2_table.saturating_add(header.place_in_l2(guest));
        let file_len = self.file_len;
        if l2_table >= file_len {
            return Err(Corruption::PastEnd { what: "an L2 table", host: l2_table, file_len }.into());
        }
        let raw = self.table_word(place)?;
        let cluster = guest & !(header.cluster_size() - 1);
        let entry = ClusterEntry::decode(raw, header).map_err(|_| Corruption::L2Entry {
            guest: cluster,
            entry: raw,
            why: "it is no multiple of 512",
        })?;
        let source = match entry {
            ClusterEntry::Absent => Source::Below,
            ClusterEntry::Data { host } => Source::Host(host + (guest - cluster)),
            ClusterEntry::Compressed { host, len } => Source::Compressed { host, len },
        };
        if let ClusterEntry::Data { host } | ClusterEntry::Compressed { host, .. } = entry
            && host >= file_len
        {
            return Err(Corruption::L2EntryPastEnd { guest: cluster, host, file_len }.into());
        }
        Ok((source, end_of_unit(guest, header.cluster_size())))
    }

    /// The number that stands in a table at this offset of the file.
    fn table_word(&self, host: u64) -> Result<u64> {
        let mut word = [0; ClusterEntry::LEN];
        self.tables.read(&mut word, host).map_err(|error| Error::io("read a table", error))?;
        Ok(u64::from_be_bytes(word))
    }

    /// The extent at `offset`, at most `max_len` long.
    pub(super) fn extent(&self, offset: u64, max_len: u64) -> Result<Extent> {
        let end = offset.saturating_add(max_len).min(self.header.size);
        let Segment { range, source } = self.next_segment(ByteRange::between(offset, end))?;
        let own = |kind, host| Extent { range, kind, depth: 0, host, reads_zero: false };
        match source {
            // What is encrypted is nowhere in a form that the guest would know.
            Source::Host(host) => Ok(own(ExtentKind::Data, Some(host).filter(|_| self.decrypted.is_none()))),
            Source::Compressed { .. } => Ok(own(ExtentKind::Compressed, None)),
            Source::Below => self.extent_below(own(ExtentKind::Unallocated, None)),
        }
    }

    /// What the backing disk says of a range of which this image says nothing.
    fn extent_below(&self, silent: Extent) -> Result<Extent> {
        let Some(backing) = &self.backing else { return Ok(silent) };
        let covered = silent.range.intersection(ByteRange::between(0, backing.size()));
        if covered.is_empty() {
            return Ok(silent);
        }
        let below = backing.extent_at(covered.start(), covered.len()).map_err(Error::of_below)?;
        Ok(Extent { depth: below.depth + 1, ..below })
    }
}

/// The end of the unit of `size` bytes, a power of two, that holds `offset`.
fn end_of_unit(offset: u64, size: u64) -> u64 {
    (offset & !(size - 1)).saturating_add(size)
}
