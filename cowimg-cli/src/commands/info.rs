//! `cowimg info`

use crate::args::{Report, ReportFormat, Source};
use crate::console::Console;
use crate::exit_code::ExitCode;
use crate::failure::Failure;
use crate::output;

/// Show what an image is: format, sizes, backing file, snapshots
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,

    /// Show every image of the backing chain
    #[arg(short = 'b', long)]
    backing_chain: bool,

    #[command(flatten)]
    report: Report,
}

/// Runs the command.
pub(crate) fn run(args: &Args, out: &mut Console) -> Result<ExitCode, Failure> {
    let (file, options) = (&args.source.file, args.source.options());
    let layers = if args.backing_chain {
        cowimg::inspect_chain(file, &options)?
    } else {
        vec![cowimg::inspect(file, &options)?]
    };
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
