//! Bitmaps as they stand in the file, and which of them can be used.
//!
//! An image that is open for writing has its tables read at once: its bitmaps' clusters are marked as metadata, so that
//! no guest data is written over them, and a bitmap that claims clusters of something else is found.

use std::collections::HashSet;

use super::State;
use super::bits::{Bits, Budget};
use super::{Bitmap, Bitmaps, MAX_RECORDED, Standing};
use crate::corruption::Corruption;
use crate::error::{Error, ErrorKind, Result};
use crate::format::qcow2::{BitmapEntry, BitmapTableEntry, Geometry, Header, HostOffset, TABLE_ENTRY_SIZE};
use crate::limits::Limits;
use crate::qcow2::metadata_map::MetadataMap;
use crate::qcow2::sync::Mutex;
use crate::qcow2::sync::atomic::AtomicBool;
use crate::storage::{Storage, StorageExt};

/// The most bytes of bitmap tables that an image may have to be written. Each 8 bytes stand for a cluster of bits.
pub(super) const MAX_TABLES: u64 = 64 << 20;

/// The directory's entries, as far as they can be decoded.
pub(crate) fn read_directory(
    storage: &dyn Storage,
    header: &Header,
    limits: &Limits,
) -> Result<Vec<BitmapEntry>> {
    let Some(extension) = header.bitmaps() else { return Ok(Vec::new()) };
    limits.check_bitmaps(extension.count)?;
    limits.check_table("the bitmap directory", extension.directory_size)?;
    let len = storage.len().map_err(|error| Error::io("read the length of the file", error))?;
    let host = extension.directory.get();
    if host.saturating_add(extension.directory_size) > len {
        return Err(Corruption::PastEnd { what: "the bitmap directory", host, file_len: len }.into());
    }
    let mut bytes = vec![0; extension.directory_size as usize];
    storage.read_exact_at(&mut bytes, host).map_err(|error| Error::io("read the bitmap directory", error))?;
    BitmapEntry::decode_directory(&bytes, extension.count)
        .map_err(|error| Corruption::BitmapDirectory(error.to_string()).into())
}

impl Bitmaps {
    /// The bitmaps of an image that has just been opened; where `map` is given it is open for writing, and what the
    /// bitmaps have is marked there.
    pub(in crate::qcow2) fn open(
        storage: &dyn Storage,
        (header, limits): (&Header, &Limits),
        map: Option<&MetadataMap>,
    ) -> Result<Bitmaps> {
        let state = match map {
            Some(_) => State::read(storage, (header, limits), map)?,
            None => State::empty(),
        };
        let recording = AtomicBool::new(state.list.iter().any(Bitmap::records));
        let present = AtomicBool::new(!state.list.is_empty());
        Ok(Bitmaps { recording, present, state: Mutex::new(state) })
    }
}

impl State {
    fn empty() -> State {
        State {
            loaded: false,
            list: Vec::new(),
            budget: Budget::new(MAX_RECORDED),
            directory: None,
            relisted: false,
            removed: Vec::new(),
        }
    }

    pub(super) fn read(
        storage: &dyn Storage,
        (header, limits): (&Header, &Limits),
        map: Option<&MetadataMap>,
    ) -> Result<State> {
        let mut state = State { loaded: true, ..State::empty() };
        let Some(extension) = header.bitmaps() else { return Ok(state) };
        let entries = read_directory(storage, header, limits)?;
        state.directory = Some((extension.directory, extension.directory_size));
        let mut flags_at = extension.directory.get() + BitmapEntry::FLAGS_OFFSET;
        for entry in entries {
            let len = entry.stored_len();
            state.list.push(Bitmap::stored(entry, header, flags_at));
            flags_at += len;
        }
        if let Some(map) = map {
            check_directory(&state, flags_at - BitmapEntry::FLAGS_OFFSET)?;
            mark_clusters(&mut state, storage, (&header.geometry(), limits), map)?;
        }
        Ok(state)
    }
}

/// What QEMU does not open the image for. To write it would be to leave bitmaps that nobody can keep up to date.
fn check_directory(state: &State, end: u64) -> Result<()> {
    let Some((offset, size)) = state.directory else { return Ok(()) };
    let refused = |why: &str| Err(Corruption::BitmapDirectory(why.to_owned()).into());
    if offset.get() + size != end {
        return refused("the bitmap directory is longer than its entries");
    }
    let names: HashSet<&[u8]> = state.list.iter().map(|bitmap| bitmap.entry.name.as_slice()).collect();
    if names.len() != state.list.len() {
        return refused("the bitmap directory has two bitmaps of one name");
    }
    Ok(())
}

impl Bitmap {
    /// A bitmap of the file whose table has not been read.
    fn stored(entry: BitmapEntry, header: &Header, flags_at: u64) -> Bitmap {
        let standing = standing(&entry, &header.geometry(), header.size);
        let stored_bits = match standing {
            Standing::Usable => header.size.div_ceil(1 << entry.granularity_bits),
            _ => 0,
        };
        Bitmap {
            entry,
            standing,
            table: None,
            owns_clusters: false,
            flags_at: Some(flags_at),
            marked: false,
            stored_bits,
            resized: false,
            recorded: Bits::default(),
        }
    }
}

