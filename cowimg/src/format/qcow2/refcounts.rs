//! Refcounts: how many tables, and the header, refer to each host cluster.
//!
//! ```text
//! refcount table entry:
//! bit    63                      9 8       0
//!      | bits 9-63 of the offset  | reserved |      offset 0: no block, all its refcounts are 0
//!
//! refcount block, one cluster of entries of w = 1 << refcount_order bits:
//! w          entry i
//! 1, 2, 4    byte i * w / 8, from bit (i * w) % 8 up, counted from the least significant
//! 8          byte i
//! 16 32 64   big-endian, at byte i * w / 8
//! ```
//!
//! The functions work on the bytes of a block as they stand in the file, so that a block is never held twice.

use byteorder::{BigEndian, ByteOrder};

use super::address::HostOffset;
use super::geometry::{Geometry, MAX_REFCOUNT_ORDER};

const TABLE_OFFSET_MASK: u64 = !0x1ff;

/// Why an entry of the refcount table was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RefcountTableEntryError {
    /// The block does not start at a cluster boundary.
    #[error("the refcount block at file offset {host:#x} does not start at a cluster boundary")]
    Unaligned {
        /// Where the entry points.
        host: u64,
    },
    /// No file is that long.
    #[error("the refcount block at file offset {host:#x} lies past the largest file offset")]
    PastLimit {
        /// Where the entry points.
        host: u64,
    },
}

/// The refcount block that an entry of the refcount table names, `None` when there is none. Reserved bits are passed
/// over: see [`table_entry_reserved_bits`]. The entry of a block is its offset.
pub fn decode_refcount_table_entry(
    raw: u64,
    g: &Geometry,
) -> Result<Option<HostOffset>, RefcountTableEntryError> {
    let host = raw & TABLE_OFFSET_MASK;
    if host == 0 {
        return Ok(None);
    }
    if !g.is_aligned(host) {
        return Err(RefcountTableEntryError::Unaligned { host });
    }
    // Safe from here on: a block's end cannot overflow, for offsets are below 2^63 and clusters small.
    if host > i64::MAX as u64 {
        return Err(RefcountTableEntryError::PastLimit { host });
    }
    Ok(Some(HostOffset(host)))
}

/// Those of the reserved bits of a refcount table entry that are set; an image that is in order has none.
pub const fn table_entry_reserved_bits(raw: u64) -> u64 {
    raw & !TABLE_OFFSET_MASK
}

/// Width in bits of the refcounts of an order, 1 to 64.
fn width(order: u32) -> Option<u32> {
    (order <= MAX_REFCOUNT_ORDER).then(|| 1 << order)
}

/// Where an entry narrower than a byte is: its byte, its lowest bit in there, and the mask of its width.
fn narrow_place(width: u32, index: u64) -> Option<(usize, u32, u8)> {
    let bit = index.checked_mul(u64::from(width))?;
    let shift = u32::try_from(bit % 8).ok()?;
    let mask = u8::MAX.checked_shr(8_u32.checked_sub(width)?)?;
    Some((usize::try_from(bit / 8).ok()?, shift, mask))
}

/// Where an entry of whole bytes is.
fn wide_place(width: u32, index: u64) -> Option<std::ops::Range<usize>> {
    let bytes = (width / 8) as usize;
    let start = usize::try_from(index).ok()?.checked_mul(bytes)?;
    Some(start..start.checked_add(bytes)?)
}

/// The refcount at `index` of a block whose refcounts have `1 << order` bits, or `None` past the end of the block.
pub fn get(block: &[u8], order: u32, index: u64) -> Option<u64> {
    let width = width(order)?;
    if width < 8 {
        let (byte, shift, mask) = narrow_place(width, index)?;
        return Some(u64::from(block.get(byte)?.checked_shr(shift)? & mask));
    }
    let entry = block.get(wide_place(width, index)?)?;
    Some(BigEndian::read_uint(entry, entry.len()))
}

