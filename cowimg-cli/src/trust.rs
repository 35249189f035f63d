//! How far the makers of the images of this command line are trusted (`--follow`, `--untrusted`).
//!
//! | command | follows the names in an image |
//! |---|---|
//! | those that hand a disk's content on: `convert`, `dd`, `read` | within the image's folder |
//! | all others | everywhere |
//! | any, with `--follow` | as that says |
//! | any, with `--untrusted` | nowhere, unless `--follow` says more |
//! | any, in the strict manner | everywhere, as qemu-img does |

use std::sync::OnceLock;

use cowimg::{FilePolicy, Image, Limits, OpenOptions};

/// What opening an image of a stranger may take: a key slot is made to take two seconds, and this is some ten of them.
const KEY_ITERATIONS: u64 = 50_000_000;

/// Which files that an image names are opened: its backing file, its data file, and so on for each of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Follow {
    /// No file
    None,
    /// Files in the folder of the image that names them, or below it, links resolved
    Folder,
    /// Every file
    All,
}

/// What the command line and its command say.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trust {
    /// Whether the images are a stranger's (`--untrusted`).
    pub(crate) untrusted: bool,
    /// What is followed, where that is said (`--follow`).
    pub(crate) follow: Option<Follow>,
    /// Whether the command hands on what it reads from a disk.
    pub(crate) hands_on: bool,
}

impl Trust {
    /// What is followed from an image that is read.
    fn to_read(self) -> Follow {
        match self.follow {
            Some(follow) => follow,
            None if self.untrusted => Follow::None,
            None if self.hands_on => Follow::Folder,
            None => Follow::All,
        }
    }

    /// What is followed from an image that is written. That hands nothing on.
    fn to_write(self) -> Follow {
        Trust { hands_on: false, ..self }.to_read()
    }
}

impl Follow {
    fn policy(self) -> FilePolicy {
        match self {
            Follow::None => FilePolicy::DenyAll,
            Follow::Folder => FilePolicy::SameFolder,
            Follow::All => FilePolicy::AllowAll,
        }
    }
}

static TRUST: OnceLock<Trust> = OnceLock::new();

/// Makes it the rule for this process.
pub(crate) fn adopt(trust: Trust) {
    let _adopted_before = TRUST.set(trust);
}

fn trust() -> Trust {
    TRUST.get().copied().unwrap_or(Trust { untrusted: false, follow: None, hands_on: false })
}

/// How an image is opened to be read, as far as the trust in its maker goes. Images of strangers are raw only where that is
/// stated, and their keys take no longer than usual.
pub(crate) fn image_options() -> OpenOptions {
    let trust = trust();
    let options = Image::options().backing(trust.to_read().policy());
    if trust.untrusted {
        let limits = Limits::default().key_iterations(KEY_ITERATIONS);
        options.refuse_probed_raw().limits(limits)
    } else {
        options
    }
}

/// The same for an image that is written.
pub(crate) fn to_write(options: OpenOptions) -> OpenOptions {
    options.backing(trust().to_write().policy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_counts_most_and_only_content_that_leaves_is_held_back() {
        let follow = |untrusted, follow, hands_on| {
            let trust = Trust { untrusted, follow, hands_on };
            (trust.to_read(), trust.to_write())
        };
        assert_eq!(follow(false, None, false), (Follow::All, Follow::All));
        assert_eq!(follow(false, None, true), (Follow::Folder, Follow::All));
        assert_eq!(follow(true, None, true), (Follow::None, Follow::None));
        assert_eq!(follow(true, Some(Follow::Folder), true), (Follow::Folder, Follow::Folder));
        assert_eq!(follow(false, Some(Follow::All), true), (Follow::All, Follow::All));
        assert_eq!(follow(false, Some(Follow::None), false), (Follow::None, Follow::None));
    }
}
