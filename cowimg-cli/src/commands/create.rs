//! `cowimg create`

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use cowimg::progress::Control;
use cowimg::{
    BackingOptions, CreateOptions, CreatePlan, CreateReport, ErrorKind, Format, Preallocation,
    Qcow2CreateOptions, StagedImage, Verification,
};

use crate::args::format_options::{FormatOptions, options_of};
use crate::args::image::{format_by_name, parse_format, parse_path};
use crate::args::key_values::KeyValues;
use crate::args::object::Objects;
use crate::args::size::parse_size;
use crate::cli::OURS;
use crate::console::Console;
use crate::exit_code::ExitCode;
use crate::failure::{Failure, note, warn};
use crate::interrupt::Interrupt;
use crate::manner::Manner;
use crate::output;
use crate::progress_bar::{Display, Wanted};

/// Create an image
///
/// The image appears whole or not at all, and an existing file is not replaced unless --force says so.
#[derive(Debug, clap::Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub(crate) struct Args {
    /// Format of the new image (raw, qcow2); without it qcow2, unless FILE ends in .raw or .img
    #[arg(short = 'f', long, value_name = "FMT", value_parser = parse_format)]
    format: Option<Format>,

    /// Options of the format: key=value, separated by commas ('-o help' lists them)
    #[arg(short = 'o', long = "options", value_name = "OPTS")]
    options: Vec<String>,

    /// Stack the new image on this one: it reads as BACKING until it is written
    #[arg(short = 'b', long, value_name = "BACKING")]
    backing: Option<OsString>,

    /// Format of BACKING; without it the format is found by looking, and recorded in the new image
    #[arg(short = 'F', long, value_name = "FMT", value_parser = parse_format)]
    backing_format: Option<Format>,

    /// Record BACKING and its format without looking at it
    #[arg(short = 'u', long)]
    backing_unsafe: bool,

    /// Print nothing when all is well
    #[arg(short = 'q', long)]
    quiet: bool,

    #[command(flatten)]
    objects: Objects,

    /// Replace FILE if it exists
    #[arg(long, help_heading = OURS)]
    force: bool,

    /// The new image's file
    #[arg(value_name = "FILE", required_unless_present = "options")]
    file: Option<OsString>,

    /// Size of the disk in bytes, or with a suffix k, M, G, T, P or E; without it BACKING's size
    #[arg(value_name = "SIZE", allow_negative_numbers = true)]
    size: Option<String>,
}

/// Runs the command.
pub(crate) fn run(args: &Args, out: &mut Console) -> Result<ExitCode, Failure> {
    args.objects.register()?;
    let given = KeyValues::parse(&args.options)?;
    let has_backing = args.backing.is_some() || given.get("backing_file").is_some();
    let format = args.format.unwrap_or_else(|| default_format(args, has_backing, out.manner));
    if given.asks_for_help() {
        output::create::options_help(format, options_of(format), out)?;
        return Ok(ExitCode::Success);
    }
    let strict = out.manner.is_strict();
    let (file, bad_name) = file_of(args, strict)?;
    let file = &file;
    let (options, mut objection) = FormatOptions::parse(format, &given)?;
    objection = objection.or(bad_name);
    let size = size_of(args, &options)?;
    let backing = match backing_of(args, &options, (format, out.manner))? {
        Backing::None => None,
        Backing::Stated(backing) => Some(backing),
        Backing::FormatAlone => {
            let what = "a backing format is given and no backing file";
            objection.get_or_insert(Failure::usage(what).hint("Name it with -b"));
            None
        }
    };
    if let Some(objection) = objection.take_if(|_| !strict) {
        return Err(objection);
    }
    if size.is_none() && (backing.is_none() || args.backing_unsafe) {
        return Err(Failure::usage(format!("{}: how large is it to be?", file.display()))
            .hint(format!("Give a size: cowimg create {} 10G", file.display())));
    }
    if strict && backing.as_ref().is_some_and(|backing| backing.format.is_none()) {
        return Err(Failure::usage("the backing file's format must be given too").hint("Name it with -F"));
    }
    let mut wanted = CreateOptions {
        format,
        size,
        backing,
        preallocation: options.preallocation,
        overwrite: out.overwrite(args.force),
        qcow2: options.qcow2.clone(),
        luks: None,
        host: options.host,
    };
    if strict {
        // What can be known of the image before its options are judged is said even if they are bad.
        let simple = CreateOptions {
            // Of a LUKS image no more than of a raw one.
            format: if format == Format::Luks { Format::Raw } else { format },
            preallocation: Preallocation::Off,
            qcow2: Qcow2CreateOptions::default(),
            ..wanted.clone()
        };
        announce(args, &wanted, (&options, cowimg::plan(file, &simple)?.report()), out)?;
        out.flush_now()?;
    }
    if let Some(objection) = objection {
        return Err(objection);
    }
    wanted.qcow2 = options.qcow2_encrypted()?;
    wanted.luks = options.luks_image()?;
    let (plan, broken_chain) = plan_over_chain(file, &wanted)?;
    write_image(file, &plan, &wanted)?;
    if !strict {
        if let Some(error) = broken_chain {
            warn(&format!("{error}; the new image is of no use until that is put right"));
        }
        announce(args, &wanted, (&options, plan.report()), out)?;
    }
    Ok(ExitCode::Success)
}

