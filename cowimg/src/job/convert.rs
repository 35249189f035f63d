//! Copying the content of one image into another, whatever their formats.
//!
//! Threads take pieces of the source in turn, read them, look for zeroes in them, compress them and write them. Writing
//! is done in the order of the source, unless the caller does not care, so that the target is laid out alike whatever
//! the threads do.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use super::zero_scan::{is_zero, parts};
use crate::chain::{Extents, Image};
use crate::codec;
use crate::disk::ZeroMode;
use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::format::qcow2::CompressionType;
use crate::progress::Control;
use crate::range::ByteRange;

/// Bytes that a thread takes at a time, or one cluster where that is more: small enough to be in a core's cache when it is
/// written, large enough that handing on the turn costs little.
const PIECE: u64 = 1 << 20;

/// Whether clusters of the target are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Compression {
    /// They are stored as they are.
    #[default]
    Off,
    /// Those that get smaller are compressed, with the target's own method.
    On,
}

/// What the target reads as before the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TargetContent {
    /// Unknown: zeroes must be written, too.
    #[default]
    Anything,
    /// Zeroes: nothing needs to be done for them.
    Zeroes,
    /// Much the same as the source, as over a backing file that the source has too: the target is read, and only
    /// what differs is written.
    Similar,
}

/// In which order pieces are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Order {
    /// In the order of the source, so that the target is laid out in order, and the same every time.
    #[default]
    Source,
    /// As the threads come to it.
    Any,
}

/// How to convert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvertOptions {
    /// Whether clusters of the target are compressed.
    pub compression: Compression,
    /// Zeroes in the source's data are looked for in steps of this many bytes; 0 writes everything, zeroes too.
    pub sparse_size: u64,
    /// What the target reads as before.
    pub target_content: TargetContent,
    /// In which order pieces are written.
    pub order: Order,
    /// Threads that work at it, at least 1.
    pub threads: usize,
}

