//! Reading: a plan's segments, each from where it is. No lock is held over the I/O.

use super::Qcow2;
use super::plan::Source;
use crate::error::{Error, Result};
use crate::range::ByteRange;

impl Qcow2 {
    /// Fills `buf` from `offset`; a range that does not lie within the disk is refused.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let _in_flight = self.epochs.enter();
        // Only here: the disk may shrink up to this moment, and what is past its end no longer hides what is below.
        self.check_bounds(offset, buf.len() as u64)?;
        self.read_in_epoch(buf, offset)
    }

    /// The same for an operation that is in its epoch already.
    pub(super) fn read_in_epoch(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        while !buf.is_empty() {
            let segment = self.next_segment(ByteRange::between(offset, offset + buf.len() as u64))?;
            let (part, rest) = buf.split_at_mut(segment.range.len() as usize);
            self.read_segment(part, offset, segment.source)?;
            offset += segment.range.len();
            buf = rest;
        }
        Ok(())
    }

    fn read_segment(&self, part: &mut [u8], offset: u64, source: Source) -> Result<()> {
        match source {
            Source::Zero(_) => part.fill(0),
            Source::Below(_) => self.read_below(part, offset)?,
            Source::Host(host) => self.data.read(part, host, offset)?,
            Source::Compressed(run) => self.read_compressed(part, offset, run)?,
        }
        Ok(())
    }

    /// What the backing disk has, and zeroes past its end.
    fn read_below(&self, part: &mut [u8], offset: u64) -> Result<()> {
        let Some(backing) = &self.backing else {
            part.fill(0);
            return Ok(());
        };
        let covered = backing.size().saturating_sub(offset).min(part.len() as u64) as usize;
        let (below, past_end) = part.split_at_mut(covered);
        past_end.fill(0);
        if below.is_empty() { Ok(()) } else { backing.read_at(below, offset).map_err(Error::of_below) }
    }

    /// Whether every byte of the range is known, without reading any, to be zero.
    pub(super) fn is_known_zero(&self, range: ByteRange) -> Result<bool> {
        let mut at = range;
        while !at.is_empty() {
            let segment = self.next_segment(at)?;
            match segment.source {
                Source::Zero(_) => {}
                Source::Below(_) if !self.backing_covers(segment.range) => {}
                _ => return Ok(false),
            }
            at = ByteRange::between(segment.range.end(), range.end());
        }
        Ok(true)
    }
}
