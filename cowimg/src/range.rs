//! A range of bytes that cannot be confused with two loose numbers.

use std::fmt;

/// `len` bytes from `start`. The end never overflows: [`ByteRange::new`] clamps nothing and panics never, it
/// returns `None` when `start + len` does not fit in 63 bits (no disk and no file is longer).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteRange {
    start: u64,
    len: u64,
}

impl ByteRange {
    /// The largest end that a range may have: 2^63 - 1, the largest file offset.
    pub const MAX_END: u64 = i64::MAX as u64;

    /// `len` bytes from `start`, or `None` when the end passes [`ByteRange::MAX_END`].
    pub const fn new(start: u64, len: u64) -> Option<ByteRange> {
        match start.checked_add(len) {
            Some(end) if end <= Self::MAX_END => Some(ByteRange { start, len }),
            _ => None,
        }
    }

    /// From `start` to `end` (exclusive); empty when `end` is not above `start`. Both are clamped to
    /// [`ByteRange::MAX_END`].
    pub const fn between(start: u64, end: u64) -> ByteRange {
        let start = if start > Self::MAX_END { Self::MAX_END } else { start };
        let end = if end > Self::MAX_END { Self::MAX_END } else { end };
        ByteRange { start, len: end.saturating_sub(start) }
    }

    /// First byte.
    pub const fn start(self) -> u64 {
        self.start
    }

    /// Length in bytes.
    pub const fn len(self) -> u64 {
        self.len
    }

    /// One past the last byte.
    pub const fn end(self) -> u64 {
        self.start + self.len
    }

    /// Whether there is no byte in it.
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// The part that both ranges have, empty when they have none.
    #[must_use]
    pub fn intersection(self, other: ByteRange) -> ByteRange {
        ByteRange::between(self.start.max(other.start), self.end().min(other.end()))
    }

    /// Whether the ranges share a byte.
    pub fn overlaps(self, other: ByteRange) -> bool {
        !self.intersection(other).is_empty()
    }

    /// The largest part of the range whose ends are multiples of `unit` (a power of two); may be empty.
    #[must_use]
    pub fn shrink_to(self, unit: u64) -> ByteRange {
        let mask = unit - 1;
        ByteRange::between((self.start + mask) & !mask, self.end() & !mask)
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:#x}, {:#x})", self.start, self.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_whose_end_overflows_is_refused() {
        assert_eq!(ByteRange::new(u64::MAX, 1), None);
        assert_eq!(ByteRange::new(i64::MAX as u64, 1), None);
        assert!(ByteRange::new(i64::MAX as u64, 0).is_some());
    }

    #[test]
    fn shrinking_keeps_only_whole_units() {
        let range = ByteRange::between(100, 5000);
        assert_eq!(range.shrink_to(512), ByteRange::between(512, 4608));
        assert!(ByteRange::between(513, 1023).shrink_to(512).is_empty());
    }
}
