//! Raw deflate (RFC 1951): no zlib header, no checksum.
//!
//! Readers of qcow2 look back no further than 4 KiB, so that is the window to write with. Others have written with
//! the full 32 KiB, and reading those costs nothing.

use std::cell::RefCell;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::CodecError;

const METHOD: &str = "zlib";

/// log2 of the window that every reader has.
const WRITE_WINDOW_BITS: u8 = 12;

/// The level that takes 40% of the processor time of zlib's, which QEMU has, and makes 3% more of programs, 0.5% more of
/// text, 8% more at worst (lists of numbers), and less of logs and samples. Level 9 is as small as QEMU's output to 0.3% with 75% of
/// its time, and twice its time where bytes hardly repeat: what is gained is not what it costs.
const LEVEL: Compression = Compression::new(6);

/// `Decompress::new` and its `reset` have the full window.
const WITH_HEADER: bool = false;

thread_local! {
    // Making either costs as much as a small cluster: they are made once per thread, and reset.
    static COMPRESS: RefCell<Compress> =
        RefCell::new(new_compress());
    static DECOMPRESS: RefCell<Decompress> = RefCell::new(Decompress::new(WITH_HEADER));
}

fn new_compress() -> Compress {
    Compress::new_with_window_bits(LEVEL, WITH_HEADER, WRITE_WINDOW_BITS)
}

pub(super) fn decompress(input: &[u8], output: &mut [u8]) -> Result<(), CodecError> {
    #[cfg(feature = "libdeflate")]
    if super::libdeflate::fills(input, output) {
        return Ok(());
    }
    inflate(input, output)
}

/// Takes streams of every kind, and says what is wrong with others.
fn inflate(input: &[u8], output: &mut [u8]) -> Result<(), CodecError> {
    DECOMPRESS.with_borrow_mut(|state| {
        state.reset(WITH_HEADER);
        let status = state.decompress(input, output, FlushDecompress::Finish);
        let produced = state.total_out() as usize;
        // A full output is all that is asked for. Whether an end marker follows is not: some writers leave it out, and
        // then what follows is another cluster, which is no error here.
        if produced == output.len() {
            return Ok(());
        }
        match status {
            Ok(_) => Err(CodecError::Short { method: METHOD, produced, expected: output.len() }),
            Err(_) => Err(CodecError::Damaged { method: METHOD, why: "it is not a deflate stream" }),
        }
    })
}

