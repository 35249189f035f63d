//! `cowimg write`

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use cowimg::progress::Progress;
use cowimg::{Format, Image};

use crate::args::image::parse_format;
use crate::args::path_parser;
use crate::args::size::parse_size;
use crate::commands::{open_to_write, range_within};
use crate::console::Console;
use crate::exit_code::ExitCode;
use crate::failure::{Failure, os_message};
use crate::interrupt::Interrupt;
use crate::progress_bar::{Display, Wanted};

/// Bytes that are written at a time.
const CHUNK: usize = 1 << 20;

/// Write bytes to the disk, from a file, a pattern, or standard input
///
/// The bytes are on stable storage when the command ends.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image's format (raw, qcow2); without it the format is found by looking at the first bytes
    #[arg(short = 'f', long, value_name = "FMT", value_parser = parse_format)]
    format: Option<Format>,

    /// Write the bytes of this file
    #[arg(long, value_name = "PATH", value_parser = path_parser(), conflicts_with = "pattern")]
    from: Option<PathBuf>,

    /// Write this byte (0 to 255, or 0x00 to 0xff) over and over
    #[arg(long, value_name = "BYTE", value_parser = parse_byte, requires = "length")]
    pattern: Option<u8>,

    /// How often --pattern is written, in bytes
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "pattern")]
    length: Option<u64>,

    /// The image file
    #[arg(value_name = "FILE", value_parser = path_parser())]
    file: PathBuf,

    /// First byte on the disk
    #[arg(value_name = "OFFSET", value_parser = parse_size)]
    offset: u64,
}

/// Runs the command.
pub(crate) fn run(args: &Args, _: &mut Console) -> Result<ExitCode, Failure> {
    let mut input = Input::open(args)?;
    let image = open_to_write(&args.file, args.format)?;
    // What is too long, as far as its length is known, changes nothing.
    range_within(&image, args.offset, input.length.unwrap_or(0))?;
    let interrupt = Interrupt::listen()?;
    let display = Display::start(Wanted::Bar);
    let copied = copy(&mut input, &image, args.offset, (&display, &interrupt));
    drop(display);
    // What was written before a failure is kept, so that the failure's message is true.
    image.close()?;
    copied?;
    Ok(ExitCode::Success)
}

/// Where the bytes come from.
struct Input {
    bytes: Box<dyn Read>,
    /// How many there are, where that is known.
    length: Option<u64>,
    /// For messages.
    name: String,
}

impl Input {
    fn open(args: &Args) -> Result<Input, Failure> {
        match (&args.from, args.pattern, args.length) {
            (Some(path), _, _) => Input::file(path),
            (None, Some(byte), Some(length)) => Ok(Input {
                bytes: Box::new(io::repeat(byte).take(length)),
                length: Some(length),
                name: "the pattern".to_owned(),
            }),
            _ => Ok(Input { bytes: Box::new(io::stdin()), length: None, name: "standard input".to_owned() }),
        }
    }

    fn file(path: &Path) -> Result<Input, Failure> {
        let name = path.display().to_string();
        let opened = File::open(path).and_then(|file| Ok((file.metadata()?, file)));
        let (metadata, file) = opened
            .map_err(|error| Failure::new(format!("{name}: could not open: {}", os_message(&error))))?;
        if metadata.is_dir() {
            return Err(Failure::new(format!("{name}: is a directory")));
        }
        Ok(Input { bytes: Box::new(file), length: metadata.is_file().then_some(metadata.len()), name })
    }

    /// The next bytes, none at the end.
    fn next(&mut self, buffer: &mut Vec<u8>) -> Result<(), Failure> {
        buffer.clear();
        let read = self.bytes.by_ref().take(CHUNK as u64).read_to_end(buffer);
        read.map_err(|error| Failure::new(format!("could not read {}: {}", self.name, os_message(&error))))?;
        Ok(())
    }
}

/// Writes all of `input` from `start` on.
fn copy(
    input: &mut Input,
    image: &Image,
    start: u64,
    (display, interrupt): (&Display, &Interrupt),
) -> Result<(), Failure> {
    let mut buffer = Vec::with_capacity(CHUNK);
    let mut offset = start;
    loop {
        if let (true, Some(signal)) = (interrupt.cancel().load(Ordering::Relaxed), interrupt.signal()) {
            return Err(Failure::stopped(signal, format!("stopped; {} bytes were written", offset - start)));
        }
        input.next(&mut buffer)?;
        if buffer.is_empty() {
            return Ok(());
        }
        if image.size() - offset < buffer.len() as u64 {
            return Err(Failure::new(format!(
                "{} is longer than the rest of the disk, whose size is {} bytes; {} bytes of it were written",
                input.name,
                image.size(),
                offset - start
            )));
        }
        image.write_at(&buffer, offset)?;
        offset += buffer.len() as u64;
        if let Some(length) = input.length {
            display.advanced(offset - start, length);
        }
    }
}

/// Parses a byte's value.
fn parse_byte(text: &str) -> Result<u8, String> {
    let value = parse_size(text).ok().and_then(|value| u8::try_from(value).ok());
    value.ok_or_else(|| format!("'{text}' is not a byte; write a number from 0 to 255, or from 0x00 to 0xff"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_is_a_number_below_256() {
        assert_eq!(parse_byte("0xab"), Ok(0xab));
        assert_eq!(parse_byte("7"), Ok(7));
        assert!(parse_byte("256").is_err());
        assert!(parse_byte("x").is_err());
    }
}
