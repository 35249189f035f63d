//! `cowimg rebase`

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use cowimg::format::qcow2::layout::BackingName;
use cowimg::job::{self, Compression, NewBacking, RebaseOptions};
use cowimg::progress::Control;
use cowimg::{CacheMode, Error, ErrorKind, Format, Image, LockMode, OpenOptions, Verification};

use crate::args::Changed;
use crate::args::cache_mode::parse_cache_mode;
use crate::args::image::parse_format;
use crate::args::image_name::ImageName;
use crate::cli::OURS;
use crate::console::Console;
use crate::exit_code::ExitCode;
use crate::failure::{Failure, warn_probed_raw};
use crate::interrupt::Interrupt;
use crate::progress_bar::{Display, Wanted};
use crate::trust::image_options;

/// Stack an image on another backing file
///
/// FILE reads as before: what the new backing file has otherwise than the old one is written to FILE first. With -u only the
/// name in FILE is changed, for a backing file that was moved or renamed; FILE reads as before only if the new one
/// has the same content as the old.
///
/// A rebase that is stopped or fails leaves FILE on its old backing file, with the same content.
#[derive(Debug, clap::Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub(crate) struct Args {
    #[command(flatten)]
    changed: Changed,

    /// The new backing file, as it is to stand in FILE: a relative name starts at FILE's folder; an empty name for none
    #[arg(short = 'b', long, value_name = "BACKING")]
    backing: Option<OsString>,

    /// The format of BACKING (raw, qcow2)
    #[arg(short = 'F', long, value_name = "FMT", value_parser = parse_format)]
    backing_format: Option<Format>,

    /// How the host caches BACKING
    #[arg(short = 'T', long, value_name = "CACHE", value_parser = parse_cache_mode, default_value = "writeback")]
    backing_cache: CacheMode,

    /// Change the name alone and look at no backing file, old or new
    #[arg(short = 'u', long = "backing-unsafe")]
    name_only: bool,

    /// Compress what is written to FILE
    #[arg(short = 'c', long)]
    compress: bool,

    /// Open BACKING even if another process writes it
    #[arg(short = 'U', long)]
    force_share: bool,

    /// Rebase an image with snapshots, which then show the new backing file where they hold nothing themselves
    #[arg(long, help_heading = OURS)]
    force: bool,

    /// Print progress as lines on standard output
    #[arg(short = 'p', long)]
    progress: bool,

    /// Print nothing when all is well
    #[arg(short = 'q', long)]
    quiet: bool,

    /// The image file
    #[arg(value_name = "FILE")]
    file: OsString,
}

/// Runs the command.
pub(crate) fn run(args: &Args, out: &mut Console) -> Result<ExitCode, Failure> {
    if args.backing.is_none() && !args.name_only {
        return Err(Failure::usage(
            "which backing file is FILE to have? Give -b (with an empty name for none), or -u",
        )
        .hint(format!("Try '{} rebase --help' for more info", out.manner.program())));
    }
    let interrupt = Interrupt::listen()?;
    let image = args.changed.name(&args.file)?;
    let job = Rebase { args, image, is_strict: out.manner.is_strict(), interrupt };
    if args.name_only { job.change_name() } else { job.change_backing() }?;
    Ok(ExitCode::Success)
}

/// A rebase that is to be done.
struct Rebase<'a> {
    args: &'a Args,
    image: ImageName,
    is_strict: bool,
    interrupt: Interrupt,
}

