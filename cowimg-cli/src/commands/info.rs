//! `cowimg info`

use std::io::Write;
use std::os::unix::fs::FileTypeExt;

use cowimg::ImageInfo;

use crate::args::{Report, ReportFormat, Source};
use crate::commands::open_options;
use crate::exit_code::ExitCode;
use crate::failure::Failure;
use crate::output;
use crate::output::info::LayerReport;
use crate::output::path_bytes;

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
pub(crate) fn run(args: &Args, out: &mut dyn Write) -> Result<ExitCode, Failure> {
    let Source { file, format, .. } = &args.source;
    let options = open_options(*format);
    let infos = if args.backing_chain {
        cowimg::inspect_chain(file, &options)?
    } else {
        vec![cowimg::inspect(file, &options)?]
    };
    let layers: Vec<LayerReport> = infos.into_iter().map(layer_report).collect();
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

fn layer_report(info: ImageInfo) -> LayerReport {
    let path = info.path.as_deref().map_or_else(Vec::new, |path| path_bytes(path).to_vec());
    let is_device = info.path.as_deref().and_then(|path| path.metadata().ok()).is_some_and(|metadata| {
        let file_type = metadata.file_type();
        file_type.is_block_device() || file_type.is_char_device()
    });
    LayerReport { info, path, protocol: if is_device { "host_device" } else { "file" } }
}
