//! `cowimg check`

use std::os::unix::ffi::OsStrExt;

use cowimg::check::{CheckReport, Repair, check_file, repair_file};
use cowimg::{CacheMode, Format};

use crate::args::cache_mode::parse_cache_mode;
use crate::args::image_name::ImageName;
use crate::args::{Report, ReportFormat, Source};
use crate::console::Console;
use crate::exit_code::ExitCode;
use crate::failure::{Failure, note_plain};
use crate::output::check::{self, CheckSummary};

/// Look for contradictions and wasted space in an image
///
/// Nothing is changed without -r. Exit codes: 0 nothing found, or nothing left after a repair, 1 the check could not be
/// done or completed, 2 contradictions that can cost data, 3 wasted space only, 63 the format has nothing to check.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,

    /// Repair what can be repaired safely: leaks gives wasted space back, all makes refcounts and flags right too; entries of
    /// tables that are damaged stay as they are
    #[arg(short = 'r', long, value_name = "WHAT", value_parser = parse_repair)]
    repair: Option<Repair>,

    /// Cache mode of the image: writeback, writethrough, none (past the host's cache), directsync or unsafe
    #[arg(short = 'T', long, value_name = "MODE", value_parser = parse_cache_mode, default_value = "writeback")]
    cache: CacheMode,

    #[command(flatten)]
    report: Report,

    /// Print no report; findings go to standard error all the same
    #[arg(short = 'q', long)]
    quiet: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args, out: &mut Console) -> Result<ExitCode, Failure> {
    let image = args.source.name()?.cached(args.cache);
    let ImageName { path: file, options, shown, .. } = &image;
    let format = cowimg::inspect(file, options)?.format;
    if format == Format::Raw {
        return Err(Failure::new(format!("{}: a raw image has nothing to check", file.display()))
            .code(ExitCode::CheckUnsupported));
    }
    let (report, fixed) = match args.repair {
        None => (check_file(file, options)?, (0, 0)),
        Some(repair) => {
            let repaired = repair_file(file, options, repair)?;
            list_findings(&repaired.before);
            (repaired.after, (repaired.leaks_fixed, repaired.corruptions_fixed))
        }
    };
    if args.repair.is_none() || fixed != (0, 0) {
        list_findings(&report);
    }
    let summary = CheckSummary {
        leaks_fixed: fixed.0,
        corruptions_fixed: fixed.1,
        filename: shown.as_bytes().to_vec(),
        format: format.as_str(),
        corruptions: report.corruptions,
        leaks: report.leaks,
        check_errors: report.check_errors,
        image_end_offset: report.image_end_offset,
        total_clusters: report.total_clusters,
        allocated_clusters: report.allocated_clusters,
        fragmented_clusters: report.fragmented_clusters,
        compressed_clusters: report.compressed_clusters,
    };
    if !args.quiet {
        match args.report.format() {
            ReportFormat::Human => check::human(&summary, out)?,
            ReportFormat::Json => check::json(&summary).write_document(out)?,
        }
    }
    Ok(exit_code(&report))
}

fn parse_repair(word: &str) -> Result<Repair, String> {
    match word {
        "leaks" => Ok(Repair::Leaks),
        "all" => Ok(Repair::All),
        _ => Err(format!("'{word}' is no kind of repair; there are leaks and all")),
    }
}

/// The findings, one per line. The report counts those, too, that are too many to list.
fn list_findings(report: &CheckReport) {
    for issue in &report.issues {
        note_plain(&issue.to_string());
    }
    let listed: u64 = report.issues.iter().map(|issue| issue.times).sum();
    let all = report.leaks + report.corruptions + report.check_errors;
    if all > listed {
        note_plain(&format!("{} more are counted and not listed", all - listed));
    }
}

fn exit_code(report: &CheckReport) -> ExitCode {
    if report.check_errors > 0 {
        ExitCode::Failure
    } else if report.corruptions > 0 {
        ExitCode::Corruptions
    } else if report.leaks > 0 {
        ExitCode::Leaks
    } else {
        ExitCode::Success
    }
}
