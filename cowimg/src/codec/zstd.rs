//! Zstandard (RFC 8878), through the C library.

use std::cell::RefCell;

use zstd::zstd_safe::{
    CCtx, CParameter, DCtx, ErrorCode, find_frame_compressed_size, get_error_name, zstd_sys::ZSTD_ErrorCode,
};

use super::CodecError;

const METHOD: &str = "zstd";

thread_local! {
    // Making either costs as much as a small cluster: they are made once per thread.
    static COMPRESS: RefCell<Option<CCtx<'static>>> = const { RefCell::new(None) };
    static DECOMPRESS: RefCell<Option<DCtx<'static>>> = const { RefCell::new(None) };
}

fn damaged(code: ErrorCode) -> CodecError {
    CodecError::Damaged { method: METHOD, why: get_error_name(code) }
}

fn failed(code: ErrorCode) -> CodecError {
    CodecError::Failed { method: METHOD, why: get_error_name(code) }
}

const OUT_OF_MEMORY: CodecError = CodecError::Failed { method: METHOD, why: "out of memory" };

/// Frame by frame, each straight into the output: a streaming decoder would take the window that the frame's header
/// asks for, which can be 128 MiB.
pub(super) fn decompress(input: &[u8], output: &mut [u8]) -> Result<(), CodecError> {
    DECOMPRESS.with_borrow_mut(|slot| {
        let state = match slot {
            Some(state) => state,
            None => slot.insert(DCtx::try_create().ok_or(OUT_OF_MEMORY)?),
        };
        let expected = output.len();
        let mut produced = 0;
        let mut rest = input;
        while produced < expected {
            if rest.is_empty() {
                return Err(CodecError::Short { method: METHOD, produced, expected });
            }
            let frame = find_frame_compressed_size(rest).map_err(damaged)?;
            let (frame, after) = rest.split_at(frame.min(rest.len()));
            produced += state.decompress(&mut output[produced..], frame).map_err(damaged)?;
            rest = after;
        }
        Ok(())
    })
}

/// One frame that says how long its content is.
pub(super) fn compress(input: &[u8], output: &mut [u8]) -> Result<Option<usize>, CodecError> {
    COMPRESS.with_borrow_mut(|slot| {
        let state = match slot {
            Some(state) => state,
            None => slot.insert(new_compressor()?),
        };
        match state.compress2(output, input) {
            Ok(n) => Ok(Some(n)),
            Err(code) if code == DOES_NOT_FIT => Ok(None),
            Err(code) => Err(failed(code)),
        }
    })
}

fn new_compressor() -> Result<CCtx<'static>, CodecError> {
    let mut state = CCtx::try_create().ok_or(OUT_OF_MEMORY)?;
    state.set_parameter(CParameter::CompressionLevel(zstd::DEFAULT_COMPRESSION_LEVEL)).map_err(failed)?;
    Ok(state)
}

/// The library's codes are error numbers, negated.
const DOES_NOT_FIT: ErrorCode = (ZSTD_ErrorCode::ZSTD_error_dstSize_tooSmall as usize).wrapping_neg();

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(bytes: &[u8]) -> Vec<u8> {
        zstd::bulk::compress(bytes, 3).unwrap()
    }

    #[test]
    fn a_cluster_may_be_several_frames() {
        // A skippable frame of three bytes between two others, one of which is empty.
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
        let input =
            [frame(b"first "), skippable.to_vec(), frame(b""), frame(b"second"), vec![0xff; 30]].concat();
        let mut output = [0; 12];
        decompress(&input, &mut output).unwrap();
        assert_eq!(&output, b"first second");
    }

    #[test]
    fn frames_that_do_not_say_their_length_are_read() {
        let bytes = b"no length is known when the frame starts ".repeat(900);
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 19).unwrap();
        std::io::Write::write_all(&mut encoder, &bytes).unwrap();
        let input = encoder.finish().unwrap();
        let mut output = vec![0; bytes.len()];
        decompress(&input, &mut output).unwrap();
        assert!(output == bytes);
    }

    #[test]
    fn frames_that_ask_for_a_huge_window_take_no_more_memory() {
        // Magic, descriptor without content size, window of 2^31, last raw block of four bytes.
        let input = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x21, 0, 0, b'd', b'a', b't', b'a'];
        let mut output = [0; 4];
        decompress(&input, &mut output).unwrap();
        assert_eq!(&output, b"data");
    }

    #[test]
    fn a_frame_of_more_than_the_output_is_damage() {
        let error = decompress(&frame(&[1; 100]), &mut [0; 99]).unwrap_err();
        assert!(matches!(error, CodecError::Damaged { method: "zstd", .. }), "{error:?}");
        decompress(&frame(&[1; 100]), &mut [0; 100]).unwrap();
    }
}
