//! What a bitmap has recorded since the image was opened: a set of bits whose memory follows what was set.
//!
//! All sets of an image share a budget. When it is used up, the set that asks for more becomes the set of everything: a
//! bitmap may say that something changed which did not, and never the other way round.

use std::collections::BTreeMap;
use std::ops::Range;

/// Bytes in a piece of a set.
const PIECE: usize = 4096;
const PIECE_BITS: u64 = PIECE as u64 * 8;

/// Pieces that may still be taken. A full budget is that of one bitmap of the largest size.
#[derive(Debug)]
pub(super) struct Budget {
    pieces: u64,
}

impl Budget {
    /// Room for `bytes` of bits.
    pub(super) fn new(bytes: u64) -> Budget {
        Budget { pieces: bytes / PIECE as u64 }
    }
}

/// A set of bits.
#[derive(Debug, Default)]
pub(super) struct Bits {
    /// The set is everything, and `pieces` is empty.
    everything: bool,
    pieces: BTreeMap<u64, Box<[u8; PIECE]>>,
}

impl Bits {
    /// Adds a range, or everything when the budget does not allow it.
    pub(super) fn set(&mut self, bits: Range<u64>, budget: &mut Budget) {
        let mut at = bits.start;
        while at < bits.end && !self.everything {
            let piece = at / PIECE_BITS;
            let end = bits.end.min((piece + 1) * PIECE_BITS);
            if !self.pieces.contains_key(&piece) && !self.take_piece(piece, budget) {
                return;
            }
            if let Some(bytes) = self.pieces.get_mut(&piece) {
                set_range(&mut bytes[..], at % PIECE_BITS..at % PIECE_BITS + (end - at));
            }
            at = end;
        }
    }

    fn take_piece(&mut self, piece: u64, budget: &mut Budget) -> bool {
        if budget.pieces == 0 {
            self.clear(budget);
            self.everything = true;
            return false;
        }
        budget.pieces -= 1;
        self.pieces.insert(piece, Box::new([0; PIECE]));
        true
    }

    /// Takes everything out.
    pub(super) fn clear(&mut self, budget: &mut Budget) {
        budget.pieces += self.pieces.len() as u64;
        self.pieces.clear();
        self.everything = false;
    }

    /// Takes out all bits from `end` on; a set of everything stays one.
    pub(super) fn truncate(&mut self, end: u64, budget: &mut Budget) {
        let beyond = self.pieces.split_off(&end.div_ceil(PIECE_BITS));
        budget.pieces += beyond.len() as u64;
        if let Some(bytes) = self.pieces.get_mut(&(end / PIECE_BITS)) {
            clear_from(&mut bytes[..], end % PIECE_BITS);
        }
    }

    /// Whether a bit in these bytes may be set.
    pub(super) fn touches(&self, bytes: Range<u64>) -> bool {
        let pieces = bytes.start / PIECE as u64..bytes.end.div_ceil(PIECE as u64);
        self.everything || (!pieces.is_empty() && self.pieces.range(pieces).next().is_some())
    }

    /// Adds the set's bits to `bytes`, whose first byte is the set's byte `first`.
    pub(super) fn add_to(&self, bytes: &mut [u8], first: u64) {
        if self.everything {
            bytes.fill(0xff);
            return;
        }
        let end = first + bytes.len() as u64;
        for (&piece, from) in self.pieces.range(first / PIECE as u64..end.div_ceil(PIECE as u64)) {
            let start = piece * PIECE as u64;
            let (low, high) = (first.max(start), end.min(start + PIECE as u64));
            let target = &mut bytes[(low - first) as usize..(high - first) as usize];
            let source = &from[(low - start) as usize..(high - start) as usize];
            target.iter_mut().zip(source).for_each(|(target, source)| *target |= source);
        }
    }
}

/// Sets a range of bits, which lies within `bytes`.
fn set_range(bytes: &mut [u8], bits: Range<u64>) {
    if bits.is_empty() {
        return;
    }
    let (first, last) = ((bits.start / 8) as usize, ((bits.end - 1) / 8) as usize);
    let head = 0xff << (bits.start % 8);
    let tail = 0xff >> (7 - (bits.end - 1) % 8);
    if first == last {
        bytes[first] |= head & tail;
        return;
    }
    bytes[first] |= head;
    bytes[first + 1..last].fill(0xff);
    bytes[last] |= tail;
}