impl Default for ConvertOptions {
    fn default() -> ConvertOptions {
        ConvertOptions {
            compression: Compression::Off,
            sparse_size: 4096,
            target_content: TargetContent::Anything,
            order: Order::Source,
            threads: super::default_threads(),
        }
    }
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ConvertReport {
    /// Guest bytes that were written as data.
    pub data_bytes: u64,
    /// Guest bytes that were written compressed.
    pub compressed_bytes: u64,
}

/// Copies what a guest sees in `source` to `target`, which is open for writing and at least as large. What `target` has
/// beyond the source's size is left alone. The target is not flushed.
///
/// A run that is cancelled or fails leaves a target of which any part may have been written.
pub fn convert(
    source: &Image,
    target: &Image,
    options: &ConvertOptions,
    control: &Control<'_>,
) -> Result<ConvertReport> {
    if target.size() < source.size() {
        return Err(Error::invalid(format!(
            "the target has {} bytes, fewer than the source's {}",
            target.size(),
            source.size()
        )));
    }
    let packing = match options.compression {
        Compression::Off => None,
        Compression::On => Some(Packing::of(target)?),
    };
    let run = Run {
        source,
        target,
        options,
        control,
        packing,
        queue: Mutex::new(Queue::new(source)),
        turn: Turnstile::default(),
        stopped: AtomicBool::new(false),
        done: AtomicU64::new(0),
        report: Mutex::new(ConvertReport::default()),
    };
    control.report(0, source.size());
    let first_error = std::thread::scope(|scope| {
        let workers: Vec<_> = (1..options.threads).map(|_| scope.spawn(|| run.work())).collect();
        let own = run.work();
        workers.into_iter().map(|worker| worker.join().unwrap_or_else(panicked)).fold(own, Result::and)
    });
    first_error?;
    control.report(source.size(), source.size());
    Ok(*run.report.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A panic of a worker goes on in the caller's thread.
fn panicked(payload: Box<dyn std::any::Any + Send>) -> Result<()> {
    std::panic::resume_unwind(payload)
}

/// How the target compresses.
#[derive(Debug, Clone, Copy)]
struct Packing {
    kind: CompressionType,
    cluster_size: u64,
}

impl Packing {
    fn of(target: &Image) -> Result<Packing> {
        match (target.compression(), target.cluster_size()) {
            (Some(kind), Some(cluster_size)) => Ok(Packing { kind, cluster_size }),
            _ => Err(Error::unsupported("a raw image cannot be compressed; use the format qcow2")),
        }
    }
}

/// The pieces of the source that are still to be done, in order.
struct Queue<'a> {
    extents: Extents<'a>,
    /// What is left of the extent that was cut last.
    current: Option<Extent>,
    next_number: u64,
}

/// A part of the source within one aligned step.
struct Piece {
    number: u64,
    range: ByteRange,
    /// All of it is known to be zeroes.
    is_zero: bool,
}

impl<'a> Queue<'a> {
    fn new(source: &'a Image) -> Queue<'a> {
        let extents = source.extents(ByteRange::between(0, source.size()));
        Queue { extents, current: None, next_number: 0 }
    }

    fn next_extent(&mut self) -> Result<Option<Extent>> {
        self.current.take().map(Ok).or_else(|| self.extents.next()).transpose()
    }

    /// The next piece, which starts and ends at multiples of `unit` as far as the source does. Zeroes come as far as they
    /// go, data in steps of [`PIECE`] that end at multiples of it.
    fn next(&mut self, unit: u64) -> Result<Option<Piece>> {
        let Some(first) = self.next_extent()? else { return Ok(None) };
        let start = first.range.start();
        let whole_end = first.range.end() / unit * unit;
        let is_zero = first.is_zero() && whole_end > start;
        let step = PIECE.max(unit);
        let wanted = if is_zero {
            whole_end
        } else {
            first.range.end().next_multiple_of(unit).min((start / step + 1) * step)
        };
        // A unit that holds parts of several extents is data, whatever they are.
        let mut last = first;
        while last.range.end() < wanted {
            match self.next_extent()? {
                Some(extent) => last = extent,
                None => break,
            }
        }
        let end = wanted.min(last.range.end());
        if end < last.range.end() {
            self.current = Some(last.clipped_to(ByteRange::between(end, last.range.end())));
        }
        let number = self.next_number;
        self.next_number += 1;
        Ok(Some(Piece { number, range: ByteRange::between(start, end), is_zero }))
    }
}

/// Lets threads through one at a time, in the order of their pieces.
#[derive(Default)]
struct Turnstile {
    next: Mutex<u64>,
    moved: Condvar,
}

impl Turnstile {
    /// Waits for its turn, unless the run has been stopped; whether it got it.
    fn wait(&self, order: Order, number: u64, stopped: &AtomicBool) -> bool {
        if order == Order::Any {
            return true;
        }
        let next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = |next: &mut u64| *next != number && !stopped.load(Ordering::Acquire);
        let next = self.moved.wait_while(next, waiting).unwrap_or_else(PoisonError::into_inner);
        *next == number
    }

    fn pass(&self, number: u64) {
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) = number + 1;
        self.moved.notify_all();
    }

    /// Wakes everyone, after the run has been stopped.
    fn open(&self) {
        let _held = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        self.moved.notify_all();
    }
}

/// One conversion, as all its threads see it.
struct Run<'a> {
    source: &'a Image,
    target: &'a Image,
    options: &'a ConvertOptions,
    control: &'a Control<'a>,
    packing: Option<Packing>,
    queue: Mutex<Queue<'a>>,
    turn: Turnstile,
    stopped: AtomicBool,
    done: AtomicU64,
    report: Mutex<ConvertReport>,
}

impl Run<'_> {
    /// Takes pieces until there are none; the first error stops every thread.
    fn work(&self) -> Result<()> {
        let mut buf = Vec::new();
        let mut report = ConvertReport::default();
        let result = self.work_through(&mut buf, &mut report);
        if result.is_err() {
            self.stopped.store(true, Ordering::Release);
            self.turn.open();
        }
        let mut total = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        total.data_bytes += report.data_bytes;
        total.compressed_bytes += report.compressed_bytes;
        result
    }

