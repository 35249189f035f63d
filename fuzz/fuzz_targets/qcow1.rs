//! A qcow image of version 1 of any bytes: its header decodes or is refused, and what opens reads without a panic, in bounded
//! memory and time.
#![no_main]

use std::sync::Arc;

use cowimg::format::qcow1::{ClusterEntry, Header};
use cowimg::storage::MemoryStorage;
use cowimg::{ByteRange, FilePolicy, Format, Image, Result};
use libfuzzer_sys::fuzz_target;

/// The disk may be larger than anything that could be read: so many of its extents are looked at, and so many bytes of
/// each.
const EXTENTS: usize = 64;
const BYTES: usize = 16 << 10;

fuzz_target!(|input: (u64, &[u8])| {
    let (raw, rest) = input;
    // Most inputs are to get past the first field.
    let bytes = [&Header::START[..], rest].concat();
    let Ok(header) = Header::decode(&bytes) else { return };
    // Whatever an entry says, what it decodes to is within the bounds that readers rely on.
    match ClusterEntry::decode(raw, &header) {
        Ok(ClusterEntry::Compressed { len, .. }) => assert!(len < header.cluster_size()),
        Ok(ClusterEntry::Data { host }) => assert!(host % 512 == 0 && host <= i64::MAX as u64),
        Ok(ClusterEntry::Absent) | Err(_) => {}
    }
    let options = Image::options().format(Format::Qcow).backing(FilePolicy::DenyAll);
    let Ok(image) = options.open_storage(Arc::new(MemoryStorage::with_bytes(&bytes))) else { return };
    let mut buffer = [0; BYTES];
    for extent in image.extents(ByteRange::between(0, image.size())).take(EXTENTS).map_while(Result::ok) {
        let len = extent.range.len().min(BYTES as u64) as usize;
        let _ = image.read_at(&mut buffer[..len], extent.range.start());
    }
});
