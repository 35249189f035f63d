//! The line that `create` prints.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use cowimg::Format;

use crate::args::format_options::{FormatOptions, OptionHelp};
use crate::output::path_bytes;

/// An image that was just made.
#[derive(Debug)]
pub(crate) struct Created<'a> {
    /// Its file.
    pub(crate) path: &'a Path,
    /// Its format.
    pub(crate) format: Format,
    /// The size of its disk as it was asked for, in bytes.
    pub(crate) size: u64,
    /// Its backing file's name, as stored, and format.
    pub(crate) backing: Option<(&'a [u8], Format)>,
    /// The format of a backing file whose name is not known.
    pub(crate) backing_format: Option<Format>,
    /// The other options.
    pub(crate) options: &'a FormatOptions,
}

/// Writes the line: what was made, with every option that it has.
pub(crate) fn human(created: &Created<'_>, out: &mut dyn Write) -> io::Result<()> {
    let Created { options, size, .. } = created;
    out.write_all(b"Formatting '")?;
    out.write_all(path_bytes(created.path))?;
    write!(out, "', fmt={}", created.format)?;
    if created.format != Format::Qcow2 {
        write!(out, " size={size}")?;
        for (key, word) in options.encryption.iter() {
            write!(out, " {key}={word}")?;
        }
        let [no_cow, extent_size] = &options.host_words;
        let words = [
            ("nocow", no_cow),
            ("preallocation", &options.preallocation_word),
            ("extent_size_hint", extent_size),
        ];
        for (key, word) in words {
            if let Some(word) = word {
                write!(out, " {key}={word}")?;
            }
        }
        return writeln!(out);
    }
    for (key, word) in options.encryption.iter() {
        write!(out, " {key}={word}")?;
    }
    let extended_l2 = if options.qcow2.extended_l2 { "on" } else { "off" };
    write!(out, " cluster_size={} extended_l2={extended_l2}", options.qcow2.cluster_size)?;
    if let Some(word) = &options.preallocation_word {
        write!(out, " preallocation={word}")?;
    }
    let compression = options.compression_word.as_deref().unwrap_or(options.qcow2.compression.as_str());
    write!(out, " compression_type={compression} size={size}")?;
    if let Some(word) = &options.compat_word {
        write!(out, " compat={word}")?;
    }
    if let Some((name, format)) = created.backing {
        out.write_all(b" backing_file=")?;
        out.write_all(&with_doubled_commas(name))?;
        write!(out, " backing_fmt={format}")?;
    } else if let Some(format) = created.backing_format {
        write!(out, " backing_fmt={format}")?;
    }
    if let Some(name) = &options.qcow2.data_file {
        out.write_all(b" data_file=")?;
        out.write_all(&with_doubled_commas(name.as_bytes()))?;
    }
    if let Some(word) = &options.data_file_raw_word {
        write!(out, " data_file_raw={word}")?;
    }
    let lazy_refcounts = options.lazy_refcounts_word.as_deref().unwrap_or("off");
    write!(out, " lazy_refcounts={lazy_refcounts} refcount_bits={}", options.qcow2.refcount_bits)?;
    for (key, word) in ["nocow", "extent_size_hint"].iter().zip(&options.host_words) {
        if let Some(word) = word {
            write!(out, " {key}={word}")?;
        }
    }
    writeln!(out)
}

/// A name as `-o` wants it.
fn with_doubled_commas(name: &[u8]) -> Vec<u8> {
    name.split(|&byte| byte == b',').collect::<Vec<_>>().join(&b",,"[..])
}

/// Writes the list of options that images of a format have.
pub(crate) fn options_help(
    format: Format,
    options: impl Iterator<Item = &'static OptionHelp>,
    out: &mut dyn Write,
) -> io::Result<()> {
    writeln!(out, "Supported {format} options:")?;
    for OptionHelp { key, value, purpose, .. } in options {
        let title = format!("{key}=<{value}>");
        writeln!(out, "  {title:<24} - {purpose}")?;
    }
    Ok(())
}

/// Writes what `clone` has made: overlays of `base` with a disk of `size` bytes.
pub(crate) fn clones(base: &Path, size: u64, names: &[PathBuf], out: &mut dyn Write) -> io::Result<()> {
    let (Some(first), Some(last)) = (names.first(), names.last()) else { return Ok(()) };
    let what = if names.len() == 1 { "overlay" } else { "overlays" };
    write!(out, "Created {} {what} of '", names.len())?;
    out.write_all(path_bytes(base))?;
    write!(out, "', size={size}: '")?;
    out.write_all(path_bytes(first))?;
    if names.len() > 1 {
        out.write_all(b"' to '")?;
        out.write_all(path_bytes(last))?;
    }
    writeln!(out, "'")
}
