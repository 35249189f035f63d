//! The snapshot table as a whole: read with its limits, searched, encoded.

use std::collections::HashSet;

use crate::corruption::Corruption;
use crate::error::{Error, ErrorKind, Result};
use crate::format::qcow2::{Header, Snapshot};
use crate::limits::Limits;
use crate::storage::{Storage, StorageExt};

/// The most bytes that the table may have; QEMU's limit.
const MAX_TABLE_BYTES: u64 = 64 << 20;

/// The table is read in pieces of at least this many bytes.
const FIRST_PIECE: u64 = 64 << 10;

/// Which snapshot is meant. Ids and names are bytes; an image may have several snapshots of one name, of which the first
/// is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SnapshotSelector {
    /// The one with this id.
    Id(Vec<u8>),
    /// The first with this name.
    Name(Vec<u8>),
    /// The one with this id or, where there is none, the first with this name.
    IdOrName(Vec<u8>),
    /// The first that has both.
    IdAndName {
        /// Its id.
        id: Vec<u8>,
        /// Its name.
        name: Vec<u8>,
    },
}

/// How large the disk of a snapshot is said to be that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SnapshotSize {
    /// As large as it was when the snapshot was taken.
    #[default]
    Own,
    /// As large as the disk is now, cut or with what is below: what `qemu-img convert -l` reads.
    OfTheDisk,
}

impl SnapshotSelector {
    /// The index of the snapshot that is meant.
    pub fn find(&self, snapshots: &[Snapshot]) -> Option<usize> {
        let by_id = |id: &[u8]| snapshots.iter().position(|snapshot| snapshot.id == id);
        let by_name = |name: &[u8]| snapshots.iter().position(|snapshot| snapshot.name == name);
        match self {
            SnapshotSelector::Id(id) => by_id(id),
            SnapshotSelector::Name(name) => by_name(name),
            SnapshotSelector::IdOrName(either) => by_id(either).or_else(|| by_name(either)),
            SnapshotSelector::IdAndName { id, name } => {
                snapshots.iter().position(|snapshot| snapshot.id == *id && snapshot.name == *name)
            }
        }
    }

    /// The same, as an error where there is none.
    pub(super) fn find_in(&self, snapshots: &[Snapshot]) -> Result<usize> {
        let missing = || Error::new(ErrorKind::SnapshotNotFound { wanted: self.to_string() });
        self.find(snapshots).ok_or_else(missing)
    }
}

impl std::fmt::Display for SnapshotSelector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = String::from_utf8_lossy;
        match self {
            SnapshotSelector::Id(id) => write!(f, "id {:?}", text(id)),
            SnapshotSelector::Name(name) => write!(f, "name {:?}", text(name)),
            SnapshotSelector::IdOrName(either) => write!(f, "id or name {:?}", text(either)),
            SnapshotSelector::IdAndName { id, name } => {
                write!(f, "id {:?} and name {:?}", text(id), text(name))
            }
        }
    }
}

/// The snapshots that `header` tells of, and the bytes that their table takes. The table states no length, so that it is
/// read in growing pieces until it decodes, or as much as `limits` allow.
pub(crate) fn read_snapshots(
    storage: &dyn Storage,
    header: &Header,
    limits: &Limits,
) -> Result<(Vec<Snapshot>, u64)> {
    if header.snapshot_count == 0 {
        return Ok((Vec::new(), 0));
    }
    limits.check_snapshots(header.snapshot_count)?;
    let io = |error| Error::io("read the snapshot table", error);
    let offset = header.snapshot_table.get();
    let there = storage.len().map_err(io)?.saturating_sub(offset).min(MAX_TABLE_BYTES);
    let available = there.min(limits.table_bytes());
    let mut len = available.min(FIRST_PIECE);
    loop {
        let mut bytes = vec![0; len as usize];
        storage.read_exact_at(&mut bytes, offset).map_err(io)?;
        match Snapshot::decode_table(&bytes, header.snapshot_count) {
            Ok((snapshots, used)) => return Ok((snapshots, used as u64)),
            Err(_) if len < available => len = available.min(len.saturating_mul(8)),
            Err(error) => {
                if available < there {
                    // Longer than may be looked at, however it goes on.
                    limits.check_table("the snapshot table", available + 1)?;
                }
                return Err(Corruption::SnapshotTable(error.to_string()).into());
            }
        }
    }
}

