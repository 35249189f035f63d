//! The snapshot table, for what it refers to.

use super::issue::Finding;
use super::ledger::{Ledger, Subject};
use super::sites::{SnapshotProblem, Structure};
use super::tables::Tables;
use super::window::Window;
use crate::error::Result;
use crate::format::qcow2::{Header, Snapshot, TABLE_ENTRY_SIZE, Version};

/// QEMU's limit on the table.
const MAX_TABLE: u64 = 64 << 20;

/// What there is to count.
#[derive(Debug)]
pub(super) struct SnapshotTable {
    /// Length of the table in bytes.
    pub(super) len: u64,
    /// The snapshots' L1 tables.
    pub(super) l1_tables: Tables,
}

impl SnapshotTable {
    fn empty() -> SnapshotTable {
        SnapshotTable { len: 0, l1_tables: Tables { what: Structure::SnapshotL1Table, places: Vec::new() } }
    }

    /// Reads the table. One that makes no sense counts for nothing: what it refers to is not known. Fails where it is longer
    /// than it may be.
    pub(super) fn read(subject: &Subject<'_>, ledger: &mut Ledger) -> Result<SnapshotTable> {
        let count = u64::from(subject.header.snapshot_count);
        if subject.has_data_file() && count > 0 {
            ledger.report(Finding::SnapshotsWithDataFile { count });
        }
        let mut table = SnapshotTable::empty();
        let mut window = Window::new(*subject);
        for index in 0..count {
            let read = table.read_entry(subject, &mut window);
            subject.limits.check_table("the snapshot table", table.len.min(MAX_TABLE))?;
            match read {
                Ok(snapshot) => table.take(subject, ledger, index, &snapshot),
                Err(why) => {
                    ledger.complete = false;
                    ledger.report(Finding::SnapshotTable { why: format!("entry {index}: {why}") });
                    return Ok(SnapshotTable::empty());
                }
            }
        }
        Ok(table)
    }

    fn read_entry(
        &mut self,
        subject: &Subject<'_>,
        window: &mut Window<'_>,
    ) -> std::result::Result<Snapshot, String> {
        let start = self.len.next_multiple_of(8);
        let host = subject.header.snapshot_table.0.saturating_add(start);
        let bytes = window.at(host, Snapshot::MAX_LEN as u64).map_err(|error| error.to_string())?;
        let (snapshot, used) = Snapshot::decode(bytes).map_err(|error| error.to_string())?;
        self.len = start + used as u64;
        if self.len > MAX_TABLE {
            return Err(format!("the table is longer than {MAX_TABLE} bytes"));
        }
        Ok(snapshot)
    }

    fn take(&mut self, subject: &Subject<'_>, ledger: &mut Ledger, index: u64, snapshot: &Snapshot) {
        let mut report = |problem| {
            let name = format!("{} {}", printable(&snapshot.id), printable(&snapshot.name));
            ledger.report(Finding::Snapshot { index, name, problem });
        };
        // Version 3 wants the size of the disk, and of the machine's state in 64 bits.
        if subject.header.version == Version::V3 && snapshot.extra.disk_size.is_none() {
            report(SnapshotProblem::Incomplete);
        }
        let (start, len) = (snapshot.l1_table.0, u64::from(snapshot.l1_entries) * TABLE_ENTRY_SIZE);
        if !subject.geometry.is_aligned(start) {
            report(SnapshotProblem::L1Unaligned);
        } else if len > Header::MAX_L1_BYTES {
            report(SnapshotProblem::L1TooLarge);
        } else if start == 0 && len > 0 {
            report(SnapshotProblem::L1InHeader);
        } else {
            self.l1_tables.places.push((start, len));
        }
    }
}

/// The start of a text of the image, fit for a terminal.
fn printable(text: &[u8]) -> String {
    String::from_utf8_lossy(text).chars().take(64).flat_map(char::escape_debug).collect()
}
