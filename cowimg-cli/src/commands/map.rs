//! `cowimg map`

use std::io::Write;

use cowimg::{ByteRange, Extent, ExtentKind, Image, Layer};

use crate::args::size::parse_size;
use crate::args::{Report, ReportFormat, Source};
use crate::console::Console;
use crate::exit_code::ExitCode;
use crate::failure::Failure;
use crate::output::map::{HumanMap, JsonMap};
use crate::output::path_bytes;

/// Show where each range of the disk is stored
///
/// The table lists ranges that are stored as they are; --json lists all ranges.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,

    /// Start at this offset of the disk
    #[arg(short = 's', long, value_name = "OFFSET", value_parser = parse_size, default_value = "0", hide_default_value = true)]
    start_offset: u64,

    /// Look at no more than this many bytes of the disk
    #[arg(short = 'l', long, value_name = "LENGTH", value_parser = parse_size)]
    max_length: Option<u64>,

    #[command(flatten)]
    report: Report,
}

/// Runs the command.
pub(crate) fn run(args: &Args, out: &mut Console) -> Result<ExitCode, Failure> {
    let image = args.source.open()?;
    let rest = image.size().saturating_sub(args.start_offset);
    let length = args.max_length.map_or(rest, |most| most.min(rest));
    let range = ByteRange::between(args.start_offset, args.start_offset + length);
    match args.report.format() {
        ReportFormat::Human => human(&image, range, out)?,
        ReportFormat::Json => json(&image, range, out)?,
    }
    Ok(ExitCode::Success)
}

fn human(image: &Image, range: ByteRange, out: &mut dyn Write) -> Result<(), Failure> {
    let names =
        image.layers().iter().map(|layer| layer.data_path().or(layer.path()).map_or(&b""[..], path_bytes));
    let files: Vec<&[u8]> = names.collect();
    let table = HumanMap::start(&files, out)?;
    for extent in image.extents(range) {
        let extent = in_file(image, extent?);
        if extent.kind == ExtentKind::Compressed {
            return Err(Failure::new(format!(
                "the disk has compressed clusters (the first at offset {}), which are stored in no form that the \
                 table could show",
                extent.range.start()
            ))
            .hint("--json lists them"));
        }
        if extent.kind == ExtentKind::Data && extent.host.is_none() && !extent.is_zero() {
            return Err(Failure::new(format!(
                "the disk is encrypted (first at offset {}), and is stored in no form that the table could show",
                extent.range.start()
            ))
            .hint("--json lists its ranges"));
        }
        table.row(&extent, out)?;
    }
    Ok(())
}

fn json(image: &Image, range: ByteRange, out: &mut dyn Write) -> Result<(), Failure> {
    let mut rows = JsonMap::default();
    for extent in image.extents(range) {
        rows.row(&in_file(image, extent?), out)?;
    }
    rows.end(range.start(), out)?;
    Ok(())
}

/// The extent with its place counted from the start of the file, where the image is a part of one.
fn in_file(image: &Image, extent: Extent) -> Extent {
    let start = image.layers().get(extent.depth).map_or(0, Layer::start);
    Extent { host: extent.host.map(|host| host + start), ..extent }
}
