//! An L2 entry that decodes, encodes to the same meaning, for every cluster size and both versions.
#![no_main]

use cowimg::format::qcow2::{Geometry, L2Entry, Version};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u64, u8, bool)| {
    let (raw, bits, is_v3) = input;
    let Ok(geometry) = Geometry::new(9 + u32::from(bits) % 13, 4) else { return };
    let version = if is_v3 { Version::V3 } else { Version::V2 };
    let Ok(entry) = L2Entry::decode(raw, &geometry, version) else { return };
    let again = L2Entry::decode(entry.encode(&geometry), &geometry, version);
    assert_eq!(again, Ok(entry));
});
