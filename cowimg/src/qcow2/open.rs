//! From a storage to an engine, and what is refused on the way, by name.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use super::bitmaps::Bitmaps;
use super::check::{Repair, check_header, repair_storage_with};
use super::compressed::Decompressed;
use super::failed::Failure;
use super::guest_data::{DataOptions, GuestData};
use super::in_flight::{ClusterLocks, Epochs};
use super::l1_table::L1Table;
use super::metadata::Metadata;
use super::metadata_map::MetadataMap;
use super::refcounts::Refcounts;
use super::snapshot_table::read_snapshots;
use super::sync::atomic::{AtomicBool, AtomicU64};
use super::sync::{Arc, Mutex, RwLock};
use super::table_cache::{MAX_SLICE_BYTES, TableCache};
use super::{Mode, Qcow2};
use crate::corruption::Corruption;
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::format::qcow2::{CryptMethod, Geometry, Header, HeaderError, HostOffset, Incompatible, L1Entry};
use crate::limits::Limits;
use crate::progress::Control;
use crate::storage::{Storage, StorageExt};

/// How an image is opened.
#[derive(Debug)]
pub(crate) struct Qcow2Options {
    /// Whether it may be changed.
    pub(crate) writable: bool,
    /// Bytes of metadata that are kept in memory: L2 tables in four fifths, refcount blocks in the rest.
    pub(crate) cache_bytes: u64,
    /// How much the image may ask for.
    pub(crate) limits: Limits,
    /// Where the guest's data is. Whoever opens an image with a data file, or an encrypted one, says so here.
    pub(crate) data: DataOptions,
}

/// Bytes that are read first of an image; all that is in the header nearly always.
const FIRST_LOOK: usize = 4096;

impl Qcow2 {
    /// Reads and validates the header at the start of `storage`.
    pub(crate) fn read_header(storage: &dyn Storage) -> Result<Header> {
        let io = |error| Error::io("read the header", error);
        let mut start = [0; FIRST_LOOK];
        let len = storage.len().map_err(io)?.min(FIRST_LOOK as u64) as usize;
        storage.read_exact_at(&mut start[..len], 0).map_err(io)?;
        // Of a cluster that is larger the rest tells nothing more, unless the list of extensions reaches that far.
        match Header::decode(&start[..len]) {
            Ok(header) if header.extensions_end() <= len as u64 => Ok(header),
            _ => Self::decode_header(&Self::read_header_cluster(storage)?),
        }
    }

    /// Reads the header's cluster, or as much of it as there is.
    pub(super) fn read_header_cluster(storage: &dyn Storage) -> Result<Vec<u8>> {
        let io = |error| Error::io("read the header", error);
        let file_len = storage.len().map_err(io)?;
        // The header is in the first cluster; its size stands in the first bytes.
        let mut start = vec![0; file_len.min(FIRST_LOOK as u64) as usize];
        storage.read_exact_at(&mut start, 0).map_err(io)?;
        if let Some(cluster_bits) = Header::cluster_bits_of(&start) {
            let header_area = file_len.min(1 << cluster_bits) as usize;
            if header_area > start.len() {
                start.resize(header_area, 0);
                storage.read_exact_at(&mut start, 0).map_err(io)?;
            } else {
                start.truncate(header_area);
            }
        }
        Ok(start)
    }

    /// Decodes and validates the header in its cluster.
    pub(super) fn decode_header(cluster: &[u8]) -> Result<Header> {
        Header::decode(cluster).map_err(|error| match error {
            HeaderError::Magic => {
                let why = String::from("it does not start with the bytes \"QFI\\xfb\"");
                Error::new(ErrorKind::WrongFormat { expected: "qcow2", why })
            }
            // Newer than this library, and no worse for it.
            error @ (HeaderError::Version(_) | HeaderError::CompressionType(_)) => {
                Error::unsupported(error.to_string())
            }
            error => Corruption::Header(error).into(),
        })
    }

