//! From the name of a backing file, as it stands in an image, to a path.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

/// The path that `name` means in the image at `image`: a relative name starts at that image's own folder, not at the
/// process's. Names with a protocol are refused; `file:` is no protocol but a plain name's prefix.
pub(super) fn resolve(name: &[u8], image: Option<&Path>) -> Result<PathBuf> {
    let plain = name.strip_prefix(b"file:").unwrap_or(name);
    if let Some(protocol) = protocol(plain) {
        return Err(Error::new(ErrorKind::Refused {
            name: String::from_utf8_lossy(name).into_owned(),
            role: "backing file",
            why: if protocol == b"json" {
                "names with options (json:) are not followed when they come from an image"
            } else {
                "only plain file names are followed"
            },
        }));
    }
    let path = Path::new(OsStr::from_bytes(plain));
    if path.is_absolute() {
        return Ok(path.to_path_buf());
    }
    match image.and_then(Path::parent) {
        Some(folder) => Ok(folder.join(path)),
        None => Ok(path.to_path_buf()),
    }
}

/// What stands before the first colon, if no slash comes earlier.
fn protocol(name: &[u8]) -> Option<&[u8]> {
    let at = name.iter().position(|&byte| byte == b':' || byte == b'/')?;
    let (before, rest) = name.split_at_checked(at)?;
    (rest.first() == Some(&b':')).then_some(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(name: &str) -> PathBuf {
        resolve(name.as_bytes(), Some(Path::new("/images/vm/top.qcow2"))).unwrap()
    }

    #[test]
    fn a_relative_name_starts_at_the_images_own_folder() {
        assert_eq!(resolved("base.img"), Path::new("/images/vm/base.img"));
        assert_eq!(resolved("../base.img"), Path::new("/images/vm/../base.img"));
        assert_eq!(resolved("/base.img"), Path::new("/base.img"));
        assert_eq!(resolved("file:base.img"), Path::new("/images/vm/base.img"));
    }

    #[test]
    fn a_colon_behind_a_slash_is_part_of_the_name() {
        assert_eq!(resolved("./a:b"), Path::new("/images/vm/./a:b"));
    }

    #[test]
    fn names_with_a_protocol_are_refused() {
        for name in ["json:{}", "nbd://host/x", "https://host/x", "a:b", "file:json:{}"] {
            let refused = resolve(name.as_bytes(), None).unwrap_err();
            assert!(matches!(refused.kind(), ErrorKind::Refused { .. }), "{name}: {refused}");
        }
    }
}
