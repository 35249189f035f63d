//! The bitmap directory without the bitmaps that are damaged, where it can be told for sure which those are.
//!
//! Its entries have no fixed length. They are believed if they fill the directory to its last byte, whatever number the
//! header says; then those of them stay that are sound alone: they have a name that no other has, and a table that can be
//! theirs. The directory is written in its place, shorter, while the header says that no bitmap can be trusted:
//!
//! ```text
//!   header: bitmaps are invalid                         -- sync --   (the first step of every repair)
//!   directory, and what the header says of its length   -- sync --
//!   header: bitmaps are valid                           -- sync --
//! ```
//!
//! What the others have had is leaked then, and given back with all leaks.

use std::collections::HashMap;

use super::Examined;
use crate::error::{Error, Result};
use crate::format::qcow2::{
    Autoclear, BitmapEntry, BitmapsExtension, Extension, Header, TABLE_ENTRY_SIZE, header_fields,
};
use crate::storage::{Storage, StorageExt};

/// The bitmaps that stay.
#[derive(Debug)]
pub(super) struct SoundBitmaps {
    directory: BitmapsExtension,
    bytes: Vec<u8>,
    /// Length of the directory as it is.
    old_len: u64,
    /// The header as it is.
    header: Header,
}

impl SoundBitmaps {
    /// Finds them; `None` where all are sound, none is, or nobody can tell.
    pub(super) fn find(examined: &Examined<'_>) -> Option<SoundBitmaps> {
        let Examined { subject, damage, ledger, .. } = examined;
        if !ledger.issues.damaged.bitmaps || !damage.findings.is_empty() {
            return None;
        }
        let header = subject.header;
        let old = header.bitmaps()?;
        let (start, old_len) = (old.directory.get(), old.directory_size);
        let is_alone = |cluster| ledger.references.get(cluster) == 1;
        let first = start >> subject.geometry.cluster_bits();
        let end = subject.geometry.clusters_for(start.checked_add(old_len)?);
        if start.checked_add(old_len)? > subject.file_len || !(first..end).all(is_alone) {
            return None;
        }
        let mut bytes = vec![0; old_len as usize];
        subject.read(&mut bytes, start).ok()?;
        let all = BitmapEntry::decode_all(&bytes)?;
        let mut names: HashMap<&[u8], usize> = HashMap::new();
        for entry in &all {
            *names.entry(&entry.name).or_default() += 1;
        }
        let is_sound = |entry: &&BitmapEntry| {
            let table = u64::from(entry.table_entries) * TABLE_ENTRY_SIZE;
            entry.table_problem(&subject.geometry).is_none()
                && entry.problem(&subject.geometry, header.size / 512 * 512).is_none()
                && ledger.is_within_file(entry.table.get(), table)
                && !entry.name.is_empty()
                && names.get(entry.name.as_slice()) == Some(&1)
        };
        let sound: Vec<BitmapEntry> = all.iter().filter(is_sound).cloned().collect();
        let bytes = BitmapEntry::encode_directory(&sound).ok()?;
        let count = u32::try_from(sound.len()).ok()?;
        let directory = BitmapsExtension { count, directory_size: bytes.len() as u64, ..old };
        (count > 0 && directory != old).then(|| SoundBitmaps {
            directory,
            bytes,
            old_len,
            header: header.clone(),
        })
    }

    /// Writes the directory. The header says that bitmaps are invalid, durably, and says the contrary after it. Returns
    /// whether that could be done: a header that this library would write otherwise is left alone.
    pub(super) fn write(&self, storage: &dyn Storage) -> Result<bool> {
        let old =
            Header { autoclear: self.header.autoclear.without(Autoclear::BITMAPS), ..self.header.clone() };
        let mut new = old.clone();
        for extension in new.extensions.iter_mut().filter(|extension| extension.kind == Extension::BITMAPS) {
            *extension = self.directory.to_extension();
        }
        let (Ok(old), Ok(new)) = (old.encode(), new.encode()) else { return Ok(false) };
        let mut stored = vec![0; old.len()];
        storage.read_exact_at(&mut stored, 0).map_err(|error| Error::io("read the header", error))?;
        // The autoclear bits may have been others, which are cleared by now.
        stored[AUTOCLEAR].copy_from_slice(&old[AUTOCLEAR]);
        let Some((first, last)) = difference(&old, &new).filter(|_| stored == old) else { return Ok(false) };
        let mut directory = self.bytes.clone();
        directory.resize(directory.len().max(self.old_len as usize), 0);
        let written = storage
            .write_all_at(&directory, self.directory.directory.get())
            .and_then(|()| storage.write_all_at(&new[first..=last], first as u64))
            .and_then(|()| storage.sync());
        written.map_err(|error| Error::io("write the bitmap directory", error))?;
        let known = Autoclear(self.header.autoclear.0 & Autoclear::BITMAPS.with(Autoclear::DATA_FILE_RAW).0);
        let (at, bytes) = header_fields::autoclear(known);
        let marked = storage.write_all_at(&bytes, at).and_then(|()| storage.sync());
        marked.map_err(|error| Error::io("write the header", error))?;
        Ok(true)
    }
}

/// Where a header has the autoclear bits.
const AUTOCLEAR: std::ops::Range<usize> = 88..96;

/// The first and the last byte in which two headers of one length differ.
fn difference(old: &[u8], new: &[u8]) -> Option<(usize, usize)> {
    let differs = |(old, new): (&u8, &u8)| old != new;
    let first = old.iter().zip(new).position(differs)?;
    let last = old.iter().zip(new).rposition(differs)?;
    (old.len() == new.len()).then_some((first, last))
}
