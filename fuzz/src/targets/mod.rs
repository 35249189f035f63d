//! What each fuzz target does with its input: the body of `fuzz_targets/NAME.rs`. All take any bytes, and panic where
//! something is as it must never be.

pub mod bitmaps;
pub mod header;
pub mod image;
pub mod l2_entry;
pub mod luks;
pub mod luks_header;
pub mod qcow1;
pub mod repair;
pub mod snapshot_table;

use std::sync::Arc;

use cowimg::storage::{MemoryStorage, Storage, StorageExt};
use cowimg::{ByteRange, Image};

/// A hostile image may be exabytes long: so many of its extents are looked at, and so many bytes of each.
const EXTENTS: usize = 64;
const BYTES: usize = 16 << 10;

/// The most bytes of a file that are compared: one that has grown beyond is sparse.
const COMPARED: u64 = 4 << 20;

fn read_all(image: &Image) {
    let mut buffer = [0; BYTES];
    for extent in image.extents(ByteRange::between(0, image.size())).take(EXTENTS).map_while(Result::ok) {
        assert!(!extent.range.is_empty() && extent.range.end() <= image.size(), "{extent:?}");
        let len = extent.range.len().min(BYTES as u64) as usize;
        let _ = image.read_at(&mut buffer[..len], extent.range.start());
    }
    assert!(
        image.read_at(&mut buffer[..1], image.size()).is_err(),
        "there is nothing past the end of the disk"
    );
}

/// The first bytes of a storage.
fn bytes_of(storage: &MemoryStorage) -> Vec<u8> {
    let len = storage.len().expect("memory tells its length").min(COMPARED);
    let mut bytes = vec![0; len as usize];
    storage.read_padded_at(&mut bytes, 0).expect("memory can be read");
    bytes
}

/// A copy that changes do not reach.
fn copy(storage: &MemoryStorage) -> Arc<MemoryStorage> {
    if storage.len().is_ok_and(|len| len <= COMPARED) {
        return Arc::new(MemoryStorage::with_bytes(storage.to_vec()));
    }
    Arc::new(MemoryStorage::copy_of(storage).expect("memory can be copied"))
}
