//! Persistent bitmaps: their directory, their tables, and the clusters of their data.
//!
//! They count only while the autoclear bit says that they agree with the image: a program that did not know them may
//! have given their clusters to something else since.
//!
//! ```text
//! entry of a bitmap table:
//! bit    63      56 55                      9 8      1  0
//!      | reserved  | bits 9-55 of the offset | reserved | A |
//!
//! offset 0: no cluster; its bits are all ones where A is set, else all zeroes. A is reserved where there is a cluster.
//! ```

use std::io;

use super::issue::Finding;
use super::ledger::{Ledger, Subject};
use super::tables::{self, Tables};
use crate::format::qcow2::{Autoclear, BitmapEntry, BitmapsExtension, TABLE_ENTRY_SIZE};

const MAX_NAME: usize = 1023;
/// QEMU's limit on the entries of a bitmap table.
const MAX_ENTRIES: u32 = 0x0800_0000;
/// All flags but "in use", "auto" and "extra data may be ignored".
const RESERVED_FLAGS: u32 = !7;
const ALL_ONES: u64 = 1;
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;

/// Counts what the bitmaps refer to.
pub(super) fn scan(subject: &Subject<'_>, ledger: &mut Ledger) {
    let Some(extension) = subject.header.bitmaps() else { return };
    if !subject.header.autoclear.contains(Autoclear::BITMAPS) {
        return;
    }
    ledger.refer("the bitmap directory", extension.directory.0, extension.directory_size, 1);
    let bitmap_tables = read_directory(subject, ledger, &extension);
    tables::for_each_entry(subject, ledger, &bitmap_tables, |ledger, host, entry, times| {
        table_entry(subject, ledger, BitmapTableEntry { host, entry }, times);
    });
}

/// The tables that the directory names. What cannot be followed leaves references uncounted.
fn read_directory(subject: &Subject<'_>, ledger: &mut Ledger, extension: &BitmapsExtension) -> Tables {
    let mut found = Tables { what: "a bitmap table", places: Vec::new() };
    let entries = match directory_bytes(subject, extension) {
        Ok(bytes) => BitmapEntry::decode_directory(&bytes, extension.count),
        Err(error) => {
            ledger.unreadable("the bitmap directory", extension.directory.0, &error);
            return found;
        }
    };
    let entries = entries.unwrap_or_else(|error| {
        ledger.complete = false;
        ledger.report(Finding::BitmapDirectory { why: error.to_string() });
        Vec::new()
    });
    for (index, entry) in (0..).zip(&entries) {
        if let Some(why) = table_problem(subject, entry) {
            ledger.complete = false;
            ledger.report(Finding::Bitmap { index, why });
            continue;
        }
        if let Some(why) = problem(subject, entry) {
            ledger.report(Finding::Bitmap { index, why });
        }
        found.places.push((entry.table.0, u64::from(entry.table_entries) * TABLE_ENTRY_SIZE));
    }
    found
}

/// The directory, as much of it as the file has.
fn directory_bytes(subject: &Subject<'_>, extension: &BitmapsExtension) -> io::Result<Vec<u8>> {
    let start = extension.directory.0;
    let len = extension.directory_size.min(subject.file_len.saturating_sub(start));
    let mut bytes = vec![0; len as usize];
    subject.read(&mut bytes, start)?;
    Ok(bytes)
}

/// What keeps a bitmap's table from being found.
fn table_problem(subject: &Subject<'_>, entry: &BitmapEntry) -> Option<&'static str> {
    if entry.kind != BitmapEntry::DIRTY_TRACKING {
        return Some("its type is not known");
    }
    if entry.table.0 == 0 || !subject.geometry.is_aligned(entry.table.0) {
        return Some("its table does not start at a cluster boundary past the header");
    }
    if entry.table_entries == 0 || entry.table_entries > MAX_ENTRIES {
        return Some("its table is empty or too long");
    }
    None
}

/// What else is wrong with a bitmap.
fn problem(subject: &Subject<'_>, entry: &BitmapEntry) -> Option<&'static str> {
    if entry.flags & RESERVED_FLAGS != 0 {
        return Some("reserved flags are set");
    }
    if entry.name.len() > MAX_NAME {
        return Some("its name is longer than 1023 bytes");
    }
    if !(9..=31).contains(&entry.granularity_bits) {
        return Some("its granularity is out of bounds");
    }
    let bits = u128::from(entry.table_entries) * u128::from(subject.geometry.cluster_size()) * 8;
    // One that is in use was not saved, perhaps since before the disk grew.
    let saved = entry.flags & BitmapEntry::IN_USE == 0;
    if saved && bits << entry.granularity_bits < subject.header.size.into() {
        return Some("its table is too short for the disk");
    }
    None
}

/// An entry of a bitmap table.
#[derive(Debug, Clone, Copy)]
struct BitmapTableEntry {
    host: u64,
    entry: u64,
}

fn table_entry(subject: &Subject<'_>, ledger: &mut Ledger, at: BitmapTableEntry, times: u64) {
    let BitmapTableEntry { host, entry } = at;
    let cluster = entry & OFFSET_MASK;
    let reserved = !OFFSET_MASK & if cluster == 0 { !ALL_ONES } else { u64::MAX };
    let problem = if entry & reserved != 0 {
        Some("reserved bits are set")
    } else if !subject.geometry.is_aligned(cluster) {
        Some("its cluster does not start at a cluster boundary")
    } else {
        None
    };
    match problem {
        Some(why) => ledger.issues.add(Finding::BitmapTableEntry { host, entry, why }, times),
        None if cluster != 0 => {
            ledger.refer("a bitmap's cluster", cluster, subject.geometry.cluster_size(), times);
        }
        None => {}
    }
}