/// The new image's file, and what is wrong with its name if that is to be said later.
fn file_of(args: &Args, strict: bool) -> Result<(PathBuf, Option<Failure>), Failure> {
    let Some(name) = &args.file else {
        return Err(
            Failure::usage("which file is to be created?").hint("Try 'cowimg create --help' for more info")
        );
    };
    match parse_path(name.clone()) {
        Ok(path) => Ok((path, None)),
        // qemu-img says what it is about to make before it looks at the name.
        Err(why) if strict && name.is_empty() => Ok((PathBuf::new(), Some(Failure::usage(why)))),
        Err(why) => Err(Failure::usage(why)),
    }
}

/// Plans the image. Where its base is there and something below that is not, the second value says what: the image can be
/// made all the same.
fn plan_over_chain(
    file: &Path,
    wanted: &CreateOptions,
) -> Result<(CreatePlan, Option<cowimg::Error>), Failure> {
    let Some(whole) = over_whole_chain(wanted) else {
        return Ok((cowimg::plan(file, wanted)?, None));
    };
    match cowimg::plan(file, &whole) {
        Ok(plan) => Ok((plan, None)),
        Err(error) => Ok((cowimg::plan(file, wanted)?, Some(error))),
    }
}

/// The same options with a look at all that is below the base; none where not even the base is looked at, or all is anyway.
pub(super) fn over_whole_chain(wanted: &CreateOptions) -> Option<CreateOptions> {
    let backing = wanted.backing.clone().filter(|backing| backing.verification == Verification::Verify)?;
    let backing = BackingOptions { verification: Verification::VerifyChain, ..backing };
    Some(CreateOptions { backing: Some(backing), ..wanted.clone() })
}

/// Makes the image. One that is stopped leaves nothing behind, unless it was to be written over what was there.
fn write_image(file: &Path, plan: &CreatePlan, wanted: &CreateOptions) -> Result<(), Failure> {
    let takes_time = matches!(wanted.preallocation, Preallocation::Falloc | Preallocation::Full);
    // Also where it takes none: a signal in between would leave the file that has no name yet.
    let interrupt = Interrupt::listen()?;
    let display = Display::start(if takes_time { Wanted::Bar } else { Wanted::Nothing });
    let control = Control { progress: Some(&display), cancel: Some(interrupt.cancel()) };
    let staged = StagedImage::write_with(file, wanted.overwrite, plan, &control).map_err(|error| {
        match (error.kind(), interrupt.signal()) {
            (ErrorKind::Cancelled, Some(signal)) => {
                Failure::stopped(signal, format!("stopped; {} was not made", file.display()))
            }
            _ => error.into(),
        }
    })?;
    display.finish();
    Ok(staged.publish_synced()?)
}