impl Rebase<'_> {
    /// Changes what stands in the header.
    fn change_name(&self) -> Result<(), Failure> {
        let display = self.display();
        let image = self.open(self.image.options.clone().no_backing())?;
        let name = match self.name() {
            Some(name) if self.args.backing_format.is_none() => {
                // As far as qemu-img is concerned, the work is done and only its result cannot be stored.
                if self.is_strict {
                    display.finish();
                }
                return Err(self.format_is_missing(name));
            }
            Some(name) => Some(backing_name(name, self.args.backing_format)),
            None => None,
        };
        if !self.is_strict
            && let Some(name) = self.name()
            && is_same_file(&image.resolve_backing(name)?, &self.image.path)
        {
            return Err(Error::new(ErrorKind::BackingLoop).at_path(&self.image.path).into());
        }
        image.set_backing(name.as_ref(), Verification::Trust)?;
        image.close()?;
        display.finish();
        Ok(())
    }

    /// Changes the backing file below the same content.
    fn change_backing(&self) -> Result<(), Failure> {
        let display = self.display();
        let image = self.open(self.image.options.clone())?;
        let (name, backing) = match self.name() {
            None => (None, None),
            Some(name) => {
                if self.is_strict && self.args.backing_format.is_none() {
                    return Err(self.format_is_missing(name));
                }
                let mut stored = backing_name(name, self.args.backing_format);
                let backing = image.open_backing(&stored, &self.backing_options())?;
                if stored.format.is_none() {
                    if backing.format() == Format::Raw {
                        warn_probed_raw(Path::new(name));
                    }
                    stored = backing_name(name, Some(backing.format()));
                }
                (Some(stored), Some(backing))
            }
        };
        let new = name.as_ref().zip(backing.as_ref()).map(|(name, image)| NewBacking { name, image });
        let control = Control { progress: Some(&display), cancel: Some(self.interrupt.cancel()) };
        let options = RebaseOptions {
            compression: if self.args.compress { Compression::On } else { Compression::Off },
            ..RebaseOptions::default()
        };
        job::rebase(image, new, &options, &control).map_err(|error| self.stopped(error))?;
        display.finish();
        Ok(())
    }

    fn backing_options(&self) -> OpenOptions {
        let options = image_options().cache_mode(self.args.backing_cache);
        if self.args.force_share { options.lock(LockMode::Share) } else { options }
    }

    /// Opens the image, and refuses what cannot or should not be rebased.
    fn open(&self, options: OpenOptions) -> Result<Image, Failure> {
        let mut image = self.image.clone();
        image.options = options;
        let image = image.open_to_write()?;
        let name = self.image.path.display();
        if image.format() == Format::Raw {
            let what = if self.args.compress { "be compressed" } else { "have a backing file" };
            return Err(Failure::new(format!("{name}: a raw image cannot {what}"))
                .hint("Convert it to qcow2 first (convert -O qcow2)"));
        }
        if !self.is_strict && !self.args.force && !image.snapshots()?.is_empty() {
            return Err(Failure::new(format!(
                "{name}: the image has snapshots, and these would show the new backing file where they hold nothing"
            ))
            .hint("--force rebases it all the same; `cowimg snapshot -l` lists them"));
        }
        Ok(image)
    }

    /// The new backing file's name, if there is to be one.
    fn name(&self) -> Option<&OsString> {
        self.args.backing.as_ref().filter(|name| !name.is_empty())
    }

    fn format_is_missing(&self, name: &OsString) -> Failure {
        let name = name.display();
        Failure::usage(format!(
            "{}: the format of the new backing file {name} is not given",
            self.image.path.display()
        ))
        .hint("Give it with -F. The image is as it was")
    }

    fn display(&self) -> Display {
        Display::start(match self.args {
            Args { quiet: true, .. } => Wanted::Nothing,
            Args { progress: true, .. } => Wanted::Lines,
            _ => Wanted::Bar,
        })
    }

    /// The failure of a rebase: an error, or the user's wish.
    fn stopped(&self, error: Error) -> Failure {
        match (error.kind(), self.interrupt.signal()) {
            (ErrorKind::Cancelled, Some(signal)) => Failure::stopped(
                signal,
                format!("stopped; {} is stacked on its old backing file", self.image.path.display()),
            ),
            _ => error.into(),
        }
    }
}

fn backing_name(name: &OsString, format: Option<Format>) -> BackingName {
    BackingName {
        name: name.as_bytes().to_vec(),
        format: format.map(|format| format.as_str().as_bytes().to_vec()),
    }
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| path.metadata().ok().map(|found| (found.dev(), found.ino()));
    identity(one).is_some() && identity(one) == identity(other)
}
