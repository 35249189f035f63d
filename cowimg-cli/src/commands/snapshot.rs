//! `cowimg snapshot`

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::time::{SystemTime, UNIX_EPOCH};

use cowimg::format::qcow2::Snapshot;
use cowimg::{Image, NewSnapshot, SnapshotNames, SnapshotSelector};

use crate::args::snapshot::parse_selector;
use crate::args::{ReportFormat, Source};
use crate::cli::OURS;
use crate::console::Console;
use crate::exit_code::ExitCode;
use crate::failure::Failure;
use crate::manner::Manner;
use crate::output::snapshots;

/// Bytes of a name that every program shows whole.
const MAX_NAME: usize = 255;

/// List, take, apply or delete the snapshots within an image
///
/// Without an option that says what to do the snapshots are listed. Only qcow2 images hold snapshots; the list of a raw
/// image is empty. A snapshot is taken, applied or deleted whole or not at all, and no data is copied for it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,

    /// List the snapshots; this is done when nothing else is asked for
    #[arg(short = 'l', long, action = clap::ArgAction::Count)]
    list: u8,

    /// Take a snapshot of the disk as it is, under this name
    #[arg(short = 'c', long, value_name = "NAME", action = clap::ArgAction::Append)]
    create: Vec<OsString>,

    /// Make the disk what it was when a snapshot was taken, which has this id or name; what the disk holds now is lost
    #[arg(short = 'a', long, value_name = "SNAPSHOT", action = clap::ArgAction::Append)]
    apply: Vec<OsString>,

    /// Delete the snapshot with this name
    #[arg(short = 'd', long, value_name = "SNAPSHOT", action = clap::ArgAction::Append)]
    delete: Vec<OsString>,

    /// Print nothing but the list, which is what happens anyway
    #[arg(short = 'q', long)]
    #[allow(dead_code, reason = "there is nothing else that could be printed")]
    quiet: bool,

    /// Form of the list
    #[arg(long, value_name = "FORM", value_enum, default_value_t = ReportFormat::Human, help_heading = OURS)]
    output: ReportFormat,

    /// The same as --output json
    #[arg(long, help_heading = OURS)]
    json: bool,
}

/// What is to be done.
#[derive(Debug, Clone, Copy)]
enum Action<'a> {
    List,
    Create(&'a OsStr),
    Apply(&'a OsStr),
    Delete(&'a OsStr),
}

impl Args {
    /// The one thing that is to be done.
    fn action(&self) -> Result<Action<'_>, Failure> {
        let lists = (0..self.list).map(|_| Action::List);
        let creates = self.create.iter().map(|name| Action::Create(name));
        let applies = self.apply.iter().map(|name| Action::Apply(name));
        let deletes = self.delete.iter().map(|name| Action::Delete(name));
        let mut actions = lists.chain(creates).chain(applies).chain(deletes);
        match (actions.next(), actions.next()) {
            (None, _) => Ok(Action::List),
            (Some(action), None) => Ok(action),
            (Some(_), Some(_)) => Err(Failure::usage(
                "one thing at a time: of -l, -c, -a and -d only one may be given, and only once",
            )),
        }
    }

    fn is_json(&self) -> bool {
        self.json || self.output == ReportFormat::Json
    }
}

/// Runs the command.
pub(crate) fn run(args: &Args, out: &mut Console) -> Result<ExitCode, Failure> {
    let manner = out.manner;
    let (image, done) = match args.action()? {
        Action::List => {
            list(&args.source.open()?.snapshots()?, args.is_json(), out)?;
            return Ok(ExitCode::Success);
        }
        Action::Create(name) => {
            let image = args.source.open_to_write()?;
            let done = create(&image, name, manner).map_err(|why| failed("take", name, &why));
            (image, done)
        }
        Action::Apply(name) => {
            let image = args.source.open_to_write()?;
            let done = chosen_to_apply(name, manner)
                .and_then(|selector| Ok(image.apply_snapshot(&selector)?))
                .map_err(|why| failed("apply", name, &why));
            (image, done)
        }
        Action::Delete(name) => {
            let image = args.source.open_to_write()?;
            let done = chosen_to_delete(&image, name, manner)
                .and_then(|selector| Ok(image.delete_snapshot(&selector)?))
                .map_err(|why| failed("delete", name, &why));
            (image, done)
        }
    };
    done?;
    image.close()?;
    Ok(ExitCode::Success)
}

fn list(found: &[Snapshot], as_json: bool, out: &mut Console) -> Result<(), Failure> {
    if as_json {
        snapshots::json(found).write_document(out)?;
    } else if !found.is_empty() {
        snapshots::human(found, out)?;
    }
    Ok(())
}

fn failed(verb: &str, name: &OsStr, why: &Failure) -> Failure {
    Failure::new(format!("could not {verb} snapshot '{}': {why}", name.to_string_lossy()))
}

fn create(image: &Image, name: &OsStr, manner: Manner) -> Result<(), Failure> {
    let mut name = name.as_bytes().to_vec();
    let names = match manner {
        Manner::QemuImg => {
            name.truncate(MAX_NAME);
            SnapshotNames::MayRepeat
        }
        Manner::Cowimg if name.len() > MAX_NAME => {
            return Err(Failure::new(format!("the name is longer than {MAX_NAME} bytes")));
        }
        Manner::Cowimg => SnapshotNames::Unique,
    };
    // A clock before 1970 is wrong anyway, and the field ends in 2106.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let new = NewSnapshot {
        name,
        names,
        date_sec: u32::try_from(now.as_secs()).unwrap_or(u32::MAX),
        date_nsec: now.subsec_micros() * 1000,
        vm_clock_nsec: 0,
    };
    image.create_snapshot(&new)?;
    Ok(())
}

fn chosen_to_apply(name: &OsStr, manner: Manner) -> Result<SnapshotSelector, Failure> {
    match manner {
        Manner::QemuImg => Ok(SnapshotSelector::IdOrName(name.as_bytes().to_vec())),
        Manner::Cowimg => parse_selector(name).map_err(Failure::new),
    }
}

/// qemu-img deletes by name alone. Here an id will do as well, where it cannot be taken for another one's name.
fn chosen_to_delete(image: &Image, name: &OsStr, manner: Manner) -> Result<SnapshotSelector, Failure> {
    let by_name = SnapshotSelector::Name(name.as_bytes().to_vec());
    if manner == Manner::QemuImg {
        return Ok(by_name);
    }
    let selector = parse_selector(name).map_err(Failure::new)?;
    let SnapshotSelector::IdOrName(either) = &selector else { return Ok(selector) };
    let snapshots = image.snapshots()?;
    let by_id = SnapshotSelector::Id(either.clone()).find(&snapshots);
    match (by_id, by_name.find(&snapshots)) {
        (Some(id), Some(name)) if id != name => {
            let shown = String::from_utf8_lossy(either);
            Err(Failure::new("one snapshot has this id and another this name")
                .hint(format!("Say which: snapshot.id={shown} or snapshot.name={shown}")))
        }
        _ => Ok(selector),
    }
}
