//! Headers that say impossible things about a table: the refcounts can be counted, the snapshots and the L1 table searched
//! for, the bitmaps given up. Such a header is read without that table, and what it said is a finding.

use super::issue::Finding;
use super::sites::Structure;
use crate::corruption::Corruption;
use crate::error::{Error, ErrorKind, Result};
use crate::format::qcow2::{Autoclear, Header, HeaderError, TABLE_ENTRY_SIZE};
use crate::qcow2::Qcow2;
use crate::storage::Storage;

/// Tables that can be wrong at once.
const MAX_DAMAGES: usize = 5;
/// Where the header's fields are: see the table in [`crate::format::qcow2`].
const L1_ENTRIES: std::ops::Range<usize> = 36..40;
const L1_TABLE: std::ops::Range<usize> = 40..48;
const REFCOUNT_TABLE: std::ops::Range<usize> = 48..60;
const SNAPSHOTS: std::ops::Range<usize> = 60..72;
const AUTOCLEAR: std::ops::Range<usize> = 88..96;

/// What a header says that cannot be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct HeaderDamage {
    /// One finding for each table.
    pub(super) findings: Vec<Finding>,
    /// Whether the header names no refcount table.
    pub(super) no_refcounts: bool,
    /// Offset and number of the snapshots as the header has them.
    pub(super) snapshots: Option<(u64, u32)>,
    /// Whether the bitmaps cannot be found.
    pub(super) bitmaps: bool,
    /// What is wrong with the active L1 table.
    pub(super) l1: Option<L1Damage>,
}

/// What cannot be about the active L1 table. But for its place, the header is read as if it were as long as the disk needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum L1Damage {
    /// Fewer entries than the disk needs.
    TooSmall {
        /// The entries as stored.
        entries: u32,
    },
    /// More entries than any table may have.
    TooLarge,
    /// A place where none can be. The header is read without the table.
    Nowhere {
        /// The entries as stored.
        entries: u32,
    },
}

/// The header as it stands, or without the tables that it says impossible things about.
pub(super) fn read(storage: &dyn Storage) -> Result<(Header, HeaderDamage)> {
    let mut damage = HeaderDamage::default();
    let mut cluster = Qcow2::read_header_cluster(storage)?;
    let file_len = storage.len().map_err(|error| Error::io("read the length of the file", error))?;
    loop {
        let error = match Qcow2::decode_header(&cluster) {
            Ok(mut header) => {
                if damage.no_refcounts {
                    header.refcount_table_clusters = 0;
                }
                if damage.lacks_l1() {
                    header.l1_entries = 0;
                }
                return Ok((header, damage));
            }
            Err(error) => error,
        };
        let ErrorKind::Corrupt(Corruption::Header(why)) = error.kind() else { return Err(error) };
        let patched = damage.pass_over(why, &mut cluster, file_len);
        if patched.is_none() || damage.findings.len() > MAX_DAMAGES {
            return Err(error);
        }
    }
}

/// The header, without tables that it says impossible things about.
pub(crate) fn read_damaged_header(storage: &dyn Storage) -> Result<Header> {
    read(storage).map(|(header, _)| header)
}

impl HeaderDamage {
    /// Whether the header names no place where the L1 table could be.
    pub(super) fn lacks_l1(&self) -> bool {
        matches!(self.l1, Some(L1Damage::Nowhere { .. }))
    }

    /// Makes `cluster` a header without the table that `error` is about; `None` where the image needs it.
    fn pass_over(&mut self, error: &HeaderError, cluster: &mut [u8], file_len: u64) -> Option<()> {
        let table = match error {
            HeaderError::NoRefcountTable => Structure::RefcountTable,
            HeaderError::TooManySnapshots { .. } => Structure::SnapshotTable,
            HeaderError::Bitmaps { .. } => Structure::BitmapDirectory,
            HeaderError::TableTooLarge { table, .. }
            | HeaderError::TableUnaligned { table, .. }
            | HeaderError::TableInHeader { table, .. }
            | HeaderError::TablePastLimit { table, .. } => match *table {
                "refcount table" => Structure::RefcountTable,
                "snapshot table" => Structure::SnapshotTable,
                "L1 table" => Structure::L1Table,
                _ => return None,
            },
            HeaderError::L1TooSmall { .. } => Structure::L1Table,
            _ => return None,
        };
        match table {
            Structure::L1Table => return self.pass_over_l1(error, cluster, file_len),
            Structure::RefcountTable => {
                self.no_refcounts = true;
                let field = cluster.get_mut(REFCOUNT_TABLE)?;
                let place = behind(file_len)?;
                field.get_mut(..8)?.copy_from_slice(&place.to_be_bytes());
                field.get_mut(8..)?.copy_from_slice(&1_u32.to_be_bytes());
            }
            Structure::SnapshotTable => {
                let field = cluster.get_mut(SNAPSHOTS)?;
                let (count, host) = field.split_at(4);
                let host = u64::from_be_bytes(host.try_into().ok()?);
                self.snapshots = Some((host, u32::from_be_bytes(count.try_into().ok()?)));
                field.fill(0);
            }
            _ => {
                self.bitmaps = true;
                let field = cluster.get_mut(AUTOCLEAR)?;
                let bits = u64::from_be_bytes((&*field).try_into().ok()?);
                field.copy_from_slice(&(bits & !Autoclear::BITMAPS.0).to_be_bytes());
            }
        }
        // Without a table every reference is a finding of its own.
        if *error != HeaderError::NoRefcountTable {
            self.findings.push(Finding::HeaderField { table, why: error.to_string() });
        }
        Some(())
    }

    fn pass_over_l1(&mut self, error: &HeaderError, cluster: &mut [u8], file_len: u64) -> Option<()> {
        let stored = u32::from_be_bytes(cluster.get(L1_ENTRIES)?.try_into().ok()?);
        let (damage, entries) = match (error, self.l1) {
            (HeaderError::L1TooSmall { needed, .. }, Some(known)) => (known, Some(*needed)),
            (HeaderError::L1TooSmall { needed, entries, .. }, None) => {
                (L1Damage::TooSmall { entries: *entries }, Some(*needed))
            }
            // The next look says how many are needed.
            (HeaderError::TableTooLarge { .. }, None) => (L1Damage::TooLarge, Some(0)),
            (HeaderError::TableTooLarge { .. }, Some(_)) | (_, Some(L1Damage::Nowhere { .. })) => {
                return None;
            }
            (_, Some(L1Damage::TooSmall { entries })) => (L1Damage::Nowhere { entries }, None),
            (_, None | Some(L1Damage::TooLarge)) => (L1Damage::Nowhere { entries: stored }, None),
        };
        let is_told = self.l1 == Some(damage);
        match entries {
            Some(entries) => {
                let entries = u32::try_from(entries).ok()?;
                if u64::from(entries) * TABLE_ENTRY_SIZE > Header::MAX_L1_BYTES {
                    return None;
                }
                cluster.get_mut(L1_ENTRIES)?.copy_from_slice(&entries.to_be_bytes());
            }
            None => cluster.get_mut(L1_TABLE)?.copy_from_slice(&behind(file_len)?.to_be_bytes()),
        }
        self.l1 = Some(damage);
        if !is_told {
            self.findings.push(Finding::HeaderField { table: Structure::L1Table, why: error.to_string() });
        }
        Some(())
    }
}

/// Somewhere behind the file, where nothing is.
fn behind(file_len: u64) -> Option<u64> {
    file_len.checked_next_multiple_of(1 << 21)?.checked_add(1 << 21)
}
