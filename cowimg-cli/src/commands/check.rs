//! `cowimg check`

use std::io::Write;
use std::os::unix::ffi::OsStrExt;

use cowimg::check::{
    CheckReport, CheckedFile, Finding, RefcountTableProblem, Repair, RepairPlan, RepairReport, Structure,
};
use cowimg::progress::Control;
use cowimg::{Access, CacheMode, ErrorKind, Format};

use crate::args::cache_mode::parse_cache_mode;
use crate::args::image_name::ImageName;
use crate::args::{Report, ReportFormat, Source};
use crate::cli::OURS;
use crate::colour::{Meaning, painted_on_stdout};
use crate::console::Console;
use crate::exit_code::ExitCode;
use crate::failure::{Failure, note_plain, warn};
use crate::interrupt::Interrupt;
use crate::manner::Manner;
use crate::output::check::{self, CheckSummary};
use crate::output::repair_plan;
use crate::progress_bar::{Display, Wanted};

/// Look for contradictions and wasted space in an image
///
/// Nothing is changed without -r. A backing file that is missing or in use is a warning, and the image is checked all the
/// same. Exit codes: 0 nothing found, or nothing left after a repair, 1 the check could not be done or completed, 2
/// contradictions that can cost data, 3 wasted space only, 63 the format has nothing to check.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,

    /// Repair: leaks gives wasted space back, all makes every table right; what can be read reads the same afterwards, and
    /// what can not reads as zeroes
    #[arg(short = 'r', long, value_name = "WHAT", value_parser = parse_repair)]
    repair: Option<Repair>,

    /// Change nothing, and print what the repair would do about each finding
    #[arg(long, help_heading = OURS, requires = "repair")]
    dry_run: bool,

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
    let mut file = open(args, &image, out)?;
    let found = look(args, &mut file)?;
    let (report, fixed) = match found {
        Found::Checked(report) => (report, (0, 0)),
        Found::Repaired(repaired) => {
            list_findings(&repaired.before);
            (repaired.after, (repaired.leaks_fixed, repaired.corruptions_fixed))
        }
        Found::Planned(plan) => {
            let name = args.source.given().as_bytes();
            match args.report.format() {
                _ if args.quiet => {}
                ReportFormat::Human => repair_plan::human(&plan, out)?,
                ReportFormat::Json => repair_plan::json(&plan, name).write_document(out)?,
            }
            return Ok(exit_code(&plan.report));
        }
    };
    if args.repair.is_none() || fixed != (0, 0) {
        list_findings(&report);
    }
    if out.manner == Manner::QemuImg && ends_there(&report, args.repair) {
        return Err(Failure::new("the check could not be completed").hint("cowimg check -r all repairs more"));
    }
    if !args.quiet {
        let summary = summary(&report, fixed, args.source.given().as_bytes().to_vec());
        match args.report.format() {
            ReportFormat::Human => print_summary(&summary, out)?,
            ReportFormat::Json => check::json(&summary).write_document(out)?,
        }
    }
    Ok(exit_code(&report))
}

/// What was asked for.
enum Found {
    Checked(CheckReport),
    Planned(RepairPlan),
    Repaired(RepairReport),
}

/// Does the work, under a bar where it lasts. It can be stopped as long as nothing has been changed.
fn look(args: &Args, file: &mut CheckedFile) -> Result<Found, Failure> {
    let interrupt = Interrupt::listen()?;
    let display = Display::start(if args.quiet { Wanted::Nothing } else { Wanted::Bar });
    let control = Control { progress: Some(&display), cancel: Some(interrupt.cancel()) };
    let found = match args.repair {
        None => file.check(&control).map(Found::Checked),
        Some(repair) if args.dry_run => file.plan(repair, &control).map(Found::Planned),
        Some(repair) => file.repair(repair, &control).map(Found::Repaired),
    };
    let found = found.map_err(|error| match (error.kind(), interrupt.signal()) {
        (ErrorKind::Cancelled, Some(signal)) => Failure::stopped(signal, "stopped; nothing was changed"),
        _ => error.into(),
    })?;
    display.finish();
    Ok(found)
}

