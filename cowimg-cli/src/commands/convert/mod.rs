//! `cowimg convert`

mod rules;
mod target;

use std::ffi::OsString;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use cowimg::encryption::Encryption;
use cowimg::job::{
    self, BrokenBitmaps, Compression, ConvertOptions, Copying, Order, Part, ReadErrors, TargetContent,
};
use cowimg::progress::{Control, Progress};
use cowimg::{
    ByteRange, CacheMode, CreateOptions, Error, ErrorKind, Format, Image, Preallocation, SnapshotSelector,
    SnapshotSize, StagedImage,
};

use crate::args::cache_mode::parse_cache_mode;
use crate::args::format_options::{FormatOptions, options_of};
use crate::args::image::{format_by_name, parse_format, parse_path};
use crate::args::key_values::KeyValues;
use crate::args::object::Objects;
use crate::args::opening::Opening;
use crate::args::size::parse_size;
use crate::args::snapshot::selector_parser;
use crate::cli::OURS;
use crate::commands::open_options;
use crate::console::Console;
use crate::exit_code::ExitCode;
use crate::failure::{Failure, warn};
use crate::interrupt::Interrupt;
use crate::manner::Manner;
use crate::output;
use crate::progress_bar::{Display, Wanted};
use target::{cannot_be_compressed, cannot_have_bitmaps, create_options};
pub(in crate::commands) use target::{refuse_layer, unstaged};

/// Copy images to another, changing the format on the way
///
/// Several sources are joined, one behind the other. The target appears whole or not at all: it is written beside its
/// place and renamed at the end. An existing file is not replaced unless --force says so, and written into only with -n.
#[derive(Debug, clap::Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub(crate) struct Args {
    /// Format of the sources (raw, qcow2); without it the format is found by looking at the first bytes
    #[arg(short = 'f', long, value_name = "FMT")]
    source_format: Option<String>,

    /// The sources are image options (driver=qcow2,file.filename=...), not names of files
    #[arg(long, visible_alias = "source-image-opts")]
    image_opts: bool,

    /// Read this internal snapshot of the source
    #[arg(short = 'l', long = "source-snapshot", value_name = "SNAPSHOT", value_parser = selector_parser())]
    snapshot: Option<SnapshotSelector>,

    /// How the host caches the sources: writeback, none, writethrough, directsync or unsafe
    #[arg(short = 'T', long, value_name = "CACHE", value_parser = parse_cache_mode)]
    source_cache: Option<CacheMode>,

    /// Go on over what cannot be read: it becomes zeroes, with a warning
    #[arg(long)]
    salvage: bool,

    /// Copy the source's bitmaps as well
    #[arg(long)]
    bitmaps: bool,

    /// Leave out bitmaps that are marked as inconsistent, with a warning
    #[arg(long)]
    skip_broken_bitmaps: bool,

    /// Open the sources even if another process writes them
    #[arg(short = 'U', long)]
    force_share: bool,

    /// Format of TARGET (raw, qcow2); without it TARGET's ending tells (.qcow2, .raw, .img), else raw
    #[arg(short = 'O', long, value_name = "FMT", value_parser = parse_format)]
    target_format: Option<Format>,

    /// TARGET is image options, not the name of a file (only with -n)
    #[arg(long)]
    target_image_opts: bool,

    /// Options of TARGET's format: key=value, separated by commas ('-o help' lists them)
    #[arg(short = 'o', long = "target-options", value_name = "OPTS")]
    options: Vec<String>,

    /// How the host caches TARGET: unsafe (the default), writeback, none, writethrough or directsync
    #[arg(short = 't', long, value_name = "CACHE", value_parser = parse_cache_mode)]
    target_cache: Option<CacheMode>,

    /// Stack TARGET on this image, which must read as the part of the source that is not copied
    #[arg(short = 'B', long, value_name = "BACKING")]
    backing: Option<OsString>,

    /// Format of BACKING
    #[arg(short = 'F', long, value_name = "FMT", value_parser = parse_format)]
    backing_format: Option<Format>,

    /// Write into TARGET, which exists, instead of creating it
    #[arg(short = 'n', long)]
    no_create: bool,

    /// TARGET reads as zeroes already (only with -n)
    #[arg(long)]
    target_is_zero: bool,

    /// Zeroes this long become holes (4k, and longer ones in what is shared with the source); 0 writes every byte
    #[arg(short = 'S', long, value_name = "SIZE", value_parser = parse_sparse_size)]
    sparse_size: Option<u64>,

    /// Compress the data (qcow2)
    #[arg(short = 'c', long)]
    compress: bool,

    /// Let the host copy: where it can, TARGET shares the space of the source
    #[arg(short = 'C', long = "copy-range-offloading")]
    copy_range: bool,

    /// Write no more than this many bytes in a second
    #[arg(short = 'r', long, value_name = "RATE", value_parser = parse_size)]
    rate: Option<u64>,

    /// How many pieces are copied at a time; without it as many as there are processors, at most 8
    #[arg(short = 'm', long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    parallel: Option<u8>,

    /// Write pieces as they come, not in the order of the source
    #[arg(short = 'W', long)]
    oob_writes: bool,

    /// Print progress as lines on standard output
    #[arg(short = 'p', long)]
    progress: bool,

    /// Print nothing when all is well
    #[arg(short = 'q', long)]
    quiet: bool,

    #[command(flatten)]
    objects: Objects,

    /// Replace TARGET if it exists
    #[arg(long, help_heading = OURS)]
    force: bool,

    /// The images to read, and the image to write
    #[arg(value_name = "SOURCE... TARGET")]
    files: Vec<OsString>,
}

