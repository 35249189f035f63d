//! `cowimg zero`

use cowimg::ZeroMode;

use crate::args::Source;
use crate::args::size::parse_size;
use crate::commands::range_within;
use crate::console::Console;
use crate::exit_code::ExitCode;
use crate::failure::Failure;

/// Make a range of the disk read as zeroes
///
/// The zeroes are on stable storage when the command ends.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Give the space back instead of keeping it for later writes
    #[arg(long)]
    unmap: bool,

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
    let mode = if args.unmap { ZeroMode::Unmap } else { ZeroMode::KeepSpace };
    image.write_zeroes(range, mode)?;
    image.close()?;
    Ok(ExitCode::Success)
}
