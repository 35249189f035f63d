//! Compression of single clusters: a slice in, a slice out. Knows nothing of images, offsets or files.
//!
//! Start at [`compress`] and [`decompress`]. Neither trusts its input: nothing is written past the output, no memory
//! is taken that the input asks for, and no input panics. The state that a compressor needs is kept per thread.

use crate::format::qcow2::CompressionType;

pub(crate) mod crypt;
mod deflate;
#[cfg(test)]
mod interop_tests;
#[cfg(feature = "libdeflate")]
mod libdeflate;
#[cfg(feature = "zstd")]
mod zstd;

/// Why a cluster was not compressed or decompressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum CodecError {
    /// The compressed bytes are not what the method writes.
    #[error("damaged {method} data: {why}")]
    Damaged {
        /// "zlib" or "zstd".
        method: &'static str,
        /// What is wrong with them.
        why: &'static str,
    },
    /// The compressed bytes end before the output is full.
    #[error("the {method} data give {produced} bytes, and {expected} are expected")]
    Short {
        /// "zlib" or "zstd".
        method: &'static str,
        /// How many bytes they give.
        produced: usize,
        /// How many the output has.
        expected: usize,
    },
    /// This build has no code for the method.
    #[cfg_attr(feature = "zstd", allow(dead_code, reason = "a build with every method misses none"))]
    #[error("this build of cowimg has no {method} support (feature \"{method}\")")]
    NotBuilt {
        /// "zlib" or "zstd".
        method: &'static str,
    },
    /// The compressor itself failed.
    #[error("the {method} compressor failed: {why}")]
    Failed {
        /// "zlib" or "zstd".
        method: &'static str,
        /// What it says.
        why: &'static str,
    },
}

/// Decompresses `input` into the whole of `output`.
///
/// Input that goes on after the output is full is not looked at: a cluster's length is known only in sectors, so that
/// bytes of others follow it.
pub(crate) fn decompress(method: CompressionType, input: &[u8], output: &mut [u8]) -> Result<(), CodecError> {
    match method {
        CompressionType::Deflate => deflate::decompress(input, output),
        #[cfg(feature = "zstd")]
        CompressionType::Zstd => zstd::decompress(input, output),
        #[cfg(not(feature = "zstd"))]
        CompressionType::Zstd => Err(CodecError::NotBuilt { method: "zstd" }),
    }
}

