//! A qcow image of version 1 of any bytes: its header decodes or is refused, and what opens reads without a panic, in bounded
//! memory and time.

use std::sync::Arc;

use cowimg::format::qcow1::{ClusterEntry, Header};
use cowimg::storage::MemoryStorage;
use cowimg::{Format, Image};

use super::read_all;

pub fn run(bytes: &[u8]) {
    // Most inputs are to get past the first fields.
    let rest = bytes.get(Header::START.len()..).unwrap_or(&[]);
    let bytes = [&Header::START[..], rest].concat();
    let Ok(header) = Header::decode(&bytes) else { return };
    // Whatever an entry says, what it decodes to is within the bounds that readers rely on.
    for raw in bytes.as_chunks::<8>().0 {
        match ClusterEntry::decode(u64::from_be_bytes(*raw), &header) {
            Ok(ClusterEntry::Compressed { len, .. }) => assert!(len < header.cluster_size()),
            Ok(ClusterEntry::Data { host }) => assert!(host % 512 == 0 && i64::try_from(host).is_ok()),
            Ok(ClusterEntry::Absent) | Err(_) => {}
        }
    }
    let options = Image::options().format(Format::Qcow).no_backing();
    if let Ok(image) = options.open_storage(Arc::new(MemoryStorage::with_bytes(&bytes))) {
        read_all(&image);
    }
}
