//! `cowimg info`

use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use cowimg::ImageInfo;

use crate::args::{Report, ReportFormat, Source};
use crate::cli::OURS;
use crate::console::Console;
use crate::exit_code::ExitCode;
use crate::failure::Failure;
use crate::output::info::Titled;
use crate::output::{self, path_bytes};

/// Show what an image is: format, sizes, backing file, snapshots
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,

    /// Show every image of the backing chain
    #[arg(short = 'b', long)]
    backing_chain: bool,

    /// Show all that the header says: places and sizes of tables, feature bits and extensions, known or not
    #[arg(long, help_heading = OURS)]
    header: bool,

    #[command(flatten)]
    report: Report,
}

/// Runs the command.
pub(crate) fn run(args: &Args, out: &mut Console) -> Result<ExitCode, Failure> {
    let image = args.source.name()?;
    if out.manner.is_strict() && image.overrides_backing {
        return Err(Failure::usage(
            "info shows what the image says of its backing file, so that backing. options cannot be given",
        ));
    }
    if image.is_nested() {
        return Err(Failure::usage(
            "info tells of an image in a file, and this one is in the disk of another image",
        )
        .hint("Ask for the image whose file it is, or convert this one first"));
    }
    let infos = if args.backing_chain {
        cowimg::inspect_chain(&image.path, &image.options)?
    } else {
        vec![cowimg::inspect(&image.path, &image.options)?]
    };
    if out.manner.is_strict() {
        infos.iter().try_for_each(refuse_unknown)?;
    }
    let title = |info: &ImageInfo| info.path.as_deref().map_or(Vec::new(), |path| path_bytes(path).to_vec());
    let mut layers: Vec<_> = infos
        .into_iter()
        .map(|info| Titled { title: title(&info), info, is_file: false, with_header: args.header })
        .collect();
    if let Some(top) = layers.first_mut() {
        top.title = image.shown.into_vec();
        top.is_file = image.is_file;
    }
    match args.report.format() {
        ReportFormat::Human => output::info::human(&layers, out)?,
        ReportFormat::Json if args.backing_chain => output::info::json_chain(&layers).write_document(out)?,
        ReportFormat::Json => {
            for layer in &layers {
                output::info::json(layer).write_document(out)?;
            }
        }
    }
    Ok(ExitCode::Success)
}

/// Refuses an image with features that nobody knows: qemu-img shows nothing of those.
fn refuse_unknown(info: &ImageInfo) -> Result<(), Failure> {
    let unknown = info.qcow2.as_ref().map_or(&[][..], |qcow2| &qcow2.unknown_features);
    if unknown.is_empty() {
        return Ok(());
    }
    let name = info.path.as_deref().unwrap_or(Path::new("")).display();
    Err(Failure::new(format!("{name}: the image has features that are not known: {}", unknown.join(", "))))
}
