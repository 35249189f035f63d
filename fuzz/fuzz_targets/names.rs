//! What a command line calls an image, and the lists and sizes of its options: any text is understood or refused, without a
//! panic and without opening a file.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cowimg_cli::fuzzing::names(bytes));
