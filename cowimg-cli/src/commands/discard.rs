//! `cowimg discard`

use crate::args::Source;
use crate::args::size::parse_size;
use crate::commands::range_within;
use crate::console::Console;
use crate::exit_code::ExitCode;
use crate::failure::Failure;

/// Say that a range of the disk is no longer needed, and give its space back
///
/// Only whole clusters of the range are given back. What the range reads as afterwards is zeroes where the format
/// can say so, and its former content elsewhere.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,

    /// First byte on the disk
    #[arg(value_name = "OFFSET", value_parser = parse_size)]
    offset: u64,

    /// How many bytes
    #[arg(value_name = "LENGTH", value_parser = parse_size)]
    length: u64,
}

/// Runs the command.
pub(crate) fn run(args: &Args, _: &mut Console) -> Result<ExitCode, Failure> {
    let image = args.source.open_to_write()?;
    let range = range_within(&image, args.offset, args.length)?;
    image.discard(range)?;
    image.close()?;
    Ok(ExitCode::Success)
}
