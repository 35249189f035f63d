//! `cowimg convert`

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cowimg::job::{self, Compression, ConvertOptions, Order, TargetContent};
use cowimg::progress::Control;
use cowimg::{
    Access, BackingOptions, CacheMode, CreateOptions, Error, ErrorKind, Format, Image, Layer, LockMode,
    OpenOptions, Overwrite, Preallocation, StagedImage,
};

use crate::args::cache_mode::parse_cache_mode;
use crate::args::format_options::{FormatOptions, options_of};
use crate::args::image::{format_by_name, parse_format};
use crate::args::key_values::KeyValues;
use crate::args::path_parser;
use crate::args::size::parse_size;
use crate::cli::OURS;
use crate::commands::open_options;
use crate::console::Console;
use crate::exit_code::ExitCode;
use crate::failure::{Failure, os_message, warn_probed_raw};
use crate::interrupt::Interrupt;
use crate::manner::Manner;
use crate::output;
use crate::progress_bar::{Display, Wanted};

/// Copy an image to another, changing its format on the way
///
/// The target appears whole or not at all: it is written beside its place and renamed at the end. An existing file
/// is not replaced unless --force says so, and written into only with -n.
#[derive(Debug, clap::Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub(crate) struct Args {
    /// Format of SOURCE (raw, qcow2); without it the format is found by looking at the first bytes
    #[arg(short = 'f', long, value_name = "FMT", value_parser = parse_format)]
    source_format: Option<Format>,

    /// Format of TARGET (raw, qcow2); without it TARGET's ending tells (.qcow2, .raw, .img), else raw
    #[arg(short = 'O', long, value_name = "FMT", value_parser = parse_format)]
    target_format: Option<Format>,

    /// Options of TARGET's format: key=value, separated by commas ('-o help' lists them)
    #[arg(short = 'o', long = "target-options", value_name = "OPTS")]
    options: Vec<String>,

    /// Compress the data (qcow2)
    #[arg(short = 'c', long)]
    compress: bool,

    /// Write into TARGET, which exists, instead of creating it
    #[arg(short = 'n', long, conflicts_with_all = ["options", "force", "backing", "backing_format"])]
    no_create: bool,

    /// Print progress as lines on standard output
    #[arg(short = 'p', long)]
    progress: bool,

    /// Print nothing when all is well
    #[arg(short = 'q', long)]
    quiet: bool,

    /// Zeroes this long become holes; 0 writes every byte
    #[arg(short = 'S', long, value_name = "SIZE", value_parser = parse_sparse_size, default_value = "4k")]
    sparse_size: u64,

    /// Stack TARGET on this image, which must read as the part of SOURCE that is not copied
    #[arg(short = 'B', long, value_name = "BACKING")]
    backing: Option<OsString>,

    /// Format of BACKING
    #[arg(short = 'F', long, value_name = "FMT", value_parser = parse_format)]
    backing_format: Option<Format>,

    /// How many pieces are copied at a time; without it as many as there are processors, at most 8
    #[arg(short = 'm', long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    parallel: Option<u8>,

    /// Write pieces as they come, not in the order of the source
    #[arg(short = 'W', long)]
    oob_writes: bool,

    /// Cache mode of SOURCE: writeback, writethrough, none (past the host's cache), directsync or unsafe
    #[arg(short = 'T', long, value_name = "MODE", value_parser = parse_cache_mode, default_value = "writeback")]
    source_cache: CacheMode,

    /// Cache mode of TARGET; unsafe, which never syncs, is right for a target that is thrown away if the copy fails
    #[arg(short = 't', long, value_name = "MODE", value_parser = parse_cache_mode, default_value = "unsafe")]
    target_cache: CacheMode,

    /// Open SOURCE even if another process writes it: what is read then may be old, new or neither
    #[arg(short = 'U', long)]
    force_share: bool,

    /// Replace TARGET if it exists
    #[arg(long, help_heading = OURS)]
    force: bool,

    /// The image to read
    #[arg(value_name = "SOURCE", value_parser = path_parser(), required_unless_present = "options")]
    source: Option<PathBuf>,

    /// The image to write
    #[arg(value_name = "TARGET", value_parser = path_parser(), required_unless_present = "options")]
    target: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(args: &Args, out: &mut Console) -> Result<ExitCode, Failure> {
    let given = KeyValues::parse(&args.options)?;
    let format = target_format(args, &given, out.manner);
    if given.asks_for_help() {
        output::create::options_help(format, options_of(format), out)?;
        return Ok(ExitCode::Success);
    }
    let (Some(source), Some(target)) = (&args.source, &args.target) else {
        return Err(Failure::usage("which image is to be read, and which written?")
            .hint("Try 'cowimg convert --help' for more info"));
    };
    if args.compress && !args.no_create && format != Format::Qcow2 {
        return Err(cannot_be_compressed(format));
    }
    let interrupt = Interrupt::listen()
        .map_err(|error| Failure::new(format!("could not listen for signals: {}", os_message(&error))))?;
    let overwrite = out.overwrite(args.force);
    let copy = Copy { args, format, target, overwrite, interrupt };
    let source = source_options(args).open(source)?;
    refuse_layer(&source, target)?;
    if args.no_create { copy.to_existing(&source) } else { copy.to_new(&source, &given) }?;
    Ok(ExitCode::Success)
}

