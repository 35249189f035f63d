//! The conversion itself, as all its threads see it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::super::pace::Pace;
use super::pack::{Packed, Packing, Zeroes};
use super::pieces::{Action, Piece, Pieces};
use super::source::Source;
use super::turnstile::Turnstile;
use super::{Compression, ConvertOptions, ConvertReport, Copying, Part, ReadErrors, TargetContent};
use crate::chain::Image;
use crate::disk::ZeroMode;
use crate::error::Result;
use crate::progress::Control;
use crate::range::ByteRange;
use crate::storage::{PageBuffer, SHARED_BLOCK, Storage, may_share};
use crate::zero_scan::parts;

/// Zeroes that are written as data are written in steps of this many bytes.
const ZEROES: u64 = 1 << 20;

/// One conversion.
pub(super) struct Run<'a> {
    source: Source<'a>,
    parts: &'a [Part<'a>],
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
        parts: &'a [Part<'a>],
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
            let packed = self.pack_all(&buf)?;
            if !self.turn.wait(self.options.order, piece.number, &self.stopped) {
                // Another thread has failed, and says why.
                return Ok(());
            }
            if by_host {
                self.copy_piece(&piece, report)?;
            } else {
                self.write_piece(&piece, &buf, packed, report)?;
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

    /// Writes the parts of `buf` that are needed; returns how many bytes that were.
    fn write_data(&self, buf: &[u8], offset: u64) -> Result<u64> {
        if self.options.sparse_size == 0 {
            return self.write_part(buf, offset);
        }
        let mut written = 0;
        for part in parts(buf, self.options.sparse_size as usize) {
            let at = offset + part.range.start as u64;
            if part.is_zero {
                self.zero(ByteRange::between(at, offset + part.range.end as u64))?;
            } else {
                written += self.write_part(&buf[part.range], at)?;
            }
        }
        Ok(written)
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

    /// Lets the target share what is not zeroes of a piece that starts at `offset` and is stored at `host`; returns how many
    /// bytes that were. Whole clusters are shared, and the parts of one that are zeroes with them.
    fn share_data(&self, buf: &[u8], offset: u64, (source, host): (&dyn Storage, u64)) -> Result<u64> {
        let step = self.options.sparse_size.max(self.target.cluster_size().unwrap_or(0));
        let (head, whole) =
            buf.split_at((step - 1 - (offset + step - 1) % step).min(buf.len() as u64) as usize);
        let mut written = self.write_data(head, offset)?;
        let start = offset + head.len() as u64;
        for part in parts(whole, step as usize) {
            let range = ByteRange::between(start + part.range.start as u64, start + part.range.end as u64);
            if part.is_zero {
                self.zero(range)?;
            } else {
                self.pace.wait(range.len(), self.control)?;
                self.target.copy_from(source, host + (range.start() - offset), range)?;
                written += range.len();
            }
        }
        Ok(written)
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

    /// The clusters of a piece, compressed, when the target is to be.
    fn pack_all(&self, buf: &[u8]) -> Result<Option<Vec<Packed>>> {
        let zeroes = if self.options.sparse_size == 0 { Zeroes::Stored } else { Zeroes::LeftOut };
        self.packing.map(|packing| packing.pack_all(buf, zeroes)).transpose()
    }

    fn write_piece(
        &self,
        piece: &Piece,
        buf: &[u8],
        packed: Option<Vec<Packed>>,
        report: &mut ConvertReport,
    ) -> Result<()> {
        match piece.action {
            Action::Leave => return Ok(()),
            Action::Zero => return self.zero(piece.range),
            Action::Copy => {}
        }
        let (Some(packed), Some(packing)) = (packed, self.packing) else {
            report.data_bytes += match self.shareable(piece) {
                Some(stored) => self.share_data(buf, piece.range.start(), stored)?,
                None => self.write_data(buf, piece.range.start())?,
            };
            return Ok(());
        };
        let mut at = piece.range.start();
        for (cluster, packed) in buf.chunks(packing.cluster_size as usize).zip(packed) {
            self.write_packed(cluster, packed, at, report)?;
            at += cluster.len() as u64;
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
