//! A snapshot table of any bytes decodes or is refused; what decodes, encodes to the same snapshots. The input is the number
//! of snapshots and the table.

use cowimg::format::qcow2::Snapshot;

pub fn run(bytes: &[u8]) {
    let Some((&count, table)) = bytes.split_first() else { return };
    let Ok((snapshots, used)) = Snapshot::decode_table(table, u32::from(count)) else { return };
    // The padding after the last snapshot may be missing.
    assert!(used < table.len() + 8);
    assert_eq!(snapshots.len(), usize::from(count));
    for snapshot in snapshots {
        let encoded = snapshot.encode();
        let (again, _) = Snapshot::decode(&encoded).expect("what was encoded decodes");
        assert_eq!(snapshot, again);
    }
}
