//! Names of image files and of formats.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use cowimg::Format;

/// Formats that images may have and that this version does not read.
const UNHANDLED_FORMATS: [&str; 9] =
    ["bochs", "cloop", "dmg", "parallels", "qed", "vdi", "vhdx", "vmdk", "vpc"];

/// Protocols of qemu-img's by which images are reached that are no files.
const UNHANDLED_PROTOCOLS: [&str; 14] = [
    "json", "nbd", "nbd+unix", "nbd+tcp", "http", "https", "ftp", "ftps", "ssh", "nfs", "iscsi", "rbd",
    "gluster", "fat",
];

/// Parses the name of a format, for clap and for `backing_fmt`.
pub(crate) fn parse_format(name: &str) -> Result<Format, String> {
    match name.parse() {
        Ok(format) => Ok(format),
        Err(_) if UNHANDLED_FORMATS.contains(&name) => Err(format!(
            "format {name} is not handled by this version of cowimg; it handles raw, qcow2, qcow and luks"
        )),
        Err(_) => Err(format!("there is no format '{name}'; there are raw, qcow2, qcow and luks")),
    }
}

/// Parses a file name, for clap. What stands before a colon, with no slash before it, is a protocol, as qemu-img has it:
/// `file:name` is `name`, and all others are refused.
pub(crate) fn parse_path(name: OsString) -> Result<PathBuf, String> {
    let bytes = name.as_bytes();
    let Some((protocol, rest)) = split_protocol(bytes) else {
        return if bytes.is_empty() { Err(EMPTY.to_owned()) } else { Ok(PathBuf::from(name)) };
    };
    if protocol == b"file" {
        let rest = PathBuf::from(OsStr::from_bytes(rest));
        return if rest.as_os_str().is_empty() { Err(EMPTY.to_owned()) } else { Ok(rest) };
    }
    let protocol = String::from_utf8_lossy(protocol);
    let shown = name.to_string_lossy();
    let what = if UNHANDLED_PROTOCOLS.contains(&&*protocol) {
        format!("names that start with '{protocol}:' are not handled by this version of cowimg")
    } else {
        format!("{shown}: the protocol '{protocol}' is unknown")
    };
    Err(format!("{what}; give a file's name (a file that is really called so: ./{shown})"))
}

const EMPTY: &str = "the file name is empty";

/// What stands before and behind the first colon, if no slash comes earlier.
fn split_protocol(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = name.iter().position(|&byte| byte == b':' || byte == b'/')?;
    (name[at] == b':').then(|| (&name[..at], &name[at + 1..]))
}

/// The format that a name's ending speaks of, if it speaks of one.
pub(crate) fn format_by_name(path: &Path) -> Option<Format> {
    match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "qcow2" | "qcow" => Some(Format::Qcow2),
        "raw" | "img" => Some(Format::Raw),
        "luks" => Some(Format::Luks),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_file_unless_it_starts_like_an_address() {
        assert_eq!(parse_path("a.img".into()), Ok(PathBuf::from("a.img")));
        assert_eq!(parse_path("file:a.img".into()), Ok(PathBuf::from("a.img")));
        assert_eq!(parse_path("./nbd:x".into()), Ok(PathBuf::from("./nbd:x")));
        assert_eq!(parse_path("d/x:y".into()), Ok(PathBuf::from("d/x:y")));
        assert!(parse_path("nbd://host/x".into()).unwrap_err().contains("not handled"));
        assert!(parse_path("nosuch:a.img".into()).unwrap_err().contains("'nosuch' is unknown"));
        assert!(parse_path("file:".into()).is_err());
        assert!(parse_path("json:{}".into()).is_err());
        assert!(parse_path("".into()).is_err());
    }

    #[test]
    fn a_format_that_is_not_handled_is_told_from_one_that_does_not_exist() {
        assert_eq!(parse_format("raw"), Ok(Format::Raw));
        assert!(parse_format("vmdk").unwrap_err().contains("not handled"));
        assert!(parse_format("banana").unwrap_err().contains("no format 'banana'"));
    }

    #[test]
    fn endings_speak_of_formats() {
        assert_eq!(format_by_name(Path::new("d/x.QCOW2")), Some(Format::Qcow2));
        assert_eq!(format_by_name(Path::new("x.img")), Some(Format::Raw));
        assert_eq!(format_by_name(Path::new("x")), None);
        assert_eq!(format_by_name(Path::new("x.vmdk")), None);
    }
}
