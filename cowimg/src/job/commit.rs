//! Writing what the upper layers of a chain hold into a lower one.
//!
//! The order is what makes it safe: everything is in the lower layer, durably, before the first byte of the image itself
//! changes. Up to there the image reads as before whatever happens, because only what it hides is written.

use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::in_turn::work_in_turn;
use super::pace::Pace;
use super::zero_scan::parts;
use crate::chain::Image;
use crate::disk::{ResizeOptions, ZeroMode};
use crate::error::{Error, Result};
use crate::progress::Control;
use crate::range::ByteRange;

/// Bytes of a piece, or one cluster of the lower layer where that is more.
const PIECE: u64 = 1 << 20;
/// Zeroes in data are looked for in steps of this many bytes when the lower layer has no clusters.
const RAW_GRANULE: usize = 4096;

/// What becomes of the image once its content is in the lower layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Afterwards {
    /// It is emptied: only for a commit into its own backing file.
    #[default]
    Empty,
    /// It stays as it is, to be thrown away.
    Keep,
}

/// How to commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitOptions {
    /// What becomes of the image.
    pub afterwards: Afterwards,
    /// The most bytes in a second, if there is a limit.
    pub rate: Option<u64>,
    /// Threads that read, at least 1.
    pub threads: usize,
}

impl Default for CommitOptions {
    fn default() -> CommitOptions {
        CommitOptions { afterwards: Afterwards::Empty, rate: None, threads: super::default_threads() }
    }
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CommitReport {
    /// Bytes of the disk that were written as data.
    pub data_bytes: u64,
    /// Bytes of the disk that were made to read as zeroes.
    pub zero_bytes: u64,
    /// The size in bytes that the lower layer had before it was grown, if it was.
    pub grown_from: Option<u64>,
}

/// Writes everything that `image`, and the layers between, hold over its
/// [writable layer](crate::OpenOptions::writable_layer) into that layer, which is grown first if it is smaller, and makes
/// it durable. Then the image is emptied, if that is asked for.
///
/// Every other image that is stacked on the lower layer, or on one between, reads something else from then on: that is
/// what a commit means, and nobody can see from here whether there are any.
///
/// A run that is cancelled or fails leaves the image as it was, with all its content. The lower layer may hold a part of it
/// already, and may have been grown; committing again finishes it.
pub fn commit(image: &Image, options: &CommitOptions, control: &Control<'_>) -> Result<CommitReport> {
    let Some(lower) = image.writable_layer() else {
        return Err(Error::invalid("the image was opened without a layer to commit to"));
    };
    let depth = image.layers().len() - lower.layers().len();
    if options.afterwards == Afterwards::Empty && depth > 1 {
        return Err(Error::invalid(
            "an image that is committed past its own backing file cannot be emptied: the layers between would show",
        ));
    }
    let mut report = CommitReport::default();
    if lower.size() < image.size() {
        report.grown_from = Some(lower.size());
        lower.resize(image.size(), &ResizeOptions::default())?;
    }
    let run = Run::new(image, lower, depth, options.rate);
    control.report(0, image.size());
    run.copy(options.threads, control)?;
    report.data_bytes = run.data_bytes.load(Ordering::Relaxed);
    report.zero_bytes = run.zero_bytes.load(Ordering::Relaxed);
    // Durable before the image lets go of anything.
    lower.flush()?;
    if options.afterwards == Afterwards::Empty {
        image.make_empty()?;
    }
    control.report(image.size(), image.size());
    Ok(report)
}

/// A part of the disk that upper layers answer for.
struct Piece {
    range: ByteRange,
    is_zero: bool,
}

struct Run<'a> {
    image: &'a Image,
    lower: &'a Image,
    /// How many layers the lower one is below the image.
    depth: usize,
    pace: Pace,
    data_bytes: AtomicU64,
    zero_bytes: AtomicU64,
}

/// Where the data of a cluster starts and ends, in steps of [`RAW_GRANULE`].
fn without_zeroes_around(cluster: &[u8]) -> Range<usize> {
    let mut data = parts(cluster, RAW_GRANULE).filter(|part| !part.is_zero).map(|part| part.range);
    let Some(first) = data.next() else { return 0..0 };
    first.start..data.last().map_or(first.end, |last| last.end)
}