pub(super) fn compress(input: &[u8], output: &mut [u8]) -> Result<Option<usize>, CodecError> {
    COMPRESS.with_borrow_mut(|state| {
        state.reset();
        match state.compress(input, output, FlushCompress::Finish) {
            Ok(Status::StreamEnd) => Ok(Some(state.total_out() as usize)),
            // The output is full and there is more to write. A reset does not drop what zlib-rs has pending for the output
            // (as of 0.6.8), and would carry it into later streams: this state is used up.
            Ok(Status::Ok | Status::BufError) => {
                *state = new_compress();
                Ok(None)
            }
            Err(_) => Err(CodecError::Failed { method: METHOD, why: "its state is inconsistent" }),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes repeat at a distance that only a window of more than 4 KiB sees.
    fn far_repetition() -> Vec<u8> {
        let mut state = 9_u32;
        let block: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            (state >> 24) as u8
        })
        .take(10_000)
        .collect();
        block.repeat(4)
    }

    #[test]
    fn streams_written_with_the_full_window_are_read() {
        let bytes = far_repetition();
        let mut packed = vec![0; 60_000];
        let mut full = Compress::new_with_window_bits(Compression::best(), WITH_HEADER, 15);
        full.compress(&bytes, &mut packed, FlushCompress::Finish).unwrap();
        let len = full.total_out() as usize;
        assert!(len < bytes.len() / 2, "the window was not used");
        let mut output = vec![0; bytes.len()];
        decompress(&packed[..len], &mut output).unwrap();
        assert!(output == bytes);
    }

    /// Each such cluster used to leave bytes behind in the compressor, until its buffer was full and it panicked.
    #[test]
    fn any_number_of_clusters_that_do_not_get_smaller_is_survived() {
        let mut seed = 1u64;
        let mut noise = || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as u8
        };
        for size in [512, 4096, 65536] {
            for _ in 0..300 {
                let cluster: Vec<u8> = (0..size).map(|_| noise()).collect();
                assert_eq!(compress(&cluster, &mut vec![0; size - 1]), Ok(None));
            }
        }
        assert!(compress(&[7; 4096], &mut [0; 4095]).unwrap().is_some());
    }

    #[test]
    fn streams_are_written_for_a_window_of_4_kib() {
        let bytes = far_repetition();
        let mut packed = vec![0; 60_000];
        let len = compress(&bytes, &mut packed).unwrap().unwrap();
        let mut output = vec![0; bytes.len()];
        let mut small = Decompress::new_with_window_bits(WITH_HEADER, WRITE_WINDOW_BITS);
        // In small steps, so that the decoder has its window and not the output to look back into.
        let mut fed = 0;
        while (small.total_out() as usize) < bytes.len() {
            let at = small.total_out() as usize;
            let end = (at + 256).min(bytes.len());
            small.decompress(&packed[fed..len], &mut output[at..end], FlushDecompress::None).unwrap();
            fed = small.total_in() as usize;
        }
        assert!(output == bytes);
    }

    /// Streams as they are written, and the same with a byte changed, cut off, or followed by something.
    #[cfg(feature = "libdeflate")]
    mod by_two_decoders {
        use proptest::prelude::*;

        use super::super::*;

        proptest! {
            #![proptest_config(ProptestConfig::with_cases(2000))]

            #[test]
            fn what_one_takes_the_other_reads_alike(
                word in prop::collection::vec(any::<u8>(), 1..60),
                (times, len) in (1_usize..200, 1_usize..6000),
                change in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
                tail in prop::collection::vec(any::<u8>(), 0..40),
            ) {
                let bytes = word.repeat(times);
                let mut packed = vec![0; bytes.len() * 2 + 100];
                let used = compress(&bytes, &mut packed).unwrap().unwrap();
                packed.truncate(used);
                packed.extend(tail);
                if let Some((at, byte)) = change {
                    let at = at.index(packed.len());
                    packed[at] = byte;
                }
                // Shorter than the stream, as long, and longer.
                for len in [len, bytes.len()] {
                    let (mut fast, mut sure) = (vec![1; len], vec![2; len]);
                    if crate::codec::libdeflate::fills(&packed, &mut fast) && inflate(&packed, &mut sure).is_ok() {
                        prop_assert!(fast == sure);
                    }
                    let mut both = vec![3; len];
                    if inflate(&packed, &mut sure).is_ok() {
                        prop_assert!(decompress(&packed, &mut both).is_ok());
                        prop_assert!(both == sure);
                    }
                }
            }
        }
    }

    #[test]
    fn a_full_output_needs_no_end_marker() {
        // One stored block that is not the last: 00, length, its complement, bytes.
        let mut stream = vec![0x00, 4, 0, 0xfb, 0xff];
        stream.extend(b"data");
        let mut output = [0; 4];
        decompress(&stream, &mut output).unwrap();
        assert_eq!(&output, b"data");
        // What follows would be a block of a type that does not exist.
        stream.extend([0xff; 20]);
        output.fill(0);
        decompress(&stream, &mut output).unwrap();
        assert_eq!(&output, b"data");
    }

    #[test]
    fn what_is_damaged_before_the_output_is_full_is_an_error() {
        let mut stream = vec![0x00, 4, 0, 0xfb, 0xff];
        stream.extend(b"data");
        stream.extend([0xff; 20]);
        let error = decompress(&stream, &mut [0; 5]).unwrap_err();
        assert!(matches!(error, CodecError::Damaged { method: "zlib", .. }));
        assert!(decompress(&[], &mut [0; 5]).is_err());
        decompress(&[], &mut []).unwrap();
    }
}
