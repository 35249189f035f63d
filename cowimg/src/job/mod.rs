//! Long-running work between images. Each job is a function: it takes images and options, tells its progress and can be
//! cancelled through a [`Control`](crate::progress::Control), and says in its documentation what a cancelled run
//! leaves behind.

mod commit;
mod compare;
mod convert;
mod copy_bitmaps;
mod in_turn;
mod measure;
mod pace;
mod rebase;

pub use commit::{Afterwards, CommitOptions, CommitReport, commit};
pub use compare::{
    CompareError, CompareOptions, CompareStep, Comparison, Difference, Side, Strictness, compare,
};
pub use convert::{
    Compression, ConvertOptions, ConvertReport, Copying, Order, Part, ReadErrors, TargetContent, convert,
    convert_parts,
};
pub use copy_bitmaps::{BrokenBitmaps, check_bitmaps, copy_bitmaps};
pub use measure::{MeasureSource, MeasureTarget, Measurement, measure};
pub use rebase::{NewBacking, RebaseOptions, RebaseReport, rebase};

/// Threads that a job uses unless its caller says otherwise: one for each processor, and no more than storage has use for.
fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(8)
}
