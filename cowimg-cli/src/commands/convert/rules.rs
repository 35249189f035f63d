//! Which options of `convert` go together. Nothing has been opened when they are judged.

use super::Args;
use crate::exit_code::ExitCode;
use crate::failure::Failure;
use crate::manner::Manner;

/// Refuses options that contradict each other.
pub(super) fn check(args: &Args, manner: Manner) -> Result<(), Failure> {
    let contradictions = [
        (
            args.skip_broken_bitmaps && !args.bitmaps,
            "--skip-broken-bitmaps says how --bitmaps is meant, and needs it",
        ),
        (
            args.copy_range && args.compress,
            "-C and -c cannot be combined: the host copies nothing that is compressed",
        ),
        (
            args.copy_range && args.sparse_size.is_some(),
            "-C and -S cannot be combined: what the host copies is not searched for zeroes",
        ),
        (
            args.copy_range && args.salvage,
            "-C and --salvage cannot be combined: the host cannot leave out what it cannot read",
        ),
        (args.target_image_opts && !args.no_create, "--target-image-opts names an image that exists: add -n"),
        (args.no_create && !args.options.is_empty(), "-o says what a new target is like, and -n makes none"),
        (args.target_is_zero && !args.no_create, "--target-is-zero speaks of a target that exists: add -n"),
        (args.no_create && args.force, "--force is about a new target, and -n makes none"),
    ];
    match contradictions.into_iter().find(|(is_given, _)| *is_given) {
        Some((_, why)) => Err(Failure::usage(why)),
        None => check_names(args, manner),
    }
}

/// Refuses what does not go together with the number of sources, or with a backing file.
fn check_names(args: &Args, manner: Manner) -> Result<(), Failure> {
    if args.files.len() < 2 && !args.options.iter().any(|options| asks_for_help(options)) {
        return Err(Failure::usage("which image is to be read, and which written?")
            .hint(format!("Try '{} convert --help' for more info", manner.program())));
    }
    let several = args.files.len() > 2;
    let has_backing = args.backing.is_some();
    let contradictions = [
        (
            several && args.snapshot.is_some(),
            "a snapshot of one source only can be read: several sources are given",
        ),
        (
            args.target_is_zero && has_backing,
            "a target over a backing file is not zero: drop --target-is-zero or -B",
        ),
        (several && has_backing, "several sources joined have no backing file in common: drop -B"),
        (
            manner.is_strict() && has_backing && args.backing_format.is_none(),
            "the backing file's format must be stated: add -F",
        ),
        (several && args.bitmaps, "bitmaps of one source only can be copied: several sources are given"),
    ];
    if args.target_is_zero && has_backing {
        let failure = Failure::usage("a target over a backing file is not zero: drop --target-is-zero or -B");
        // qemu-img copies nothing and says that all is well, and scripts may rely on the second.
        return Err(if manner.is_strict() { failure.code(ExitCode::Success) } else { failure });
    }
    match contradictions.into_iter().find(|(is_given, _)| *is_given) {
        Some((_, why)) => Err(Failure::usage(why)),
        None => Ok(()),
    }
}

fn asks_for_help(options: &str) -> bool {
    options.split(',').any(|word| matches!(word, "help" | "?"))
}
