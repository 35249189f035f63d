//! A header that decodes is one that encodes, and decodes to the same value again.

use cowimg::format::qcow2::Header;

pub fn run(bytes: &[u8]) {
    let Ok(header) = Header::decode(bytes) else { return };
    // What the accessors derive must not panic for any header that was accepted.
    let _ = (header.geometry(), header.feature_names(), header.bitmaps(), header.unknown_incompatible());
    let Ok(encoded) = header.encode() else { return };
    let again = Header::decode(&encoded).expect("what was encoded decodes");
    assert_eq!(header, again);
}
