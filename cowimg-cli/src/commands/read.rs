//! `cowimg read`

use std::io::Write;

use crate::args::Source;
use crate::args::size::parse_size;
use crate::commands::range_within;
use crate::console::Console;
use crate::exit_code::ExitCode;
use crate::failure::Failure;
use crate::output::hex;

/// Bytes that are read at a time; a multiple of the bytes in a line of `--hex`.
const CHUNK: usize = 1 << 20;

/// Read bytes of the disk to standard output
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

    /// Write lines of hexadecimal numbers instead of the bytes themselves
    #[arg(long)]
    hex: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args, out: &mut Console) -> Result<ExitCode, Failure> {
    let image = args.source.open()?;
    let range = range_within(&image, args.offset, args.length)?;
    let mut buffer = vec![0; (range.len() as usize).min(CHUNK)];
    let mut offset = range.start();
    while offset < range.end() {
        let chunk = &mut buffer[..((range.end() - offset) as usize).min(CHUNK)];
        image.read_at(chunk, offset)?;
        if args.hex {
            hex::dump(chunk, offset, out)?;
        } else {
            out.write_all(chunk)?;
        }
        offset += chunk.len() as u64;
    }
    Ok(ExitCode::Success)
}
