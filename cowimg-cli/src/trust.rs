//! Whether the images of this command line may come from strangers (`--untrusted`).

use std::sync::OnceLock;

use cowimg::{FilePolicy, Image, Limits, OpenOptions};

/// What opening an image of a stranger may take: a key slot is made to take two seconds, and this is some ten of them.
const KEY_ITERATIONS: u64 = 50_000_000;

static UNTRUSTED: OnceLock<bool> = OnceLock::new();

/// Makes it the rule for this process.
pub(crate) fn adopt(untrusted: bool) {
    let _adopted_before = UNTRUSTED.set(untrusted);
}

/// How an image is opened, as far as the trust in its maker goes: images of strangers name no other file, and are raw
/// only where that is stated; and their keys take no longer than usual.
pub(crate) fn image_options() -> OpenOptions {
    let options = Image::options();
    if UNTRUSTED.get() == Some(&true) {
        let limits = Limits::default().key_iterations(KEY_ITERATIONS);
        options.backing(FilePolicy::DenyAll).refuse_probed_raw().limits(limits)
    } else {
        options
    }
}