/// Whether the `count` refcounts from `first` on, in a block whose refcounts have `1 << order` bits, are all `value`. Past the
/// end of the block there are none, so that the answer is no.
pub fn all_are(block: &[u8], order: u32, (first, count): (u64, u64), value: u64) -> bool {
    let (16, Ok(value16)) = (1_u64.checked_shl(order).unwrap_or(0), u16::try_from(value)) else {
        return (first..first.saturating_add(count)).all(|index| get(block, order, index) == Some(value));
    };
    // The usual width, of which an image has millions.
    let range = first.checked_add(count).and_then(|end| wide_range(&(first..end)));
    let Some(bytes) = range.and_then(|range| block.get(range)) else { return false };
    bytes.as_chunks::<2>().0.iter().all(|&refcount| u16::from_be_bytes(refcount) == value16)
}

/// What [`change_all`] made of refcounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    /// Each is one more or one fewer. Whether any is 0 now.
    All {
        /// At least one refcount has become 0.
        frees: bool,
    },
    /// Nothing: the refcount at this index is 0, or past the end of the block.
    Zero(u64),
    /// Nothing: the refcount at this index is the highest that its width can hold, and was to be one more.
    Full(u64),
}

/// Counts one reference more, or one fewer, for each of the `count` refcounts from `first` on in a block whose refcounts have
/// `1 << order` bits; none of them may be 0. All or none are changed.
pub fn change_all(block: &mut [u8], order: u32, (first, count): (u64, u64), more: bool) -> Changed {
    let end = first.saturating_add(count);
    if order == 4
        && let Some(refcounts) = wide_range(&(first..end)).and_then(|range| block.get_mut(range))
        && let Some(changed) = change_all_16(refcounts.as_chunks_mut::<2>().0, more)
    {
        return changed;
    }
    let highest =
        width(order).and_then(|width| u64::MAX.checked_shr(64_u32.checked_sub(width)?)).unwrap_or(0);
    let mut frees = false;
    for index in first..end {
        match get(block, order, index) {
            None | Some(0) => return Changed::Zero(index),
            Some(refcount) if more && refcount == highest => return Changed::Full(index),
            Some(refcount) => frees |= !more && refcount == 1,
        }
    }
    for index in first..end {
        let refcount = get(block, order, index).unwrap_or(0);
        let changed = if more { refcount.wrapping_add(1) } else { refcount.wrapping_sub(1) };
        _ = try_set(block, order, index, changed);
    }
    Changed::All { frees }
}

/// The usual width, of which an image has millions; `None`, and nothing changed, when one of them cannot be changed.
fn change_all_16(refcounts: &mut [[u8; 2]], more: bool) -> Option<Changed> {
    let (mut lowest, mut highest) = (u16::MAX, 0);
    for refcount in refcounts.iter() {
        let refcount = u16::from_be_bytes(*refcount);
        lowest = lowest.min(refcount);
        highest = highest.max(refcount);
    }
    if lowest == 0 || (more && highest == u16::MAX) {
        return None;
    }
    let by = if more { 1 } else { u16::MAX };
    for refcount in refcounts {
        *refcount = u16::from_be_bytes(*refcount).wrapping_add(by).to_be_bytes();
    }
    Some(Changed::All { frees: !more && lowest == 1 })
}

/// Where refcounts of 16 bits are.
fn wide_range(entries: &std::ops::Range<u64>) -> Option<std::ops::Range<usize>> {
    let place = |index: u64| usize::try_from(index).ok()?.checked_mul(2);
    Some(place(entries.start)?..place(entries.end)?)
}

/// Sets the refcount at `index` and says whether that was possible: not past the end of the block, and not to a
/// `value` that its width cannot hold.
#[must_use = "the refcount may not have been set"]
pub fn set(block: &mut [u8], order: u32, index: u64, value: u64) -> bool {
    try_set(block, order, index, value).is_some()
}

fn try_set(block: &mut [u8], order: u32, index: u64, value: u64) -> Option<()> {
    let width = width(order)?;
    if width < 64 && value.checked_shr(width)? != 0 {
        return None;
    }
    if width < 8 {
        let (byte, shift, mask) = narrow_place(width, index)?;
        let byte = block.get_mut(byte)?;
        let value = u8::try_from(value).ok()?;
        *byte = (*byte & !mask.checked_shl(shift)?) | value.checked_shl(shift)?;
        return Some(());
    }
    let entry = block.get_mut(wide_place(width, index)?)?;
    let len = entry.len();
    BigEndian::write_uint(entry, value, len);
    Some(())
}

