//! The qcow2 engine: one image format over one [`Storage`]. It opens nothing and knows no paths: its backing disk is
//! handed to it.
//!
//! # Where things are
//!
//! | file | what it is for |
//! |---|---|
//! | `open`, `create` | from storage to engine; what is refused, by name |
//! | `plan` | guest range to segments: the only place that looks mappings up |
//! | `read`, `write`, `copied`, `zero`, `compressed`, `divided` | the I/O of a plan |
//! | `guest_data`, `encryption` | the file that guest data is in, and what it is encrypted with |
//! | `l1_table`, `table_cache`, `striped` | mappings in memory |
//! | `metadata`, `refcounts`, `allocator` | what the metadata lock protects |
//! | `metadata_map` | keeps guest data off the tables |
//! | `write_order` | the commit: rules W1-W5 and W9 |
//! | `draft` | a change of many tables that happens whole or not at all |
//! | `snapshots`, `snapshot_table` | internal snapshots |
//! | `in_flight` | operations at the same time |
//! | `failed` | rule W8 |
//! | `damage` | what becomes of an image in which damage is met |
//! | `header_update`, `header_rewrite` | rules W5 and W7 |
//! | `empty` | gives everything that an overlay holds back to what is below |
//! | `bitmaps` | persistent dirty bitmaps, kept up to date |
//! | `amend`, `refcount_width`, `expand_zeroes` | what an image was created with, changed |
//! | `resize`, `preallocate`, `shrink`, `extents`, `check` | what their names say |
//!
//! # Locks, in the order in which they are taken
//!
//! 1. the change lock: shared by every call that changes the disk, for as long as it runs; alone for what concerns the
//!    whole disk (a snapshot, a resize), which so has a place in the order of changes;
//! 2. guest cluster locks (`in_flight`), held over the I/O of an operation that changes mappings;
//! 3. the commit lock: one commit, header update or resize at a time, held over its I/O;
//! 4. the lock of the bitmaps, held for changes in memory and while stored bits are read;
//! 5. the metadata lock, held for changes in memory and for loading refcount blocks;
//! 6. the header lock, and the L1 lock;
//! 7. a shard of the table cache, held while a slice is loaded;
//! 8. a stripe's list of recent slices, held while one is looked at.
//!
//! An operation enters its epoch before it looks at any mapping and leaves it when its I/O is done. It waits for no
//! commit inside. Whoever closes the epochs holds the commit lock and not the metadata lock.

mod allocator;
mod amend;
mod bitmaps;
pub(crate) mod check;
mod compressed;
mod copied;
mod create;
mod damage;
mod divided;
mod draft;
mod empty;
mod encryption;
mod expand_zeroes;
mod extents;
mod failed;
mod guest_data;
mod header_rewrite;
mod header_update;
mod in_flight;
mod l1_table;
mod metadata;
mod metadata_map;
mod open;
mod plan;
mod preallocate;
mod read;
mod refcount_width;
mod refcounts;
mod resize;
mod shrink;
mod snapshot_table;
mod snapshots;
mod striped;
mod sync;
mod table_cache;
mod write;
mod write_order;
mod zero;

use std::sync::{OnceLock, PoisonError};

pub use amend::AmendOptions;
pub(crate) use bitmaps::read_bitmap_directory;
pub use bitmaps::{BitmapInfo, BitmapRanges, NewBitmap, Recording};
pub(crate) use create::Fresh;
pub(crate) use encryption::{luks_place, unlock};
pub(crate) use guest_data::DataOptions;
pub(crate) use open::Qcow2Options;
pub(crate) use snapshot_table::read_snapshots;
pub use snapshot_table::{SnapshotSelector, SnapshotSize};
pub use snapshots::{NewSnapshot, SnapshotNames};

use crate::disk::{Disk, OwnPart, ZeroMode};
use crate::error::{Error, ErrorKind, Result};
use crate::extent::Extent;
use crate::format::qcow2::{CompressionType, Geometry, Header, Version};
use crate::limits::Limits;
use crate::range::ByteRange;
use crate::storage::Storage;
use bitmaps::Bitmaps;
use compressed::Decompressed;
use failed::Failure;
use guest_data::GuestData;
use in_flight::{ClusterLocks, Epochs};
use l1_table::L1Table;
use metadata::Metadata;
use metadata_map::MetadataMap;
use sync::atomic::{AtomicBool, AtomicU64, Ordering};
use sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use table_cache::TableCache;

/// Whether an image may be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    ReadOnly,
    ReadWrite,
}

/// An open qcow2 image.
#[derive(Debug)]
pub(crate) struct Qcow2 {
    storage: Arc<dyn Storage>,
    /// Where the guest's data is: in `storage`, or in a file of its own.
    data: GuestData,
    backing: Option<Arc<dyn Disk>>,
    geometry: Geometry,
    version: Version,
    compression: CompressionType,
    mode: Mode,
    /// Size of the guest's disk in bytes; changed by a resize, under the commit lock.
    size: AtomicU64,
    header: Mutex<Header>,
    l1: RwLock<L1Table>,
    slices: TableCache,
    meta: Mutex<Metadata>,
    /// Filled only when the image is open for writing.
    metadata_map: MetadataMap,
    bitmaps: Bitmaps,
    change_lock: RwLock<()>,
    commit_lock: Mutex<()>,
    cluster_locks: ClusterLocks,
    epochs: Epochs,
    failure: Failure,
    /// Rule W7 has been seen to: the header says nothing that the first change would make untrue.
    prepared_for_change: AtomicBool,
    /// Length of the file when it was last looked at; it only grows.
    known_len: AtomicU64,
    decompressed: Decompressed,
    /// How much the image may ask for.
    limits: Limits,
    /// Whether the file looks preallocated, so that its holes say which data clusters read as zeroes.
    preallocated: OnceLock<bool>,
}

