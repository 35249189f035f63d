//! Finding the zeroes in a buffer.

use std::ops::Range;

/// Whether every byte is zero. Plain folding: compilers turn it into wide loads, and it stops early.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut blocks = words.chunks(64);
    blocks.all(|block| block.iter().fold(0, |all, word| all | u64::from_ne_bytes(*word)) == 0)
        && rest.iter().all(|&byte| byte == 0)
}

/// A part of a buffer that is all zeroes, or is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) range: Range<usize>,
    pub(crate) is_zero: bool,
}

/// The buffer in parts, looked at in steps of `granule` bytes (above 0): a zero part is made of whole granules.
pub(crate) fn parts(bytes: &[u8], granule: usize) -> impl Iterator<Item = Part> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let mut granules = bytes.get(start..)?.chunks(granule);
        let first = granules.next()?;
        let first_is_zero = is_zero(first);
        let mut end = start + first.len();
        for granule in granules.take_while(|granule| is_zero(granule) == first_is_zero) {
            end += granule.len();
        }
        let part = Part { range: start..end, is_zero: first_is_zero };
        start = end;
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_byte_anywhere_is_seen() {
        for len in [1, 7, 8, 9, 511, 512, 513, 4096] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for at in [0, len / 2, len - 1] {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "length {len}, byte {at}");
                bytes[at] = 0;
            }
        }
    }

    proptest! {
        #[test]
        fn parts_cover_the_buffer_and_tell_the_truth(
            bytes in proptest::collection::vec(prop_oneof![9 => Just(0u8), 1 => Just(1u8)], 0..2000),
            granule in 1usize..300,
        ) {
            let mut at = 0;
            for part in parts(&bytes, granule) {
                prop_assert_eq!(part.range.start, at);
                at = part.range.end;
                if part.is_zero {
                    prop_assert!(bytes[part.range].iter().all(|&byte| byte == 0));
                }
            }
            prop_assert_eq!(at, bytes.len());
        }
    }
}