fn standing(entry: &BitmapEntry, g: &Geometry, size: u64) -> Standing {
    let table_bytes = u64::from(entry.table_entries) * g.cluster_size();
    if let Some(why) = entry.table_problem(g).or_else(|| entry.problem(g, size)) {
        return Standing::Unusable(why);
    }
    if table_bytes > BitmapEntry::MAX_BYTES {
        return Standing::Unusable("its table is empty or too long");
    }
    if !entry.extra.is_empty() && entry.flags & BitmapEntry::EXTRA_COMPATIBLE == 0 {
        return Standing::Unusable("it has extra data that is not known");
    }
    if entry.flags & BitmapEntry::IN_USE != 0 {
        return Standing::Inconsistent;
    }
    Standing::Usable
}

/// Reads the table of a bitmap, which has been found to have one.
pub(super) fn read_table(
    storage: &dyn Storage,
    entry: &BitmapEntry,
    g: &Geometry,
) -> Result<Vec<BitmapTableEntry>> {
    let file_len = storage.len().map_err(|error| Error::io("read the length of the file", error))?;
    let host = entry.table.get();
    let len = u64::from(entry.table_entries) * TABLE_ENTRY_SIZE;
    let past_end = |what, host| Error::from(Corruption::PastEnd { what, host, file_len });
    if host.saturating_add(len) > file_len {
        return Err(past_end("a bitmap's table", host));
    }
    let mut bytes = vec![0; len as usize];
    storage.read_exact_at(&mut bytes, host).map_err(|error| Error::io("read a bitmap's table", error))?;
    let (raw, _) = bytes.as_chunks::<8>();
    raw.iter()
        .map(|raw| {
            let raw = u64::from_be_bytes(*raw);
            match BitmapTableEntry::decode(raw, g) {
                Ok(BitmapTableEntry::Cluster(at)) if at.get() >= file_len => {
                    Err(past_end("a bitmap's cluster", at.get()))
                }
                Ok(entry) => Ok(entry),
                Err(why) => {
                    let name = String::from_utf8_lossy(&entry.name).into_owned();
                    Err(Corruption::BitmapTable { name, entry: raw, why }.into())
                }
            }
        })
        .collect()
}

/// Reads the tables, and marks what the bitmaps have.
fn mark_clusters(
    state: &mut State,
    storage: &dyn Storage,
    (g, limits): (&Geometry, &Limits),
    map: &MetadataMap,
) -> Result<()> {
    if state.directory.is_some_and(|(offset, size)| !claim(map, g, offset, size)) {
        let why = "the bitmap directory lies where another table is".to_owned();
        return Err(Corruption::BitmapDirectory(why).into());
    }
    let readable = |bitmap: &&mut Bitmap| {
        let bytes = u64::from(bitmap.entry.table_entries) * g.cluster_size();
        bitmap.entry.table_problem(g).is_none() && bytes <= BitmapEntry::MAX_BYTES
    };
    let (what, mut taken) = ("the tables of the image's bitmaps", 0);
    for bitmap in state.list.iter_mut().filter(readable) {
        let bytes = u64::from(bitmap.entry.table_entries) * TABLE_ENTRY_SIZE;
        taken += bytes;
        limits.check_table(what, taken)?;
        if taken > MAX_TABLES {
            return Err(Error::new(ErrorKind::LimitExceeded { what, bytes: taken, limit: MAX_TABLES }));
        }
        match read_table(storage, &bitmap.entry, g) {
            Ok(table) => {
                bitmap.owns_clusters = claim_all(map, g, (bitmap.entry.table, bytes), &table);
                if bitmap.owns_clusters {
                    bitmap.table = Some(table);
                } else {
                    bitmap.distrust("it shares clusters with something else");
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt(_)) => {
                bitmap.distrust("its table makes no sense");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Bitmap {
    fn distrust(&mut self, why: &'static str) {
        if self.standing == Standing::Usable {
            self.standing = Standing::Unusable(why);
            self.stored_bits = 0;
        }
    }
}

/// Marks a table and what it names, unless a part of it is marked for something else.
fn claim_all(
    map: &MetadataMap,
    g: &Geometry,
    (table, bytes): (HostOffset, u64),
    entries: &[BitmapTableEntry],
) -> bool {
    claim(map, g, table, bytes)
        && entries.iter().all(|entry| match entry {
            BitmapTableEntry::Cluster(at) => claim(map, g, *at, 1),
            BitmapTableEntry::Zeroes | BitmapTableEntry::Ones => true,
        })
}

fn claim(map: &MetadataMap, g: &Geometry, offset: HostOffset, bytes: u64) -> bool {
    let (first, count) = (g.host_cluster(offset).get(), g.clusters_for(bytes));
    let free = map.first_marked(first, count).is_none();
    if free {
        map.mark(first, count);
    }
    free
}