    /// Opens the image whose header has been read from `storage`, over `backing`.
    pub(crate) fn open(
        storage: Arc<dyn Storage>,
        header: Header,
        backing: Option<Arc<dyn Disk>>,
        options: Qcow2Options,
    ) -> Result<Qcow2> {
        refuse_unsupported(&header, &options.data)?;
        check_header(&header, &options.limits)?;
        let data = GuestData::new(&storage, options.data);
        let mode = if options.writable { Mode::ReadWrite } else { Mode::ReadOnly };
        let header = match mode {
            Mode::ReadWrite => without_dirt(&*storage, header, &options.limits)?,
            Mode::ReadOnly => header,
        };
        if mode == Mode::ReadWrite {
            refuse_writing(&header, &*storage)?;
        }
        let geometry = header.geometry();
        let l1 = L1Table::load(&*storage, &header)?;
        let meta = load_metadata(&*storage, &header, geometry, mode, options.cache_bytes / 5)?;
        let metadata_map = match mode {
            Mode::ReadOnly => MetadataMap::default(),
            Mode::ReadWrite => {
                let map = map_metadata(&l1, &meta, geometry, &*storage)?;
                map_key_material(&map, &header, &*storage)?;
                map_snapshots(&map, (&header, &options.limits), &*storage)?;
                map
            }
        };
        let bitmaps =
            Bitmaps::open(&*storage, (&header, &options.limits), options.writable.then_some(&metadata_map))?;
        let slice_bytes = geometry.cluster_size().min(MAX_SLICE_BYTES);
        Ok(Qcow2 {
            data,
            backing,
            geometry,
            version: header.version,
            compression: header.compression,
            mode,
            size: AtomicU64::new(header.size),
            header: Mutex::new(header),
            l1: RwLock::new(l1),
            slices: TableCache::new(options.cache_bytes / 5 * 4, slice_bytes),
            meta: Mutex::new(meta),
            metadata_map,
            bitmaps,
            change_lock: RwLock::new(()),
            commit_lock: Mutex::new(()),
            cluster_locks: ClusterLocks::default(),
            epochs: Epochs::default(),
            failure: Failure::default(),
            prepared_for_change: AtomicBool::new(false),
            known_len: AtomicU64::new(0),
            decompressed: Decompressed::new(geometry.cluster_size()),
            limits: options.limits,
            preallocated: OnceLock::new(),
            storage,
        })
    }
}

/// Refcounts are read only where they are needed: to write.
fn load_metadata(
    storage: &dyn Storage,
    header: &Header,
    geometry: Geometry,
    mode: Mode,
    cache_bytes: u64,
) -> Result<Metadata> {
    let clusters = match mode {
        Mode::ReadWrite => u64::from(header.refcount_table_clusters),
        Mode::ReadOnly => 0,
    };
    let refcounts = Refcounts::load(storage, geometry, (header.refcount_table, clusters), cache_bytes)?;
    let file_len = storage.len().map_err(|error| Error::io("read the length of the file", error))?;
    Ok(Metadata::new(refcounts, geometry.clusters_for(file_len)))
}

/// Marks every table of the image. One that is said to lie past the end of the file would come to lie in guest data as
/// the file grows, so that such an image is not written.
fn map_metadata(
    l1: &L1Table,
    meta: &Metadata,
    geometry: Geometry,
    storage: &dyn Storage,
) -> Result<MetadataMap> {
    let file_len = storage.len().map_err(|error| Error::io("read the length of the file", error))?;
    let map = MetadataMap::default();
    let mark = |what, host: u64, bytes: u64| {
        if host >= file_len {
            return Err(Error::from(Corruption::PastEnd { what, host, file_len }));
        }
        map.mark(geometry.host_cluster(HostOffset(host)).get(), geometry.clusters_for(bytes));
        Ok(())
    };
    mark("the header", 0, 1)?;
    let (table, clusters) = meta.refcounts.table_location();
    mark("the refcount table", table.get(), clusters * geometry.cluster_size())?;
    for block in meta.refcounts.block_offsets() {
        mark("a refcount block", block.get(), 1)?;
    }
    if !l1.entries.is_empty() {
        mark("the L1 table", l1.offset.get(), l1.entries.len() as u64 * 8)?;
    }
    for raw in l1.entries.iter().filter(|&&raw| raw != 0) {
        // An entry that cannot be decoded is reported when it is met: it names no place that could be marked.
        if let Ok(L1Entry { table: Some(table) }) = L1Entry::decode(*raw, &geometry) {
            mark("an L2 table", table.host.get(), 1)?;
        }
    }
    Ok(map)
}

