//! `cowimg commit`

use std::ffi::OsString;
use std::io::Write;

use cowimg::job::{self, Afterwards, CommitOptions};
use cowimg::progress::Control;
use cowimg::{Error, ErrorKind, Image, Layer, LayerChoice};

use crate::args::Changed;
use crate::args::size::parse_size;
use crate::console::Console;
use crate::exit_code::ExitCode;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::progress_bar::{Display, Wanted};

/// Write what an image holds into the image that it is stacked on
///
/// Afterwards FILE is empty and shows its backing file, unless -d or -b is given. A backing file that is smaller is made
/// larger first. A commit that is stopped or fails leaves FILE as it was.
///
/// Every other image that is stacked on the one that is written, or on one between it and FILE, changes with it and is most
/// likely of no use any more; there is no way to find out here whether there is one.
#[derive(Debug, clap::Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub(crate) struct Args {
    #[command(flatten)]
    changed: Changed,

    /// Write into this image of the chain, not into the one right below FILE, and leave FILE as it is; a relative name starts
    /// at the folder of the image above it
    #[arg(short = 'b', long, value_name = "BASE")]
    base: Option<OsString>,

    /// Leave FILE as it is, to be thrown away
    #[arg(short = 'd', long)]
    drop: bool,

    /// Copy at most this many bytes in a second
    #[arg(short = 'r', long = "rate", alias = "rate-limit", value_name = "RATE", value_parser = parse_size)]
    rate: Option<u64>,

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
    let choice = args.base.clone().map_or(LayerChoice::Below, LayerChoice::Named);
    let mut name = args.changed.name(&args.file)?;
    name.options = name.options.writable_layer(choice);
    let image = name.open_to_write()?;
    let interrupt = Interrupt::listen()?;
    let wanted = match args {
        Args { quiet: true, .. } => Wanted::Nothing,
        Args { progress: true, .. } => Wanted::Lines,
        _ => Wanted::Bar,
    };
    let display = Display::start(wanted);
    let control = Control { progress: Some(&display), cancel: Some(interrupt.cancel()) };
    let keep = args.drop || args.base.is_some();
    let options = CommitOptions {
        afterwards: if keep { Afterwards::Keep } else { Afterwards::Empty },
        rate: args.rate,
        ..CommitOptions::default()
    };
    job::commit(&image, &options, &control).map_err(|error| stopped(error, &interrupt, &image))?;
    display.finish();
    image.close()?;
    if !args.quiet {
        writeln!(out, "Image committed.")?;
    }
    Ok(ExitCode::Success)
}

/// The failure of a commit: an error, or the user's wish.
fn stopped(error: Error, interrupt: &Interrupt, image: &Image) -> Failure {
    let (ErrorKind::Cancelled, Some(signal)) = (error.kind(), interrupt.signal()) else {
        return error.into();
    };
    let name = |image: &Image| {
        let path = image.layers().first().and_then(Layer::path);
        path.map_or(String::new(), |path| path.display().to_string())
    };
    let lower = image.writable_layer().map(name).unwrap_or_default();
    Failure::stopped(signal, format!("stopped; {} is as it was, and {lower} has a part of it", name(image)))
        .hint("Committing again finishes it")
}
