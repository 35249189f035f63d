//! Headers that say impossible things about a table which the image can do without: the refcounts can be counted, the
//! snapshots searched for, the bitmaps given up. Such a header is read without that table, and what it said is a finding.

use super::issue::Finding;
use super::sites::Structure;
use crate::corruption::Corruption;
use crate::error::{Error, ErrorKind, Result};
use crate::format::qcow2::{Autoclear, Header, HeaderError};
use crate::qcow2::Qcow2;
use crate::storage::Storage;

/// Tables that can be wrong at once.
const MAX_DAMAGES: usize = 3;
/// Where the header's fields are: see the table in [`crate::format::qcow2`].
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
                _ => return None,
            },
            _ => return None,
        };
        match table {
            Structure::RefcountTable => {
                self.no_refcounts = true;
                // Somewhere behind the file, where nothing is.
                let field = cluster.get_mut(REFCOUNT_TABLE)?;
                let place = file_len.checked_next_multiple_of(1 << 21)?.checked_add(1 << 21)?;
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
}
