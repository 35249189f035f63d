//! Which format the first bytes of a file look like.
//!
//! Looking is all that this does: whether a probed format may be *used* is for the caller to say. A file that was
//! opened as raw can be made to look like anything by the guest that writes to it, which is why nothing here is
//! asked unless the caller has been told that it may probe.
//!
//! ```text
//! offset  bytes                        format
//!  0      "QFI\xfb", u32 version >= 2  qcow2
//!  0      "QFI\xfb", u32 version 1     qcow
//!  0      "QED\0"                      qed
//!  0      "KDMV" or "COWD"             vmdk (sparse extent)
//!  0      comments, then "version=1"   vmdk (text descriptor), versions 1 to 3
//!  0      "vhdxfile"                   vhdx
//!  0      "conectix"                   vpc
//!  0      "LUKS\xba\xbe"               luks
//!  0      "WithoutFreeSpace" or
//!         "WithouFreSpacExt"           parallels
//!  0      "Bochs Virtual HD Image"     bochs
//!  0      "#!/bin/sh\n#V2.0 Format\n
//!         modprobe cloop"              cloop
//! 64      7f 10 da be                  vdi
//! ```

use std::fmt;
use std::str::FromStr;

use super::luks::LuksHeader;

/// How many bytes of a file's start are enough for [`probe`].
pub const PROBE_LEN: usize = 2048;

/// An image format that this library reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// The bytes of the disk as they are.
    Raw,
    /// qcow2, versions 2 and 3.
    Qcow2,
    /// qcow, version 1: read, and not written.
    Qcow,
    /// LUKS, version 1: a header with the key, and the disk behind it, encrypted.
    Luks,
}

impl Format {
    /// The name that users and images call it by.
    pub const fn as_str(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
            Format::Qcow => "qcow",
            Format::Luks => "luks",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A format's name that this library does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown image format {name:?}; the formats are raw, qcow2, qcow and luks")]
pub struct UnknownFormat {
    /// The name as it was given.
    pub name: String,
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Format, UnknownFormat> {
        match name {
            "raw" => Ok(Format::Raw),
            "qcow2" => Ok(Format::Qcow2),
            "qcow" => Ok(Format::Qcow),
            "luks" => Ok(Format::Luks),
            _ => Err(UnknownFormat { name: name.to_owned() }),
        }
    }
}

/// What the first bytes of a file look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Probed {
    /// A qcow2 image, of any version from 2 on.
    Qcow2,
    /// A qcow image of version 1.
    Qcow,
    /// A LUKS volume of version 1.
    Luks,
    /// An image of a format that this library knows by name only.
    Other(&'static str),
    /// Nothing known, which is what a raw disk looks like.
    Raw,
}

/// Formats whose files start with fixed bytes.
const SIGNATURES: [(&[u8], &str); 9] = [
    (b"QED\0", "qed"),
    (b"KDMV", "vmdk"),
    (b"COWD", "vmdk"),
    (b"vhdxfile", "vhdx"),
    (b"conectix", "vpc"),
    (b"WithoutFreeSpace", "parallels"),
    (b"WithouFreSpacExt", "parallels"),
    (b"Bochs Virtual HD Image", "bochs"),
    (b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop", "cloop"),
];

const VDI_SIGNATURE: [u8; 4] = [0x7f, 0x10, 0xda, 0xbe];

/// What a file that starts with these bytes looks like; [`PROBE_LEN`] bytes are enough, and fewer do no harm.
pub fn probe(first_bytes: &[u8]) -> Probed {
    for (signature, name) in SIGNATURES {
        if first_bytes.starts_with(signature) {
            return Probed::Other(name);
        }
    }
    if first_bytes.starts_with(b"LUKS\xba\xbe") {
        // Version 2 is another format, and known by name only.
        let is_version_1 = LuksHeader::is_at_start_of(first_bytes);
        return if is_version_1 { Probed::Luks } else { Probed::Other("luks") };
    }
    match qcow_version(first_bytes) {
        Some(0) | None => {}
        Some(1) => return Probed::Qcow,
        Some(_) => return Probed::Qcow2,
    }
    if first_bytes.get(64..68) == Some(&VDI_SIGNATURE) {
        return Probed::Other("vdi");
    }
    if is_vmdk_descriptor(first_bytes) {
        return Probed::Other("vmdk");
    }
    Probed::Raw
}

fn qcow_version(first_bytes: &[u8]) -> Option<u32> {
    match first_bytes.split_first_chunk::<8>() {
        Some(([b'Q', b'F', b'I', 0xfb, version @ ..], _)) => Some(u32::from_be_bytes(*version)),
        _ => None,
    }
}

/// Comments and empty lines, then a version line.
fn is_vmdk_descriptor(first_bytes: &[u8]) -> bool {
    first_bytes
        .split(|&byte| byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .find(|line| !line.starts_with(b"#") && !line.iter().all(|&byte| byte == b' '))
        .is_some_and(|line| matches!(line, b"version=1" | b"version=2" | b"version=3"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_format_is_known_by_its_first_bytes() {
        let mut vdi = vec![b' '; 64];
        vdi.extend(VDI_SIGNATURE);
        let cases: [(&[u8], Probed); 15] = [
            (b"QFI\xfb\0\0\0\x01", Probed::Qcow),
            (b"QFI\xfb\0\0\0\x02", Probed::Qcow2),
            (b"QFI\xfb\0\0\0\x03", Probed::Qcow2),
            (b"QFI\xfb\0\0\0\x04", Probed::Qcow2),
            (b"QFI\xfb\0\0\0\0", Probed::Raw),
            (b"QFI\xfb", Probed::Raw),
            (b"QED\0rest", Probed::Other("qed")),
            (b"KDMV\x01\0\0\0", Probed::Other("vmdk")),
            (b"# Disk DescriptorFile\r\n\r\nversion=1\r\nCID=1", Probed::Other("vmdk")),
            (b"vhdxfile\0\0", Probed::Other("vhdx")),
            (b"conectix\0\0", Probed::Other("vpc")),
            (b"LUKS\xba\xbe\0\x01", Probed::Luks),
            (b"LUKS\xba\xbe\0\x02", Probed::Other("luks")),
            (&vdi, Probed::Other("vdi")),
            (b"", Probed::Raw),
        ];
        for (bytes, expected) in cases {
            assert_eq!(probe(bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn a_text_file_is_raw_unless_its_first_statement_is_a_vmdk_version() {
        assert_eq!(probe(b"# a comment\nname=1\nversion=1\n"), Probed::Raw);
        assert_eq!(probe(b"# a comment\nversion=4\n"), Probed::Raw);
        assert_eq!(probe(b"#!/bin/sh\necho\n"), Probed::Raw);
        assert_eq!(probe(b"\n \nversion=3\n"), Probed::Other("vmdk"));
    }

    #[test]
    fn a_format_is_parsed_from_the_name_that_it_prints() {
        for format in [Format::Raw, Format::Qcow2, Format::Qcow, Format::Luks] {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        let error = "vmdk".parse::<Format>().unwrap_err();
        assert_eq!(
            error.to_string(),
            r#"unknown image format "vmdk"; the formats are raw, qcow2, qcow and luks"#
        );
    }

    proptest! {
        #[test]
        fn probing_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            probe(&bytes);
        }
    }
}
