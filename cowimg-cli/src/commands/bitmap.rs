//! `cowimg bitmap`

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};
use cowimg::{Format, Image, NewBitmap};

use crate::args::image::parse_format;
use crate::args::image_name::{ImageForm, ImageName};
use crate::args::size::parse_size;
use crate::args::{Report, ReportFormat, Source};
use crate::cli::OURS;
use crate::console::Console;
use crate::exit_code::ExitCode;
use crate::failure::Failure;
use crate::output::bitmaps;

/// Change an image's persistent dirty bitmaps, or list them
///
/// A dirty bitmap says which parts of the disk were written since it was added or cleared. Several actions may be given:
/// they are done in their order, or none is, if one of them makes no sense after those before it.
///
/// Called as cowimg without an action, the command lists the bitmaps.
#[derive(Debug, clap::Args)]
#[command(mut_arg("force_share", |argument| argument.help_heading(OURS)), mut_arg("output", |argument| argument.help_heading(OURS)))]
pub(crate) struct Args {
    #[command(flatten)]
    actions: Actions,

    /// Guest bytes that one bit of a new bitmap stands for: a power of two from 512 to 2G; without it the cluster size, but
    /// at least 4k and at most 64k
    #[arg(short = 'g', long, value_name = "SIZE", value_parser = parse_size)]
    granularity: Option<u64>,

    /// The image that has the bitmap to merge; without it the image itself
    #[arg(short = 'b', long, value_name = "SRC")]
    source_file: Option<OsString>,

    /// Format of that image
    #[arg(short = 'F', long, value_name = "FMT", value_parser = parse_format)]
    source_format: Option<Format>,

    #[command(flatten)]
    report: Report,

    #[command(flatten)]
    image: Source,

    /// The bitmap's name
    #[arg(value_name = "BITMAP")]
    bitmap: Option<OsString>,
}

/// One thing that is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Action {
    Add,
    Remove,
    Clear,
    Enable,
    Disable,
    Merge(OsString),
}

impl Action {
    /// What it does, as a verb.
    fn verb(&self) -> &'static str {
        match self {
            Action::Add => "add",
            Action::Remove => "remove",
            Action::Clear => "clear",
            Action::Enable => "enable",
            Action::Disable => "disable",
            Action::Merge(_) => "merge into",
        }
    }
}

/// What is to be done, in the order of the command line.
#[derive(Debug, Default)]
struct Actions(Vec<Action>);

/// The actions without a value: option, help, action.
const PLAIN: [(&str, &str, Action); 5] = [
    ("add", "Add BITMAP, which then records what is written", Action::Add),
    ("remove", "Remove BITMAP, also one that is inconsistent", Action::Remove),
    ("clear", "Take everything out of BITMAP", Action::Clear),
    ("enable", "Make BITMAP record what is written from now on", Action::Enable),
    ("disable", "Make BITMAP stay as it is, whatever is written", Action::Disable),
];

impl clap::Args for Actions {
    fn augment_args(command: Command) -> Command {
        let plain = PLAIN.map(|(name, help, _)| {
            // A value of its own keeps the place of each occurrence.
            let option = Arg::new(name).long(name).help(help);
            option.action(ArgAction::Append).num_args(0).default_missing_value("")
        });
        let merge = Arg::new("merge")
            .long("merge")
            .value_name("FROM")
            .help("Add what the bitmap FROM (of this image, or of SRC) has to BITMAP")
            .action(ArgAction::Append)
            .value_parser(clap::value_parser!(OsString));
        command.args(plain).arg(merge)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Actions::augment_args(command)
    }
}

