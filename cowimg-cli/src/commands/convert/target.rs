//! What the target of `convert` is to be like, and how its failures are told.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use cowimg::{BackingOptions, CreateOptions, Error, Format, Image, Layer, Overwrite, Preallocation};

use super::Args;
use crate::args::format_options::FormatOptions;
use crate::failure::Failure;
use crate::manner::Manner;

/// What a new target of `size` bytes is to be like.
pub(super) fn create_options(
    args: &Args,
    (size, format): (u64, Format),
    options: &FormatOptions,
    (manner, overwrite): (Manner, Overwrite),
) -> Result<CreateOptions, Failure> {
    if options.size.is_some() && !manner.is_strict() {
        return Err(Failure::usage("the target has the size of the source, so -o size= has no meaning here")
            .hint("`cowimg resize` makes the target larger afterwards"));
    }
    if args.compress && (options.qcow2.data_file.is_some() || options.encryption.is_given()) {
        return Err(Failure::usage(
            "an image that is encrypted or has an external data file cannot be compressed",
        ));
    }
    if args.compress && options.preallocation != Preallocation::Off {
        return Err(Failure::usage(
            "-c and -o preallocation= cannot be combined: compressed clusters have no place before they are written",
        ));
    }
    let name = backing_name(args, options)?;
    if name.is_some() && args.files.len() > 2 {
        return Err(Failure::usage("several sources joined have no backing file in common"));
    }
    let backing_format = args.backing_format.or(options.backing_format);
    if name.is_none() && backing_format.is_some() {
        return Err(Failure::usage("a backing format is given and no backing file").hint("Name it with -B"));
    }
    if name.is_some() && backing_format.is_none() && manner.is_strict() {
        return Err(Failure::usage("the backing file's format must be stated: add -F or -o backing_fmt="));
    }
    Ok(CreateOptions {
        format,
        size: Some(size),
        backing: name.map(|name| BackingOptions { format: backing_format, ..BackingOptions::new(name) }),
        preallocation: options.preallocation,
        overwrite,
        qcow2: options.qcow2_encrypted()?,
        luks: options.luks_image()?,
        host: options.host,
    })
}

/// The backing file, from either of its places.
fn backing_name(args: &Args, options: &FormatOptions) -> Result<Option<OsString>, Failure> {
    match (&args.backing, &options.backing_file) {
        (Some(_), Some(_)) => {
            Err(Failure::usage("the backing file is given twice: with -B and as -o backing_file="))
        }
        (Some(name), None) => Ok(Some(name.clone())),
        (None, name) => Ok(name.as_ref().map(OsString::from)),
    }
}

/// The failure of writing `target`, which has no name yet: it is told under the name that it was to have.
pub(in crate::commands) fn unstaged(error: Error, staged: &Path, target: &Path) -> Failure {
    if error.path() != Some(staged) || staged == target {
        return error.into();
    }
    let what = error.kind();
    let failure = Failure::new(format!("{}: {what}; the target was not made", target.display()));
    match error.io_kind() {
        Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge) => {
            failure.hint("It is written beside its place: that file system needs room for all of it")
        }
        _ => failure,
    }
}

pub(super) fn cannot_be_compressed(format: Format) -> Failure {
    Failure::usage(format!("a {format} image cannot be compressed")).hint("Give -O qcow2")
}

pub(super) fn cannot_have_bitmaps(format: Format) -> Failure {
    Failure::usage(format!("a {format} image cannot have bitmaps")).hint("Give -O qcow2")
}

/// Refuses a target that the source reads from: writing it changes the source, and what else is stacked on it.
pub(in crate::commands) fn refuse_layer(source: &Image, target: &Path) -> Result<(), Failure> {
    let identity = |path: &Path| path.metadata().ok().map(|found| (found.dev(), found.ino()));
    let Some(target_identity) = identity(target) else { return Ok(()) };
    let is_target = |layer: &&Layer| layer.path().and_then(identity) == Some(target_identity);
    match source.layers().iter().find(is_target) {
        None => Ok(()),
        Some(_) => Err(Failure::new(format!("{}: the source reads from this file", target.display()))
            .hint("Give another target, and rename it afterwards if you like")),
    }
}
