//! Many equal images with one plan: all of them get their names, or none does.

use std::path::Path;

use super::create::{CreateOptions, CreatePlan, CreateReport, Overwrite, plan};
use super::publish::{Durability, publish};
use super::staged::StagedImage;
use crate::error::{Error, Result};
use crate::progress::Control;

/// Creates an image at each of `paths`, all with the same options: the children of one base, say, which is looked at
/// once for all of them in a folder. Nothing is synced: [`create_many_synced`] does that. The first images' plan is what the
/// report tells.
///
/// Each is complete before any has its name. When one cannot be made, when a name is taken, or when `control` says stop,
/// none is there. One thing cannot be undone: with [`Overwrite::Replace`] a file whose name was taken over is gone, so
/// that from the first replacement on those stay that have their names.
///
/// Images with a data file, and [`Overwrite::InPlace`], are refused: several images in one place make no sense. Progress is
/// told in images.
pub fn create_many<P: AsRef<Path>>(
    paths: &[P],
    options: &CreateOptions,
    control: &Control<'_>,
) -> Result<CreateReport> {
    let (staged, report) = stage(paths, options, Durability::LeftToTheHost, control)?;
    publish(staged, Durability::LeftToTheHost, control)?;
    Ok(report)
}

/// [`create_many`], durably: all images are synced before the first has its name, and their folders when all have. After a
/// power cut on the way any number of them may be there, each whole; when this has returned all of them are.
pub fn create_many_synced<P: AsRef<Path>>(
    paths: &[P],
    options: &CreateOptions,
    control: &Control<'_>,
) -> Result<CreateReport> {
    let (staged, report) = stage(paths, options, Durability::Synced, control)?;
    publish(staged, Durability::Synced, control)?;
    Ok(report)
}

/// Makes all images, none of which has its name yet.
fn stage<P: AsRef<Path>>(
    paths: &[P],
    options: &CreateOptions,
    durability: Durability,
    control: &Control<'_>,
) -> Result<(Vec<StagedImage>, CreateReport)> {
    let Some(first) = paths.first().map(AsRef::as_ref) else {
        return Err(Error::invalid("no name is given for an image to be created"));
    };
    refuse_what_cannot_be_many(options)?;
    let planned = |path: &Path| plan(path, options).map_err(|error| error.at_path(path));
    let mut plan = planned(first)?;
    let report = plan.report().clone();
    let mut folder = first.parent();
    let mut staged = Vec::with_capacity(paths.len());
    let open_files = open_files();
    for path in paths.iter().map(AsRef::as_ref) {
        if path.parent() != folder {
            // The backing file's name starts there.
            plan = planned(path)?;
            folder = path.parent();
        }
        control.check()?;
        let open = if staged.len() < open_files { OpenFile::Kept } else { OpenFile::Closed };
        let image = write(path, (options.overwrite, open), &plan)?;
        if durability == Durability::Synced {
            // The disk works while the next ones are made.
            image.will_be_synced();
        }
        staged.push(image);
        control.report(staged.len() as u64, paths.len() as u64);
    }
    Ok((staged, report))
}

/// How many of the files stay open: without a name they leave nothing behind, whatever ends the process. Half of what it may
/// have is left to the rest of it.
fn open_files() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(MAX_OPEN, |limit| usize::try_from(limit / 2).unwrap_or(MAX_OPEN)).min(MAX_OPEN)
}

const MAX_OPEN: usize = 1 << 16;

/// Whether an image's file is open until it has its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OpenFile {
    Kept,
    /// It has a temporary name.
    Closed,
}

fn refuse_what_cannot_be_many(options: &CreateOptions) -> Result<()> {
    if options.qcow2.data_file.is_some() {
        return Err(Error::invalid("several images cannot have one data file"));
    }
    if options.overwrite == Overwrite::InPlace {
        return Err(Error::invalid("several images are not written over files that are there"));
    }
    Ok(())
}

