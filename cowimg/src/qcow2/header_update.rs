//! Changes of the header while an image is in use: last, and in one write within one sector (W5).

use super::Qcow2;
use super::sync::atomic::Ordering;
use crate::error::{Error, Result};
use crate::format::qcow2::header_fields::{self, FieldWrite};
use crate::format::qcow2::{Autoclear, Version};
use crate::storage::StorageExt;

impl Qcow2 {
    /// Rule W7: before the first change, clears durably the autoclear bits of everything that we do not keep up to date.
    /// That is every bit that we do not know. Bitmaps are kept up to date, and those that record say so in the file.
    pub(super) fn prepare_for_change(&self) -> Result<()> {
        if self.prepared_for_change.load(Ordering::Acquire) {
            return Ok(());
        }
        let _one_at_a_time = self.lock_commit();
        if self.prepared_for_change.load(Ordering::Acquire) {
            return Ok(());
        }
        self.mark_recording_in_use()?;
        let mut header = self.lock_header();
        // Bitmaps and a raw data file are kept as they are said to be.
        let ours = match header.bitmaps() {
            Some(_) => Autoclear::BITMAPS.with(Autoclear::DATA_FILE_RAW),
            None => Autoclear::DATA_FILE_RAW,
        };
        let kept = Autoclear(header.autoclear.0 & ours.0);
        if self.version == Version::V3 && header.autoclear != kept {
            self.write_header_field(header_fields::autoclear(kept))?;
            header.autoclear = kept;
        }
        self.prepared_for_change.store(true, Ordering::Release);
        Ok(())
    }

    /// Writes and syncs one field. When that fails, the header in the file may be either.
    pub(super) fn write_header_field(&self, (offset, bytes): FieldWrite) -> Result<()> {
        self.storage
            .write_all_at(&bytes, offset)
            .map_err(|error| Error::io("write the header", error))
            .and_then(|()| self.sync())
            .map_err(|error| self.failure.record(error))
    }
}
