//! `cowimg dd`

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use cowimg::job::{self, ConvertOptions, Part, TargetContent};
use cowimg::progress::Control;
use cowimg::{ByteRange, CacheMode, CreateOptions, Error, ErrorKind, Format, Image, StagedImage};

use super::convert::{refuse_layer, unstaged};
use crate::args::image::{parse_format, parse_path};
use crate::args::object::Objects;
use crate::args::opening::Opening;
use crate::args::size::parse_size;
use crate::cli::OURS;
use crate::commands::open_options;
use crate::console::Console;
use crate::exit_code::ExitCode;
use crate::failure::{Failure, note};
use crate::interrupt::Interrupt;

/// The largest block, in bytes.
const MAX_BLOCK: u64 = i32::MAX as u64;

/// Copy blocks of an image into a new one
///
/// OPERANDS are if=INPUT and of=OUTPUT, both needed, and bs=SIZE (a block, 512 bytes), count=BLOCKS (where to stop,
/// counted from the start of INPUT) and skip=BLOCKS (where to start).
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Format of INPUT (raw, qcow2); without it the format is found by looking at the first bytes
    #[arg(short = 'f', long, value_name = "FMT")]
    format: Option<String>,

    /// INPUT is image options (driver=qcow2,file.filename=...), not the name of a file
    #[arg(long)]
    image_opts: bool,

    /// Format of OUTPUT: raw or qcow2
    #[arg(short = 'O', long, value_name = "FMT", value_parser = parse_format, default_value = "raw")]
    output_format: Format,

    /// Open INPUT even if another process writes it
    #[arg(short = 'U', long)]
    force_share: bool,

    #[command(flatten)]
    objects: Objects,

    /// Replace OUTPUT if it exists
    #[arg(long, help_heading = OURS)]
    force: bool,

    /// bs=SIZE count=BLOCKS skip=BLOCKS if=INPUT of=OUTPUT
    #[arg(value_name = "OPERANDS")]
    operands: Vec<OsString>,
}

/// The operands, each with its last value.
#[derive(Debug, Default, PartialEq, Eq)]
struct Operands {
    block: Option<u64>,
    count: Option<u64>,
    skip: Option<u64>,
    input: Option<OsString>,
    output: Option<OsString>,
}

/// Runs the command.
pub(crate) fn run(args: &Args, console: &mut Console) -> Result<ExitCode, Failure> {
    let operands = Operands::parse(&args.operands)?;
    let (Some(input), Some(output)) = (&operands.input, &operands.output) else {
        return Err(Failure::usage("both if= and of= are needed"));
    };
    let interrupt = Interrupt::listen()?;
    args.objects.register()?;
    let opening = Opening {
        format: args.format.clone(),
        image_opts: args.image_opts,
        force_share: args.force_share,
        ..Opening::default()
    };
    let source = opening.read(input)?;
    let target = parse_path(output.clone()).map_err(Failure::usage)?;
    refuse_layer(&source, &target)?;
    let range = operands.range(source.size());
    let create = CreateOptions {
        size: Some(range.len()),
        overwrite: console.overwrite(args.force),
        ..CreateOptions::new(args.output_format)
    };
    if operands.starts_past(source.size()) {
        note(&format!("{}: skip= leads past the end; the output is empty", input.display()));
    }
    // qemu-img writes every byte. In our own manner holes stay holes.
    let sparse_size = if console.manner.is_strict() { 0 } else { ConvertOptions::default().sparse_size };
    copy(&source, range, (&target, &create), sparse_size, &interrupt)?;
    Ok(ExitCode::Success)
}

fn copy(
    source: &Image,
    range: ByteRange,
    (target, create): (&Path, &CreateOptions),
    sparse_size: u64,
    interrupt: &Interrupt,
) -> Result<(), Failure> {
    let control = Control { progress: None, cancel: Some(interrupt.cancel()) };
    let plan = cowimg::plan(target, create).map_err(|error| error.at_path(target))?;
    let staged = StagedImage::write_with(target, create.overwrite, &plan, &control)
        .map_err(|error| stopped(error, target, target, interrupt))?;
    let image = staged.open(&open_options(Some(create.format)).cache_mode(CacheMode::Unsafe))?;
    // A device has whatever was on it.
    let is_file = target.metadata().map_or(true, |found| found.is_file());
    let target_content = match create.format {
        Format::Raw if !is_file => TargetContent::Anything,
        _ => TargetContent::Zeroes,
    };
    let options = ConvertOptions { sparse_size, target_content, ..ConvertOptions::default() };
    let parts = [Part { image: source, range }];
    let copied = job::convert_parts(&parts, &image, &options, &control).and_then(|_| image.close());
    copied.map_err(|error| stopped(error, staged.path(), target, interrupt))?;
    Ok(staged.publish_synced()?)
}

