//! `cowimg amend`

use std::ffi::{OsStr, OsString};
use std::io::Write;

use cowimg::encryption::KeyLoss;
use cowimg::progress::Control;
use cowimg::{ErrorKind, Format, Image, Shrink};

use crate::args::Changed;
use crate::args::amend_options::{self, Amendment};
use crate::args::key_values::KeyValues;
use crate::console::Console;
use crate::exit_code::ExitCode;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::manner::Manner;
use crate::progress_bar::{Display, Wanted};

/// Change what an image was created with
///
/// Version of the format, width of refcounts, lazy refcounts, the name of an external data file, size, the passphrases that
/// open an encrypted image: see '-o help'. Of a luks image the last alone.
/// An option that cannot be had changes nothing. An amendment that is stopped leaves a sound image: ask again.
#[derive(Debug, clap::Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub(crate) struct Args {
    #[command(flatten)]
    changed: Changed,

    /// What is to change: key=value, separated by commas ('-o help' lists them)
    #[arg(short = 'o', long, value_name = "OPTIONS", required = true, action = clap::ArgAction::Append)]
    options: Vec<String>,

    /// Change also what loses data: with size= the disk may become smaller, and the last key slot may be erased or filled
    /// anew
    #[arg(long)]
    force: bool,

    /// Print progress as lines on standard output
    #[arg(short = 'p', long)]
    progress: bool,

    /// Print nothing when all is well
    #[arg(short = 'q', long)]
    quiet: bool,

    /// The image file
    #[arg(value_name = "FILE")]
    file: Option<OsString>,
}

/// Runs the command.
pub(crate) fn run(args: &Args, out: &mut Console) -> Result<ExitCode, Failure> {
    let given = KeyValues::parse(&args.options)?;
    if let (true, Some(format @ (Format::Qcow2 | Format::Luks))) =
        (given.asks_for_help(), args.changed.format())
    {
        return help(format, out);
    }
    let Some(file) = &args.file else {
        return Err(Failure::usage("which image is to be amended?"));
    };
    let mut image = args.changed.name(file)?.open_to_write()?;
    let format = image.format();
    if !matches!(format, Format::Qcow2 | Format::Luks) {
        return Err(Failure::new(format!("a {format} image has no options that could be changed")));
    }
    if given.asks_for_help() {
        return help(format, out);
    }
    let (mut wanted, mut objection) = Amendment::parse(format, &given).or_else(|failure| {
        // The end of qemu-img's progress lines.
        if args.progress && !args.quiet && out.manner == Manner::QemuImg {
            writeln!(out)?;
        }
        Err(failure)
    })?;
    if let Err(failure) = check_backing(&image, wanted.backing.as_ref()) {
        objection.get_or_insert(failure);
    }
    if let Some(objection) = objection.take_if(|_| out.manner == Manner::Cowimg) {
        return Err(objection);
    }
    let may_shrink = args.force || out.manner == Manner::QemuImg;
    wanted.options.key_loss = if args.force { KeyLoss::Allow } else { KeyLoss::Refuse };
    wanted.options.shrink = if may_shrink { Shrink::Allow } else { Shrink::Refuse };
    if let Some(size) = wanted.options.size.filter(|&size| size < image.size() && !may_shrink) {
        let old = image.size();
        return Err(Failure::new(format!(
            "the disk has {old} bytes and would lose all beyond {size}, for good: that wants --force"
        )));
    }
    let interrupt = Interrupt::listen()?;
    let display = Display::start(match args {
        Args { quiet: true, .. } => Wanted::Nothing,
        Args { progress: true, .. } => Wanted::Steps,
        _ => Wanted::Bar,
    });
    let control = Control { progress: Some(&display), cancel: Some(interrupt.cancel()) };
    if let Some(objection) = objection {
        display.finish();
        return Err(objection);
    }
    let amended = image.amend(&wanted.options, &control);
    display.finish();
    amended.map_err(|error| match (error.kind(), interrupt.signal()) {
        (ErrorKind::Cancelled, Some(signal)) => Failure::stopped(
            signal,
            "stopped; the image is sound, and has a part of what was asked for at most",
        )
        .hint("Amending it again finishes that"),
        _ => error.into(),
    })?;
    image.close()?;
    Ok(ExitCode::Success)
}

/// The backing file is changed by `rebase` alone; here it may only be named as it is.
fn check_backing(image: &Image, wanted: Option<&(Option<String>, Option<String>)>) -> Result<(), Failure> {
    let Some((file, format)) = wanted else { return Ok(()) };
    let info = image.info()?;
    let name = info.backing.as_ref().map(|backing| backing.name.as_os_str());
    let recorded = info.backing.as_ref().and_then(|backing| backing.format.as_deref());
    if file.as_ref().map(OsStr::new) == name && format.as_deref() == recorded {
        return Ok(());
    }
    Err(Failure::new("the backing file cannot be amended").hint("`rebase` changes it"))
}

fn help(format: Format, out: &mut Console) -> Result<ExitCode, Failure> {
    writeln!(out, "What can be amended in an image of format {format}:")?;
    for (key, value, purpose) in amend_options::help(format) {
        writeln!(out, "  {:<24} {purpose}", format!("{key}=<{value}>"))?;
    }
    Ok(ExitCode::Success)
}