/// Clears every bit from `bit` on.
pub(super) fn clear_from(bytes: &mut [u8], bit: u64) {
    let first = (bit / 8).min(bytes.len() as u64) as usize;
    if let Some(byte) = bytes.get_mut(first) {
        *byte &= !(0xff << (bit % 8));
    }
    bytes.iter_mut().skip(first + 1).for_each(|byte| *byte = 0);
}

/// The first bit from `from` on, within `bytes`, that is set (or not, as `wanted` says).
pub(super) fn find(bytes: &[u8], from: u64, wanted: bool) -> Option<u64> {
    let flip = if wanted { 0 } else { 0xff };
    let mut at = (from / 8) as usize;
    let first = (bytes.get(at)? ^ flip) & (0xff << (from % 8));
    if first != 0 {
        return Some(at as u64 * 8 + u64::from(first.trailing_zeros()));
    }
    at += 1;
    let skipped = bytes[at..].iter().position(|byte| byte ^ flip != 0)?;
    let byte = bytes[at + skipped] ^ flip;
    Some((at + skipped) as u64 * 8 + u64::from(byte.trailing_zeros()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(bits: &Bits, len: usize) -> Vec<bool> {
        let mut bytes = vec![0; len / 8];
        bits.add_to(&mut bytes, 0);
        (0..len).map(|bit| bytes[bit / 8] >> (bit % 8) & 1 == 1).collect()
    }

    #[test]
    fn past_the_budget_everything_counts_as_set_and_the_memory_is_given_back() {
        let mut budget = Budget::new(2 * PIECE as u64);
        let mut bits = Bits::default();
        bits.set(3..4, &mut budget);
        bits.set(5 * PIECE_BITS..5 * PIECE_BITS + 1, &mut budget);
        assert!(!bits.touches(PIECE as u64..2 * PIECE as u64));
        bits.set(9 * PIECE_BITS..9 * PIECE_BITS + 1, &mut budget);
        assert!(bits.touches(PIECE as u64..PIECE as u64 + 1));
        assert!(shown(&bits, 64).iter().all(|bit| *bit));
        assert_eq!(budget.pieces, 2);
        bits.truncate(7, &mut budget);
        assert!(bits.everything);
        bits.clear(&mut budget);
        assert!(!bits.touches(0..u64::MAX / 16));
    }

    #[test]
    fn bits_are_found_in_both_directions_of_the_question() {
        let bytes = [0, 0b1000, 0, 0xff, 0x7f];
        assert_eq!(find(&bytes, 0, true), Some(11));
        assert_eq!(find(&bytes, 12, true), Some(24));
        assert_eq!(find(&bytes, 24, false), Some(39));
        assert_eq!(find(&bytes, 11, false), Some(12));
        assert_eq!(find(&bytes, 39, true), None);
        assert_eq!(find(&bytes, 40, true), None);
    }

    proptest! {
        #[test]
        fn a_set_is_what_a_row_of_flags_says(
            calls in prop::collection::vec((0_u64..70_000, 0_u64..40_000, any::<bool>()), 0..12),
        ) {
            let mut budget = Budget::new(1 << 20);
            let mut bits = Bits::default();
            let mut model = vec![false; 131_072];
            for (start, len, truncate) in calls {
                if truncate {
                    bits.truncate(start, &mut budget);
                    model[start as usize..].fill(false);
                } else {
                    bits.set(start..start + len, &mut budget);
                    model[start as usize..(start + len) as usize].fill(true);
                }
            }
            prop_assert_eq!(shown(&bits, model.len()), model);
        }

        #[test]
        fn clearing_from_a_bit_keeps_those_before_it(bit in 0_u64..100) {
            let mut bytes = [0xff; 10];
            clear_from(&mut bytes, bit);
            prop_assert_eq!(find(&bytes, 0, false), (bit < 80).then_some(bit));
            let kept: u32 = bytes.iter().map(|byte| byte.count_ones()).sum();
            prop_assert_eq!(u64::from(kept), bit.min(80));
        }
    }
}
