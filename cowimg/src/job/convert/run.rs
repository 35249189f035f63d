//! The conversion itself, as all its threads see it.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::super::in_turn::Workers;
use super::super::pace::Pace;
use super::glance::zeroes;
use super::pack::{Packed, Packing, Zeroes};
use super::pieces::{Action, Piece, Pieces};
use super::source::Source;
use super::way::{Stored, Way};
use super::{Compression, ConvertOptions, ConvertReport, TargetContent};
use crate::chain::Image;
use crate::disk::ZeroMode;
use crate::error::Result;
use crate::progress::Control;
use crate::range::ByteRange;
use crate::storage::PageBuffer;
use crate::zero_scan::{Part, parts};

/// Zeroes that are written as data are written in steps of this many bytes.
const ZEROES: u64 = 1 << 20;

/// What is shared is looked at in groups of so many bytes, and step by step where a group begins with zeroes.
const GROUP: u64 = 256 << 10;
/// What is shared with a target that has no clusters is looked at in steps of this many bytes.
const SHARED_STEP: u64 = 64 << 10;

/// One conversion.
pub(super) struct Run<'a> {
    source: Source<'a>,
    parts: &'a [super::Part<'a>],
    target: &'a Image,
    options: &'a ConvertOptions,
    control: &'a Control<'a>,
    packing: Option<Packing<'a>>,
    pace: Pace,
    report: Mutex<ConvertReport>,
}

/// What is to be written of a piece.
enum Content<'a> {
    /// Nothing of its bytes.
    None,
    /// What was read, as it is, but for its zeroes.
    Plain(Vec<Part>),
    /// All of it, by the host.
    ByHost(Stored<'a>),
    /// From the first whole step on, the target shares the place where it is.
    Shared {
        /// Of the bytes before that step, which were read.
        head: Vec<Part>,
        /// How many those are.
        head_len: u64,
        whole: Vec<Part>,
        whole_stored: Stored<'a>,
    },
    /// Each cluster of what was read, packed.
    Packed(Vec<Packed>),
}

