//! The header of a LUKS volume of any bytes decodes or is refused; what decodes, encodes to the same header.

use cowimg::format::luks::LuksHeader;

pub fn run(bytes: &[u8]) {
    let _ = LuksHeader::is_at_start_of(bytes);
    let Ok(header) = LuksHeader::decode(bytes) else { return };
    let _ = (header.payload_start(), header.is_detached());
    assert!(header.material_len() <= 64 * LuksHeader::STRIPES as usize);
    let encoded = header.encode();
    assert_eq!(encoded.len(), LuksHeader::LEN);
    assert_eq!(LuksHeader::decode(&encoded), Ok(header), "what was encoded decodes");
}
