//! `cowimg resize`

use std::io::Write;

use cowimg::progress::Control;
use cowimg::{ErrorKind, Format, Image, Preallocation, ResizeOptions, Shrink};

use crate::args::Source;
use crate::args::size::{SizeChange, parse_size_change};
use crate::console::Console;
use crate::exit_code::ExitCode;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::manner::Manner;
use crate::progress_bar::{Display, Wanted};

/// A disk is a row of sectors of this many bytes.
const SECTOR: u64 = 512;

/// Change the size of an image's disk
///
/// New space reads as zeroes. A disk is made smaller only with --shrink: what lies past the new end is lost, so make the
/// file systems and partitions in it smaller first.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,

    /// Let the disk become smaller, and lose what lies past its new end
    #[arg(long)]
    shrink: bool,

    /// How space is taken for what is new: off (as it is written), metadata (qcow2: the tables only), falloc (promised by
    /// the host), full (written)
    #[arg(long, value_name = "MODE", value_parser = parse_preallocation, default_value = "off")]
    preallocation: Preallocation,

    /// Print nothing when all is well
    #[arg(short = 'q', long)]
    quiet: bool,

    /// The new size in bytes, or with a suffix k, M, G, T, P or E; after a + what is added to the size that there is,
    /// after a - what is taken away
    #[arg(value_name = "[+-]SIZE", value_parser = parse_size_change)]
    size: SizeChange,
}

fn parse_preallocation(mode: &str) -> Result<Preallocation, String> {
    match mode {
        "off" => Ok(Preallocation::Off),
        "metadata" => Ok(Preallocation::Metadata),
        "falloc" => Ok(Preallocation::Falloc),
        "full" => Ok(Preallocation::Full),
        _ => Err("there are off, metadata, falloc and full".to_owned()),
    }
}

/// Runs the command.
pub(crate) fn run(args: &Args, out: &mut Console) -> Result<ExitCode, Failure> {
    args.source.refuse_force_share("resize")?;
    let image = args.source.open_to_write()?;
    let size = new_size(image.size(), args.size)?;
    check_shrinking(image.size(), size, args.shrink)?;
    if image.format() == Format::Qcow2 || out.manner == Manner::Cowimg {
        check_sectors(size)?;
    }
    let shrink = if args.shrink { Shrink::Allow } else { Shrink::Refuse };
    let shown = if args.quiet { Wanted::Nothing } else { Wanted::Bar };
    resize(&image, size, ResizeOptions { preallocation: args.preallocation, shrink }, shown)?;
    image.close()?;
    if !args.quiet {
        writeln!(out, "Image resized.")?;
    }
    Ok(ExitCode::Success)
}

/// Changes the size; taking space for the new part may last, and can be stopped.
fn resize(image: &Image, size: u64, options: ResizeOptions, shown: Wanted) -> Result<(), Failure> {
    if !matches!(options.preallocation, Preallocation::Falloc | Preallocation::Full) {
        return Ok(image.resize(size, &options)?);
    }
    let interrupt = Interrupt::listen()?;
    let display = Display::start(shown);
    let control = Control { progress: Some(&display), cancel: Some(interrupt.cancel()) };
    image.resize_with(size, &options, &control).map_err(|error| {
        match (error.kind(), interrupt.signal()) {
            (ErrorKind::Cancelled, Some(signal)) => {
                Failure::stopped(signal, "stopped; the size is as it was")
            }
            _ => error.into(),
        }
    })?;
    display.finish();
    Ok(())
}

/// The size that was asked for, unless no disk has it.
fn new_size(size: u64, change: SizeChange) -> Result<u64, Failure> {
    let wanted = match change {
        SizeChange::To(wanted) => Some(wanted),
        SizeChange::Grow(more) => size.checked_add(more).filter(|&sum| i64::try_from(sum).is_ok()),
        SizeChange::Shrink(less) => Some(size.saturating_sub(less)),
    };
    match wanted {
        Some(0) => Err(Failure::usage("the new size is zero or less, and a disk has at least one sector")),
        Some(wanted) => Ok(wanted),
        None => {
            Err(Failure::usage(format!("the size would pass {} bytes, and no file is that long", i64::MAX)))
        }
    }
}

fn check_shrinking(size: u64, wanted: u64, allowed: bool) -> Result<(), Failure> {
    if wanted >= size || allowed {
        return Ok(());
    }
    Err(Failure::new(format!(
        "the disk has {size} bytes and would lose all beyond {wanted}, for good: that wants --shrink"
    ))
    .hint("To add to the size write +SIZE. The image is as it was"))
}

fn check_sectors(wanted: u64) -> Result<(), Failure> {
    if wanted.is_multiple_of(SECTOR) {
        return Ok(());
    }
    let above = wanted.next_multiple_of(SECTOR);
    Err(Failure::usage(format!("the new size is {wanted} bytes; it must be a multiple of {SECTOR}"))
        .hint(format!("The next one is {above}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_stated_or_added_or_taken_away() {
        assert_eq!(new_size(1024, SizeChange::To(2048)).unwrap(), 2048);
        assert_eq!(new_size(1024, SizeChange::To(512)).unwrap(), 512);
        assert_eq!(new_size(1024, SizeChange::Grow(512)).unwrap(), 1536);
        assert_eq!(new_size(1024, SizeChange::Shrink(512)).unwrap(), 512);
        assert_eq!(new_size(1024, SizeChange::Shrink(0)).unwrap(), 1024);
        assert!(new_size(1024, SizeChange::Grow(i64::MAX as u64)).is_err());
        assert!(new_size(1024, SizeChange::Shrink(1024)).is_err());
        assert!(new_size(1024, SizeChange::Shrink(4096)).is_err());
        assert!(new_size(1024, SizeChange::To(0)).is_err());
    }

    #[test]
    fn nothing_is_cut_off_unasked() {
        assert!(check_shrinking(1024, 512, false).is_err());
        assert!(check_shrinking(1024, 512, true).is_ok());
        assert!(check_shrinking(1024, 1024, false).is_ok());
        assert!(check_sectors(1000).is_err());
    }
}
