//! Raw deflate (RFC 1951) through a C library that unpacks whole buffers: what it does not take whole is left to `deflate`.

use std::cell::RefCell;

use libdeflater::Decompressor;

thread_local! {
    // Making one costs as much as a small cluster: it is made once per thread.
    static DECOMPRESSOR: RefCell<Decompressor> = RefCell::new(Decompressor::new());
}

/// Fills the output from a stream that ends with it; whether there was one. A stream that goes on, has no end marker, or is
/// none leaves the output of no use.
pub(super) fn fills(input: &[u8], output: &mut [u8]) -> bool {
    DECOMPRESSOR.with_borrow_mut(|state| {
        state.deflate_decompress(input, output).is_ok_and(|produced| produced == output.len())
    })
}
