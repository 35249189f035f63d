//! The commands, one per file: help text, options, and what it does.
//!
//! A command uses the library, [`args`](crate::args) and [`output`](crate::output), and knows nothing of the
//! others.

use std::path::Path;

use cowimg::{Access, ByteRange, Format, Image, Layer, OpenOptions};

use crate::failure::{Failure, warn_probed_raw};
use crate::trust::image_options;

pub(crate) mod amend;
pub(crate) mod bench;
pub(crate) mod bitmap;
pub(crate) mod check;
pub(crate) mod clone;
pub(crate) mod commit;
pub(crate) mod compare;
pub(crate) mod completions;
pub(crate) mod convert;
pub(crate) mod create;
pub(crate) mod dd;
pub(crate) mod discard;
pub(crate) mod info;
pub(crate) mod man;
pub(crate) mod map;
pub(crate) mod measure;
pub(crate) mod read;
pub(crate) mod rebase;
pub(crate) mod resize;
pub(crate) mod snapshot;
pub(crate) mod write;
pub(crate) mod zero;

/// How an image is opened, in the stated format or in the one that it looks like.
fn open_options(format: Option<Format>) -> OpenOptions {
    match format {
        Some(format) => image_options().format(format),
        None => image_options(),
    }
}

/// Opens an image with its whole backing chain, for writing. A file that is raw only because it looks like nothing
/// else is opened with a warning.
fn open_to_write(path: &Path, format: Option<Format>) -> Result<Image, Failure> {
    let image = open_options(format).access(Access::ReadWrite).open(path)?;
    if format.is_none() && image.format() == Format::Raw {
        warn_probed_raw(path);
    }
    Ok(image)
}

/// The range of `length` bytes from `offset`, which must lie within the disk.
fn range_within(image: &Image, offset: u64, length: u64) -> Result<ByteRange, Failure> {
    let size = image.size();
    match ByteRange::new(offset, length) {
        Some(range) if range.end() <= size => Ok(range),
        _ => {
            let name = image.layers().first().and_then(Layer::path).unwrap_or(Path::new("")).display();
            Err(Failure::new(format!(
                "{name}: {length} bytes from offset {offset} do not lie within the disk, whose size is {size} bytes"
            )))
        }
    }
}