/// Runs the command.
pub(crate) fn run(args: &Args, console: &mut Console) -> Result<ExitCode, Failure> {
    rules::check(args, console.manner)?;
    let given = KeyValues::parse(&args.options)?;
    let format = target_format(args, &given, console.manner);
    if given.asks_for_help() {
        output::create::options_help(format, options_of(format), console)?;
        return Ok(ExitCode::Success);
    }
    let Some((target, sources)) = args.files.split_last() else {
        return Err(Failure::usage("which image is to be read, and which written?"));
    };
    let interrupt = Interrupt::listen()?;
    args.objects.register()?;
    let display = Shown { display: Display::start(wanted(args)), quiet: args.quiet };
    if args.compress && !args.no_create && format != Format::Qcow2 {
        return Err(cannot_be_compressed(format));
    }
    if args.bitmaps && !args.no_create && format != Format::Qcow2 {
        return Err(cannot_have_bitmaps(format));
    }
    let sources = sources
        .iter()
        .map(|name| source_opening(args, console.manner).read(name))
        .collect::<Result<Vec<_>, _>>()?;
    let target_path = parse_path(target.clone()).map_err(Failure::usage)?;
    for source in &sources {
        refuse_layer(source, &target_path)?;
    }
    if args.bitmaps {
        check_bitmaps(args, &sources)?;
    }
    let copy = Copy { args, format, target: target_path, sources, interrupt, display, console };
    if args.no_create {
        copy.to_existing(target)?;
    } else {
        copy.to_new(&given)?;
    }
    Ok(ExitCode::Success)
}

fn wanted(args: &Args) -> Wanted {
    match args {
        Args { quiet: true, .. } => Wanted::Nothing,
        Args { progress: true, .. } => Wanted::Lines,
        _ => Wanted::Bar,
    }
}

fn source_opening(args: &Args, manner: Manner) -> Opening {
    // qemu-img gives a snapshot the size that the disk has now.
    let size = if manner.is_strict() { SnapshotSize::OfTheDisk } else { SnapshotSize::Own };
    Opening {
        format: args.source_format.clone(),
        image_opts: args.image_opts,
        force_share: args.force_share,
        cache: args.source_cache,
        snapshot: args.snapshot.clone().map(|snapshot| (snapshot, size)),
    }
}

