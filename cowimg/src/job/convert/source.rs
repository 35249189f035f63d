//! Reading the source: several images as one, with unreadable sectors left out if that is wished.

use super::{Part, ReadErrors};
use crate::error::{Error, Result};
use crate::progress::Control;
use crate::range::ByteRange;

/// The smallest part of a disk that is readable or not.
const SECTOR: usize = 512;
/// All parts, one behind the other.
pub(super) struct Source<'a> {
    parts: &'a [Part<'a>],
    read_errors: ReadErrors,
    control: &'a Control<'a>,
}

impl<'a> Source<'a> {
    pub(super) fn new(
        parts: &'a [Part<'a>],
        read_errors: ReadErrors,
        control: &'a Control<'a>,
    ) -> Source<'a> {
        Source { parts, read_errors, control }
    }

    /// Fills `buf` from `offset` on; gives the number of bytes that could not be read.
    pub(super) fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<u64> {
        let mut lost = 0;
        for part in self.parts {
            if buf.is_empty() {
                break;
            }
            if offset >= part.range.len() {
                offset -= part.range.len();
                continue;
            }
            let len = (part.range.len() - offset).min(buf.len() as u64) as usize;
            let (here, rest) = buf.split_at_mut(len);
            lost += self.read_part(part, here, part.range.start() + offset)?;
            buf = rest;
            offset = 0;
        }
        Ok(lost)
    }

    fn read_part(&self, part: &Part<'_>, buf: &mut [u8], offset: u64) -> Result<u64> {
        match part.image.read_at(buf, offset) {
            Err(_) if self.read_errors == ReadErrors::Zero => Ok(self.salvage(part, buf, offset)),
            read => read.map(|()| 0),
        }
    }

    /// Reads sector by sector; those that cannot be read are zeroes. Gives how many bytes that is.
    fn salvage(&self, part: &Part<'_>, buf: &mut [u8], offset: u64) -> u64 {
        let mut lost = 0;
        // Neighbours that fail are told as one.
        let mut failed: Option<(ByteRange, Error)> = None;
        let mut at = offset;
        for sector in buf.chunks_mut(SECTOR) {
            let end = at + sector.len() as u64;
            match part.image.read_at(sector, at) {
                Ok(()) => self.tell(failed.take()),
                Err(error) => {
                    sector.fill(0);
                    lost += sector.len() as u64;
                    let (start, first) =
                        failed.take().map_or((at, error), |(range, first)| (range.start(), first));
                    failed = Some((ByteRange::between(start, end), first));
                }
            }
            at = end;
        }
        self.tell(failed);
        lost
    }

    fn tell(&self, failed: Option<(ByteRange, Error)>) {
        if let (Some((range, error)), Some(progress)) = (failed, self.control.progress) {
            progress.unreadable(range, &error);
        }
    }
}
