//! The conversion itself, as all its threads see it.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::super::pace::Pace;
use super::pack::{Packed, Packing, Zeroes};
use super::pieces::{Action, Piece, Pieces};
use super::source::Source;
use super::turnstile::Turnstile;
use super::{Compression, ConvertOptions, ConvertReport, Copying, ReadErrors, TargetContent};
use crate::chain::Image;
use crate::disk::ZeroMode;
use crate::error::Result;
use crate::progress::Control;
use crate::range::ByteRange;
use crate::storage::{PageBuffer, SHARED_BLOCK, Storage, may_share};
use crate::zero_scan::{Part, parts};

/// Zeroes that are written as data are written in steps of this many bytes.
const ZEROES: u64 = 1 << 20;

/// One conversion.
pub(super) struct Run<'a> {
    source: Source<'a>,
    parts: &'a [super::Part<'a>],
    target: &'a Image,
    options: &'a ConvertOptions,
    control: &'a Control<'a>,
    packing: Option<Packing<'a>>,
    pieces: Mutex<Pieces<'a>>,
    pace: Pace,
    turn: Turnstile,
    stopped: AtomicBool,
    report: Mutex<ConvertReport>,
}

/// What was read of a piece, ready to be written.
enum Content<'a> {
    /// As it is, but for its zeroes.
    Plain(Vec<Part>),
    /// Not written but shared with where it is `stored`, from the first whole cluster on.
    Shared {
        /// Of the bytes before that cluster.
        head: Vec<Part>,
        whole: Vec<Part>,
        stored: (&'a dyn Storage, u64),
    },
    /// Each cluster packed.
    Packed(Vec<Packed>),
}

/// Whether two offsets lie in their blocks alike.
fn is_aligned_with(a: u64, b: u64) -> bool {
    a % SHARED_BLOCK == b % SHARED_BLOCK
}

