//! A snapshot table of any bytes decodes or is refused; what decodes, encodes to the same snapshots.
#![no_main]

use cowimg::format::qcow2::Snapshot;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8])| {
    let (count, bytes) = input;
    let Ok((snapshots, used)) = Snapshot::decode_table(bytes, u32::from(count)) else { return };
    // The padding after the last snapshot may be missing.
    assert!(used < bytes.len() + 8);
    assert_eq!(snapshots.len(), usize::from(count));
    for snapshot in snapshots {
        let encoded = snapshot.encode();
        let (again, _) = Snapshot::decode(&encoded).expect("what was encoded decodes");
        assert_eq!(snapshot, again);
    }
});