impl<'a> Run<'a> {
    pub(super) fn new(
        parts: &'a [super::Part<'a>],
        target: &'a Image,
        options: &'a ConvertOptions,
        control: &'a Control<'a>,
    ) -> Result<Run<'a>> {
        let packing = match options.compression {
            Compression::Off => None,
            Compression::On => Some(Packing::of(target)?),
        };
        Ok(Run {
            source: Source::new(parts, options.read_errors, control),
            parts,
            target,
            options,
            control,
            packing,
            pace: Pace::new(options.rate),
            report: Mutex::new(ConvertReport::default()),
        })
    }

    pub(super) fn run(self) -> Result<ConvertReport> {
        let work = self.count_work()?;
        self.control.report(0, work);
        let mut pieces = self.pieces();
        let workers = Workers { threads: self.options.threads, order: self.options.order };
        workers.work(
            self.control,
            || pieces.next(&mut |done| self.control.report(done, work)),
            |piece, buf| self.prepare(piece, buf),
            |piece, content, buf| self.write(piece, content, buf),
        )?;
        self.control.report(work, work);
        Ok(self.report.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn pieces(&self) -> Pieces<'a> {
        let unit = self.packing.map_or(1, |packing| packing.cluster_size);
        Pieces::new(self.parts, self.target, unit, self.options)
    }

    /// Bytes of work in all, for progress; counted only if somebody wants to know.
    fn count_work(&self) -> Result<u64> {
        let mut total = 0;
        if self.control.progress.is_some() {
            let mut pieces = self.pieces();
            while pieces.next(&mut |done| total = done)?.is_some() {
                self.control.check()?;
            }
        }
        Ok(total)
    }

    /// Adds to what was done.
    fn count(&self, add: impl FnOnce(&mut ConvertReport)) {
        add(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn zero(&self, range: ByteRange) -> Result<()> {
        if self.options.sparse_size == 0 {
            return self.write_zeroes_as_data(range);
        }
        match self.options.target_content {
            TargetContent::Zeroes => Ok(()),
            TargetContent::Anything => self.target.write_zeroes(range, ZeroMode::Unmap),
            TargetContent::Similar | TargetContent::SameBacking => self.zero_where_not(range),
        }
    }

    fn write_zeroes_as_data(&self, range: ByteRange) -> Result<()> {
        let zeroes = PageBuffer::new(ZEROES.min(range.len()) as usize);
        let mut at = range.start();
        while at < range.end() {
            let len = ZEROES.min(range.end() - at);
            self.pace.wait(len, self.control)?;
            self.target.write_at(&zeroes[..len as usize], at)?;
            at += len;
        }
        Ok(())
    }

    /// Zeroes what does not read as zeroes already.
    fn zero_where_not(&self, range: ByteRange) -> Result<()> {
        for extent in self.target.extents(range) {
            let extent = extent?;
            if !extent.is_zero() {
                self.target.write_zeroes(extent.range, ZeroMode::Unmap)?;
            }
        }
        Ok(())
    }

    /// All that can be done with a piece before its turn: reading it, packing it, finding its zeroes.
    fn prepare(&self, piece: &Piece<'a>, buf: &mut PageBuffer) -> Result<Content<'a>> {
        match (piece.action, piece.way) {
            (Action::Zero | Action::Leave, _) => Ok(Content::None),
            (Action::Copy, Way::Host(stored)) => Ok(Content::ByHost(stored)),
            (Action::Copy, Way::Shared(stored)) => self.look_at(piece.range, stored, buf),
            (Action::Copy, Way::Here) => self.read(piece.range, buf),
        }
    }

    fn read(&self, range: ByteRange, buf: &mut PageBuffer) -> Result<Content<'a>> {
        buf.resize(range.len() as usize);
        let unreadable = self.source.read_at(buf, range.start())?;
        self.count(|report| report.unreadable_bytes += unreadable);
        if let Some(packing) = self.packing {
            let zeroes = if self.options.sparse_size == 0 { Zeroes::Stored } else { Zeroes::LeftOut };
            return packing.pack_all(buf, zeroes).map(Content::Packed);
        }
        Ok(Content::Plain(match self.options.sparse_size {
            0 => vec![Part { range: 0..buf.len(), is_zero: false }],
            size => parts(buf, size as usize).collect(),
        }))
    }

    /// Finds the zeroes of what is shared. Whole clusters are, and the parts of one that are zeroes with them.
    fn look_at(&self, range: ByteRange, stored: Stored<'a>, buf: &mut PageBuffer) -> Result<Content<'a>> {
        let step = self.options.sparse_size.max(self.target.cluster_size().unwrap_or(SHARED_STEP));
        // Who has asked for a size has every step looked at.
        let is_asked_for = self.options.sparse_size != ConvertOptions::default().sparse_size;
        let group = if is_asked_for { step } else { (GROUP / step).max(1) * step };
        let whole = range.start().next_multiple_of(step).min(range.end());
        buf.resize((whole - range.start()) as usize);
        self.source.read_at(buf, range.start())?;
        let head_len = buf.len() as u64;
        let whole_stored = Stored { offset: stored.offset + head_len, ..stored };
        Ok(Content::Shared {
            head: parts(buf, self.options.sparse_size as usize).collect(),
            head_len,
            whole: zeroes(&self.source, ByteRange::between(whole, range.end()), whole_stored, (step, group))?,
            whole_stored,
        })
    }

    fn write(&self, piece: &Piece<'a>, content: Content<'a>, buf: &[u8]) -> Result<()> {
        let start = piece.range.start();
        let write = |range: Range<usize>, to: ByteRange| self.write_part(&buf[range], to.start());
        let data_bytes = match content {
            Content::None if piece.action == Action::Leave => 0,
            Content::None => self.zero(piece.range).map(|()| 0)?,
            Content::Plain(found) => self.write_parts(found, start, write)?,
            Content::ByHost(stored) => self.copy(stored, piece.range)?,
            Content::Shared { head, head_len, whole, whole_stored } => {
                let share = |range: Range<usize>, to| {
                    let offset = whole_stored.offset + range.start as u64;
                    self.copy(Stored { offset, ..whole_stored }, to)
                };
                self.write_parts(head, start, write)? + self.write_parts(whole, start + head_len, share)?
            }
            Content::Packed(clusters) => {
                let size = self.packing.map_or(1, |packing| packing.cluster_size);
                let mut data_bytes = 0;
                for ((cluster, packed), nth) in buf.chunks(size as usize).zip(clusters).zip(0..) {
                    data_bytes += self.write_packed(cluster, packed, start + nth * size)?;
                }
                data_bytes
            }
        };
        self.count(|report| report.data_bytes += data_bytes);
        Ok(())
    }

    /// Zeroes what is zeroes of a piece that starts at `offset`, and lets `store` store the other parts; returns what it says.
    fn write_parts(
        &self,
        found: Vec<Part>,
        offset: u64,
        store: impl Fn(Range<usize>, ByteRange) -> Result<u64>,
    ) -> Result<u64> {
        let mut written = 0;
        for Part { range, is_zero } in found {
            let place = ByteRange::between(offset + range.start as u64, offset + range.end as u64);
            if is_zero {
                self.zero(place)?;
            } else {
                written += store(range, place)?;
            }
        }
        Ok(written)
    }

    /// Lets the host copy a range, or both files share it; returns how many bytes that were.
    fn copy(&self, from: Stored<'a>, to: ByteRange) -> Result<u64> {
        self.pace.wait(to.len(), self.control)?;
        self.target.copy_from(from.storage, from.offset, to)?;
        Ok(to.len())
    }

    fn write_part(&self, bytes: &[u8], at: u64) -> Result<u64> {
        self.pace.wait(bytes.len() as u64, self.control)?;
        if self.options.target_content != TargetContent::Similar || self.options.sparse_size == 0 {
            self.target.write_at(bytes, at)?;
            return Ok(bytes.len() as u64);
        }
        let mut there = PageBuffer::new(bytes.len());
        self.target.read_at(&mut there, at)?;
        let step = self.options.sparse_size as usize;
        let mut written = 0;
        for (nth, (new, old)) in bytes.chunks(step).zip(there.chunks(step)).enumerate() {
            if new != old {
                self.target.write_at(new, at + (nth * step) as u64)?;
                written += new.len() as u64;
            }
        }
        Ok(written)
    }

    /// Writes a cluster that starts at `at`; returns how many bytes were written as they are.
    fn write_packed(&self, cluster: &[u8], packed: Packed, at: u64) -> Result<u64> {
        let len = cluster.len() as u64;
        match packed {
            Packed::Zero => self.zero(ByteRange::between(at, at + len)).map(|()| 0),
            Packed::TooLarge => {
                self.pace.wait(len, self.control)?;
                self.target.write_at(cluster, at).map(|()| len)
            }
            Packed::Bytes(bytes) => {
                self.pace.wait(bytes.len() as u64, self.control)?;
                self.target.write_compressed(&bytes, at)?;
                self.count(|report| report.compressed_bytes += len);
                Ok(0)
            }
        }
    }
}
