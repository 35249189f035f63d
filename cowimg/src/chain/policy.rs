//! Which files an image may name.
//!
//! An image names other files: its backing file, its data file. Whoever made the image chose those names, and whoever
//! opens it may trust them or not. The policy says which names are followed; [`names`](super::names) has refused
//! before that what is no plain file name at all (`json:`, `nbd:`, ...).

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use crate::storage::FileStorage;

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
    /// Whether `image`, which exists, may name `file`; the error says which rule refused it. Whether there is such a file is
    /// told only of those that may be named.
    pub(super) fn check(&self, file: &Path, image: Option<&Path>) -> Result<(), &'static str> {
        self.judge(|| resolved(file), image)
    }

    /// The same once the file is open: it is judged by where the host says that it is. So a link or a folder that was exchanged
    /// after the first look leads nowhere else.
    pub(super) fn check_opened(
        &self,
        opened: &FileStorage,
        file: &Path,
        image: Option<&Path>,
    ) -> Result<(), &'static str> {
        let place = || {
            let descriptor = Path::new("/proc/self/fd").join(opened.file().as_raw_fd().to_string());
            // Where the host has no such folder the name is all that there is.
            let place = std::fs::read_link(descriptor).ok().filter(|place| place.is_absolute());
            place.or_else(|| resolved(file))
        };
        self.judge(place, image)
    }

    /// Judges a file by its place, for which the host is asked only where the answer depends on it.
    fn judge(
        &self,
        place: impl FnOnce() -> Option<PathBuf>,
        image: Option<&Path>,
    ) -> Result<(), &'static str> {
        match self {
            FilePolicy::AllowAll => Ok(()),
            FilePolicy::DenyAll => Err("no other file may be named"),
            FilePolicy::SameFolder => {
                // A new image has its place before it has its name.
                let folder = image.and_then(resolved);
                let folder = folder.as_deref().and_then(Path::parent);
                match (folder, place()) {
                    (Some(folder), Some(file)) if file.starts_with(folder) => Ok(()),
                    _ => Err("only files in the image's own folder may be named"),
                }
            }
            FilePolicy::AllowList(allowed) => {
                let file = place();
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

/// Where a name leads, links followed; the file itself need not be there.
fn resolved(file: &Path) -> Option<PathBuf> {
    match file.canonicalize() {
        Ok(found) => Some(found),
        // A link that leads nowhere is no file of this folder, whatever appears at its end later.
        Err(_) if file.symlink_metadata().is_ok() => None,
        Err(_) => {
            let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
            let folder = folder.unwrap_or(Path::new(".")).canonicalize().ok()?;
            Some(folder.join(file.file_name()?))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::storage::FileOptions;

    /// A folder with an image, a file beside it and a folder below; and a file elsewhere.
    fn places() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let images = folder.path().join("images");
        std::fs::create_dir_all(images.join("below")).unwrap();
        for name in ["images/top", "images/base", "images/below/base", "secret"] {
            std::fs::write(folder.path().join(name), name).unwrap();
        }
        let top = images.join("top");
        (folder, images, top)
    }

    #[test]
    fn a_folder_is_left_neither_by_dots_nor_by_links_nor_by_absolute_names() {
        let (folder, images, top) = places();
        symlink(folder.path().join("secret"), images.join("link")).unwrap();
        symlink(folder.path(), images.join("up")).unwrap();
        symlink(images.join("base"), images.join("inner-link")).unwrap();
        symlink("/nowhere/at/all", images.join("dangling")).unwrap();
        let check = |name: &str| FilePolicy::SameFolder.check(&images.join(name), Some(&top));
        for allowed in ["base", "below/base", "below/../base", "inner-link", "absent", "../images/base"] {
            assert_eq!(check(allowed), Ok(()), "{allowed}");
        }
        let secret = folder.path().join("secret");
        let secret = secret.to_str().unwrap();
        // Nor is it told whether there is such a file.
        for refused in [
            secret,
            "../secret",
            "../absent",
            "link",
            "up/secret",
            "up/absent",
            "dangling",
            "/etc/passwd",
            "/proc/self/fd/0",
            "/no/such/folder/x",
        ] {
            assert!(check(refused).is_err(), "{refused}");
        }
        assert!(
            FilePolicy::SameFolder.check(&images.join("base"), None).is_err(),
            "no folder, no file in it"
        );
    }

    #[test]
    fn a_list_allows_what_is_in_it_under_any_name() {
        let (folder, images, top) = places();
        symlink(images.join("base"), folder.path().join("alias")).unwrap();
        let policy = FilePolicy::AllowList(vec![images.join("base")]);
        assert_eq!(policy.check(&folder.path().join("alias"), Some(&top)), Ok(()));
        assert!(policy.check(&images.join("below/base"), Some(&top)).is_err());
        assert!(policy.check(&images.join("absent"), Some(&top)).is_err());
    }

    /// The name leads into the folder when it is looked at, and out of it when it is opened.
    #[test]
    fn a_link_that_is_exchanged_after_the_look_is_found() {
        let (folder, images, top) = places();
        let link = images.join("link");
        symlink(images.join("base"), &link).unwrap();
        let policy = FilePolicy::SameFolder;
        assert_eq!(policy.check(&link, Some(&top)), Ok(()));
        std::fs::remove_file(&link).unwrap();
        symlink(folder.path().join("secret"), &link).unwrap();
        let opened = FileStorage::open(&link, &FileOptions::read_only()).unwrap();
        // And back again, for whoever looks at the name once more.
        std::fs::remove_file(&link).unwrap();
        symlink(images.join("base"), &link).unwrap();
        assert!(policy.check_opened(&opened, &link, Some(&top)).is_err());
        let opened = FileStorage::open(&link, &FileOptions::read_only()).unwrap();
        assert_eq!(policy.check_opened(&opened, &link, Some(&top)), Ok(()));
    }
}