/// The table as it stands in the file.
pub(super) fn encode_snapshots(snapshots: &[Snapshot]) -> Result<Vec<u8>> {
    if snapshots.len() > Header::MAX_SNAPSHOTS as usize {
        return Err(Error::unsupported(format!(
            "the image has {} snapshots, and cannot have more",
            Header::MAX_SNAPSHOTS
        )));
    }
    let bytes: Vec<u8> = snapshots.iter().flat_map(Snapshot::encode).collect();
    if bytes.len() as u64 > MAX_TABLE_BYTES {
        let (what, bytes) = ("the snapshot table", bytes.len() as u64);
        return Err(Error::new(ErrorKind::LimitExceeded { what, bytes, limit: MAX_TABLE_BYTES }));
    }
    Ok(bytes)
}

/// The id of the next snapshot: one more than the largest number that an id begins with.
pub(super) fn next_id(snapshots: &[Snapshot]) -> Vec<u8> {
    let number = |id: &[u8]| {
        let digits =
            id.iter().skip_while(|byte| byte.is_ascii_whitespace()).take_while(|b| b.is_ascii_digit());
        digits.fold(0_u64, |sum, digit| sum.saturating_mul(10).saturating_add(u64::from(digit - b'0')))
    };
    let last = snapshots.iter().map(|snapshot| number(&snapshot.id)).max().unwrap_or(0);
    // Past the largest number any free one will do.
    let next = last.checked_add(1).or_else(|| {
        let taken: HashSet<&[u8]> = snapshots.iter().map(|snapshot| snapshot.id.as_slice()).collect();
        (1..u64::MAX).find(|id| !taken.contains(id.to_string().as_bytes()))
    });
    next.unwrap_or(u64::MAX).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(id: &str, name: &str) -> Snapshot {
        Snapshot { id: id.into(), name: name.into(), ..Snapshot::default() }
    }

    #[test]
    fn an_id_goes_before_a_name_and_the_first_name_before_the_second() {
        let snapshots = [snapshot("1", "2"), snapshot("2", "a"), snapshot("3", "a")];
        let find = |selector: SnapshotSelector| selector.find(&snapshots);
        assert_eq!(find(SnapshotSelector::IdOrName(b"2".to_vec())), Some(1));
        assert_eq!(find(SnapshotSelector::IdOrName(b"a".to_vec())), Some(1));
        assert_eq!(find(SnapshotSelector::Name(b"2".to_vec())), Some(0));
        assert_eq!(find(SnapshotSelector::Id(b"a".to_vec())), None);
        let both =
            |id: &[u8], name: &[u8]| SnapshotSelector::IdAndName { id: id.to_vec(), name: name.to_vec() };
        assert_eq!(find(both(b"3", b"a")), Some(2));
        assert_eq!(find(both(b"1", b"a")), None);
    }

    #[test]
    fn ids_count_on_from_the_largest_number() {
        assert_eq!(next_id(&[]), b"1");
        assert_eq!(next_id(&[snapshot("7", ""), snapshot("3", "")]), b"8");
        assert_eq!(next_id(&[snapshot("name", ""), snapshot("", ""), snapshot("12x", "")]), b"13");
        let largest = u64::MAX.to_string();
        assert_eq!(next_id(&[snapshot(&largest, ""), snapshot("1", "")]), b"2");
    }

    #[test]
    fn a_table_past_its_limits_is_not_written() {
        assert!(encode_snapshots(&vec![snapshot("1", "a"); 65537]).is_err());
        let long = snapshot("1", &"n".repeat(60000));
        assert!(encode_snapshots(&vec![long; 1200]).is_err());
    }
}
