//! Rewriting the whole header: its fields, its extensions and the backing file's name, which need more than a sector.
//!
//! Fields within the first sector change in one write (W5, see `header_update`). A change that reaches further must
//! not be seen half, so it goes over a stepping stone that differs from the old header by one sector:
//!
//! ```text
//!   1. the backing file's name, behind everything that the old and the new header use     -- sync --
//!   2. the first sector of a header without the table of feature names (which nobody
//!      needs), so that all its extensions fit; it names the copy of the name              -- sync --
//!   3. the new header's sectors behind the first                                          -- sync --
//!   4. the new header's first sector                                                      -- sync --
//! ```
//!
//! After each step the file has the old header or the new one. Only where the other extensions alone fill a sector is the
//! header written at once.

use super::Qcow2;
use crate::error::{Error, Result};
use crate::format::qcow2::layout::BackingName;
use crate::format::qcow2::{Extension, Header, HeaderError};
use crate::storage::StorageExt;

/// What a disk writes whole.
const SECTOR: usize = 512;

impl Qcow2 {
    /// Changes the name of the backing file, or takes it away, after everything that was written is durable. The disk
    /// that is open as the backing file stays the one that is read.
    pub(crate) fn set_backing(&self, backing: Option<&BackingName>) -> Result<()> {
        self.check_backing_name(backing)?;
        self.begin_change()?;
        self.commit()?;
        let _one_at_a_time = self.lock_commit();
        self.rewrite_header(self.header_over(backing))
    }

    /// Refuses a backing file that the header has no room for.
    pub(crate) fn check_backing_name(&self, backing: Option<&BackingName>) -> Result<()> {
        if backing.is_some_and(|backing| backing.name.len() as u64 > Header::MAX_BACKING_NAME) {
            return Err(Error::invalid(format!(
                "the backing file's name is longer than {} bytes",
                Header::MAX_BACKING_NAME
            )));
        }
        self.header_over(backing).encode().map(drop).map_err(no_room)
    }

    /// The header with this backing file.
    fn header_over(&self, backing: Option<&BackingName>) -> Header {
        let mut new = self.header();
        new.set_backing(
            backing.map(|backing| backing.name.as_slice()),
            backing.and_then(|backing| backing.format.as_deref()),
        );
        new
    }

    /// Makes `new` the header, durably. Callers hold the commit lock, and have changed only what may change while the
    /// image is open.
    pub(super) fn rewrite_header(&self, new: Header) -> Result<()> {
        let mut header = self.lock_header();
        let cluster_size = self.cluster_size() as usize;
        let mut old = vec![0; cluster_size];
        self.storage.read_padded_at(&mut old, 0).map_err(|error| Error::io("read the header", error))?;
        let steps = plan(&header, &new, &old)?;
        for step in steps {
            self.storage
                .write_all_at(&step.bytes, step.offset as u64)
                .map_err(|error| Error::io("write the header", error))
                .and_then(|()| self.sync())
                .map_err(|error| self.failure.record(error))?;
        }
        *header = new;
        Ok(())
    }
}

/// One write, which is synced before the next.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    offset: usize,
    bytes: Vec<u8>,
}

/// The writes that turn the header cluster `old`, which holds `before`, into `new`.
fn plan(before: &Header, new: &Header, old: &[u8]) -> Result<Vec<Step>> {
    let encoded = new.encode().map_err(no_room)?;
    let old_end = end_of(before, old);
    let area = encoded.len().max(old_end).next_multiple_of(SECTOR).min(old.len());
    let mut target = encoded.clone();
    target.resize(area, 0);
    let changed: Vec<usize> = (0..area / SECTOR)
        .filter(|nth| target[nth * SECTOR..(nth + 1) * SECTOR] != old[nth * SECTOR..(nth + 1) * SECTOR])
        .collect();
    let (Some(&first), Some(&last)) = (changed.first(), changed.last()) else { return Ok(Vec::new()) };
    let sectors = |first: usize, end: usize| Step {
        offset: first * SECTOR,
        bytes: target[first * SECTOR..end * SECTOR].to_vec(),
    };
    if first == last {
        return Ok(vec![sectors(first, first + 1)]);
    }
    let Some((copy, stone)) = stepping_stone(new, area, old.len())? else {
        return Ok(vec![sectors(first, last + 1)]);
    };
    let erased = copy.as_ref().map(|copy| Step { offset: copy.offset, bytes: vec![0; copy.bytes.len()] });
    let steps = [copy, Some(stone), Some(sectors(1, area / SECTOR)), Some(sectors(0, 1)), erased];
    Ok(steps.into_iter().flatten().collect())
}

/// Bytes of the header cluster that the header uses: an image of another maker may leave gaps in it.
fn end_of(header: &Header, cluster: &[u8]) -> usize {
    let number = |at: usize, len: usize| {
        let bytes = cluster.get(at..at + len).unwrap_or_default();
        bytes.iter().fold(0_u64, |number, &byte| number << 8 | u64::from(byte))
    };
    let name_end = number(8, 8).saturating_add(number(16, 4)).min(cluster.len() as u64) as usize;
    let encoded = header.encode().map_or(cluster.len(), |bytes| bytes.len());
    name_end.max(encoded)
}