/// The format of the target.
fn target_format(args: &Args, given: &KeyValues, manner: Manner) -> Format {
    if manner.is_strict() {
        return args.target_format.unwrap_or(Format::Raw);
    }
    let has_backing = args.backing.is_some() || given.get("backing_file").is_some();
    let by_name = || args.files.last().map(Path::new).and_then(format_by_name).unwrap_or(Format::Raw);
    args.target_format.unwrap_or_else(|| if has_backing { Format::Qcow2 } else { by_name() })
}

/// Progress for the user, with warnings between.
struct Shown {
    display: Display,
    quiet: bool,
}

impl Progress for Shown {
    fn advanced(&self, done: u64, total: u64) {
        self.display.advanced(done, total);
    }

    fn unreadable(&self, range: ByteRange, error: &Error) {
        if !self.quiet {
            warn(&format!(
                "{} bytes at offset {} could not be read and are zeroes now: {error}",
                range.len(),
                range.start()
            ));
        }
    }
}

/// A copy that is to be made.
struct Copy<'a> {
    args: &'a Args,
    format: Format,
    target: PathBuf,
    sources: Vec<Image>,
    interrupt: Interrupt,
    display: Shown,
    console: &'a Console,
}

impl Copy<'_> {
    fn size(&self) -> u64 {
        self.sources.iter().map(Image::size).sum()
    }

    /// Writes into a target that exists and is large enough.
    fn to_existing(&self, name: &OsString) -> Result<(), Failure> {
        let is_strict = self.console.manner.is_strict();
        // Written as what it is: the ending of its name says nothing about a file that exists. qemu-img's default is raw.
        let default = (is_strict && !self.args.target_image_opts).then_some(Format::Raw);
        let opening = Opening {
            format: self.args.target_format.or(default).map(|format| format.to_string()),
            image_opts: self.args.target_image_opts,
            cache: self.args.target_cache.or(is_strict.then_some(CacheMode::Unsafe)),
            ..Opening::default()
        };
        let target = opening.write(name)?;
        if self.args.compress && target.format() != Format::Qcow2 {
            return Err(cannot_be_compressed(target.format()));
        }
        if self.args.bitmaps && target.format() != Format::Qcow2 {
            return Err(cannot_have_bitmaps(target.format()));
        }
        if target.size() < self.size() {
            return Err(Failure::new(format!(
                "{}: the disk has {} bytes and the source has {}",
                self.target.display(),
                target.size(),
                self.size()
            ))
            .hint(format!("`{} resize` makes a disk larger", self.console.manner.program())));
        }
        let content = match self.args {
            Args { target_is_zero: true, .. } => TargetContent::Zeroes,
            Args { backing: Some(_), .. } => self.over_backing(),
            _ => TargetContent::Anything,
        };
        self.copy(&target, content, Copying::Here)
            .map_err(|error| self.stopped(error, "is partly written"))?;
        target.close()?;
        self.display.display.finish();
        Ok(())
    }

    /// Makes a new target, and gives it its name when it is complete.
    fn to_new(&self, given: &KeyValues) -> Result<(), Failure> {
        let options = FormatOptions::new(self.format, given)?;
        let manner = self.console.manner;
        let how = (manner, self.console.overwrite(self.args.force));
        let create = create_options(self.args, (self.size(), self.format), &options, how)?;
        let staged = self.staged(&create)?;
        let cache = self.args.target_cache.unwrap_or(CacheMode::Unsafe);
        let mut options = open_options(Some(self.format)).cache_mode(cache);
        let luks = create.luks.as_ref().map(|luks| &luks.passphrase);
        let of_qcow2 = create.qcow2.encryption.as_ref().map(Encryption::passphrase);
        if let Some(passphrase) = luks.or(of_qcow2) {
            options = options.passphrase(passphrase.clone());
        }
        let target = staged.open(&options)?;
        let content = self.content_of_new(&create);
        let copied = self.copy(&target, content, copying_to_new(&create)).and_then(|()| target.close());
        copied.map_err(|error| match error.kind() {
            ErrorKind::Cancelled => self.stopped(error, "was not made"),
            _ => unstaged(error, staged.path(), &self.target),
        })?;
        match cache {
            CacheMode::Unsafe => staged.publish()?,
            _ => staged.publish_synced()?,
        }
        self.display.display.finish();
        Ok(())
    }

    /// The target before anything is copied to it. Taking its space may last.
    fn staged(&self, create: &CreateOptions) -> Result<StagedImage, Failure> {
        let control = Control { progress: None, cancel: Some(self.interrupt.cancel()) };
        let plan = cowimg::plan(&self.target, create).map_err(|error| error.at_path(&self.target))?;
        StagedImage::write_with(&self.target, create.overwrite, &plan, &control)
            .map_err(|error| self.stopped(error, "was not made"))
    }

    /// What a target reads as that was just made.
    fn content_of_new(&self, create: &CreateOptions) -> TargetContent {
        if create.backing.is_some() {
            return self.over_backing();
        }
        // A device is written in place, and has whatever was on it.
        let is_file = self.target.metadata().map_or(true, |found| found.is_file());
        match self.format {
            Format::Raw if !is_file => TargetContent::Anything,
            // Noise.
            Format::Luks => TargetContent::Anything,
            Format::Qcow2
                if create.qcow2.encryption.is_some() && create.preallocation != Preallocation::Off =>
            {
                TargetContent::Anything
            }
            _ => TargetContent::Zeroes,
        }
    }

    /// What is taken for granted of a backing file. qemu-img takes it to read as the source's own.
    fn over_backing(&self) -> TargetContent {
        if self.console.manner.is_strict() { TargetContent::SameBacking } else { TargetContent::Similar }
    }

    /// Copies, and shows how far it is.
    fn copy(&self, target: &Image, content: TargetContent, copying: Copying) -> Result<(), Error> {
        let args = self.args;
        let control = Control { progress: Some(&self.display), cancel: Some(self.interrupt.cancel()) };
        let defaults = ConvertOptions::default();
        let options = ConvertOptions {
            compression: if args.compress { Compression::On } else { Compression::Off },
            sparse_size: args.sparse_size.unwrap_or(defaults.sparse_size),
            target_content: content,
            order: if args.oob_writes { Order::Any } else { Order::Source },
            read_errors: if args.salvage { ReadErrors::Zero } else { ReadErrors::Fail },
            copying: if args.copy_range { Copying::Host } else { copying },
            rate: args.rate.and_then(NonZeroU64::new),
            threads: args.parallel.map_or(defaults.threads, usize::from),
        };
        let parts: Vec<Part<'_>> = self.sources.iter().map(Part::whole).collect();
        job::convert_parts(&parts, target, &options, &control)?;
        if let (true, Some(source)) = (args.bitmaps, self.sources.first()) {
            for name in job::copy_bitmaps(source, target, broken_bitmaps(args))? {
                warn(&format!("bitmap {} is inconsistent and was left out", String::from_utf8_lossy(&name)));
            }
        }
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

/// Who copies to a target that was just made. What was preallocated is to be its own, and what is encrypted cannot be shared.
fn copying_to_new(create: &CreateOptions) -> Copying {
    let is_encrypted = create.luks.is_some() || create.qcow2.encryption.is_some();
    match create.preallocation {
        Preallocation::Off if !is_encrypted => Copying::Shared,
        _ => Copying::Here,
    }
}

fn broken_bitmaps(args: &Args) -> BrokenBitmaps {
    if args.skip_broken_bitmaps { BrokenBitmaps::Skip } else { BrokenBitmaps::Refuse }
}

/// Refuses a source whose bitmaps cannot be copied.
fn check_bitmaps(args: &Args, sources: &[Image]) -> Result<(), Failure> {
    for source in sources {
        job::check_bitmaps(source, broken_bitmaps(args))?;
    }
    Ok(())
}

/// Parses `-S`: a multiple of 512 up to 16 MiB, or 0.
fn parse_sparse_size(text: &str) -> Result<u64, String> {
    let size = parse_size(text).map_err(|why| why.to_string())?;
    if size % 512 == 0 && size <= 16 << 20 {
        return Ok(size);
    }
    Err(format!("'{text}' is not a multiple of 512 up to 16 MiB; 0 writes every byte"))
}