/// How the source is opened.
fn source_options(args: &Args) -> OpenOptions {
    let options = open_options(args.source_format).cache_mode(args.source_cache);
    if args.force_share { options.lock(LockMode::Share) } else { options }
}

/// The format of the target.
fn target_format(args: &Args, given: &KeyValues, manner: Manner) -> Format {
    if manner.is_strict() {
        return args.target_format.unwrap_or(Format::Raw);
    }
    let has_backing = args.backing.is_some() || given.get("backing_file").is_some();
    let by_name = || args.target.as_deref().and_then(format_by_name).unwrap_or(Format::Raw);
    args.target_format.unwrap_or_else(|| if has_backing { Format::Qcow2 } else { by_name() })
}

/// A copy that is to be made.
struct Copy<'a> {
    args: &'a Args,
    format: Format,
    target: &'a Path,
    overwrite: Overwrite,
    interrupt: Interrupt,
}

impl Copy<'_> {
    /// Writes into a target that exists and is large enough.
    fn to_existing(&self, source: &Image) -> Result<(), Failure> {
        // Written as what it is: the ending of its name says nothing about a file that exists.
        let options = open_options(self.args.target_format).cache_mode(self.args.target_cache);
        let target = options.access(Access::ReadWrite).open(self.target)?;
        if self.args.target_format.is_none() && target.format() == Format::Raw {
            warn_probed_raw(self.target);
        }
        if self.args.compress && target.format() != Format::Qcow2 {
            return Err(cannot_be_compressed(target.format()));
        }
        if target.size() < source.size() {
            return Err(Failure::new(format!(
                "{}: the disk has {} bytes and the source has {}",
                self.target.display(),
                target.size(),
                source.size()
            ))
            .hint("`cowimg resize` makes a disk larger"));
        }
        self.copy(source, &target, TargetContent::Anything)
            .map_err(|error| self.stopped(error, "is partly written"))?;
        Ok(target.close()?)
    }

    /// Makes a new target, and gives it its name when it is complete.
    fn to_new(&self, source: &Image, given: &KeyValues) -> Result<(), Failure> {
        let options = FormatOptions::new(self.format, given)?;
        let create = self.create_options(source, &options)?;
        let staged = StagedImage::create(self.target, &create)?;
        let target = staged.open(&open_options(Some(self.format)).cache_mode(self.args.target_cache))?;
        let content = match create.backing {
            Some(_) => TargetContent::Similar,
            // A device is written in place, and has whatever was on it.
            None if self.format == Format::Raw && staged.path() == self.target => TargetContent::Anything,
            None => TargetContent::Zeroes,
        };
        let copied = self.copy(source, &target, content).and_then(|()| target.close());
        copied.map_err(|error| self.unstaged(error, staged.path()))?;
        Ok(staged.publish()?)
    }

    /// The failure of writing a target that has no name yet: it is told under the name that it was to have.
    fn unstaged(&self, error: Error, staged: &Path) -> Failure {
        if error.path() != Some(staged) || matches!(error.kind(), ErrorKind::Cancelled) {
            return self.stopped(error, "was not made");
        }
        let what = error.kind();
        let failure = Failure::new(format!("{}: {what}; the target was not made", self.target.display()));
        match error.io_kind() {
            Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge) => {
                failure.hint("It is written beside its place: that file system needs room for all of it")
            }
            _ => failure,
        }
    }

    /// What the target is to be like.
    fn create_options(&self, source: &Image, options: &FormatOptions) -> Result<CreateOptions, Failure> {
        if options.size.is_some() {
            return Err(Failure::usage(
                "the target has the size of the source, so -o size= has no meaning here",
            )
            .hint("`cowimg resize` makes the target larger afterwards"));
        }
        if self.args.compress && options.preallocation != Preallocation::Off {
            return Err(Failure::usage(
                "-c and -o preallocation= cannot be combined: compressed clusters have no place before they are written",
            ));
        }
        let name = match (&self.args.backing, &options.backing_file) {
            (Some(_), Some(_)) => {
                return Err(Failure::usage(
                    "the backing file is given twice: with -B and as -o backing_file=",
                ));
            }
            (Some(name), None) => Some(name.clone()),
            (None, name) => name.as_ref().map(OsString::from),
        };
        let format = self.args.backing_format.or(options.backing_format);
        if name.is_none() && format.is_some() {
            return Err(
                Failure::usage("a backing format is given and no backing file").hint("Name it with -B")
            );
        }
        Ok(CreateOptions {
            format: self.format,
            size: Some(source.size()),
            backing: name.map(|name| BackingOptions { format, ..BackingOptions::new(name) }),
            preallocation: options.preallocation,
            overwrite: self.overwrite,
            qcow2: options.qcow2.clone(),
        })
    }

    /// Copies, and shows how far it is.
    fn copy(&self, source: &Image, target: &Image, content: TargetContent) -> Result<(), Error> {
        let wanted = match self.args {
            Args { quiet: true, .. } => Wanted::Nothing,
            Args { progress: true, .. } => Wanted::Lines,
            _ => Wanted::Bar,
        };
        let display = Display::start(wanted);
        let control = Control { progress: Some(&display), cancel: Some(self.interrupt.cancel()) };
        let mut options = ConvertOptions {
            compression: if self.args.compress { Compression::On } else { Compression::Off },
            sparse_size: self.args.sparse_size,
            target_content: content,
            order: if self.args.oob_writes { Order::Any } else { Order::Source },
            ..ConvertOptions::default()
        };
        if let Some(pieces) = self.args.parallel {
            options.threads = usize::from(pieces);
        }
        job::convert(source, target, &options, &control)?;
        display.finish();
        Ok(())
    }

    /// The failure of a copy: an error, or the user's wish; `left` says what has become of the target then.
    fn stopped(&self, error: Error, left: &str) -> Failure {
        match (error.kind(), self.interrupt.signal()) {
            (ErrorKind::Cancelled, Some(signal)) => {
                Failure::stopped(signal, format!("stopped; {} {left}", self.target.display()))
            }
            _ => error.into(),
        }
    }
}

fn cannot_be_compressed(format: Format) -> Failure {
    Failure::usage(format!("a {format} image cannot be compressed")).hint("Give -O qcow2")
}

/// Refuses a target that the source reads from: writing it changes the source, and what else is stacked on it.
fn refuse_layer(source: &Image, target: &Path) -> Result<(), Failure> {
    let identity = |path: &Path| path.metadata().ok().map(|found| (found.dev(), found.ino()));
    let Some(target_identity) = identity(target) else { return Ok(()) };
    let is_target = |layer: &&Layer| layer.path().and_then(identity) == Some(target_identity);
    match source.layers().iter().find(is_target) {
        None => Ok(()),
        Some(_) => Err(Failure::new(format!("{}: the source reads from this file", target.display()))
            .hint("Give another target, and rename it afterwards if you like")),
    }
}

/// Parses `-S`: a multiple of 512 up to 16 MiB, or 0.
fn parse_sparse_size(text: &str) -> Result<u64, String> {
    let size = parse_size(text).map_err(|why| why.to_string())?;
    if size % 512 == 0 && size <= 16 << 20 {
        return Ok(size);
    }
    Err(format!("'{text}' is not a multiple of 512 up to 16 MiB; 0 writes every byte"))
}