/// Marks the header of a LUKS volume: without the keys in it, no data can be read again.
fn map_key_material(map: &MetadataMap, header: &Header, storage: &dyn Storage) -> Result<()> {
    let Some((start, len)) = header.crypto_header() else { return Ok(()) };
    let file_len = storage.len().map_err(|error| Error::io("read the length of the file", error))?;
    let geometry = header.geometry();
    let first = geometry.host_cluster(HostOffset(start)).get();
    let end = geometry.clusters_for(start.saturating_add(len).min(file_len));
    map.mark(first, end.saturating_sub(first));
    Ok(())
}

/// Marks the tables of snapshots. One that lies past the end of the file is lost already, and so nothing to protect.
fn map_snapshots(
    map: &MetadataMap,
    (header, limits): (&Header, &Limits),
    storage: &dyn Storage,
) -> Result<()> {
    let geometry = header.geometry();
    let (snapshots, table_len) = read_snapshots(storage, header, limits)?;
    let file_len = storage.len().map_err(|error| Error::io("read the length of the file", error))?;
    let mark = |host: HostOffset, bytes: u64| {
        let end = host.get().saturating_add(bytes).min(file_len);
        if host.get() < end {
            map.mark(geometry.host_cluster(host).get(), geometry.clusters_for(end - host.get()));
        }
    };
    mark(header.snapshot_table, table_len);
    let places: BTreeSet<(u64, u32)> =
        snapshots.iter().map(|snapshot| (snapshot.l1_table.get(), snapshot.l1_entries)).collect();
    for (l1_table, l1_entries) in places {
        let bytes = u64::from(l1_entries) * 8;
        mark(HostOffset(l1_table), bytes);
        let within = bytes.min(Header::MAX_L1_BYTES).min(file_len.saturating_sub(l1_table));
        let mut entries = vec![0; within as usize];
        storage
            .read_padded_at(&mut entries, l1_table)
            .map_err(|error| Error::io("read a snapshot's L1 table", error))?;
        for raw in entries.as_chunks::<8>().0 {
            if let Ok(L1Entry { table: Some(table) }) = L1Entry::decode(u64::from_be_bytes(*raw), &geometry) {
                mark(table.host, 1);
            }
        }
    }
    Ok(())
}

/// What this version cannot read without mistaking it for something else.
fn refuse_unsupported(header: &Header, data: &DataOptions) -> Result<()> {
    let unknown = header.unknown_incompatible();
    if !unknown.is_empty() {
        return Err(Error::unsupported(format!(
            "the image uses features that are not known here: {}",
            unknown.join(", ")
        )));
    }
    if let CryptMethod::Other(method) = header.crypt_method {
        return Err(Error::unsupported(format!("the image uses the unknown encryption method {method}")));
    }
    // Never is ciphertext taken for data, or the image's own file for its data file.
    if header.crypt_method != CryptMethod::None && data.cipher.is_none() {
        return Err(Error::new(ErrorKind::PassphraseNeeded));
    }
    if header.incompatible.contains(Incompatible::DATA_FILE) && data.file.is_none() {
        return Err(Error::unsupported(
            "the image has an external data file, which must be opened beside it",
        ));
    }
    Ok(())
}

/// An image that was not closed after it was written with lazy refcounts gets them right before it is written again (W6).
/// Damaged tables are not touched: what becomes of them is for somebody to decide who has asked for a repair.
fn without_dirt(storage: &dyn Storage, header: Header, limits: &Limits) -> Result<Header> {
    let is_marked = |mark| header.incompatible.contains(mark);
    if !is_marked(Incompatible::DIRTY) || is_marked(Incompatible::CORRUPT) || storage.is_read_only() {
        return Ok(header);
    }
    repair_storage_with(storage, Repair::Refcounts, limits, &Control::default())?;
    Qcow2::read_header(storage)
}

/// What this version reads and must not write.
fn refuse_writing(header: &Header, storage: &dyn Storage) -> Result<()> {
    if storage.is_read_only() {
        return Err(Error::new(ErrorKind::ReadOnly));
    }
    if header.incompatible.contains(Incompatible::CORRUPT) {
        return Err(Error::new(ErrorKind::MarkedCorrupt { met: None }));
    }
    if header.incompatible.contains(Incompatible::DIRTY) {
        return Err(Error::unsupported(
            "the image is marked dirty: its refcounts must be repaired before it is written (qemu-img check -r all)",
        ));
    }
    Ok(())
}
