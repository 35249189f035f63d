//! `cowimg measure`

use std::ffi::OsString;

use cowimg::job::{self, MeasureSource, MeasureTarget};
use cowimg::progress::Control;
use cowimg::{CreateOptions, Format, SnapshotSelector, SnapshotSize};

use crate::args::format_options::FormatOptions;
use crate::args::image::parse_format;
use crate::args::key_values::KeyValues;
use crate::args::object::Objects;
use crate::args::opening::Opening;
use crate::args::size::parse_size;
use crate::args::snapshot::selector_parser;
use crate::args::{Report, ReportFormat};
use crate::console::Console;
use crate::exit_code::ExitCode;
use crate::failure::Failure;
use crate::manner::Manner;
use crate::output;

/// Say how large the file of a new image gets
///
/// The new image is to hold what FILE holds, or is an empty disk of a size. Nothing is written.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Format of FILE (raw, qcow2); without it the format is found by looking at the first bytes
    #[arg(short = 'f', long = "format", value_name = "FMT")]
    format: Option<String>,

    /// FILE is image options (driver=qcow2,file.filename=...), not the name of a file
    #[arg(long)]
    image_opts: bool,

    /// Format of the new image: raw or qcow2
    #[arg(short = 'O', long, value_name = "FMT", value_parser = parse_format, default_value = "raw")]
    target_format: Format,

    /// Options of the new image's format: key=value, separated by commas
    #[arg(short = 'o', value_name = "OPTS")]
    options: Vec<String>,

    /// Measure for this internal snapshot of FILE
    #[arg(short = 'l', long, value_name = "SNAPSHOT", value_parser = selector_parser())]
    snapshot: Option<SnapshotSelector>,

    /// Measure for an empty disk of this size
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Option<u64>,

    /// Open FILE even if another process writes it
    #[arg(short = 'U', long)]
    force_share: bool,

    #[command(flatten)]
    objects: Objects,

    #[command(flatten)]
    report: Report,

    /// The image whose content the new image is to hold
    #[arg(value_name = "FILE")]
    file: Vec<OsString>,
}

/// Runs the command.
pub(crate) fn run(args: &Args, console: &mut Console) -> Result<ExitCode, Failure> {
    let file = file_of(args)?;
    args.objects.register()?;
    let given = KeyValues::parse(&args.options)?;
    let options = FormatOptions::new(args.target_format, &given)?;
    let create = CreateOptions {
        preallocation: options.preallocation,
        qcow2: options.qcow2_encrypted()?,
        luks: options.luks_image()?,
        ..CreateOptions::new(args.target_format)
    };
    let target =
        MeasureTarget { has_backing: options.backing_file.is_some(), ..MeasureTarget::from(&create) };
    let image = file.map(|name| opening(args, console.manner).read(name)).transpose()?;
    let source = match &image {
        Some(image) => MeasureSource::Image(image),
        None => MeasureSource::Size(args.size.or(options.size).unwrap_or(0)),
    };
    let found = job::measure(source, &target, &Control::default())?;
    match args.report.format() {
        ReportFormat::Human => output::measure::human(&found, console)?,
        ReportFormat::Json => output::measure::json(&found, console)?,
    }
    Ok(ExitCode::Success)
}

fn opening(args: &Args, manner: Manner) -> Opening {
    // qemu-img gives a snapshot the size that the disk has now.
    let size = if manner.is_strict() { SnapshotSize::OfTheDisk } else { SnapshotSize::Own };
    Opening {
        format: args.format.clone(),
        image_opts: args.image_opts,
        force_share: args.force_share,
        cache: None,
        snapshot: args.snapshot.clone().map(|snapshot| (snapshot, size)),
    }
}

/// The file to measure, if one is to be measured and not a size.
fn file_of(args: &Args) -> Result<Option<&OsString>, Failure> {
    match (args.file.as_slice(), args.size) {
        ([_, _, ..], _) => Err(Failure::usage("one image at most can be measured")),
        ([_], Some(_)) => Err(Failure::usage("--size and an image exclude each other")),
        ([], _) if args.image_opts || args.format.is_some() || args.snapshot.is_some() => {
            Err(Failure::usage("--image-opts, -f and -l speak of an image, and none is named"))
        }
        ([], None) => Err(Failure::usage("what is to be measured? Name an image or give --size")),
        (files, _) => Ok(files.first()),
    }
}
