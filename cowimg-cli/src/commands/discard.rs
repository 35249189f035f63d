//! `cowimg discard`

use std::path::PathBuf;

use cowimg::Format;

use crate::args::image::parse_format;
use crate::args::path_parser;
use crate::args::size::parse_size;
use crate::commands::{open_to_write, range_within};
use crate::exit_code::ExitCode;
use crate::failure::Failure;

/// Say that a range of the disk is no longer needed, and give its space back
///
/// Only whole clusters of the range are given back. What the range reads as afterwards is zeroes where the format
/// can say so, and its former content elsewhere.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image's format (raw, qcow2); without it the format is found by looking at the first bytes
    #[arg(short = 'f', long, value_name = "FMT", value_parser = parse_format)]
    format: Option<Format>,

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
    image.discard(range)?;
    image.close()?;
    Ok(ExitCode::Success)
}