/// The next run of refcounts that are 0 at or after `from`: the index of its first and the number of them, at most `most`.
///
/// Looks at eight bytes at a time, whatever the width, because allocation passes over full blocks with it; and at no more
/// of a free block than is asked for, because it is asked for little very often.
pub fn find_free_run(block: &[u8], order: u32, from: u64, most: u64) -> Option<(u64, u64)> {
    let words = Words::new(block, order)?;
    let start = words.find(from, words.entries, Lanes::first_zero)?;
    let last = start.saturating_add(most).min(words.entries);
    let end = words.find(start, last, Lanes::first_nonzero).unwrap_or(last);
    Some((start, end.saturating_sub(start)))
}

/// A block seen as words of 64 bits. A word is read with its first byte lowest, which puts entry `i` of the word at
/// bits `i * width` and up for every width: within a wide entry the bytes are swapped, which its being 0 survives.
struct Words<'a> {
    block: &'a [u8],
    lanes: Lanes,
    /// Entries in the whole block.
    entries: u64,
}

impl<'a> Words<'a> {
    fn new(block: &'a [u8], order: u32) -> Option<Words<'a>> {
        let width = width(order)?;
        let entries = (block.len() as u64).checked_mul(8)?.checked_div(u64::from(width))?;
        Some(Words { block, lanes: Lanes::new(width)?, entries })
    }

    /// The first entry at or after `from` and before `end` that `look` finds.
    fn find(&self, from: u64, end: u64, look: fn(Lanes, u64, u32) -> Option<u32>) -> Option<u64> {
        let per_word = u64::from(self.lanes.count);
        let first_word = from.checked_div(per_word)?;
        let mut skip = u32::try_from(from.checked_rem(per_word)?).ok()?;
        let bytes = self.block.get(usize::try_from(first_word.checked_mul(8)?).ok()?..)?;
        for (number, word) in (first_word..end.div_ceil(per_word)).zip(bytes.chunks(8)) {
            if let Some(lane) = look(self.lanes, read_word(word), skip) {
                let entry = number.checked_mul(per_word)?.checked_add(u64::from(lane))?;
                return (entry < end).then_some(entry);
            }
            skip = 0;
        }
        None
    }
}

/// Eight bytes, or what is left of a block whose length is odd, as if zeroes followed.
fn read_word(bytes: &[u8]) -> u64 {
    match <[u8; 8]>::try_from(bytes) {
        Ok(word) => u64::from_le_bytes(word),
        Err(_) => bytes.iter().rev().fold(0, |word, &byte| (word << 8) | u64::from(byte)),
    }
}

/// How 64 bits are divided into entries.
#[derive(Clone, Copy)]
struct Lanes {
    width: u32,
    /// Entries in a word.
    count: u32,
    /// The lowest bit of every entry.
    lowest: u64,
    /// The highest bit of every entry.
    highest: u64,
}

impl Lanes {
    fn new(width: u32) -> Option<Lanes> {
        let lowest = u64::MAX.checked_div(u64::MAX.checked_shr(64_u32.checked_sub(width)?)?)?;
        let highest = lowest.checked_shl(width.checked_sub(1)?)?;
        Some(Lanes { width, count: 64_u32.checked_div(width)?, lowest, highest })
    }

    /// The bits of the first `skip` entries, of which there is at least one more.
    fn skipped(self, skip: u32) -> u64 {
        !u64::MAX.wrapping_shl(skip.wrapping_mul(self.width))
    }

    /// The first entry from `skip` on that is 0. Taking 1 from every entry borrows into the highest bit of one that
    /// is 0; the borrow may spill upwards from there, never downwards, so that the lowest hit is a true one.
    fn first_zero(self, word: u64, skip: u32) -> Option<u32> {
        let word = word | self.skipped(skip);
        self.first_hit(word.wrapping_sub(self.lowest) & !word & self.highest)
    }