impl Qcow2 {
    /// A copy of the header as it stands now.
    pub(crate) fn header(&self) -> Header {
        self.lock_header().clone()
    }

    /// Bytes in a cluster.
    pub(crate) fn cluster_size(&self) -> u64 {
        self.geometry.cluster_size()
    }

    /// Bytes in a subcluster; in a cluster, where clusters are not divided.
    pub(crate) fn subcluster_size(&self) -> u64 {
        self.geometry.subcluster_size()
    }

    /// How compressed clusters are compressed.
    pub(crate) fn compression(&self) -> CompressionType {
        self.compression
    }

    /// Writes everything out and says whether that succeeded; the image is not used afterwards.
    pub(crate) fn close(&self) -> Result<()> {
        if self.mode == Mode::ReadOnly {
            return Ok(());
        }
        // Bitmaps that cannot be saved stay in use, and are not trusted; the disk's content is saved all the same.
        let bitmaps = if self.failure.is_damaged() { Ok(()) } else { self.save_bitmaps() };
        self.publish_all()?;
        if self.lock_meta().compressed_cursor.is_some() {
            self.fill_last_sector()?;
        }
        bitmaps
    }

    /// Commits until the file says all that memory says.
    fn publish_all(&self) -> Result<()> {
        // The first commit publishes; what it freed falls in memory, and the second brings that into the file.
        // Nothing else runs any more, so that a few rounds always suffice.
        for _ in 0..4 {
            self.commit()?;
            let mut meta = self.lock_meta();
            self.reap(&mut meta)?;
            if meta.is_clean() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn lock_meta(&self) -> MutexGuard<'_, Metadata> {
        self.meta.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_commit(&self) -> MutexGuard<'_, ()> {
        self.commit_lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held by a call that changes the disk.
    fn lock_change(&self) -> RwLockReadGuard<'_, ()> {
        self.change_lock.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held by a call that concerns the whole disk: no other change runs meanwhile.
    fn lock_all_changes(&self) -> RwLockWriteGuard<'_, ()> {
        self.change_lock.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_header(&self) -> MutexGuard<'_, Header> {
        self.header.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_l1(&self) -> RwLockReadGuard<'_, L1Table> {
        self.l1.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses a range that does not lie within the disk.
    fn check_bounds(&self, offset: u64, len: u64) -> Result<ByteRange> {
        let size = self.size();
        let range = ByteRange::new(offset, len).filter(|range| range.end() <= size);
        range.ok_or_else(|| {
            Error::new(ErrorKind::OutOfBounds { size })
                .at_range(ByteRange::between(offset, offset.saturating_add(len)))
        })
    }
}

impl Disk for Qcow2 {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.judged(|| self.read(buf, offset))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.judged(|| {
            let _change = self.lock_change();
            let range = self.check_bounds(offset, buf.len() as u64)?;
            let _recorded = self.recorded(range);
            self.write(buf, offset)
        })
    }

    fn write_zeroes(&self, range: ByteRange, mode: ZeroMode) -> Result<()> {
        self.judged(|| {
            let _change = self.lock_change();
            self.check_bounds(range.start(), range.len())?;
            let _recorded = self.recorded(range);
            self.zero(range, mode)
        })
    }

    fn discard(&self, range: ByteRange) -> Result<()> {
        self.judged(|| {
            let _change = self.lock_change();
            self.check_bounds(range.start(), range.len())?;
            let _recorded = self.recorded(range);
            self.discard_range(range)
        })
    }

    fn flush(&self) -> Result<()> {
        match self.mode {
            Mode::ReadOnly => Ok(()),
            Mode::ReadWrite => self.judged(|| self.commit()),
        }
    }

    fn extent_at(&self, offset: u64, max_len: u64) -> Result<Extent> {
        self.judged(|| self.extent(offset, max_len))
    }

    fn own_part(&self, range: ByteRange) -> Result<OwnPart> {
        self.check_bounds(range.start(), range.len())?;
        self.judged(|| {
            let _in_flight = self.epochs.enter();
            let segment = self.next_segment(range)?;
            Ok(OwnPart {
                answers: !matches!(segment.source, plan::Source::Below(_)),
                end: segment.range.end(),
                stored: match segment.source {
                    plan::Source::Host(host) => Some(host.get()),
                    _ => None,
                },
            })
        })
    }

    fn plain_storage(&self) -> Option<Arc<dyn Storage>> {
        self.data.plain()
    }
}

impl Drop for Qcow2 {
    /// Only tries: whoever wants to know calls `close`.
    fn drop(&mut self) {
        if self.mode == Mode::ReadWrite && !self.failure.has_failed() {
            let _nobody_left_to_tell = self.close();
        }
    }
}
