//! What the fuzz targets do, and how their inputs are changed. Nothing here knows libFuzzer, so that the library's tests
//! run the same on every compiler (`cowimg/tests/fuzz_corpus.rs`). Start at [`targets`]; [`image_fields`] knows
//! where an image says what, and [`mutation`] changes that.

pub mod dice;
pub mod image_fields;
pub mod mutation;
pub mod targets;
pub mod templates;
