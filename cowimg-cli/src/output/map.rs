//! The report of `map`: where each range of the disk is stored.
//!
//! Rows are written as they come, so that a disk of any size takes no memory.

use std::io::{self, Write};

use cowimg::{Extent, ExtentKind};

/// Writes rows of the table for people.
#[derive(Debug)]
pub(crate) struct HumanMap<'a> {
    /// Names of the layers' files, top first.
    files: &'a [&'a [u8]],
}

impl<'a> HumanMap<'a> {
    /// Starts the table with its titles.
    pub(crate) fn start(files: &'a [&'a [u8]], out: &mut dyn Write) -> io::Result<HumanMap<'a>> {
        writeln!(out, "{:<16}{:<16}{:<16}File", "Offset", "Length", "Mapped to")?;
        Ok(HumanMap { files })
    }

    /// Writes the row of an extent that is stored as it is; the others have none.
    pub(crate) fn row(&self, extent: &Extent, out: &mut dyn Write) -> io::Result<()> {
        let (ExtentKind::Data, false, Some(host)) = (extent.kind, extent.is_zero(), extent.host) else {
            return Ok(());
        };
        let (start, len) = (hex(extent.range.start()), hex(extent.range.len()));
        write!(out, "{start:<16}{len:<16}{:<16}", hex(host))?;
        out.write_all(self.files.get(extent.depth).map_or(&b""[..], |name| *name))?;
        out.write_all(b"\n")
    }
}

/// A number as C's `%#x` writes it: zero has no prefix.
fn hex(value: u64) -> String {
    if value == 0 { "0".to_owned() } else { format!("{value:#x}") }
}

/// Writes the rows for programs.
#[derive(Debug, Default)]
pub(crate) struct JsonMap {
    rows: u64,
}

impl JsonMap {
    /// Writes the row of an extent.
    pub(crate) fn row(&mut self, extent: &Extent, out: &mut dyn Write) -> io::Result<()> {
        let (present, zero, data, compressed) = match extent.kind {
            ExtentKind::Data => (true, extent.reads_zero, true, false),
            ExtentKind::Zero => (true, true, false, false),
            ExtentKind::Unallocated => (false, true, false, false),
            ExtentKind::Compressed => (true, false, true, true),
        };
        self.open_row(extent.range.start(), extent.range.len(), extent.depth, out)?;
        write!(
            out,
            "\"present\": {present}, \"zero\": {zero}, \"data\": {data}, \"compressed\": {compressed}"
        )?;
        match extent.host {
            Some(host) if !compressed => write!(out, ", \"offset\": {host}}}"),
            _ => out.write_all(b"}"),
        }
    }

    /// Ends the list. A range without a byte has one row, of length 0, at `start`.
    pub(crate) fn end(mut self, start: u64, out: &mut dyn Write) -> io::Result<()> {
        if self.rows == 0 {
            self.open_row(start, 0, 0, out)?;
            out.write_all(b"\"present\": false, \"zero\": false, \"data\": false, \"compressed\": false}")?;
        }
        out.write_all(b"]\n")
    }

    fn open_row(&mut self, start: u64, len: u64, depth: usize, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(if self.rows == 0 { b"[" } else { b",\n" })?;
        self.rows += 1;
        write!(out, "{{ \"start\": {start}, \"length\": {len}, \"depth\": {depth}, ")
    }
}
