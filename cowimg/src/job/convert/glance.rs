//! Finding the zeroes of what is shared, of which most need not be read: the start of nearly every cluster tells that it
//! holds something else. And not every cluster need be looked at: one of zeroes that is shared takes no more space while the
//! source is there, so that only long runs of them are worth finding.

use super::source::Source;
use super::way::Stored;
use crate::error::Result;
use crate::range::ByteRange;
use crate::storage::{PageBuffer, read_cached, will_read};
use crate::zero_scan::{Part, is_zero};

/// Bytes that are read first: those that a processor fetches at once.
const FIRST: usize = 64;
/// Bytes that are read at a time, in the end, of what begins with zeroes.
const MOST: u64 = 64 << 10;
/// Groups whose starts the host is asked to read beside each other, where they are not in its cache.
const AHEAD: u64 = 256;
/// So many starts in a row that the cache did not have at once make it likely that it has none. One says little: a file that is
/// being shared gives nothing meanwhile.
const MISSES: u32 = 2;
/// What the host reads at least, in bytes.
const PAGE: u64 = 4096;

/// Which steps of `range`, each of `step` bytes, are zeroes all through: all of those in groups that begin with zeroes, so that
/// the first ones of a run may be taken for data. A group is whole steps. The range is `stored` in one piece.
pub(super) fn zeroes(
    source: &Source<'_>,
    range: ByteRange,
    stored: Stored<'_>,
    (step, group): (u64, u64),
) -> Result<Vec<Part>> {
    let buf = PageBuffer::default();
    let mut glance = Glance { source, range, stored, group, asked_up_to: 0, missed: 0, buf };
    let mut found: Vec<Part> = Vec::new();
    let mut at = 0;
    while at < range.len() {
        let end_of = |len: u64| range.len().min(at + len);
        let (end, is_zero) = if at.is_multiple_of(group) && !glance.begins_with_zeroes(at)? {
            (end_of(group), false)
        } else {
            (end_of(step), glance.is_zero(at, end_of(step))?)
        };
        match found.last_mut() {
            Some(last) if last.is_zero == is_zero => last.range.end = end as usize,
            _ => found.push(Part { range: at as usize..end as usize, is_zero }),
        }
        at = end;
    }
    Ok(found)
}

/// Offsets are counted from the start of the range.
struct Glance<'a> {
    source: &'a Source<'a>,
    range: ByteRange,
    stored: Stored<'a>,
    group: u64,
    /// The starts of the groups before this offset are in the host's cache, or on their way.
    asked_up_to: u64,
    /// Starts in a row that the cache did not have.
    missed: u32,
    buf: PageBuffer,
}

impl Glance<'_> {
    /// Whether all is zeroes from `start` to `end`: reads until it is known.
    fn is_zero(&mut self, start: u64, end: u64) -> Result<bool> {
        let (mut at, mut most) = (start, PAGE);
        while at < end {
            let len = most.min(end - at);
            self.buf.resize(len as usize);
            self.source.read_at(&mut self.buf, self.range.start() + at)?;
            if !is_zero(&self.buf) {
                return Ok(false);
            }
            at += len;
            most = MOST;
        }
        Ok(true)
    }

    fn begins_with_zeroes(&mut self, start: u64) -> Result<bool> {
        let mut first = [0; FIRST];
        let first = &mut first[..FIRST.min((self.range.len() - start) as usize)];
        let file = self.stored.storage.host_file();
        if file.is_some_and(|file| read_cached(file, first, self.stored.offset + start)) {
            self.missed = 0;
            return Ok(is_zero(first));
        }
        self.missed += 1;
        if let Some(file) = file.filter(|_| self.missed >= MISSES && start >= self.asked_up_to) {
            self.asked_up_to = start.saturating_add(AHEAD * self.group);
            let mut at = start;
            while at < self.asked_up_to.min(self.range.len()) {
                let offset = self.stored.offset + at;
                will_read(file, ByteRange::between(offset, offset + PAGE));
                at += self.group;
            }
        }
        self.source.read_at(first, self.range.start() + start)?;
        Ok(is_zero(first))
    }
}