/// Opens the image, and what it is of no use without: where that cannot be had the strict manner gives up, as qemu-img
/// does, and the other tells.
fn open(args: &Args, image: &ImageName, out: &Console) -> Result<CheckedFile, Failure> {
    let access = match args.repair {
        Some(_) if !args.dry_run => Access::ReadWrite,
        _ => Access::ReadOnly,
    };
    let options = match access {
        Access::ReadWrite => image.options_to_write()?,
        Access::ReadOnly => image.options_to_read()?,
    };
    let mut file = CheckedFile::open(&image.path, &options, access)?;
    let format = file.format();
    if format == Format::Luks {
        // As in qemu-img nothing is said of an image that does not open.
        options.open(&image.path)?;
    }
    if format != Format::Qcow2 {
        return Err(Failure::new(format!("{}: a {format} image has nothing to check", image.path.display()))
            .code(ExitCode::CheckUnsupported));
    }
    if let Err(error) = file.open_dependencies() {
        match out.manner {
            Manner::QemuImg => return Err(error.into()),
            Manner::Cowimg => warn(&format!("{error}; only the image itself is checked")),
        }
    }
    Ok(file)
}

fn summary(report: &CheckReport, fixed: (u64, u64), filename: Vec<u8>) -> CheckSummary {
    CheckSummary {
        leaks_fixed: fixed.0,
        corruptions_fixed: fixed.1,
        filename,
        format: Format::Qcow2.as_str(),
        corruptions: report.corruptions,
        leaks: report.leaks,
        check_errors: report.check_errors,
        image_end_offset: report.image_end_offset,
        total_clusters: report.total_clusters,
        allocated_clusters: report.allocated_clusters,
        fragmented_clusters: report.fragmented_clusters,
        compressed_clusters: report.compressed_clusters,
    }
}

/// Whether qemu-img gives up without a report: over tables that it cannot read, and over refcounts without a place where it
/// may not build them anew.
fn ends_there(report: &CheckReport, repair: Option<Repair>) -> bool {
    let is_such = |finding: &Finding| match finding {
        Finding::SnapshotTable { .. }
        | Finding::BitmapDirectory { .. }
        | Finding::Bitmap { .. }
        | Finding::PastEnd { what: Structure::BitmapDirectory, .. }
        | Finding::HeaderField { .. } => true,
        // A block past the end of the file has no use there, and does no harm.
        Finding::RefcountTableEntry {
            problem: RefcountTableProblem::PastLimit | RefcountTableProblem::PastEnd,
            ..
        } => false,
        Finding::RefcountTableEntry { .. }
        | Finding::RefcountTooLow { refcount: 0, .. }
        | Finding::RefcountsUnknown { .. }
        | Finding::SharedRefcountBlock { .. } => repair == Some(Repair::Leaks),
        _ => false,
    };
    report.issues.iter().any(|issue| is_such(&issue.finding))
}

/// The report for a person, with the verdict in colour where somebody sees it.
fn print_summary(summary: &CheckSummary, out: &mut Console) -> Result<(), Failure> {
    let mut text = Vec::new();
    check::human(summary, &mut text)?;
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        let words = String::from_utf8_lossy(line);
        let meaning = match words.trim_end() {
            "No errors were found on the image." => Some(Meaning::Success),
            line if line.ends_with("errors were found on the image.") => Some(Meaning::Failure),
            line if line.ends_with("leaked clusters were found on the image.") => Some(Meaning::Warning),
            line if line.ends_with("occurred during the check.") => Some(Meaning::Failure),
            _ => None,
        };
        match meaning {
            Some(meaning) => writeln!(out, "{}", painted_on_stdout(words.trim_end(), meaning))?,
            None => out.write_all(line)?,
        }
    }
    Ok(())
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
