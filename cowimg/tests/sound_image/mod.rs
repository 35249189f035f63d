//! Sound images in memory, and the places of their header, to be damaged or held to limits.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::sync::Arc;

use cowimg::format::qcow2::layout::{FreshEncryption, FreshParams, LazyRefcounts, Preallocation, plan};
use cowimg::format::qcow2::{CompressionType, Geometry, Version};
use cowimg::storage::{MemoryStorage, Storage, StorageExt};
use cowimg::{Access, Format, Image, NewBitmap, NewSnapshot, Result};

// Where a header has its fields.
pub(crate) const L1_ENTRIES: usize = 36;
pub(crate) const L1_OFFSET: usize = 40;
pub(crate) const REFCOUNT_CLUSTERS: usize = 56;
pub(crate) const SNAPSHOT_COUNT: usize = 60;
pub(crate) const SNAPSHOT_TABLE: usize = 64;

/// A disk of so many bytes, with nothing special.
pub(crate) fn params(cluster_bits: u32, size: u64) -> FreshParams {
    FreshParams {
        version: Version::V3,
        geometry: Geometry::new(cluster_bits, 4).expect("a geometry of the format"),
        size,
        lazy_refcounts: LazyRefcounts::Off,
        compression: CompressionType::Deflate,
        preallocation: Preallocation::Off,
        backing: None,
        data_file: None,
        encryption: FreshEncryption::None,
    }
}

/// The image as it is created.
pub(crate) fn fresh(params: &FreshParams) -> Arc<MemoryStorage> {
    let layout = plan(params).expect("the image can be laid out");
    let storage = MemoryStorage::new();
    storage.set_len(layout.file_len()).expect("memory can grow");
    for piece in layout.pieces() {
        storage.write_all_at(&piece.bytes, piece.offset.get()).expect("memory can be written");
    }
    Arc::new(storage)
}

pub(crate) fn open(storage: &Arc<MemoryStorage>, access: Access) -> Result<Image> {
    Image::options().format(Format::Qcow2).access(access).open_storage(storage.clone())
}

/// A sound image with data, a snapshot and a bitmap in clusters of this size.
pub(crate) fn sound(cluster_bits: u32, compression: CompressionType) -> Arc<MemoryStorage> {
    let storage = fresh(&FreshParams { compression, ..params(cluster_bits, 1 << 20) });
    let image = open(&storage, Access::ReadWrite).expect("it opens");
    image.write_at(&vec![1; 100_000], 0).expect("it takes data");
    image
        .create_snapshot(&NewSnapshot { name: b"one".to_vec(), ..NewSnapshot::default() })
        .expect("a snapshot");
    image.write_at(&[2; 1000], 5000).expect("it takes data");
    image.add_bitmap("b", &NewBitmap::default()).expect("a bitmap");
    image.close().expect("it closes");
    storage
}

/// Writes where the image is.
pub(crate) fn put(storage: &MemoryStorage, at: u64, bytes: &[u8]) {
    storage.write_all_at(bytes, at).expect("memory can be written");
}

/// The number of 64 bits there.
pub(crate) fn word(storage: &MemoryStorage, at: u64) -> u64 {
    let mut bytes = [0; 8];
    storage.read_exact_at(&mut bytes, at).expect("memory can be read");
    u64::from_be_bytes(bytes)
}

/// A copy with other bytes there.
pub(crate) fn changed(storage: &MemoryStorage, at: usize, bytes: &[u8]) -> Arc<MemoryStorage> {
    let copy = MemoryStorage::copy_of(storage).expect("memory can be copied");
    put(&copy, at as u64, bytes);
    Arc::new(copy)
}
