//! On-disk structures: bytes to values and back. No I/O, no locks, no clock.
//!
//! Decoding never panics, whatever the bytes: there is no indexing, no unchecked arithmetic and no narrowing cast
//! in here, and the lints below hold that.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

pub mod luks;
pub mod probe;
pub mod qcow1;
pub mod qcow2;
