//! Persistent dirty bitmaps: which parts of the disk were written, kept in the image across its uses.
//!
//! | file | what it is for |
//! |---|---|
//! | `load` | the directory and the tables as they stand in the file, and which bitmaps can be trusted |
//! | `bits` | what a bitmap has recorded since |
//! | `content` | both together: ranges, merging |
//! | `edit` | adding, removing, enabling, disabling, clearing |
//! | `save` | the flag "in use" before a change, the content at the end |
//! | `resize` | what becomes of bitmaps when the disk changes its size |
//!
//! # What is in the file when
//!
//! ```text
//! opened          nothing changes in the file
//! first change    "in use" is set, durably, for every bitmap that records; then the guest's data changes
//! in between      a bitmap's content is in memory: stored bits, and those recorded since. A flush saves no bitmap
//! closed          content saved, durable; then "in use" cleared
//! ```
//!
//! So a bitmap whose writer died says so, and is never trusted again: it is shown as in use, cannot be read, enabled,
//! cleared or merged, and can be removed. That is QEMU's way, except that QEMU sets the flag when it opens an image.
//!
//! All changes to bitmaps are saved at the close. Until then the file has none of them.
//!
//! A bitmap that cannot be used (unknown type, unknown extra data, a table that makes no sense) is kept as it is;
//! "in use" is set for one that would have to record.
//!
//! # Memory
//!
//! Tables are in memory while the image is open for writing, at most [`load::MAX_TABLES`] bytes; what is recorded takes
//! memory in proportion, at most [`MAX_RECORDED`] bytes. Beyond that a bitmap says that all has changed.

mod bits;
mod content;
mod edit;
mod load;
mod resize;
mod save;

use std::sync::PoisonError;

pub use content::BitmapRanges;
pub use edit::{NewBitmap, Recording};
pub(crate) use load::read_directory as read_bitmap_directory;

use self::bits::{Bits, Budget};
use super::Qcow2;
use super::metadata::Freed;
use super::sync::atomic::{AtomicBool, Ordering};
use super::sync::{Mutex, MutexGuard};
use crate::error::{BitmapProblem, Error, ErrorKind, Result};
use crate::format::qcow2::{BitmapEntry, BitmapTableEntry, HostOffset};
use crate::range::ByteRange;

/// Memory for what the bitmaps of an image have recorded: as much as one bitmap may have in QEMU.
const MAX_RECORDED: u64 = BitmapEntry::MAX_BYTES;

/// A bitmap that an image stores.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BitmapInfo {
    /// Its name.
    pub name: Vec<u8>,
    /// Guest bytes that one bit stands for.
    pub granularity: u64,
    /// It was not saved properly, so that its content means nothing.
    pub in_use: bool,
    /// It records every write.
    pub auto: bool,
}

impl BitmapInfo {
    /// What an entry of the directory says.
    pub(crate) fn of(entry: &BitmapEntry) -> BitmapInfo {
        BitmapInfo {
            granularity: 1 << entry.granularity_bits.min(63),
            in_use: entry.flags & BitmapEntry::IN_USE != 0,
            auto: entry.flags & BitmapEntry::AUTO != 0,
            name: entry.name.clone(),
        }
    }
}

/// The bitmaps of an open image.
#[derive(Debug)]
pub(super) struct Bitmaps {
    /// Whether any bitmap records: all that a write looks at where none does.
    recording: AtomicBool,
    /// Whether there is any bitmap, for an image that is open for writing.
    present: AtomicBool,
    state: Mutex<State>,
}

/// What the lock of the bitmaps protects.
#[derive(Debug)]
struct State {
    /// Whether `list` is the image's; one that is open for reading is looked at when somebody asks.
    loaded: bool,
    list: Vec<Bitmap>,
    budget: Budget,
    /// Offset and size of the directory in the file.
    directory: Option<(HostOffset, u64)>,
    /// The file's directory lists other bitmaps than `list`.
    relisted: bool,
    /// What removed bitmaps had, to be freed when the directory no longer names them.
    removed: Vec<Freed>,
}

/// Whether a bitmap can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Usable,
    /// In use when the image was opened: its writer died.
    Inconsistent,
    /// It contradicts the specification, or has what is not known here.
    Unusable(&'static str),
}

