//! See the module of this name.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cowimg_fuzz::targets::l2_entry::run(bytes));
