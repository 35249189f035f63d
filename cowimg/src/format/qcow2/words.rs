//! Tables as they stand in the file: rows of big-endian words of 64 bits.

/// The bytes of a table with these entries. Entry by entry and not byte by byte: a whole disk's tables go through here.
pub fn encode_words(words: impl ExactSizeIterator<Item = u64>) -> Vec<u8> {
    let mut bytes = vec![0; words.len().saturating_mul(8)];
    for (place, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *place = word.to_be_bytes();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_follow_each_other_with_the_highest_byte_first() {
        assert_eq!(encode_words([1, 0x0203].into_iter()), [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 2, 3]);
        assert!(encode_words([].into_iter()).is_empty());
    }
}
