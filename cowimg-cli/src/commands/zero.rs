//! `cowimg zero`

use std::path::PathBuf;

use cowimg::{Format, ZeroMode};

use crate::args::image::parse_format;
use crate::args::path_parser;
use crate::args::size::parse_size;
use crate::commands::{open_to_write, range_within};
use crate::exit_code::ExitCode;
use crate::failure::Failure;

/// Make a range of the disk read as zeroes
///
/// The zeroes are on stable storage when the command ends.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image's format (raw, qcow2); without it the format is found by looking at the first bytes
    #[arg(short = 'f', long, value_name = "FMT", value_parser = parse_format)]
    format: Option<Format>,

    /// Give the space back instead of keeping it for later writes
    #[arg(long)]
    unmap: bool,

    /// The image file
    #[arg(value_name = "FILE", value_parser = path_parser())]
    file: PathBuf,

    /// First byte on the disk
    #[arg(value_name = "OFFSET", value_parser = parse_size)]
    offset: u64,

    /// How many bytes
    #[arg(value_name = "LENGTH", value_parser = parse_size)]
    length: u64,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let image = open_to_write(&args.file, args.format)?;
    let range = range_within(&image, args.offset, args.length)?;
    let mode = if args.unmap { ZeroMode::Unmap } else { ZeroMode::KeepSpace };
    image.write_zeroes(range, mode)?;
    image.close()?;
    Ok(ExitCode::Success)
}
