//! Names of image files and of formats.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use cowimg::Format;

/// Formats that images may have and that this version does not read.
const UNHANDLED_FORMATS: [&str; 9] =
    ["bochs", "cloop", "dmg", "parallels", "qed", "vdi", "vhdx", "vmdk", "vpc"];

/// Starts of names that mean something other than a file to qemu-img.
const UNHANDLED_SCHEMES: [&str; 14] = [
    "json:",
    "nbd:",
    "nbd+unix:",
    "nbd+tcp:",
    "http:",
    "https:",
    "ftp:",
    "ftps:",
    "ssh:",
    "nfs:",
    "iscsi:",
    "rbd:",
    "gluster:",
    "fat:",
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

/// Parses a file name, for clap: `file:name` is `name`, as qemu-img has it, and names that are no files are refused.
pub(crate) fn parse_path(name: OsString) -> Result<PathBuf, String> {
    if name.is_empty() {
        return Err("the file name is empty".to_owned());
    }
    let bytes = name.as_bytes();
    if let Some(scheme) = UNHANDLED_SCHEMES.iter().find(|scheme| bytes.starts_with(scheme.as_bytes())) {
        return Err(format!(
            "names that start with '{scheme}' are not handled by this version of cowimg; give a file's name (a file \
             that is really called so: ./{scheme}...)"
        ));
    }
    match bytes.strip_prefix(b"file:") {
        Some(rest) if !rest.is_empty() => Ok(PathBuf::from(std::ffi::OsStr::from_bytes(rest))),
        _ => Ok(PathBuf::from(name)),
    }
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
        assert!(parse_path("nbd://host/x".into()).is_err());
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