/// The copy of the name and the first sector that refers to it; `None` when one of them has no room.
fn stepping_stone(new: &Header, copy_at: usize, cluster_size: usize) -> Result<Option<(Option<Step>, Step)>> {
    let mut stone = new.clone();
    stone.extensions.retain(|extension| extension.kind != Extension::FEATURE_NAMES);
    stone.backing_file = None;
    let mut sector = stone.encode().map_err(no_room)?;
    let name = new.backing_file.as_deref().unwrap_or_default();
    if sector.len() > SECTOR || copy_at + name.len() > cluster_size {
        return Ok(None);
    }
    sector.resize(SECTOR, 0);
    let copy = (!name.is_empty()).then(|| Step { offset: copy_at, bytes: name.to_vec() });
    if copy.is_some() {
        sector[8..16].copy_from_slice(&(copy_at as u64).to_be_bytes());
        sector[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
    }
    Ok(Some((copy, Step { offset: 0, bytes: sector })))
}

fn no_room(error: HeaderError) -> Error {
    match error {
        HeaderError::TooLarge { bytes, cluster_size } => Error::unsupported(format!(
            "the header would take {bytes} bytes and has a cluster of {cluster_size}: there is no room for that \
             backing file's name"
        )),
        error => Error::invalid(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::qcow2::layout::{self, FreshEncryption, FreshParams, LazyRefcounts, Preallocation};
    use crate::format::qcow2::{CompressionType, Geometry, Version};

    fn header(cluster_bits: u32, version: Version, backing: Option<(&str, &str)>) -> Header {
        let params = FreshParams {
            version,
            geometry: Geometry::new(cluster_bits, 4).unwrap(),
            size: 1 << 20,
            lazy_refcounts: LazyRefcounts::Off,
            compression: CompressionType::Deflate,
            preallocation: Preallocation::Off,
            backing: backing.map(|(name, format)| BackingName {
                name: name.as_bytes().to_vec(),
                format: Some(format.as_bytes().to_vec()),
            }),
            data_file: None,
            encryption: FreshEncryption::None,
        };
        layout::plan(&params).unwrap().header().clone()
    }

    fn cluster_of(header: &Header) -> Vec<u8> {
        let mut cluster = header.encode().unwrap();
        cluster.resize(header.geometry().cluster_size() as usize, 0);
        cluster
    }

    /// Every subset of a step's sectors may survive a power cut before its sync: each must read as the old header or as the
    /// new one, the table of feature names left out.
    fn try_every_cut(before: &Header, new: &Header) {
        let mut cluster = cluster_of(before);
        let steps = plan(before, new, &cluster).unwrap();
        let plain = |header: &Header| {
            let mut header = header.clone();
            header.extensions.retain(|extension| extension.kind != Extension::FEATURE_NAMES);
            header
        };
        for step in &steps {
            let sectors = step.bytes.len().div_ceil(SECTOR);
            assert!(sectors <= 8, "few enough to try every subset");
            for subset in 0..1_u32 << sectors {
                let mut torn = cluster.clone();
                for (nth, bytes) in step.bytes.chunks(SECTOR).enumerate() {
                    if subset & 1 << nth != 0 {
                        let at = step.offset + nth * SECTOR;
                        torn[at..at + bytes.len()].copy_from_slice(bytes);
                    }
                }
                let seen = plain(&Header::decode(&torn).expect("the header is whole"));
                assert!(seen == plain(before) || seen == plain(new), "{step:?}, subset {subset:b}");
            }
            cluster[step.offset..step.offset + step.bytes.len()].copy_from_slice(&step.bytes);
        }
        assert_eq!(cluster, cluster_of(new));
    }

    #[test]
    fn a_power_cut_at_any_point_leaves_the_old_header_or_the_new_one() {
        let long = "a/rather/long/name/".repeat(50);
        let backings =
            [None, Some(("base.img", "raw")), Some(("other.qcow2", "qcow2")), Some((long.as_str(), "qcow2"))];
        for version in [Version::V2, Version::V3] {
            for (before, new) in backings.iter().flat_map(|a| backings.iter().map(move |b| (*a, *b))) {
                try_every_cut(&header(16, version, before), &header(16, version, new));
                try_every_cut(&header(12, version, before), &header(12, version, new));
            }
        }
    }

    #[test]
    fn a_name_without_room_is_refused() {
        let before = header(9, Version::V3, None);
        let mut new = before.clone();
        new.set_backing(Some(&[b'x'; 500]), Some(b"raw"));
        let refused = plan(&before, &new, &cluster_of(&before)).unwrap_err();
        assert!(refused.to_string().contains("no room"), "{refused}");
    }
}
