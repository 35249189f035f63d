//! The walk over everything that refers to clusters: header, L1 and L2 tables of the disk and of its snapshots,
//! snapshot table, refcount table, encryption header and bitmaps. The refcount blocks come last, with the comparison.

use super::bitmaps;
use super::issue::Finding;
use super::l2::{COPIED, L2Tables, Tallies, Uses};
use super::ledger::{Ledger, Role, Subject};
use super::sites::{L1Problem, L1Site, Structure};
use super::snapshots::SnapshotTable;
use super::stored::StoredRefcounts;
use super::tables::{self, TablePart, Tables};
use crate::error::Result;
use crate::format::qcow2::{Extension, L1Entry, L1EntryError, TABLE_ENTRY_SIZE};

/// Counts all references except those to the refcount blocks, and looks at every entry on the way.
pub(super) fn scan<'a>(
    subject: Subject<'a>,
    stored: StoredRefcounts<'a>,
    ledger: &mut Ledger,
) -> Result<(Tallies, StoredRefcounts<'a>)> {
    let header = subject.header;
    let cluster_size = subject.geometry.cluster_size();
    let mut l2_tables = L2Tables::new(subject, stored);
    ledger.refer(Structure::Header, 0, cluster_size);
    active_l1(&subject, &mut l2_tables, ledger);

    let snapshots = SnapshotTable::read(&subject, ledger)?;
    snapshot_l1s(&subject, &snapshots.l1_tables, &mut l2_tables, ledger);
    let (tallies, stored) = l2_tables.finish(ledger);

    ledger.refer(Structure::SnapshotTable, header.snapshot_table.0, snapshots.len);
    let refcount_table_len = u64::from(header.refcount_table_clusters) * cluster_size;
    ledger.refer(Structure::RefcountTable, header.refcount_table.0, refcount_table_len);
    ledger.needs_rebuild |= !ledger.is_within_file(header.refcount_table.0, refcount_table_len);
    if let Some((host, len)) = encryption_header(&header.extensions) {
        ledger.refer(Structure::EncryptionHeader, host, len);
    }
    bitmaps::scan(&subject, ledger)?;
    Ok((tallies, stored))
}

fn active_l1(subject: &Subject<'_>, l2_tables: &mut L2Tables<'_>, ledger: &mut Ledger) {
    let start = subject.header.l1_table.0;
    let len = u64::from(subject.header.l1_entries) * TABLE_ENTRY_SIZE;
    ledger.refer(Structure::L1Table, start, len);
    let part = TablePart { what: Structure::L1Table, start, end: start.saturating_add(len) };
    tables::for_each_entry_of(subject, ledger, &part, |ledger, host, entry| {
        let index = (host - start) / TABLE_ENTRY_SIZE;
        let site = L1Site { host, index: Some(index), entry };
        let Some(table) = l1_entry(subject, ledger, site, 1) else { return };
        if let Some(refcount) = l2_tables.stored_refcount(table)
            && (refcount == 1) != (entry & COPIED != 0)
        {
            ledger.report(Finding::L1Entry { site, problem: L1Problem::Copied { refcount } });
        }
        if subject.has_data_file() && ledger.l2_tables.get(table >> subject.geometry.cluster_bits()) > 1 {
            ledger.report(Finding::L1Entry { site, problem: L1Problem::TableOfAnother });
        } else if table < subject.file_len {
            l2_tables.add(ledger, table, Uses { active: 1, inactive: 0, first_active: index });
        }
    });
}

fn snapshot_l1s(
    subject: &Subject<'_>,
    l1_tables: &Tables,
    l2_tables: &mut L2Tables<'_>,
    ledger: &mut Ledger,
) {
    tables::for_each_entry(subject, ledger, l1_tables, |ledger, host, entry, times| {
        let site = L1Site { host, index: None, entry };
        let Some(table) = l1_entry(subject, ledger, site, times) else { return };
        if table < subject.file_len {
            l2_tables.add(ledger, table, Uses { active: 0, inactive: times, first_active: 0 });
        }
    });
}

/// Counts what an L1 entry refers to and returns where its L2 table is, which may be past the end of the file.
fn l1_entry(subject: &Subject<'_>, ledger: &mut Ledger, site: L1Site, times: u64) -> Option<u64> {
    if L1Entry::reserved_bits(site.entry) != 0 {
        ledger.issues.add(Finding::L1Entry { site, problem: L1Problem::ReservedBits }, times);
    }
    let (table, problem) = match L1Entry::decode(site.entry, &subject.geometry) {
        Ok(L1Entry { table: Some(table) }) => (Some(table.host.0), None),
        Ok(L1Entry { table: None }) if site.entry & COPIED != 0 => (None, Some(L1Problem::NoTable)),
        Ok(L1Entry { table: None }) => (None, None),
        Err(L1EntryError::Unaligned { host }) => (Some(host), Some(L1Problem::Unaligned)),
    };
    if let Some(problem) = problem {
        ledger.issues.add(Finding::L1Entry { site, problem }, times);
    }
    let table = table?;
    // Only a table in its place is one that something else may not be written over.
    let role = if problem.is_some() { Role::Data } else { Role::L2Table };
    if !ledger.count(role, table, subject.geometry.cluster_size(), times) {
        let problem = L1Problem::PastEnd { file_len: subject.file_len };
        ledger.issues.add(Finding::L1Entry { site, problem }, times);
    }
    Some(table)
}

/// Where the header of the encryption is, and its length, as its extension says.
fn encryption_header(extensions: &[Extension]) -> Option<(u64, u64)> {
    let extension = extensions.iter().find(|extension| extension.kind == Extension::ENCRYPTION)?;
    let (host, len) = extension.data.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*host), u64::from_be_bytes(len.try_into().ok()?)))
}