impl<'a> Run<'a> {
    fn new(image: &'a Image, lower: &'a Image, depth: usize, rate: Option<u64>) -> Run<'a> {
        let (data_bytes, zero_bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        Run { image, lower, depth, pace: Pace::new(rate.and_then(NonZeroU64::new)), data_bytes, zero_bytes }
    }

    fn copy(&self, threads: usize, control: &Control<'_>) -> Result<()> {
        let mut left = ByteRange::between(0, self.image.size());
        work_in_turn(
            threads,
            control,
            || self.next_piece(&mut left),
            |piece, buf| {
                buf.resize(if piece.is_zero { 0 } else { piece.range.len() as usize });
                self.image.read_at(buf, piece.range.start())
            },
            |piece, (), buf| {
                self.pace.wait(piece.range.len(), control)?;
                self.write(piece, buf)?;
                control.report(piece.range.end(), self.image.size());
                Ok(())
            },
        )
    }

    /// The next part of `left` that a layer above the lower one answers for, at most to the next multiple of [`PIECE`]
    /// where it is data. Where a layer is shorter than the one above it, that one's silence means zeroes.
    fn next_piece(&self, left: &mut ByteRange) -> Result<Option<Piece>> {
        let step = self.lower.cluster_size().unwrap_or(0).max(PIECE);
        let mut piece: Option<Piece> = None;
        while !left.is_empty() {
            let start = left.start();
            let extent = self.image.extent_at(start, left.len())?;
            let is_ours = extent.depth < self.depth;
            let end = match (is_ours, extent.is_zero()) {
                (true, false) => extent.range.end().min((start / step + 1) * step),
                _ => extent.range.end(),
            };
            piece = match piece {
                // What continues the piece in its own way, within its step, is a part of it.
                Some(piece) if !is_ours || piece.is_zero != extent.is_zero() => return Ok(Some(piece)),
                Some(piece) if !piece.is_zero && start.is_multiple_of(step) => return Ok(Some(piece)),
                Some(piece) => Some(Piece { range: ByteRange::between(piece.range.start(), end), ..piece }),
                None if is_ours => {
                    Some(Piece { range: ByteRange::between(start, end), is_zero: extent.is_zero() })
                }
                None => None,
            };
            *left = ByteRange::between(end, left.end());
        }
        Ok(piece)
    }

    fn write(&self, piece: &Piece, buf: &[u8]) -> Result<()> {
        if piece.is_zero {
            return self.zero(piece.range);
        }
        let granule = self.lower.cluster_size().map_or(RAW_GRANULE, |size| size as usize);
        for part in parts(buf, granule) {
            let at = piece.range.start() + part.range.start as u64;
            if part.is_zero {
                self.zero(ByteRange::between(at, at + part.range.len() as u64))?;
            } else {
                self.data_bytes.fetch_add(part.range.len() as u64, Ordering::Relaxed);
                self.write_data(&buf[part.range], at, granule)?;
            }
        }
        Ok(())
    }

    /// Writes data that starts at a granule's boundary. Where the lower layer has zeroes, those around a granule's data
    /// need not be written: a scattered write then costs its own bytes, not those of its cluster.
    fn write_data(&self, bytes: &[u8], at: u64, granule: usize) -> Result<()> {
        let end = at + bytes.len() as u64;
        let mut left = ByteRange::between(at, end);
        while !left.is_empty() {
            let extent = self.lower.extent_at(left.start(), left.len())?;
            let here = &bytes[(left.start() - at) as usize..(extent.range.end() - at) as usize];
            if extent.is_zero() {
                for (nth, cluster) in here.chunks(granule).enumerate() {
                    let data = without_zeroes_around(cluster);
                    self.lower.write_at(
                        &cluster[data.clone()],
                        left.start() + (nth * granule + data.start) as u64,
                    )?;
                }
            } else {
                self.lower.write_at(here, left.start())?;
            }
            left = ByteRange::between(extent.range.end(), end);
        }
        Ok(())
    }

    /// Zeroes what does not read as zeroes already.
    fn zero(&self, range: ByteRange) -> Result<()> {
        let mut at = range;
        while !at.is_empty() {
            let extent = self.lower.extent_at(at.start(), at.len())?;
            if !extent.is_zero() {
                self.lower.write_zeroes(extent.range, ZeroMode::Unmap)?;
                self.zero_bytes.fetch_add(extent.range.len(), Ordering::Relaxed);
            }
            at = ByteRange::between(extent.range.end(), at.end());
        }
        Ok(())
    }
}