/// Compresses `input` into the front of `output`; the number of bytes used, or `None` when it does not fit (the
/// content of `output` is then of no use). Callers give an output shorter than a cluster and store the cluster as it
/// is when it does not fit.
pub(crate) fn compress(
    method: CompressionType,
    input: &[u8],
    output: &mut [u8],
) -> Result<Option<usize>, CodecError> {
    match method {
        CompressionType::Deflate => deflate::compress(input, output),
        #[cfg(feature = "zstd")]
        CompressionType::Zstd => zstd::compress(input, output),
        #[cfg(not(feature = "zstd"))]
        CompressionType::Zstd => Err(CodecError::NotBuilt { method: "zstd" }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The methods that this build has.
    fn methods() -> impl Iterator<Item = CompressionType> {
        let all = [CompressionType::Deflate, CompressionType::Zstd];
        all.into_iter().filter(|method| cfg!(feature = "zstd") || *method == CompressionType::Deflate)
    }

    /// Bytes as disks have them: runs, repetitions at some distance, and noise.
    fn cluster() -> impl Strategy<Value = Vec<u8>> {
        let run = (any::<u8>(), 1_usize..3000).prop_map(|(byte, len)| vec![byte; len]);
        let noise = prop::collection::vec(any::<u8>(), 1..600);
        let repeated =
            (prop::collection::vec(any::<u8>(), 1..20), 1_usize..200).prop_map(|(b, n)| b.repeat(n));
        prop::collection::vec(prop_oneof![run, noise, repeated], 1..24).prop_map(|parts| parts.concat())
    }

    fn packed(method: CompressionType, bytes: &[u8]) -> Vec<u8> {
        let mut packed = vec![0xee; bytes.len() * 2 + 1000];
        let len = compress(method, bytes, &mut packed).unwrap().unwrap();
        packed.truncate(len);
        packed
    }

    proptest! {
        #[test]
        fn what_was_compressed_comes_back(bytes in cluster(), garbage in prop::collection::vec(any::<u8>(), 0..600)) {
            for method in methods() {
                let mut packed = packed(method, &bytes);
                // The end of the last sector.
                packed.extend(&garbage);
                let mut output = vec![0xee; bytes.len()];
                decompress(method, &packed, &mut output).unwrap();
                prop_assert!(output == bytes);
            }
        }

        #[test]
        fn what_does_not_fit_is_said_not_to(bytes in cluster(), room in any::<prop::sample::Index>()) {
            for method in methods() {
                let whole = packed(method, &bytes);
                let room = room.index(whole.len());
                let mut output = vec![0; whole.len() + 8];
                prop_assert_eq!(compress(method, &bytes, &mut output[..room]), Ok(None));
                prop_assert!(output[room..].iter().all(|byte| *byte == 0), "written past the output");
                // The state that gave up is used again.
                prop_assert_eq!(packed(method, &bytes), whole);
            }
        }

        #[test]
        fn random_bytes_are_an_error_or_an_output(bytes in prop::collection::vec(any::<u8>(), 0..3000), len in 0_usize..5000) {
            for method in methods() {
                let mut output = vec![0; len];
                _ = decompress(method, &bytes, &mut output);
            }
        }

        #[test]
        fn damaged_bytes_are_an_error_or_an_output(
            bytes in cluster(),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            for method in methods() {
                let mut packed = packed(method, &bytes);
                for (at, byte) in &damage {
                    let at = at.index(packed.len());
                    packed[at] ^= byte;
                }
                _ = decompress(method, &packed, &mut vec![0; bytes.len()]);
                // What went wrong leaves no trace in the state.
                let mut output = vec![0; bytes.len()];
                decompress(method, &self::packed(method, &bytes), &mut output).unwrap();
                prop_assert!(output == bytes);
            }
        }

        #[test]
        fn a_cut_stream_is_an_error(bytes in cluster(), cut in any::<prop::sample::Index>()) {
            for method in methods() {
                let packed = packed(method, &bytes);
                // The last bytes of a deflate stream may be its end marker alone.
                let cut = cut.index(packed.len().saturating_sub(3).max(1));
                let result = decompress(method, &packed[..cut], &mut vec![0; bytes.len()]);
                prop_assert!(result.is_err() || packed.len() <= 4);
            }
        }
    }

    #[test]
    fn a_stream_of_more_than_the_output_writes_the_output_only() {
        let bomb = vec![0; 64 << 20];
        for method in methods() {
            let packed = packed(method, &bomb);
            let mut output = vec![0xee; 70_000];
            _ = decompress(method, &packed, &mut output[..65_536]);
            assert!(output[65_536..].iter().all(|byte| *byte == 0xee), "{method:?} wrote past the output");
        }
    }

    #[test]
    fn a_stream_of_less_than_the_output_is_short() {
        for method in methods() {
            let packed = packed(method, &[7; 1000]);
            let error = decompress(method, &packed, &mut [0; 1001]).unwrap_err();
            assert!(matches!(error, CodecError::Short { produced: 1000, expected: 1001, .. }), "{error:?}");
        }
    }

    #[test]
    fn noise_does_not_fit_into_less_than_itself() {
        let mut state = 1_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        })
        .take(65_536)
        .collect();
        for method in methods() {
            assert_eq!(compress(method, &noise, &mut vec![0; 65_535]), Ok(None));
        }
    }

    #[test]
    fn threads_have_states_of_their_own() {
        std::thread::scope(|scope| {
            for byte in 0..4_u8 {
                scope.spawn(move || {
                    let bytes = [byte, 1, 2].repeat(20_000);
                    for method in methods() {
                        for _ in 0..20 {
                            let mut output = vec![0; bytes.len()];
                            decompress(method, &packed(method, &bytes), &mut output).unwrap();
                            assert!(output == bytes);
                        }
                    }
                });
            }
        });
    }

    #[cfg(not(feature = "zstd"))]
    #[test]
    fn what_is_not_built_is_named() {
        let error = CodecError::NotBuilt { method: "zstd" };
        assert_eq!(decompress(CompressionType::Zstd, &[], &mut [0]), Err(error));
        assert_eq!(compress(CompressionType::Zstd, &[0], &mut [0]), Err(error));
        assert_eq!(error.to_string(), "this build of cowimg has no zstd support (feature \"zstd\")");
    }
}