/// A bitmap in memory.
#[derive(Debug)]
struct Bitmap {
    /// Name, granularity, flags (without "in use" where that is only because this image is open) and the table's place.
    entry: BitmapEntry,
    standing: Standing,
    /// The table in the file; none where it was not loaded.
    table: Option<Vec<BitmapTableEntry>>,
    /// The table and its clusters are the bitmap's alone, to be freed with it.
    owns_clusters: bool,
    /// Where the flags stand in the file; none for a bitmap that was not saved yet.
    flags_at: Option<u64>,
    /// The flag "in use" is set in the file for as long as this image is open, so that content is to be saved.
    marked: bool,
    /// Bits of the stored content that count: less than all after a clear or a resize.
    stored_bits: u64,
    /// The disk's size changed since the content was stored.
    resized: bool,
    recorded: Bits,
}

impl Bitmap {
    fn records(&self) -> bool {
        self.standing == Standing::Usable && self.entry.flags & BitmapEntry::AUTO != 0
    }

    /// Bits of a bitmap for a disk of `size` bytes.
    fn bits_for(&self, size: u64) -> u64 {
        size.div_ceil(1 << self.entry.granularity_bits)
    }

    /// Records that a range of the disk changed.
    fn record(&mut self, range: ByteRange, budget: &mut Budget) {
        if !range.is_empty() {
            let shift = self.entry.granularity_bits;
            self.recorded.set(range.start() >> shift..((range.end() - 1) >> shift) + 1, budget);
        }
    }

    fn info(&self) -> BitmapInfo {
        BitmapInfo::of(&self.entry)
    }

    /// Refuses what must not be used.
    fn check_usable(&self) -> Result<()> {
        match self.standing {
            Standing::Usable => Ok(()),
            Standing::Inconsistent => Err(problem(&self.entry.name, BitmapProblem::Inconsistent)),
            Standing::Unusable(why) => Err(problem(&self.entry.name, BitmapProblem::Unusable { why })),
        }
    }
}

/// A change that goes on. It is recorded at its end: a bitmap that is cleared meanwhile must not lose it.
#[derive(Debug)]
#[must_use]
pub(super) struct Recorded<'a> {
    image: &'a Qcow2,
    range: ByteRange,
}

impl Drop for Recorded<'_> {
    fn drop(&mut self) {
        if self.image.bitmaps.recording.load(Ordering::Relaxed) {
            self.image.record_in_bitmaps(self.range);
        }
    }
}

/// An error about one bitmap.
fn problem(name: &[u8], problem: BitmapProblem) -> Error {
    Error::new(ErrorKind::Bitmap { name: String::from_utf8_lossy(name).into_owned(), problem })
}

impl State {
    fn index_of(&self, name: &[u8]) -> Result<usize> {
        let found = self.list.iter().position(|bitmap| bitmap.entry.name == name);
        found.ok_or_else(|| problem(name, BitmapProblem::NotFound))
    }

    fn find(&mut self, name: &[u8]) -> Result<&mut Bitmap> {
        let index = self.index_of(name)?;
        Ok(&mut self.list[index])
    }
}

impl Qcow2 {
    fn lock_bitmaps(&self) -> MutexGuard<'_, State> {
        self.bitmaps.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, with the directory loaded.
    fn loaded_bitmaps(&self) -> Result<MutexGuard<'_, State>> {
        let mut state = self.lock_bitmaps();
        if !state.loaded {
            let loaded = State::read(&*self.storage, (&self.header(), &self.limits), None)?;
            *state = loaded;
        }
        Ok(state)
    }

    /// The bitmaps in the order of the directory, new ones last. One that is marked in use in the file only because it is
    /// open here is not called in use.
    pub(crate) fn bitmaps(&self) -> Result<Vec<BitmapInfo>> {
        Ok(self.loaded_bitmaps()?.list.iter().map(Bitmap::info).collect())
    }

    /// Whether an image that is open for writing has any bitmap, saved or not. Takes no lock.
    pub(crate) fn has_bitmaps(&self) -> bool {
        self.bitmaps.present.load(Ordering::Acquire)
    }

    /// A change of a range of the disk, which the bitmaps that record are told of when it is dropped. Whether the change
    /// succeeded or not: it may have done a part.
    pub(super) fn recorded(&self, range: ByteRange) -> Recorded<'_> {
        Recorded { image: self, range }
    }

    fn record_in_bitmaps(&self, range: ByteRange) {
        let mut state = self.lock_bitmaps();
        let State { list, budget, .. } = &mut *state;
        list.iter_mut().filter(|bitmap| bitmap.records()).for_each(|bitmap| bitmap.record(range, budget));
    }

    /// To be called after every change of a flag or of the list.
    fn note_recording(&self, state: &State) {
        self.bitmaps.recording.store(state.list.iter().any(Bitmap::records), Ordering::Release);
        self.bitmaps.present.store(!state.list.is_empty(), Ordering::Release);
    }
}
