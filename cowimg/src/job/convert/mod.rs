//! Copying the content of one image into another, whatever their formats.
//!
//! Threads take pieces of the source in turn, read them, look for zeroes in them, compress them and write them. Writing
//! is done in the order of the source, unless the caller does not care, so that the target is laid out alike whatever
//! the threads do.

mod glance;
mod pack;
mod pieces;
mod run;
mod source;
mod way;

use std::num::NonZeroU64;

use crate::chain::Image;
use crate::error::{Error, Result};
use crate::progress::Control;
use crate::range::ByteRange;
use run::Run;

pub use super::in_turn::Order;

/// Whether clusters of the target are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Compression {
    /// They are stored as they are.
    #[default]
    Off,
    /// Those that get smaller are compressed, with the target's own method.
    On,
}

/// What the target reads as before the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TargetContent {
    /// Unknown: zeroes must be written, too.
    #[default]
    Anything,
    /// Zeroes: nothing needs to be done for them.
    Zeroes,
    /// Much the same as the source, as over a backing file that the source has too: the target is read, and only
    /// what differs is written.
    Similar,
    /// The source's backing file, or one that reads the same, is the target's backing file: only what the source's own
    /// file has is written. Where the two backing files differ, so do the target and the source.
    SameBacking,
}

/// What happens where the source cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ReadErrors {
    /// The conversion fails.
    #[default]
    Fail,
    /// The sectors that cannot be read become zeroes, and [`Progress::unreadable`](crate::progress::Progress::unreadable) is told.
    Zero,
}

/// Who copies the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Copying {
    /// This process, which looks for zeroes on the way.
    #[default]
    Here,
    /// The same, but both files share what they can where they lie on one file system that does it (XFS, Btrfs), as with
    /// `cp`: whole clusters of the target, or 64 KiB at a time where it has none, but for long runs of zeroes: of each 256 KiB the
    /// first bytes are read, and more where those are zeroes. With a `sparse_size` other than the default each cluster is so
    /// looked at. Only for a target that reads as [`TargetContent::Zeroes`]; no part is shared where zeroes are not looked for,
    /// or where [`ReadErrors::Zero`] is to have zeroes in place of what cannot be read.
    Shared,
    /// The host, where it can: it may let both files share the space. Data is not looked at.
    Host,
}

/// A range of an image, as a part of what is copied.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// The image.
    pub image: &'a Image,
    /// The range of its disk, in bytes.
    pub range: ByteRange,
}

impl<'a> Part<'a> {
    /// All of an image.
    pub fn whole(image: &'a Image) -> Part<'a> {
        Part { image, range: ByteRange::between(0, image.size()) }
    }
}

/// How to convert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvertOptions {
    /// Whether clusters of the target are compressed.
    pub compression: Compression,
    /// Zeroes in the source's data are looked for in steps of this many bytes; 0 writes everything, zeroes too.
    pub sparse_size: u64,
    /// What the target reads as before.
    pub target_content: TargetContent,
    /// In which order pieces are written.
    pub order: Order,
    /// What happens where the source cannot be read.
    pub read_errors: ReadErrors,
    /// Who copies the data. The host copies no data that is to be compressed.
    pub copying: Copying,
    /// The most that is written in a second, in bytes.
    pub rate: Option<NonZeroU64>,
    /// Threads that work at it, at least 1.
    pub threads: usize,
}

impl Default for ConvertOptions {
    fn default() -> ConvertOptions {
        ConvertOptions {
            compression: Compression::Off,
            sparse_size: 4096,
            target_content: TargetContent::Anything,
            order: Order::Source,
            read_errors: ReadErrors::Fail,
            copying: Copying::Here,
            rate: None,
            threads: super::default_threads(),
        }
    }
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ConvertReport {
    /// Guest bytes that were written as data.
    pub data_bytes: u64,
    /// Guest bytes that were written compressed.
    pub compressed_bytes: u64,
    /// Guest bytes that could not be read and are zeroes now.
    pub unreadable_bytes: u64,
}

/// Copies what a guest sees in `source` to `target`, which is open for writing and at least as large. What `target` has
/// beyond the source's size is left alone. The target is not flushed.
///
/// A run that is cancelled or fails leaves a target of which any part may have been written.
pub fn convert(
    source: &Image,
    target: &Image,
    options: &ConvertOptions,
    control: &Control<'_>,
) -> Result<ConvertReport> {
    convert_parts(&[Part::whole(source)], target, options, control)
}

/// The same for parts of images, which are written one behind the other from the start of the target on.
pub fn convert_parts(
    parts: &[Part<'_>],
    target: &Image,
    options: &ConvertOptions,
    control: &Control<'_>,
) -> Result<ConvertReport> {
    let size = parts.iter().try_fold(0_u64, |sum, part| {
        if part.range.end() > part.image.size() {
            return Err(Error::invalid(format!("the part {} does not lie within its image", part.range)));
        }
        Ok(sum.saturating_add(part.range.len()))
    })?;
    if target.size() < size {
        return Err(Error::invalid(format!(
            "the target has {} bytes, fewer than the source's {size}",
            target.size(),
        )));
    }
    Run::new(parts, target, options, control)?.run()
}
