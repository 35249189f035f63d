//! Whether the images of this command line may come from strangers (`--untrusted`).

use std::sync::OnceLock;

use cowimg::{FilePolicy, Image, OpenOptions};

static UNTRUSTED: OnceLock<bool> = OnceLock::new();

/// Makes it the rule for this process.
pub(crate) fn adopt(untrusted: bool) {
    let _adopted_before = UNTRUSTED.set(untrusted);
}

/// How an image is opened, as far as the trust in its maker goes: images of strangers name no other file, and are raw
/// only where that is stated.
pub(crate) fn image_options() -> OpenOptions {
    let options = Image::options();
    if UNTRUSTED.get() == Some(&true) {
        options.backing(FilePolicy::DenyAll).refuse_probed_raw()
    } else {
        options
    }
}