/// A panic of a worker goes on in the caller's thread.
fn panicked(payload: Box<dyn std::any::Any + Send>) -> Result<()> {
    std::panic::resume_unwind(payload)
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
        let unit = packing.map_or(1, |packing| packing.cluster_size);
        Ok(Run {
            source: Source::new(parts, options.read_errors, control),
            parts,
            target,
            options,
            control,
            packing,
            pieces: Mutex::new(Pieces::new(parts, unit, options)),
            pace: Pace::new(options.rate),
            turn: Turnstile::default(),
            stopped: AtomicBool::new(false),
            report: Mutex::new(ConvertReport::default()),
        })
    }

    pub(super) fn run(self) -> Result<ConvertReport> {
        let work = self.count_work()?;
        self.control.report(0, work);
        let first_error = std::thread::scope(|scope| {
            let workers: Vec<_> =
                (1..self.options.threads).map(|_| scope.spawn(|| self.work(work))).collect();
            let own = self.work(work);
            workers.into_iter().map(|worker| worker.join().unwrap_or_else(panicked)).fold(own, Result::and)
        });
        first_error?;
        self.control.report(work, work);
        Ok(*self.report.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Bytes of work in all, for progress; counted only if somebody wants to know.
    fn count_work(&self) -> Result<u64> {
        let mut total = 0;
        if self.control.progress.is_some() {
            let unit = self.packing.map_or(1, |packing| packing.cluster_size);
            let mut pieces = Pieces::new(self.parts, unit, self.options);
            while pieces.next(&mut |done| total = done)?.is_some() {
                self.control.check()?;
            }
        }
        Ok(total)
    }

    /// Takes pieces until there are none; the first error stops every thread.
    fn work(&self, total: u64) -> Result<()> {
        let mut report = ConvertReport::default();
        let result = self.work_through(total, &mut report);
        if result.is_err() {
            self.stopped.store(true, Ordering::Release);
            self.turn.open();
        }
        let mut sum = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        sum.data_bytes += report.data_bytes;
        sum.compressed_bytes += report.compressed_bytes;
        sum.unreadable_bytes += report.unreadable_bytes;
        result
    }

    fn work_through(&self, total: u64, report: &mut ConvertReport) -> Result<()> {
        let mut buf = PageBuffer::default();
        while !self.stopped.load(Ordering::Acquire) {
            self.control.check()?;
            let mut tell = |done| self.control.report(done, total);
            let piece = self.pieces.lock().unwrap_or_else(PoisonError::into_inner).next(&mut tell)?;
            let Some(piece) = piece else { return Ok(()) };
            let by_host = self.options.copying == Copying::Host
                && self.packing.is_none()
                && piece.place.is_some_and(|place| self.source.storage(place).is_some());
            let read_here = piece.action == Action::Copy && !by_host;
            buf.resize(if read_here { piece.range.len() as usize } else { 0 });
            report.unreadable_bytes += self.source.read_at(&mut buf, piece.range.start())?;
            let content = self.prepare(&piece, &buf)?;
            if !self.turn.wait(self.options.order, piece.number, &self.stopped) {
                // Another thread has failed, and says why.
                return Ok(());
            }
            if by_host {
                self.copy_piece(&piece, report)?;
            } else {
                self.write_piece(&piece, &buf, content, report)?;
            }
            self.turn.pass(piece.number);
        }
        Ok(())
    }

    /// Lets the host copy a piece, whose place is known.
    fn copy_piece(&self, piece: &Piece, report: &mut ConvertReport) -> Result<()> {
        let Some((place, storage)) = piece.place.and_then(|place| Some((place, self.source.storage(place)?)))
        else {
            return Ok(());
        };
        self.pace.wait(piece.range.len(), self.control)?;
        self.target.copy_from(storage, place.host, piece.range)?;
        report.data_bytes += piece.range.len();
        Ok(())
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

    /// Where a piece is stored, if the target may share that place.
    fn shareable(&self, piece: &Piece) -> Option<(&'a dyn Storage, u64)> {
        let ConvertOptions { copying, target_content, sparse_size, read_errors, .. } = *self.options;
        // What cannot be read is shared as it is, and would not become zeroes.
        let is_wanted = copying == Copying::Shared
            && read_errors == ReadErrors::Fail
            && target_content == TargetContent::Zeroes
            && sparse_size.is_multiple_of(SHARED_BLOCK)
            && sparse_size > 0;
        let place =
            piece.place.filter(|place| is_wanted && is_aligned_with(place.host, piece.range.start()))?;
        let source = self.source.storage(place)?;
        let target = self.target.layers().first()?.guest_storage()?;
        may_share(target.host_file()?, source.host_file()?).then_some((source, place.host))
    }

    /// All that can be done with what was read from a piece before its turn: packing it, or finding its zeroes.
    fn prepare(&self, piece: &Piece, buf: &[u8]) -> Result<Content<'a>> {
        if let Some(packing) = self.packing {
            let zeroes = if self.options.sparse_size == 0 { Zeroes::Stored } else { Zeroes::LeftOut };
            return packing.pack_all(buf, zeroes).map(Content::Packed);
        }
        let all = 0..buf.len();
        if self.options.sparse_size == 0 {
            return Ok(Content::Plain(vec![Part { range: all, is_zero: false }]));
        }
        let sparse_size = self.options.sparse_size as usize;
        let Some(stored) = self.shareable(piece) else {
            return Ok(Content::Plain(parts(buf, sparse_size).collect()));
        };
        // Whole clusters are shared, and the parts of one that are zeroes with them.
        let step = self.options.sparse_size.max(self.target.cluster_size().unwrap_or(0));
        let until_whole = step - 1 - (piece.range.start() + step - 1) % step;
        let (head, whole) = buf.split_at(until_whole.min(buf.len() as u64) as usize);
        let moved =
            |part: Part| Part { range: head.len() + part.range.start..head.len() + part.range.end, ..part };
        let whole = parts(whole, step as usize).map(moved).collect();
        Ok(Content::Shared { head: parts(head, sparse_size).collect(), whole, stored })
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

    /// Lets the target share a range with what is stored at `host`; returns how many bytes that were.
    fn share_part(&self, (source, host): (&dyn Storage, u64), to: ByteRange) -> Result<u64> {
        self.pace.wait(to.len(), self.control)?;
        self.target.copy_from(source, host, to)?;
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

    fn write_piece(
        &self,
        piece: &Piece,
        buf: &[u8],
        content: Content<'_>,
        report: &mut ConvertReport,
    ) -> Result<()> {
        match piece.action {
            Action::Leave => return Ok(()),
            Action::Zero => return self.zero(piece.range),
            Action::Copy => {}
        }
        let mut at = piece.range.start();
        let write = |range: Range<usize>, to: ByteRange| self.write_part(&buf[range], to.start());
        match content {
            Content::Plain(found) => report.data_bytes += self.write_parts(found, at, write)?,
            Content::Shared { head, whole, stored: (source, host) } => {
                let share =
                    |range: Range<usize>, to| self.share_part((source, host + range.start as u64), to);
                report.data_bytes +=
                    self.write_parts(head, at, write)? + self.write_parts(whole, at, share)?;
            }
            Content::Packed(clusters) => {
                let size = self.packing.map_or(1, |packing| packing.cluster_size);
                for (cluster, packed) in buf.chunks(size as usize).zip(clusters) {
                    self.write_packed(cluster, packed, at, report)?;
                    at += cluster.len() as u64;
                }
            }
        }
        Ok(())
    }

    fn write_packed(
        &self,
        cluster: &[u8],
        packed: Packed,
        at: u64,
        report: &mut ConvertReport,
    ) -> Result<()> {
        match packed {
            Packed::Zero => return self.zero(ByteRange::between(at, at + cluster.len() as u64)),
            Packed::TooLarge => {
                self.pace.wait(cluster.len() as u64, self.control)?;
                self.target.write_at(cluster, at)?;
                report.data_bytes += cluster.len() as u64;
            }
            Packed::Bytes(bytes) => {
                self.pace.wait(bytes.len() as u64, self.control)?;
                self.target.write_compressed(&bytes, at)?;
                report.compressed_bytes += cluster.len() as u64;
            }
        }
        Ok(())
    }
}
