//! Writing what the upper layers of a chain hold into a lower one.
//!
//! The order is what makes it safe: everything is in the lower layer, durably, before the first byte of the image itself
//! changes. Up to there the image reads as before whatever happens, because only what it hides is written.

mod batches;

use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::in_turn::Workers;
use super::pace::Pace;
use crate::chain::Image;
use crate::disk::{ResizeOptions, ZeroMode};
use crate::error::{Error, Result};
use crate::progress::Control;
use crate::range::ByteRange;
use crate::storage::PageBuffer;
use crate::zero_scan::parts;
use batches::{Batch, Batches};

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
        let mut batches = Batches::new(self.image, self.depth, self.granule() as u64);
        Workers::in_order(threads).work(
            control,
            || batches.next(),
            |batch, buf| self.read(batch, buf),
            |batch, (), buf| {
                self.pace.wait(batch.data_bytes(), control)?;
                self.write(batch, buf)?;
                control.report(batch.end(), self.image.size());
                Ok(())
            },
        )
    }

    /// In which steps the lower layer is written, in bytes.
    fn granule(&self) -> usize {
        self.lower.cluster_size().map_or(RAW_GRANULE, |size| size as usize)
    }

    /// Reads all data of a batch, one piece behind the other.
    fn read(&self, batch: &Batch, buf: &mut PageBuffer) -> Result<()> {
        buf.resize(batch.data_bytes() as usize);
        let mut rest = &mut buf[..];
        for piece in batch.pieces.iter().filter(|piece| !piece.is_zero) {
            let (bytes, behind) = rest.split_at_mut(piece.range.len() as usize);
            self.image.read_at(bytes, piece.range.start())?;
            rest = behind;
        }
        Ok(())
    }

    fn write(&self, batch: &Batch, mut data: &[u8]) -> Result<()> {
        for piece in &batch.pieces {
            if piece.is_zero {
                self.zero(piece.range)?;
            } else {
                let (bytes, behind) = data.split_at(piece.range.len() as usize);
                self.write_piece(bytes, piece.range.start())?;
                data = behind;
            }
        }
        Ok(())
    }

    /// Writes the bytes of a piece that starts at `start` in the disk; whole granules of zeroes among them become such.
    fn write_piece(&self, bytes: &[u8], start: u64) -> Result<()> {
        let granule = self.granule();
        // Granules are the lower layer's own, wherever the piece starts.
        let head = (start.next_multiple_of(granule as u64) - start).min(bytes.len() as u64) as usize;
        let (head, rest) = bytes.split_at(head);
        for (bytes, start) in [(head, start), (rest, start + head.len() as u64)] {
            for part in parts(bytes, granule) {
                let at = start + part.range.start as u64;
                if part.is_zero {
                    self.zero(ByteRange::between(at, at + part.range.len() as u64))?;
                } else {
                    self.data_bytes.fetch_add(part.range.len() as u64, Ordering::Relaxed);
                    self.write_data(&bytes[part.range], at, granule)?;
                }
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