/// An image that is complete and has no name yet.
fn write(path: &Path, (overwrite, open): (Overwrite, OpenFile), plan: &CreatePlan) -> Result<StagedImage> {
    let image = StagedImage::write(path, overwrite, plan)?.unlocked();
    if open == OpenFile::Closed { image.closed() } else { Ok(image) }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::error::ErrorKind;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).expect("the folder is there");
        let mut names: Vec<String> =
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    fn three(folder: &Path) -> Vec<PathBuf> {
        ["a", "b", "c"].map(|name| folder.join(name)).to_vec()
    }

    #[test]
    fn each_is_what_create_makes() {
        let folder = tempfile::tempdir().expect("a folder");
        let paths = three(folder.path());
        let options = CreateOptions::qcow2(1 << 30);
        let report = create_many(&paths, &options, &Control::default()).expect("nothing is in the way");
        assert_eq!(report.size, 1 << 30);
        let alone = folder.path().join("alone");
        super::super::create(&alone, &options).expect("nothing is in the way");
        let expected = std::fs::read(alone).expect("it was made");
        for path in &paths {
            assert!(std::fs::read(path).expect("it was made") == expected, "{}", path.display());
        }
    }

    #[test]
    fn where_one_name_is_taken_none_is_made_and_the_owner_stays() {
        for taken in ["a", "b", "c"] {
            let folder = tempfile::tempdir().expect("a folder");
            std::fs::write(folder.path().join(taken), "mine").expect("written");
            let made =
                create_many(&three(folder.path()), &CreateOptions::qcow2(1 << 20), &Control::default());
            assert!(made.is_err());
            assert_eq!(names(folder.path()), [taken]);
            assert_eq!(std::fs::read(folder.path().join(taken)).expect("still there"), b"mine");
        }
    }

    #[test]
    fn a_name_given_twice_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let paths = [folder.path().join("a"), folder.path().join("b"), folder.path().join("a")];
        assert!(create_many(&paths, &CreateOptions::qcow2(1 << 20), &Control::default()).is_err());
        assert_eq!(names(folder.path()), [""; 0]);
    }

    #[test]
    fn a_name_that_is_taken_in_the_end_takes_the_others_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let paths = three(folder.path());
        let plan = plan(&paths[0], &CreateOptions::qcow2(1 << 20)).expect("sound options");
        let how = |open| (Overwrite::Refuse, open);
        for open in [OpenFile::Kept, OpenFile::Closed] {
            let staged = paths.iter().map(|path| write(path, how(open), &plan).expect("a free name"));
            let staged: Vec<StagedImage> = staged.collect();
            std::fs::write(&paths[2], "mine").expect("written");
            assert!(publish(staged, Durability::Synced, &Control::default()).is_err());
            assert_eq!(names(folder.path()), ["c"]);
            std::fs::remove_file(&paths[2]).expect("removed");
        }
    }

    #[test]
    fn synced_or_not_and_open_or_closed_they_are_the_same() {
        let folder = tempfile::tempdir().expect("a folder");
        let paths = three(folder.path());
        let options = CreateOptions::qcow2(1 << 30);
        create_many_synced(&paths, &options, &Control::default()).expect("nothing is in the way");
        let expected = std::fs::read(&paths[0]).expect("it was made");
        let plan = plan(&paths[0], &options).expect("sound options");
        let closed = folder.path().join("closed");
        let sibling = write(&closed, (Overwrite::Refuse, OpenFile::Closed), &plan);
        let staged = vec![sibling.expect("a free name")];
        publish(staged, Durability::Synced, &Control::default()).expect("nothing is in the way");
        assert_eq!(names(folder.path()), ["a", "b", "c", "closed"]);
        for path in paths.iter().chain([&closed]) {
            assert!(std::fs::read(path).expect("it was made") == expected, "{}", path.display());
        }
    }

    #[test]
    fn stopped_it_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let cancel = AtomicBool::new(true);
        let control = Control { cancel: Some(&cancel), ..Control::default() };
        let stopped = create_many(&three(folder.path()), &CreateOptions::qcow2(1 << 20), &control);
        assert!(matches!(stopped.expect_err("it was cancelled").kind(), ErrorKind::Cancelled));
        assert_eq!(names(folder.path()), [""; 0]);
    }

    #[test]
    fn names_are_taken_over_where_that_is_asked_for() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("b"), "old").expect("written");
        let options = CreateOptions { overwrite: Overwrite::Replace, ..CreateOptions::qcow2(1 << 20) };
        create_many(&three(folder.path()), &options, &Control::default()).expect("nothing is in the way");
        assert_eq!(names(folder.path()), ["a", "b", "c"]);
        assert!(std::fs::read(folder.path().join("b")).expect("there").starts_with(b"QFI\xfb"));
    }
}
