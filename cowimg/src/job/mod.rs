//! Long-running work between images. Each job is a function: it takes images and options, tells its progress and can be
//! cancelled through a [`Control`](crate::progress::Control), and says in its documentation what a cancelled run
//! leaves behind.

mod convert;
mod zero_scan;

pub use convert::{Compression, ConvertOptions, ConvertReport, Order, TargetContent, convert};