impl FromArgMatches for Actions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Actions, clap::Error> {
        let mut found: Vec<(usize, Action)> = Vec::new();
        for (name, _, action) in PLAIN {
            found.extend(matches.indices_of(name).into_iter().flatten().map(|at| (at, action.clone())));
        }
        let places = matches.indices_of("merge").into_iter().flatten();
        let names = matches.get_many::<OsString>("merge").into_iter().flatten();
        found.extend(places.zip(names.map(|name| Action::Merge(name.clone()))));
        found.sort_by_key(|(at, _)| *at);
        Ok(Actions(found.into_iter().map(|(_, action)| action).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Actions::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Runs the command.
pub(crate) fn run(args: &Args, out: &mut Console) -> Result<ExitCode, Failure> {
    let actions = &args.actions.0;
    if actions.is_empty() && args.bitmap.is_none() && !out.manner.is_strict() {
        return list(args, out);
    }
    let bitmap = check(args)?;
    let mut image = args.image.name()?;
    // Only the image's own bitmaps are looked at: what is below it may be missing.
    image.options = image.options.no_backing();
    let image = image.open_to_write()?;
    let source = args.source_file.as_deref().map(|name| open_source(name, args.source_format)).transpose()?;
    foresee(actions, bitmap, &image, source.as_ref().unwrap_or(&image))?;
    let done = actions.iter().try_for_each(|action| {
        let done = carry_out(action, bitmap, &image, source.as_ref().unwrap_or(&image), args.granularity);
        done.map_err(|error| failed(action, bitmap, error))
    });
    // Whatever failed, what was done before it is saved.
    let closed = image.close();
    done?;
    closed?;
    Ok(ExitCode::Success)
}

/// Refuses a command line that makes no sense; the bitmap that it is about.
fn check(args: &Args) -> Result<&OsStr, Failure> {
    let actions = &args.actions.0;
    let bitmap = args.bitmap.as_deref();
    let bitmap =
        bitmap.ok_or_else(|| Failure::usage("give the name of the image and then that of the bitmap"))?;
    if actions.is_empty() {
        return Err(Failure::usage(
            "what is to be done? Give --add, --remove, --clear, --enable, --disable or --merge, or several of them",
        ));
    }
    if args.granularity.is_some() && !actions.contains(&Action::Add) {
        return Err(Failure::usage("-g says what a new bitmap is to be: it goes with --add only"));
    }
    if args.source_file.is_some() && !actions.iter().any(|action| matches!(action, Action::Merge(_))) {
        return Err(Failure::usage("-b says where the bitmap to merge is: it goes with --merge only"));
    }
    if args.source_format.is_some() && args.source_file.is_none() {
        return Err(Failure::usage("-F is the format of the image that -b names: it goes with -b only"));
    }
    Ok(bitmap)
}

fn open_source(name: &OsStr, format: Option<Format>) -> Result<Image, Failure> {
    ImageName::parse(name, ImageForm { format, ..ImageForm::default() })?.open()
}

fn carry_out(
    action: &Action,
    bitmap: &OsStr,
    image: &Image,
    source: &Image,
    granularity: Option<u64>,
) -> cowimg::Result<()> {
    let bitmap = bitmap.as_bytes();
    match action {
        Action::Add => {
            // As in qemu-img, 0 asks for the usual.
            let granularity = granularity.filter(|size| *size != 0);
            image.add_bitmap(bitmap, &NewBitmap { granularity, ..NewBitmap::default() })
        }
        Action::Remove => image.remove_bitmap(bitmap),
        Action::Clear => image.clear_bitmap(bitmap),
        Action::Enable => image.enable_bitmap(bitmap),
        Action::Disable => image.disable_bitmap(bitmap),
        Action::Merge(from) => image.merge_bitmap(bitmap, source, from.as_bytes()),
    }
}

/// Refuses actions of which a later one could not be done for a bitmap that is missing, is there or means nothing by
/// then: the earlier ones would have changed the image.
fn foresee(actions: &[Action], bitmap: &OsStr, image: &Image, source: &Image) -> Result<(), Failure> {
    let (mut own, elsewhere) = (states(image)?, states(source)?);
    let same_image = std::ptr::eq(image, source);
    for (nth, action) in actions.iter().enumerate() {
        let there = own.get(bitmap.as_bytes()).copied();
        let objection = match action {
            Action::Add if there.is_some() => Some("it exists already".to_owned()),
            Action::Add => None,
            _ if there.is_none() => Some("it does not exist".to_owned()),
            Action::Remove => None,
            _ if there == Some(Meaning::Lost) => {
                Some("it is inconsistent: it can only be removed".to_owned())
            }
            Action::Merge(from) => {
                let from_there = if same_image { &own } else { &elsewhere }.get(from.as_bytes());
                let name = from.display();
                match from_there {
                    None => Some(format!("there is no bitmap {name} to merge")),
                    Some(Meaning::Lost) => Some(format!("the bitmap {name} is inconsistent")),
                    Some(Meaning::Kept) if source.size() != image.size() => {
                        Some(format!("the disks of {name} and of the image have different sizes"))
                    }
                    Some(Meaning::Kept) => None,
                }
            }
            Action::Clear | Action::Enable | Action::Disable => None,
        };
        if let Some(why) = objection {
            // The first action that fails changes nothing, and the library says why.
            if nth == 0 {
                return Ok(());
            }
            let doing = format!("could not {} the bitmap {}", action.verb(), bitmap.display());
            return Err(Failure::new(format!("{doing}: {why}")).hint("The image is as it was"));
        }
        match action {
            Action::Add => _ = own.insert(bitmap.as_bytes().to_vec(), Meaning::Kept),
            Action::Remove => _ = own.remove(bitmap.as_bytes()),
            _ => {}
        }
    }
    Ok(())
}

/// Whether a bitmap can be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    Kept,
    Lost,
}

/// The bitmaps of an image by name.
fn states(image: &Image) -> Result<BTreeMap<Vec<u8>, Meaning>, Failure> {
    let meaning = |in_use| if in_use { Meaning::Lost } else { Meaning::Kept };
    Ok(image.bitmaps()?.into_iter().map(|info| (info.name, meaning(info.in_use))).collect())
}

/// Which of the actions it was that failed.
fn failed(action: &Action, bitmap: &OsStr, error: cowimg::Error) -> Failure {
    Failure::from(error).within(format!("could not {} the bitmap {}", action.verb(), bitmap.display()))
}

fn list(args: &Args, out: &mut Console) -> Result<ExitCode, Failure> {
    if args.granularity.is_some() || args.source_file.is_some() || args.source_format.is_some() {
        return Err(Failure::usage("-g, -b and -F go with an action and the name of a bitmap"));
    }
    let mut image = args.image.name()?;
    image.options = image.options.no_backing();
    let image = image.open()?;
    let mut rows = Vec::new();
    for info in image.bitmaps()? {
        let mut dirty = Some(0);
        match image.bitmap_ranges(&info.name) {
            Ok(ranges) => {
                for range in ranges {
                    dirty = dirty.map(|sum| sum + range.as_ref().map_or(0, |range| range.len()));
                    range?;
                }
            }
            Err(error) if matches!(error.kind(), cowimg::ErrorKind::Bitmap { .. }) => dirty = None,
            Err(error) => return Err(error.into()),
        }
        rows.push(bitmaps::Row { info, dirty });
    }
    match args.report.format() {
        ReportFormat::Human => bitmaps::human(&rows, out)?,
        ReportFormat::Json => bitmaps::json(&rows).write_document(out)?,
    }
    out.flush()?;
    Ok(ExitCode::Success)
}
