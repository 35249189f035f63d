//! What is tried on a file that somebody holds: by the library, and by the real program.

use std::path::Path;

use cowimg::{
    Access, CreateOptions, Error, ErrorKind, Format, Image, LockHolder, LockMode, OpenOptions, Overwrite,
    ResizeOptions, StagedImage,
};

use crate::lab::{SIZE, format_of};
use crate::qemu_tools;

/// Something that is done with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Inspect,
    InspectShared,
    Read,
    ReadShared,
    Write,
    Resize,
    /// A new image over this one, which is looked at.
    Overlay,
}

pub(crate) const OPERATIONS: [Operation; 7] = [
    Operation::Inspect,
    Operation::InspectShared,
    Operation::Read,
    Operation::ReadShared,
    Operation::Write,
    Operation::Resize,
    Operation::Overlay,
];

/// How an operation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Refused,
}

fn options(path: &Path) -> OpenOptions {
    Image::options().format(format_of(path))
}

impl Operation {
    /// The library does it. Nothing is changed, also where it may be done.
    pub(crate) fn try_by_library(self, path: &Path) -> Result<(), Error> {
        match self {
            Operation::Inspect => cowimg::inspect(path, &options(path)).map(drop),
            Operation::InspectShared => cowimg::inspect(path, &options(path).lock(LockMode::Share)).map(drop),
            Operation::Read => options(path).open(path).map(drop),
            Operation::ReadShared => options(path).lock(LockMode::Share).open(path).map(drop),
            Operation::Write => options(path).access(Access::ReadWrite).open(path).map(drop),
            Operation::Resize => {
                let image = options(path).access(Access::ReadWrite).open(path)?;
                image.resize(SIZE, &ResizeOptions::default())?;
                image.close()
            }
            Operation::Overlay => {
                let new = path.with_extension("overlay");
                let over = CreateOptions::overlay(path.file_name().expect("it has a name"));
                cowimg::create(&new, &over)?;
                std::fs::remove_file(new).expect("the overlay can be removed");
                Ok(())
            }
        }
    }

    /// The real program does it.
    pub(crate) fn try_by_qemu(self, path: &Path) -> Outcome {
        let format = format_of(path);
        let answer = match self {
            Operation::Inspect => qemu_tools::img_answer(&format!("info -f {format}"), &[path]),
            Operation::InspectShared => qemu_tools::img_answer(&format!("info -U -f {format}"), &[path]),
            Operation::Read => qemu_tools::img_answer(&format!("map -f {format}"), &[path]),
            Operation::ReadShared => qemu_tools::img_answer(&format!("map -U -f {format}"), &[path]),
            Operation::Write => {
                let words = ["-f", format.as_str(), "-c", "length"].map(Path::new);
                qemu_tools::answer_of("qemu-io", &[&words[..], &[path]].concat())
            }
            Operation::Resize => qemu_tools::img_answer(
                &format!("resize -q -f {format}"),
                &[path, Path::new(&SIZE.to_string())],
            ),
            Operation::Overlay => {
                let new = path.with_extension("overlay");
                let name = path.file_name().expect("it has a name").to_string_lossy();
                let answer =
                    qemu_tools::img_answer(&format!("create -q -f qcow2 -F {format} -b {name}"), &[&new]);
                let _ = std::fs::remove_file(new);
                answer
            }
        };
        outcome_of_qemu(&answer)
    }
}

/// The library begins to write a new image in the place of the one at `path`, and thinks better of it.
pub(crate) fn try_replacing_by_library(path: &Path, format: Format) -> Result<(), Error> {
    let new = CreateOptions { size: Some(SIZE), overwrite: Overwrite::Replace, ..CreateOptions::new(format) };
    StagedImage::create(path, &new).map(drop)
}

/// The real program writes a new image over the one at `path`, which is lost unless that is refused.
pub(crate) fn replace_by_qemu(path: &Path, format: Format) -> Outcome {
    let size = SIZE.to_string();
    outcome_of_qemu(&qemu_tools::img_answer(&format!("create -q -f {format}"), &[path, Path::new(&size)]))
}

fn outcome_of_qemu(answer: &qemu_tools::Answer) -> Outcome {
    // `qemu-io` ends with 0 in older versions, whatever happened.
    if answer.text.contains("lock") && answer.text.contains("Is another process using the image") {
        return Outcome::Refused;
    }
    assert_eq!(answer.code, 0, "it failed for another reason: {}", answer.text);
    Outcome::Done
}

/// What a result means. An error must be a lock's, of the image or of a backing file.
pub(crate) fn outcome_of(result: &Result<(), Error>) -> Outcome {
    match result {
        Ok(()) => Outcome::Done,
        Err(error) => {
            let cause = cause_of(error).kind();
            assert!(matches!(cause, ErrorKind::Locked { .. }), "it failed for another reason: {error}");
            Outcome::Refused
        }
    }
}

/// The holder that a refusal names.
pub(crate) fn holder_in(error: &Error) -> Option<&LockHolder> {
    match cause_of(error).kind() {
        ErrorKind::Locked { holder, .. } => holder.as_ref(),
        _ => None,
    }
}

/// The error itself, or a backing file's.
fn cause_of(error: &Error) -> &Error {
    match error.kind() {
        ErrorKind::Backing { source, .. } => cause_of(source),
        _ => error,
    }
}