fn stopped(error: Error, staged: &Path, target: &Path, interrupt: &Interrupt) -> Failure {
    match (error.kind(), interrupt.signal()) {
        (ErrorKind::Cancelled, Some(signal)) => {
            Failure::stopped(signal, format!("stopped; {} was not made", target.display()))
        }
        _ => unstaged(error, staged, target),
    }
}

impl Operands {
    fn parse(words: &[OsString]) -> Result<Operands, Failure> {
        let mut operands = Operands::default();
        for word in words {
            let bytes = word.as_bytes();
            let unknown = || Failure::usage(format!("there is no operand {}", word.display()));
            let split = bytes.iter().position(|&byte| byte == b'=').ok_or_else(unknown)?;
            let (key, value) = (&bytes[..split], OsString::from_vec(bytes[split + 1..].to_vec()));
            match key {
                b"if" => operands.input = Some(value),
                b"of" => operands.output = Some(value),
                b"bs" => operands.block = Some(block_size(&value)?),
                b"count" => operands.count = Some(blocks("count", &value)?),
                b"skip" => operands.skip = Some(blocks("skip", &value)?),
                _ => return Err(unknown()),
            }
        }
        Ok(operands)
    }

    /// What is copied of a disk of `size` bytes. A count that ends past any disk is none.
    fn range(&self, size: u64) -> ByteRange {
        let block = self.block.unwrap_or(512);
        let counted = self.count.and_then(|count| count.checked_mul(block)).unwrap_or(size);
        let end = if counted > ByteRange::MAX_END { size } else { counted.min(size) };
        let start = self.skip.unwrap_or(0).saturating_mul(block);
        ByteRange::between(start.min(end), end)
    }

    /// Whether nothing is copied because the start lies past the end.
    fn starts_past(&self, size: u64) -> bool {
        let start = self.skip.unwrap_or(0).saturating_mul(self.block.unwrap_or(512));
        start > self.range(size).end()
    }
}

fn number(key: &str, value: &OsStr) -> Result<u64, Failure> {
    let text = value.to_str().unwrap_or_default();
    parse_size(text).map_err(|why| Failure::usage(format!("{key}=: {why}")))
}

/// A number of blocks: no size, and so without a suffix.
fn blocks(key: &str, value: &OsStr) -> Result<u64, Failure> {
    let text = value.to_str().unwrap_or_default();
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    parsed.filter(|&count| i64::try_from(count).is_ok()).ok_or_else(|| {
        Failure::usage(format!("{key}= is '{text}'; it must be a number of blocks, without a suffix"))
    })
}

fn block_size(value: &OsStr) -> Result<u64, Failure> {
    let size = number("bs", value)?;
    if (1..=MAX_BLOCK).contains(&size) {
        return Ok(size);
    }
    Err(Failure::usage(format!("bs= is {size}; a block has from 1 to {MAX_BLOCK} bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(words: &[&str], size: u64) -> (u64, u64) {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        let range = Operands::parse(&words).unwrap().range(size);
        (range.start(), range.end())
    }

    #[test]
    fn blocks_are_counted_from_the_start_of_the_input() {
        assert_eq!(range(&[], 4096), (0, 4096));
        assert_eq!(range(&["bs=1k", "count=2"], 4096), (0, 2048));
        assert_eq!(range(&["bs=1k", "skip=1", "count=2"], 4096), (1024, 2048));
        assert_eq!(range(&["skip=7"], 4096), (3584, 4096));
        assert_eq!(range(&["skip=9"], 4096), (4096, 4096));
        assert_eq!(range(&["count=9223372036854775807", "bs=512"], 4096), (0, 4096));
        assert_eq!(range(&["skip=4611686018427387904", "bs=1G"], 4096).1, 4096);
    }

    #[test]
    fn an_operand_that_does_not_exist_is_refused() {
        for word in ["seek=1", "if", "", "BS=1", "bs=0", "bs=2G", "bs=x", "count=-1", "count=1k", "skip="] {
            assert!(Operands::parse(&[word.into()]).is_err(), "{word}");
        }
    }
}
