//! Damage that is met while an image is in use: the image is marked corrupt in its file, and takes no more changes.
//!
//! What was met stands in [`Corruption`]; which of it spoils an image is said there, too. What was acknowledged before
//! is still brought to the file, for each of it was judged by itself; then the mark follows. Reads go on, as far as
//! they meet no damage. An image that is open for reading is left as it is, and one of version 2 has no place for a
//! mark: both only refuse.

use super::{Mode, Qcow2};
use crate::corruption::Corruption;
use crate::error::{Error, ErrorKind, Result};
use crate::format::qcow2::{Incompatible, Version, header_fields};

impl Qcow2 {
    /// Runs one call of a user, which holds no lock when it returns, and judges the error that it ends with.
    pub(crate) fn judged<T>(&self, call: impl FnOnce() -> Result<T>) -> Result<T> {
        call().inspect_err(|error| self.note_damage(error))
    }

    fn note_damage(&self, error: &Error) {
        let ErrorKind::Corrupt(corruption) = error.kind() else { return };
        // What is wrong with the image below is noted there.
        if self.mode == Mode::ReadOnly || error.is_of_below() || !corruption.spoils_image() {
            return;
        }
        if self.failure.record_damage(corruption) {
            // Nobody waits for either: a caller has an error already, and the next change is refused in any case.
            let _kept_if_it_can_be = self.commit();
            let _marked_if_it_can_be = self.mark_corrupt();
        }
    }

    fn mark_corrupt(&self) -> Result<()> {
        if self.version == Version::V2 {
            return Ok(());
        }
        let _one_at_a_time = self.lock_commit();
        let mut header = self.lock_header();
        let marked = header.incompatible.with(Incompatible::CORRUPT);
        self.write_header_field(header_fields::incompatible(marked))?;
        header.incompatible = marked;
        Ok(())
    }
}

impl Corruption {
    /// Whether a writer that meets this must not go on: tables that point at tables, or nowhere that could be.
    fn spoils_image(&self) -> bool {
        matches!(
            self,
            Corruption::Unaligned { .. }
                | Corruption::L2Entry { .. }
                | Corruption::OverlapsMetadata { .. }
                | Corruption::TableIsFree { .. }
        )
    }
}