    fn work_through(&self, buf: &mut Vec<u8>, report: &mut ConvertReport) -> Result<()> {
        let unit = self.packing.map_or(1, |packing| packing.cluster_size);
        while !self.stopped.load(Ordering::Acquire) {
            self.control.check()?;
            let piece = self.queue.lock().unwrap_or_else(PoisonError::into_inner).next(unit)?;
            let Some(piece) = piece else { return Ok(()) };
            buf.resize(if piece.is_zero { 0 } else { piece.range.len() as usize }, 0);
            self.source.read_at(buf, piece.range.start())?;
            let packed = self.pack_all(buf)?;
            if !self.turn.wait(self.options.order, piece.number, &self.stopped) {
                // Another thread has failed, and says why.
                return Ok(());
            }
            self.write_piece(&piece, buf, packed, report)?;
            self.turn.pass(piece.number);
            let done = self.done.fetch_add(piece.range.len(), Ordering::Relaxed) + piece.range.len();
            self.control.report(done, self.source.size());
        }
        Ok(())
    }

    fn zero(&self, range: ByteRange) -> Result<()> {
        if self.options.sparse_size == 0 {
            return self.write_zeroes_as_data(range);
        }
        match self.options.target_content {
            TargetContent::Zeroes => Ok(()),
            TargetContent::Anything => self.target.write_zeroes(range, ZeroMode::Unmap),
            TargetContent::Similar => self.zero_where_not(range),
        }
    }

    fn write_zeroes_as_data(&self, range: ByteRange) -> Result<()> {
        let zeroes = vec![0; PIECE.min(range.len()) as usize];
        let mut at = range.start();
        while at < range.end() {
            let len = PIECE.min(range.end() - at);
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
            self.target.write_at(buf, offset)?;
            return Ok(buf.len() as u64);
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

    fn write_part(&self, bytes: &[u8], at: u64) -> Result<u64> {
        if self.options.target_content != TargetContent::Similar {
            self.target.write_at(bytes, at)?;
            return Ok(bytes.len() as u64);
        }
        let mut there = vec![0; bytes.len()];
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
        let Some(packing) = self.packing else { return Ok(None) };
        let cluster_size = packing.cluster_size as usize;
        let mut room = vec![0; cluster_size - 1];
        buf.chunks(cluster_size)
            .map(|cluster| pack(cluster, packing, &mut room))
            .collect::<Result<_>>()
            .map(Some)
    }

    fn write_piece(
        &self,
        piece: &Piece,
        buf: &[u8],
        packed: Option<Vec<Packed>>,
        report: &mut ConvertReport,
    ) -> Result<()> {
        if piece.is_zero {
            return self.zero(piece.range);
        }
        let (Some(packed), Some(packing)) = (packed, self.packing) else {
            report.data_bytes += self.write_data(buf, piece.range.start())?;
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
            Packed::Zero if self.options.sparse_size > 0 => {
                return self.zero(ByteRange::between(at, at + cluster.len() as u64));
            }
            Packed::Zero | Packed::TooLarge => {
                self.target.write_at(cluster, at)?;
                report.data_bytes += cluster.len() as u64;
            }
            Packed::Bytes(bytes) => {
                self.target.write_compressed(&bytes, at)?;
                report.compressed_bytes += cluster.len() as u64;
            }
        }
        Ok(())
    }
}

/// What became of a cluster.
enum Packed {
    Zero,
    /// It does not get smaller.
    TooLarge,
    Bytes(Vec<u8>),
}

/// Compresses one cluster; the last one of a disk is padded with zeroes.
fn pack(cluster: &[u8], packing: Packing, room: &mut [u8]) -> Result<Packed> {
    if is_zero(cluster) {
        return Ok(Packed::Zero);
    }
    let padded;
    let whole = if cluster.len() as u64 == packing.cluster_size {
        cluster
    } else {
        padded = [cluster, &vec![0; packing.cluster_size as usize - cluster.len()]].concat();
        &padded
    };
    let len = codec::compress(packing.kind, whole, room)
        .map_err(|error| Error::unsupported(format!("could not compress a cluster: {error}")))?;
    Ok(len.map_or(Packed::TooLarge, |len| Packed::Bytes(room[..len].to_vec())))
}
