//! `cowimg clone`

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use cowimg::progress::Control;
use cowimg::{BackingOptions, CreateOptions, ErrorKind, Format, Verification};

use crate::args::format_options::{FormatOptions, options_of};
use crate::args::image::{parse_format, parse_path};
use crate::args::key_values::KeyValues;
use crate::args::object::Objects;
use crate::commands::create::over_whole_chain;
use crate::console::Console;
use crate::exit_code::ExitCode;
use crate::failure::{Failure, note, warn};
use crate::interrupt::Interrupt;
use crate::output;
use crate::progress_bar::{Display, Wanted};

/// Make many overlays of one image at once
///
/// Each NAME becomes a qcow2 image that reads as BASE until it is written, as `cowimg create -b BASE NAME` makes it. BASE is
/// looked at once. All of them appear, or none: one that cannot be made, a name that is taken, or Ctrl-C leaves nothing
/// behind (but what --force has replaced by then is gone).
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Make COUNT overlays; NAME then has one %d in it, which stands for the number, or %04d for one with zeroes in front
    #[arg(short = 'n', long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: Option<u32>,

    /// The first number
    #[arg(long, value_name = "NUMBER", default_value_t = 1, requires = "count")]
    first: u32,

    /// Format of BASE; without it the format is found by looking, and recorded in the overlays
    #[arg(short = 'F', long, value_name = "FMT", value_parser = parse_format)]
    backing_format: Option<Format>,

    /// Record BASE and its format without looking at it; the size must be given then (-o size=SIZE)
    #[arg(short = 'u', long)]
    backing_unsafe: bool,

    /// Options of the overlays: key=value, separated by commas ('-o help' lists them)
    #[arg(short = 'o', long = "options", value_name = "OPTS")]
    options: Vec<String>,

    /// Print nothing when all is well
    #[arg(short = 'q', long)]
    quiet: bool,

    #[command(flatten)]
    objects: Objects,

    /// Replace files that exist
    #[arg(long)]
    force: bool,

    /// The image below
    #[arg(value_name = "BASE", required_unless_present = "options")]
    base: Option<OsString>,

    /// The overlays' files, all in one folder
    #[arg(value_name = "NAME")]
    names: Vec<OsString>,
}

/// Runs the command.
pub(crate) fn run(args: &Args, out: &mut Console) -> Result<ExitCode, Failure> {
    args.objects.register()?;
    let given = KeyValues::parse(&args.options)?;
    if given.asks_for_help() {
        output::create::options_help(Format::Qcow2, options_of(Format::Qcow2), out)?;
        return Ok(ExitCode::Success);
    }
    let options = FormatOptions::new(Format::Qcow2, &given)?;
    if options.backing_file.is_some() {
        return Err(Failure::usage("BASE is the backing file, so that -o has no backing_file= here"));
    }
    let Some(base) = &args.base else {
        return Err(Failure::usage("which image is to be cloned?"));
    };
    let base = parse_path(base.clone()).map_err(Failure::usage)?;
    let names = names_of(args)?;
    let folder = one_folder(&names)?;
    let backing_format = args.backing_format.or(options.backing_format);
    if args.backing_unsafe && (backing_format.is_none() || options.size.is_none()) {
        return Err(Failure::usage("-u does not look at BASE, so its format and size must be given")
            .hint("Add -F FMT and -o size=SIZE"));
    }
    let verification = if args.backing_unsafe { Verification::Trust } else { Verification::Verify };
    let backing =
        BackingOptions { name: name_from(folder, &base)?.into(), format: backing_format, verification };
    let wanted = CreateOptions {
        size: options.size,
        backing: Some(backing),
        preallocation: options.preallocation,
        overwrite: out.overwrite(args.force),
        qcow2: options.qcow2_encrypted()?,
        host: options.host,
        ..CreateOptions::new(Format::Qcow2)
    };
    let broken_chain = broken_chain(&names, &wanted);
    let report = create(&names, &wanted)?;
    if let Some(error) = broken_chain {
        warn(&format!("{error}; the new images are of no use until that is put right"));
    }
    if let (false, Some(found)) = (args.quiet, report.found_backing_format) {
        note(&format!("{}: format {found} found by looking; recorded in the images", base.display()));
    }
    if !args.quiet {
        output::create::clones(&base, report.size, &names, out)?;
    }
    Ok(ExitCode::Success)
}

/// What is wrong below a base that is itself sound.
fn broken_chain(names: &[PathBuf], wanted: &CreateOptions) -> Option<cowimg::Error> {
    cowimg::plan(names.first()?, &over_whole_chain(wanted)?).err()
}

/// Makes the images, all or none.
fn create(names: &[PathBuf], wanted: &CreateOptions) -> Result<cowimg::CreateReport, Failure> {
    let interrupt = Interrupt::listen()?;
    let display = Display::start(Wanted::Nothing);
    let control = Control { progress: Some(&display), cancel: Some(interrupt.cancel()) };
    let made = cowimg::create_many_synced(names, wanted, &control).map_err(|error| {
        match (error.kind(), interrupt.signal()) {
            (ErrorKind::Cancelled, Some(signal)) => Failure::stopped(signal, "stopped; nothing was made"),
            _ => error.into(),
        }
    })?;
    display.finish();
    Ok(made)
}

