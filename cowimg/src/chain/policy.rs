//! Which files an image may name.
//!
//! An image names other files: its backing file, its data file. Whoever made the image chose those names, and whoever
//! opens it may trust them or not. The policy says which names are followed; [`names`](super::names) has refused
//! before that what is no plain file name at all (`json:`, `nbd:`, ...).

use std::path::{Path, PathBuf};

/// Which files an image may name as its backing file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum FilePolicy {
    /// None: an image with a backing file is refused.
    DenyAll,
    /// Files in the folder of the image that names them, or below it, links resolved.
    SameFolder,
    /// These files, links resolved, and no other.
    AllowList(Vec<PathBuf>),
    /// Every file that the process may open. For images whose maker is trusted; this is what `qemu-img` does.
    #[default]
    AllowAll,
}

impl FilePolicy {
    /// Whether `image` may name `file`; both exist. The error says which rule refused it.
    pub(super) fn check(&self, file: &Path, image: Option<&Path>) -> Result<(), &'static str> {
        match self {
            FilePolicy::AllowAll => Ok(()),
            FilePolicy::DenyAll => Err("no other file may be named"),
            FilePolicy::SameFolder => {
                let folder = image.and_then(|image| image.canonicalize().ok());
                let folder = folder.as_deref().and_then(Path::parent);
                let file = file.canonicalize().ok();
                match (folder, file) {
                    (Some(folder), Some(file)) if file.starts_with(folder) => Ok(()),
                    _ => Err("only files in the image's own folder may be named"),
                }
            }
            FilePolicy::AllowList(allowed) => {
                let file = file.canonicalize().ok();
                let is_listed = |entry: &PathBuf| file.is_some() && entry.canonicalize().ok() == file;
                if allowed.iter().any(is_listed) {
                    Ok(())
                } else {
                    Err("it is not in the list of allowed files")
                }
            }
        }
    }
}
