//! Persistent bitmaps: their directory, their tables, and the clusters of their data.
//!
//! They count only while the autoclear bit says that they agree with the image: a program that did not know them may
//! have given their clusters to something else since.
//! The structures are decoded in [`crate::format::qcow2`]; this module counts what they refer to.

use std::io;

use super::issue::Finding;
use super::ledger::{Ledger, Role, Subject};
use super::sites::Structure;
use super::tables::{self, Tables};
use crate::error::{Error, Result};
use crate::format::qcow2::{BitmapEntry, BitmapTableEntry, BitmapsExtension, TABLE_ENTRY_SIZE};
use crate::storage::StorageExt;

/// Counts what the bitmaps refer to.
pub(super) fn scan(subject: &Subject<'_>, ledger: &mut Ledger) -> Result<()> {
    let Some(extension) = subject.header.bitmaps() else { return Ok(()) };
    subject.limits.check_bitmaps(extension.count)?;
    subject.limits.check_table("the bitmap directory", extension.directory_size)?;
    ledger.refer(Structure::BitmapDirectory, extension.directory.0, extension.directory_size);
    let bitmap_tables = read_directory(subject, ledger, &extension);
    tables::for_each_entry(subject, ledger, &bitmap_tables, |ledger, host, entry, times| {
        table_entry(subject, ledger, (host, entry), times);
    });
    Ok(())
}

/// The tables that the directory names. What cannot be followed leaves references uncounted.
fn read_directory(subject: &Subject<'_>, ledger: &mut Ledger, extension: &BitmapsExtension) -> Tables {
    let mut found = Tables { what: Structure::BitmapTable, places: Vec::new() };
    let entries = match directory_bytes(subject, extension) {
        Ok(bytes) => BitmapEntry::decode_directory(&bytes, extension.count),
        Err(error) => {
            ledger.unreadable(Structure::BitmapDirectory, extension.directory.0, &error);
            return found;
        }
    };
    let entries = entries.unwrap_or_else(|error| {
        ledger.complete = false;
        ledger.report(Finding::BitmapDirectory { why: error.to_string() });
        Vec::new()
    });
    let listed = entries.iter().map(BitmapEntry::stored_len).fold(0, u64::saturating_add);
    if !entries.is_empty() && listed != extension.directory_size {
        // What the rest lists is not known, and has clusters.
        ledger.complete = false;
        let size = extension.directory_size;
        let why = format!("the bitmap directory has {size} bytes, and its entries have {listed}");
        ledger.report(Finding::BitmapDirectory { why });
    }
    for (index, entry) in (0..).zip(&entries) {
        if let Some(why) = entry.table_problem(&subject.geometry) {
            ledger.complete = false;
            ledger.report(Finding::Bitmap { index, why });
            continue;
        }
        if let Some(why) = entry.problem(&subject.geometry, subject.header.size / 512 * 512) {
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

fn table_entry(subject: &Subject<'_>, ledger: &mut Ledger, (host, entry): (u64, u64), times: u64) {
    match BitmapTableEntry::decode(entry, &subject.geometry) {
        Err(why) => ledger.issues.add(Finding::BitmapTableEntry { host, entry, why }, times),
        Ok(BitmapTableEntry::Cluster(cluster)) => {
            if !ledger.count(Role::Fixed, cluster.get(), subject.geometry.cluster_size(), times) {
                let why = "the bitmap's cluster lies past the end of the file";
                ledger.issues.add(Finding::BitmapTableEntry { host, entry, why }, times);
            }
        }
        Ok(BitmapTableEntry::Zeroes | BitmapTableEntry::Ones) => {}
    }
}

/// Lets entries of bitmap tables that make no sense say that all they stand for has changed, for a bitmap may say too much
/// and never too little. `found` is what a check has found. Returns how many there were; the caller syncs.
pub(super) fn mark_dirty(subject: &Subject<'_>, found: &Ledger) -> Result<u64> {
    let Some(extension) = subject.header.bitmaps() else { return Ok(0) };
    // What is wrong has been reported.
    let mut unread = Ledger::new(subject)?;
    let bitmap_tables = read_directory(subject, &mut unread, &extension);
    let mut bad = Vec::new();
    tables::for_each_entry(subject, &mut unread, &bitmap_tables, |_, host, entry, _| {
        let is_right = match BitmapTableEntry::decode(entry, &subject.geometry) {
            Err(_) => false,
            Ok(BitmapTableEntry::Cluster(at)) => {
                found.is_within_file(at.get(), subject.geometry.cluster_size())
            }
            Ok(BitmapTableEntry::Zeroes | BitmapTableEntry::Ones) => true,
        };
        if !is_right {
            bad.push(host);
        }
    });
    for &host in &bad {
        let ones = BitmapTableEntry::Ones.encode().to_be_bytes();
        subject
            .storage
            .write_all_at(&ones, host)
            .map_err(|error| Error::io("write a bitmap table", error))?;
    }
    Ok(bad.len() as u64)
}
