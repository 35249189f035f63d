//! `cowimg compare`

use std::ffi::OsString;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use cowimg::Image;
use cowimg::job::{self, CompareError, CompareOptions, CompareStep, Side, Strictness};
use cowimg::progress::{Control, Progress};

use crate::args::cache_mode::parse_cache_mode;
use crate::args::object::Objects;
use crate::args::opening::Opening;
use crate::console::Console;
use crate::exit_code::ExitCode;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::output::{self, compare::SizeWarning};
use crate::progress_bar::{Display, Wanted};

/// Say whether two images hold the same disk
///
/// Exits with 0 when they do, with 1 when they differ, and with 2, 3 or 4 when an image cannot be opened, mapped or read.
#[derive(Debug, clap::Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub(crate) struct Args {
    /// Format of FILE1 (raw, qcow2); without it the format is found by looking at the first bytes
    #[arg(short = 'f', long = "a-format", value_name = "FMT")]
    first_format: Option<String>,

    /// Format of FILE2 (raw, qcow2); without it the format is found by looking at the first bytes
    #[arg(short = 'F', long = "b-format", value_name = "FMT")]
    second_format: Option<String>,

    /// FILE1 and FILE2 are image options (driver=qcow2,file.filename=...), not names of files
    #[arg(long)]
    image_opts: bool,

    /// How the host caches the images: writeback, none, writethrough, directsync or unsafe
    #[arg(short = 'T', long, value_name = "CACHE", default_value = "writeback", hide_default_value = true)]
    cache: String,

    /// Open the images even if another process writes them
    #[arg(short = 'U', long)]
    force_share: bool,

    /// Print progress as lines on standard output
    #[arg(short = 'p', long)]
    progress: bool,

    /// Print nothing: the exit code tells
    #[arg(short = 'q', long)]
    quiet: bool,

    /// Also compare the sizes, and which ranges are allocated
    #[arg(short = 's', long)]
    strict: bool,

    #[command(flatten)]
    objects: Objects,

    /// One image
    #[arg(value_name = "FILE1")]
    first: OsString,

    /// The other image
    #[arg(value_name = "FILE2")]
    second: OsString,
}

/// Runs the command.
pub(crate) fn run(args: &Args, console: &mut Console) -> Result<ExitCode, Failure> {
    let wanted = match args {
        Args { quiet: true, .. } => Wanted::Nothing,
        Args { progress: true, .. } => Wanted::Shares,
        _ => Wanted::Bar,
    };
    let result = compare(args, wanted, console);
    if wanted == Wanted::Shares {
        // The line break that ends the progress comes last, after the answer.
        writeln!(console)?;
    }
    result
}

fn compare(args: &Args, wanted: Wanted, console: &mut Console) -> Result<ExitCode, Failure> {
    let interrupt = Interrupt::listen()?;
    args.objects.register().map_err(|failure| failure.code(ExitCode::NOT_OPENED))?;
    let (first, second) = open(args).map_err(|failure| failure.code(ExitCode::NOT_OPENED))?;
    let strictness = if args.strict { Strictness::Mapping } else { Strictness::Content };
    let shown = Shown {
        display: Display::start(wanted),
        common: first.size().min(second.size()),
        is_told: AtomicBool::new(wanted != Wanted::Shares || first.size() == second.size()),
    };
    let control = Control { progress: Some(&shown), cancel: Some(interrupt.cancel()) };
    let options = CompareOptions { strictness, ..CompareOptions::default() };
    let answer = job::compare(&first, &second, &options, &control);
    let warning = if shown.has_warned() { SizeWarning::Given } else { SizeWarning::Due };
    drop(shown);
    match answer {
        Ok(answer) => {
            if !args.quiet {
                output::compare::human(&answer, warning, console)?;
            }
            Ok(if answer.difference.is_none() { ExitCode::Success } else { ExitCode::Failure })
        }
        Err(error) if error.is_cancelled() => {
            Err(Failure::stopped(interrupt.signal().unwrap_or(2), "stopped; nothing was changed"))
        }
        Err(error) => {
            let past_common = error.offset >= first.size().min(second.size());
            if past_common && !args.quiet && warning == SizeWarning::Due {
                output::compare::size_warning(console)?;
            }
            Err(failure(error))
        }
    }
}

/// Progress lines, with the warning about the sizes where it belongs among them.
struct Shown {
    display: Display,
    /// Size of the smaller disk in bytes.
    common: u64,
    /// Nothing is to be warned of here any more.
    is_told: AtomicBool,
}

impl Shown {
    /// Whether the warning has been given between lines.
    fn has_warned(&self) -> bool {
        self.display.prints_lines() && self.is_told.load(Ordering::Relaxed)
    }
}

impl Progress for Shown {
    fn advanced(&self, done: u64, total: u64) {
        if done > self.common && !self.is_told.swap(true, Ordering::Relaxed) {
            // The report's reader sees what the lines' reader sees.
            let _nobody_listens = output::compare::size_warning(&mut std::io::stdout());
        }
        self.display.advanced(done, total);
    }
}

fn open(args: &Args) -> Result<(Image, Image), Failure> {
    let opening = |format: &Option<String>| -> Result<Opening, Failure> {
        Ok(Opening {
            format: format.clone(),
            image_opts: args.image_opts,
            force_share: args.force_share,
            cache: Some(parse_cache_mode(&args.cache).map_err(Failure::usage)?),
            snapshot: None,
        })
    };
    let first = opening(&args.first_format)?.read(&args.first)?;
    Ok((first, opening(&args.second_format)?.read(&args.second)?))
}

/// What could not be done, with the exit code for it.
fn failure(failed: CompareError) -> Failure {
    let CompareError { side, step, offset, error } = failed;
    let image = match side {
        Side::First => "the first image",
        Side::Second => "the second image",
    };
    let (what, code) = match step {
        CompareStep::Mapping => ("where its data is could not be found out", ExitCode::NOT_MAPPED),
        CompareStep::Reading => ("it could not be read", ExitCode::Unreadable),
    };
    let context = format!("{image}, offset {offset}: {what}");
    Failure::from(error).within(context).code(code)
}