/// Says what is, or was, made.
fn announce(
    args: &Args,
    wanted: &CreateOptions,
    (options, report): (&FormatOptions, &CreateReport),
    out: &mut Console,
) -> Result<(), Failure> {
    let (false, Some(file)) = (args.quiet, &args.file) else { return Ok(()) };
    if let (Some(backing), Some(found)) = (&wanted.backing, report.found_backing_format) {
        note(&format!("{}: format {found} found by looking; recorded in the image", backing.name.display()));
    }
    let recorded = wanted.backing.as_ref().and_then(|backing| {
        let format = backing.format.or(report.found_backing_format)?;
        Some((backing.name.as_bytes(), format))
    });
    let size = wanted.size.unwrap_or(report.size);
    let format = wanted.format;
    let backing_format = args.backing_format.or(options.backing_format);
    let created = output::create::Created {
        path: Path::new(file),
        format,
        size,
        backing: recorded,
        backing_format,
        options,
    };
    Ok(output::create::human(&created, out)?)
}

/// The format when none is named: qcow2, unless the file's name speaks of raw; in the strict manner raw.
fn default_format(args: &Args, has_backing: bool, manner: Manner) -> Format {
    if manner.is_strict() {
        return Format::Raw;
    }
    let by_name = args.file.as_deref().map(Path::new).and_then(format_by_name);
    if has_backing { Format::Qcow2 } else { by_name.unwrap_or(Format::Qcow2) }
}

/// The size, from either of its places.
fn size_of(args: &Args, options: &FormatOptions) -> Result<Option<u64>, Failure> {
    match (&args.size, options.size) {
        (Some(_), Some(_)) => Err(Failure::usage("the size is given twice: as SIZE and as -o size=")),
        (None, size) => Ok(size),
        (Some(text), None) => match parse_size(text) {
            Ok(size) => Ok(Some(size)),
            Err(why) => Err(Failure::usage(why.to_string())),
        },
    }
}

/// What is said of the backing file.
enum Backing {
    None,
    Stated(BackingOptions),
    /// Its format, and not its name.
    FormatAlone,
}

/// The backing file, from either of its places; in the strict manner -b counts more than -o.
fn backing_of(
    args: &Args,
    options: &FormatOptions,
    (format, manner): (Format, Manner),
) -> Result<Backing, Failure> {
    let backing_format = args.backing_format.or(options.backing_format);
    let name = match (&args.backing, &options.backing_file) {
        (Some(_), Some(_)) if !manner.is_strict() => {
            return Err(Failure::usage("the backing file is given twice: with -b and as -o backing_file="));
        }
        (Some(name), _) => name.clone(),
        (None, Some(name)) => name.into(),
        (None, None) if backing_format.is_some() && format == Format::Qcow2 => {
            return Ok(Backing::FormatAlone);
        }
        (None, None) if backing_format.is_none() => return Ok(Backing::None),
        (None, None) => OsString::new(),
    };
    if format != Format::Qcow2 {
        return Err(Failure::usage(format!("a {format} image cannot have a backing file"))
            .hint("Leave -f away or give -f qcow2"));
    }
    if args.backing_unsafe && backing_format.is_none() {
        return Err(Failure::usage("-u does not look at the backing file, so its format must be given")
            .hint("Add -F raw or -F qcow2"));
    }
    let verification = match (args.backing_unsafe, manner) {
        (true, _) => Verification::Trust,
        (false, Manner::QemuImg) => Verification::VerifyChain,
        (false, Manner::Cowimg) => Verification::Verify,
    };
    Ok(Backing::Stated(BackingOptions { name, format: backing_format, verification }))
}
