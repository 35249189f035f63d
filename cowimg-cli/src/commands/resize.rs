//! `cowimg resize`

use std::io::Write;
use std::path::PathBuf;

use cowimg::{Format, ResizeOptions};

use crate::args::image::parse_format;
use crate::args::path_parser;
use crate::args::size::{SizeChange, parse_size_change};
use crate::commands::open_to_write;
use crate::console::Console;
use crate::exit_code::ExitCode;
use crate::failure::Failure;

/// A disk is a row of sectors of this many bytes.
const SECTOR: u64 = 512;

/// Change the size of an image's disk
///
/// New space reads as zeroes. This version makes disks larger, not smaller.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image's format (raw, qcow2); without it the format is found by looking at the first bytes
    #[arg(short = 'f', long, value_name = "FMT", value_parser = parse_format)]
    format: Option<Format>,

    /// How space is taken for what is new: off (as it is written)
    #[arg(long, value_name = "MODE", value_parser = ["off"], default_value = "off")]
    preallocation: String,

    /// Print nothing when all is well
    #[arg(short = 'q', long)]
    quiet: bool,

    /// The image file
    #[arg(value_name = "FILE", value_parser = path_parser())]
    file: PathBuf,

    /// The new size in bytes, or with a suffix k, M, G, T, P or E; after a + what is added to the size there is
    #[arg(value_name = "[+]SIZE", value_parser = parse_size_change, allow_hyphen_values = true)]
    size: SizeChange,
}

/// Runs the command.
pub(crate) fn run(args: &Args, out: &mut Console) -> Result<ExitCode, Failure> {
    let image = open_to_write(&args.file, args.format)?;
    let size = new_size(image.size(), args.size)?;
    image.resize(size, &ResizeOptions::default())?;
    image.close()?;
    if !args.quiet {
        writeln!(out, "Image resized.")?;
    }
    Ok(ExitCode::Success)
}

/// The size that was asked for, unless it cannot be had.
fn new_size(size: u64, change: SizeChange) -> Result<u64, Failure> {
    let wanted = match change {
        SizeChange::To(wanted) => Some(wanted),
        SizeChange::Grow(more) => size.checked_add(more).filter(|&sum| i64::try_from(sum).is_ok()),
        SizeChange::Shrink(less) => return Err(no_shrinking(size, size.saturating_sub(less))),
    };
    let Some(wanted) = wanted else {
        return Err(Failure::usage(format!(
            "the size would pass {} bytes, and no file is that long",
            i64::MAX
        )));
    };
    if wanted < size {
        return Err(no_shrinking(size, wanted));
    }
    if wanted % SECTOR != 0 {
        let above = wanted.next_multiple_of(SECTOR);
        return Err(Failure::usage(format!(
            "the new size is {wanted} bytes; it must be a multiple of {SECTOR}"
        ))
        .hint(format!("The next one is {above}")));
    }
    Ok(wanted)
}

fn no_shrinking(size: u64, wanted: u64) -> Failure {
    Failure::new(format!(
        "the disk has {size} bytes and would lose all beyond {wanted}; this version of cowimg makes no disk smaller"
    ))
    .hint("To add to the size write +SIZE. The image is as it was")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_grows_by_whole_sectors_or_not_at_all() {
        assert_eq!(new_size(1024, SizeChange::To(2048)).unwrap(), 2048);
        assert_eq!(new_size(1024, SizeChange::To(1024)).unwrap(), 1024);
        assert_eq!(new_size(1024, SizeChange::Grow(512)).unwrap(), 1536);
        assert!(new_size(1024, SizeChange::To(512)).is_err());
        assert!(new_size(1024, SizeChange::To(1025)).is_err());
        assert!(new_size(1024, SizeChange::Grow(1)).is_err());
        assert!(new_size(1024, SizeChange::Grow(i64::MAX as u64)).is_err());
        assert!(new_size(1024, SizeChange::Shrink(512)).is_err());
    }
}
