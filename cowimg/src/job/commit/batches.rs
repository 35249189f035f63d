//! What the upper layers of a chain hold, cut into batches of work.
//!
//! The chain tells stretches of data and of zeroes, and those may be as small as a sector. Zeroes count as such where
//! they fill whole units of the lower layer; those around data within a unit are written with it, so that a unit is
//! touched once. A batch is what one thread reads at a time: many small pieces or a part of a large one.

use crate::chain::Image;
use crate::error::Result;
use crate::range::ByteRange;

/// Bytes of data in a batch, or one unit where that is more.
const BATCH_BYTES: u64 = 1 << 20;
/// Pieces in a batch.
const BATCH_PIECES: usize = 64;

/// A part of the disk that upper layers answer for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) range: ByteRange,
    pub(super) is_zero: bool,
}

/// Pieces in the order of the disk, none of which touches another of its kind.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) pieces: Vec<Piece>,
    data_bytes: u64,
}

impl Batch {
    /// How many bytes of data all pieces have.
    pub(super) fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Where the last piece ends, in bytes of the disk.
    pub(super) fn end(&self) -> u64 {
        self.pieces.last().map_or(0, |last| last.range.end())
    }

    fn push(&mut self, start: u64, end: u64, is_zero: bool) {
        if start == end {
            return;
        }
        self.data_bytes += if is_zero { 0 } else { end - start };
        match self.pieces.last_mut() {
            Some(last) if last.range.end() == start && last.is_zero == is_zero => {
                last.range = ByteRange::between(last.range.start(), end);
            }
            _ => self.pieces.push(Piece { range: ByteRange::between(start, end), is_zero }),
        }
    }

    /// Adds zeroes; those in the unit in which data ends right before them go to that data.
    fn push_zeroes(&mut self, zeroes: ByteRange, unit: u64) {
        let head_end = zeroes.start().next_multiple_of(unit).min(zeroes.end());
        let follows_data =
            self.pieces.last().is_some_and(|last| !last.is_zero && last.range.end() == zeroes.start());
        let split = if follows_data { head_end } else { zeroes.start() };
        self.push(zeroes.start(), split, false);
        self.push(split, zeroes.end(), true);
    }

    /// Adds data, and takes to it the zeroes right before it in its unit.
    fn push_data(&mut self, data: ByteRange, unit: u64) {
        let unit_start = data.start() / unit * unit;
        let mut start = data.start();
        if let Some(last) =
            self.pieces.last().copied().filter(|last| last.is_zero && last.range.end() == start)
        {
            start = unit_start.max(last.range.start());
            self.pieces.pop();
            self.push(last.range.start(), start, true);
        }
        self.push(start, data.end(), false);
    }
}

/// The batches that are left, in order.
pub(super) struct Batches<'a> {
    image: &'a Image,
    /// Layers at this depth and below are not looked at.
    depth: usize,
    unit: u64,
    left: ByteRange,
}

impl<'a> Batches<'a> {
    /// All that the layers of `image` above `depth` hold, for a lower layer that is written in units of so many bytes.
    pub(super) fn new(image: &'a Image, depth: usize, unit: u64) -> Batches<'a> {
        Batches { image, depth, unit, left: ByteRange::between(0, image.size()) }
    }

    /// The next batch. Where a layer is shorter than the one above it, that one's silence means zeroes.
    pub(super) fn next(&mut self) -> Result<Option<Batch>> {
        let step = BATCH_BYTES.max(self.unit);
        let mut batch = Batch::default();
        while !self.left.is_empty() {
            let start = self.left.start();
            let begins_unit = start.is_multiple_of(self.unit) || batch.end() != start;
            let is_full = batch.pieces.len() >= BATCH_PIECES || batch.data_bytes >= step;
            if is_full && begins_unit {
                return Ok(Some(batch));
            }
            let extent = self.image.extent_at(start, self.left.len())?;
            let mut end = extent.range.end();
            if extent.depth < self.depth {
                if extent.is_zero() {
                    batch.push_zeroes(extent.range, self.unit);
                } else {
                    end = end.min((start / step + 1) * step);
                    batch.push_data(ByteRange::between(start, end), self.unit);
                }
            }
            self.left = ByteRange::between(end, self.left.end());
        }
        Ok(Some(batch).filter(|batch| !batch.pieces.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: u64 = 64;

    fn batch(stretches: &[(u64, u64, bool)]) -> Vec<(u64, u64, bool)> {
        let mut batch = Batch::default();
        for &(start, end, is_zero) in stretches {
            let range = ByteRange::between(start, end);
            if is_zero { batch.push_zeroes(range, UNIT) } else { batch.push_data(range, UNIT) }
        }
        let data = batch.pieces.iter().filter(|piece| !piece.is_zero).map(|piece| piece.range.len()).sum();
        assert_eq!(batch.data_bytes(), data);
        batch.pieces.iter().map(|piece| (piece.range.start(), piece.range.end(), piece.is_zero)).collect()
    }

    #[test]
    fn zeroes_around_data_in_its_unit_are_data() {
        assert_eq!(
            batch(&[(0, 80, true), (80, 90, false), (90, 128, true)]),
            [(0, 64, true), (64, 128, false)]
        );
        assert_eq!(
            batch(&[(64, 80, false), (80, 300, true), (300, 301, false)]),
            [(64, 128, false), (128, 256, true), (256, 301, false)]
        );
        assert_eq!(batch(&[(10, 20, false), (20, 30, true), (30, 40, false)]), [(10, 40, false)]);
    }

    #[test]
    fn what_no_upper_layer_answers_for_stays_out() {
        // Nothing between 20 and 30, and nothing before 10.
        assert_eq!(batch(&[(10, 20, false), (30, 40, true)]), [(10, 20, false), (30, 40, true)]);
        assert_eq!(batch(&[(10, 20, true), (30, 40, false)]), [(10, 20, true), (30, 40, false)]);
    }

    #[test]
    fn pieces_of_one_kind_become_one() {
        assert_eq!(batch(&[(0, 64, true), (64, 200, true)]), [(0, 200, true)]);
        assert_eq!(batch(&[(0, 64, false), (64, 200, false)]), [(0, 200, false)]);
    }
}