    /// The first entry from `skip` on that is not 0.
    fn first_nonzero(self, word: u64, skip: u32) -> Option<u32> {
        self.first_hit(word & !self.skipped(skip))
    }

    fn first_hit(self, hits: u64) -> Option<u32> {
        if hits == 0 { None } else { hits.trailing_zeros().checked_div(self.width) }
    }
}

#[cfg(test)]
#[allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test may fail"
)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ORDERS: std::ops::RangeInclusive<u32> = 0..=6;

    fn max(order: u32) -> u64 {
        u64::MAX >> (64 - (1 << order))
    }

    /// A block with these refcounts, each cut to its width.
    fn block_of(order: u32, counts: &[u64]) -> Vec<u8> {
        let mut block = vec![0; (counts.len() << order).div_ceil(8)];
        for (index, &count) in (0..).zip(counts) {
            assert!(set(&mut block, order, index, count & max(order)));
        }
        block
    }

    #[test]
    fn narrow_refcounts_fill_a_byte_from_its_lowest_bit() {
        let mut block = [0; 2];
        assert!(set(&mut block, 0, 1, 1));
        assert!(set(&mut block, 0, 15, 1));
        assert_eq!(block, [0b0000_0010, 0b1000_0000]);
        let mut block = [0; 2];
        assert!(set(&mut block, 1, 1, 0b10));
        assert!(set(&mut block, 1, 4, 0b11));
        assert_eq!(block, [0b0000_1000, 0b0000_0011]);
        let mut block = [0; 1];
        assert!(set(&mut block, 2, 1, 0xa));
        assert_eq!(block, [0xa0]);
    }

    #[test]
    fn wide_refcounts_are_big_endian() {
        let mut block = [0; 16];
        assert!(set(&mut block, 4, 1, 0x0102));
        assert!(set(&mut block, 5, 1, 0x0304_0506));
        assert!(set(&mut block, 6, 1, 0x1122_3344_5566_7788));
        let expected = [0, 0, 1, 2, 3, 4, 5, 6, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88];
        assert_eq!(block, expected);
    }

    #[test]
    fn a_refcount_that_does_not_fit_is_not_set() {
        for order in ORDERS {
            let entries = (64_u64 * 8) >> order;
            let mut block = [0xff; 64];
            assert!(!set(&mut block, order, entries, 0), "past the end, order {order}");
            assert!(!set(&mut block, order, u64::MAX, 0));
            assert_eq!(get(&block, order, entries), None);
            assert_eq!(get(&block, order, u64::MAX), None);
            if order < 6 {
                assert!(!set(&mut block, order, 0, max(order) + 1));
            }
            assert_eq!(block, [0xff; 64], "and the block is as it was");
            assert_eq!(get(&block, order, entries - 1), Some(max(order)));
        }
        assert_eq!(get(&[0; 64], 7, 0), None);
        assert!(!set(&mut [0; 64], 7, 0, 0));
        assert_eq!(find_free_run(&[0; 64], 7, 0, u64::MAX), None);
    }

    #[test]
    fn a_free_run_is_found_across_words_and_to_the_end() {
        let counts = [vec![1; 9], vec![0; 30], vec![2], vec![0; 24]].concat();
        for order in ORDERS.skip(2) {
            let block = block_of(order, &counts);
            assert_eq!(find_free_run(&block, order, 0, u64::MAX), Some((9, 30)), "order {order}");
            assert_eq!(find_free_run(&block, order, 20, u64::MAX), Some((20, 19)));
            assert_eq!(find_free_run(&block, order, 39, u64::MAX), Some((40, 24)));
            assert_eq!(find_free_run(&block, order, 63, u64::MAX), Some((63, 1)));
            assert_eq!(find_free_run(&block, order, 64, u64::MAX), None);
            assert_eq!(find_free_run(&block, order, u64::MAX, u64::MAX), None);
        }
        assert_eq!(find_free_run(&[0xff; 4096], 4, 0, 1), None);
        assert_eq!(find_free_run(&[0; 4096], 4, 0, u64::MAX), Some((0, 2048)));
        assert_eq!(find_free_run(&[], 4, 0, 1), None);
    }

    #[test]
    fn entries_of_the_refcount_table_are_checked() {
        let g = Geometry::new(16, 4).unwrap();
        let decode = |raw| decode_refcount_table_entry(raw, &g);
        assert_eq!(decode(0), Ok(None));
        assert_eq!(decode(0x1ff), Ok(None));
        assert_eq!(decode(0x20000), Ok(Some(HostOffset(0x20000))));
        assert_eq!(decode(0x20001), Ok(Some(HostOffset(0x20000))));
        assert_eq!(decode(0x20200), Err(RefcountTableEntryError::Unaligned { host: 0x20200 }));
        assert_eq!(decode(1 << 63), Err(RefcountTableEntryError::PastLimit { host: 1 << 63 }));
        assert_eq!(table_entry_reserved_bits(0x20001), 1);
        assert_eq!(table_entry_reserved_bits(!0x1ff), 0);
    }

    proptest! {
        #[test]
        fn a_block_is_an_array_of_refcounts(
            order in 0_u32..=6,
            counts in prop::collection::vec(any::<u64>(), 1..200),
            index in any::<prop::sample::Index>(),
            value: u64,
        ) {
            let mut counts: Vec<u64> = counts.into_iter().map(|count| count & max(order)).collect();
            let mut block = block_of(order, &counts);
            let index = index.index(counts.len());
            counts[index] = value & max(order);
            prop_assert!(set(&mut block, order, index as u64, counts[index]));
            for (index, &count) in (0..).zip(&counts) {
                prop_assert_eq!(get(&block, order, index), Some(count));
            }
            // The neighbours are as they were to the last bit.
            prop_assert_eq!(block, block_of(order, &counts));
        }

        /// All change or none, as if each were looked at; and nothing beside them changes.
        #[test]
        fn changing_all_is_changing_each(
            order in 0_u32..=6,
            counts in prop::collection::vec(prop_oneof![5 => 1_u64..4, 1 => Just(0), 1 => Just(u64::MAX)], 1..60),
            (first, count) in (0_u64..60, 0_u64..70),
            more: bool,
        ) {
            let counts: Vec<u64> = counts.into_iter().map(|count| count & max(order)).collect();
            let before = block_of(order, &counts);
            let mut block = before.clone();
            let mut expected = before.clone();
            let mut outcome = Changed::All { frees: false };
            for index in first..first + count {
                let refcount = get(&before, order, index).unwrap_or(0);
                if refcount == 0 || (more && refcount == max(order)) {
                    outcome = if refcount == 0 { Changed::Zero(index) } else { Changed::Full(index) };
                    expected.clone_from(&before);
                    break;
                }
                let changed = if more { refcount + 1 } else { refcount - 1 };
                prop_assert!(set(&mut expected, order, index, changed));
                if let Changed::All { frees } = &mut outcome {
                    *frees |= changed == 0;
                }
            }
            prop_assert_eq!(change_all(&mut block, order, (first, count), more), outcome);
            prop_assert_eq!(block, expected);
        }

        /// Every width and every length of the block, whole words or not, agrees with looking at each entry.
        #[test]
        fn the_free_run_is_the_one_that_looking_at_each_entry_finds(
            order in 0_u32..=6,
            mut block in prop::collection::vec(prop_oneof![Just(0_u8), Just(1), Just(0x80), any::<u8>()], 0..100),
            zeroes in (any::<prop::sample::Index>(), 0_usize..60),
            from in 0_u64..900,
            most in 1_u64..100,
        ) {
            if !block.is_empty() {
                let start = zeroes.0.index(block.len());
                block.iter_mut().skip(start).take(zeroes.1).for_each(|byte| *byte = 0);
            }
            let is_free = |index: &u64| get(&block, order, *index) == Some(0);
            let entries = (block.len() as u64 * 8) >> order;
            let expected = (from..entries)
                .find(is_free)
                .map(|start| (start, (start..entries).take_while(is_free).count() as u64));
            prop_assert_eq!(find_free_run(&block, order, from, u64::MAX), expected);
            let short = expected.map(|(start, len)| (start, len.min(most)));
            prop_assert_eq!(find_free_run(&block, order, from, most), short);
        }
    }
}