/// The files to be made.
fn names_of(args: &Args) -> Result<Vec<PathBuf>, Failure> {
    let names = match (args.count, args.names.as_slice()) {
        (_, []) => return Err(Failure::usage("what are the overlays to be called?")),
        (None, names) => names.to_vec(),
        (Some(count), [pattern]) => {
            let pattern = Pattern::parse(pattern)?;
            (0..count).map(|nth| pattern.name(u64::from(args.first) + u64::from(nth))).collect()
        }
        (Some(_), _) => {
            return Err(Failure::usage("with -n there is one NAME, with %d for the number"));
        }
    };
    names.into_iter().map(|name| parse_path(name).map_err(Failure::usage)).collect()
}

/// The folder that all names are in.
fn one_folder(names: &[PathBuf]) -> Result<&Path, Failure> {
    let folder = |name: &PathBuf| name.parent().map(Path::to_path_buf);
    let first = names.first().and_then(|name| name.parent()).unwrap_or(Path::new(""));
    match names.iter().find(|name| folder(name).as_deref() != Some(first)) {
        None => Ok(first),
        Some(other) => Err(Failure::usage(format!(
            "the overlays of one command are in one folder; {} is not in that of the first",
            other.display()
        ))),
    }
}

/// The base's name as it is to stand in images of this folder: relative where it was given so and still leads there.
fn name_from(folder: &Path, base: &Path) -> Result<PathBuf, Failure> {
    if base.is_absolute() || folder.as_os_str().is_empty() || folder == Path::new(".") {
        return Ok(base.to_path_buf());
    }
    if base.parent() == Some(folder) {
        return Ok(base.file_name().map_or_else(|| base.to_path_buf(), PathBuf::from));
    }
    Ok(std::path::absolute(base)?)
}

/// A name with a place for a number.
struct Pattern {
    before: Vec<u8>,
    width: usize,
    after: Vec<u8>,
}

impl Pattern {
    /// Parses a name with one `%d` or `%04d` in it; `%%` stands for `%`.
    fn parse(text: &OsStr) -> Result<Pattern, Failure> {
        let wrong = || {
            let shown = text.to_string_lossy();
            Failure::usage(format!(
                "'{shown}' has no place, or more than one, for the number of each overlay"
            ))
            .hint("Write %d once, or %04d for numbers with zeroes in front (vm-%04d.qcow2); %% stands for %")
        };
        let mut pattern = Pattern { before: Vec::new(), width: 0, after: Vec::new() };
        let mut is_placed = false;
        let mut rest = text.as_bytes();
        while let Some((&byte, behind)) = rest.split_first() {
            rest = behind;
            if byte == b'%' {
                let (width, behind) = placeholder(rest).ok_or_else(wrong)?;
                rest = behind;
                if let Some(width) = width {
                    if std::mem::replace(&mut is_placed, true) {
                        return Err(wrong());
                    }
                    pattern.width = width;
                    continue;
                }
            }
            if is_placed { pattern.after.push(byte) } else { pattern.before.push(byte) }
        }
        if is_placed { Ok(pattern) } else { Err(wrong()) }
    }

    fn name(&self, number: u64) -> OsString {
        let number = format!("{number:0width$}", width = self.width);
        OsString::from_vec([&*self.before, number.as_bytes(), &*self.after].concat())
    }
}

/// What stands behind a percent sign: the width of a number, or none for another percent sign; and what follows.
fn placeholder(text: &[u8]) -> Option<(Option<usize>, &[u8])> {
    if let Some(behind) = text.strip_prefix(b"%") {
        return Some((None, behind));
    }
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, behind) = text.split_at(digits);
    let behind = behind.strip_prefix(b"d")?;
    let width = match digits {
        [] => 0,
        // A width without a zero would put blanks into names.
        [b'0', ..] => std::str::from_utf8(digits).ok()?.parse().ok().filter(|width| *width <= 20)?,
        _ => return None,
    };
    Some((Some(width), behind))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(pattern: &str, number: u64) -> Option<String> {
        let pattern = Pattern::parse(OsStr::new(pattern)).ok()?;
        pattern.name(number).into_string().ok()
    }

    #[test]
    fn a_pattern_has_one_place_for_the_number() {
        assert_eq!(named("vm-%d.qcow2", 7).as_deref(), Some("vm-7.qcow2"));
        assert_eq!(named("vm-%04d.qcow2", 7).as_deref(), Some("vm-0007.qcow2"));
        assert_eq!(named("%02d", 123).as_deref(), Some("123"));
        assert_eq!(named("100%%-%d%%", 1).as_deref(), Some("100%-1%"));
        for wrong in ["vm", "", "%", "%d%d", "%s", "%4d", "%0999999999999999999999d", "%%d"] {
            assert_eq!(named(wrong, 1), None, "{wrong}");
        }
    }

    #[test]
    fn the_base_is_named_as_it_is_found_from_the_overlays() {
        let name = |folder, base| name_from(Path::new(folder), Path::new(base)).ok();
        assert_eq!(name("", "base.raw"), Some("base.raw".into()));
        assert_eq!(name("", "a/base.raw"), Some("a/base.raw".into()));
        assert_eq!(name("a", "a/base.raw"), Some("base.raw".into()));
        assert_eq!(name("a", "/b/base.raw"), Some("/b/base.raw".into()));
        assert!(name("a", "base.raw").is_some_and(|name| name.is_absolute()));
    }
}
