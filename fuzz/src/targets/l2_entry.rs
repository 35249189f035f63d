//! An L2 entry that decodes, encodes to the same meaning, for every cluster size and both versions. The input is an entry,
//! a cluster size and a version.

use cowimg::format::qcow2::{Geometry, L2Entry, Version};

pub fn run(bytes: &[u8]) {
    let Some((raw, [bits, version, ..])) = bytes.split_first_chunk::<8>() else { return };
    let Ok(geometry) = Geometry::new(9 + u32::from(*bits) % 13, 4) else { return };
    let version = if version % 2 == 0 { Version::V3 } else { Version::V2 };
    let Ok(entry) = L2Entry::decode(u64::from_be_bytes(*raw), &geometry, version) else { return };
    let again = L2Entry::decode(entry.encode(&geometry), &geometry, version);
    assert_eq!(again, Ok(entry));
}
