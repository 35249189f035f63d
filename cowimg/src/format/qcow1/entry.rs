//! The entry of an L2 table: where a cluster of the guest is.
//!
//! ```text
//!  bit 63 = 0:  0 | offset of the cluster, a multiple of 512; 0: the backing file has it
//!  bit 63 = 1:  1 | length in bytes, cluster_bits long | offset of the compressed bytes, any byte
//! ```

use super::Header;

const COMPRESSED: u64 = 1 << 63;
const SECTOR_SIZE: u64 = 512;

/// Where a cluster of the guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClusterEntry {
    /// Not in this image.
    Absent,
    /// As it is, or encrypted, at this offset of the file.
    Data {
        /// A multiple of 512.
        host: u64,
    },
    /// Compressed.
    Compressed {
        /// Where the compressed bytes start.
        host: u64,
        /// How many they are; fewer than a cluster's.
        len: u64,
    },
}

/// Why an entry was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryError {
    /// A cluster that starts within a sector.
    #[error("the cluster does not start at a multiple of 512 bytes")]
    Unaligned,
}

impl ClusterEntry {
    /// Bytes that an entry takes.
    pub const LEN: usize = 8;

    /// The entry `raw` of an image with this header.
    pub fn decode(raw: u64, header: &Header) -> Result<ClusterEntry, EntryError> {
        if raw == 0 {
            return Ok(ClusterEntry::Absent);
        }
        if raw & COMPRESSED == 0 {
            let is_aligned = raw & (SECTOR_SIZE - 1) == 0;
            return if is_aligned {
                Ok(ClusterEntry::Data { host: raw })
            } else {
                Err(EntryError::Unaligned)
            };
        }
        let length_at = 63_u32.saturating_sub(header.cluster_bits());
        let host = raw & !(u64::MAX << length_at);
        let len = (raw >> length_at) & header.offset_mask();
        Ok(ClusterEntry::Compressed { host, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(cluster_bits: u8) -> Header {
        let mut bytes = [0; Header::LEN];
        bytes[..8].copy_from_slice(&Header::START);
        bytes[24..32].copy_from_slice(&(1_u64 << 20).to_be_bytes());
        bytes[32..34].copy_from_slice(&[cluster_bits, 9]);
        Header::decode(&bytes).unwrap()
    }

    #[test]
    fn an_entry_is_absent_data_or_compressed() {
        let header = header(12);
        let decode = |raw| ClusterEntry::decode(raw, &header);
        assert_eq!(decode(0), Ok(ClusterEntry::Absent));
        assert_eq!(decode(0x2000), Ok(ClusterEntry::Data { host: 0x2000 }));
        assert_eq!(decode(0x2001), Err(EntryError::Unaligned));
        let packed = COMPRESSED | 0x123 << 51 | 0x4567;
        assert_eq!(decode(packed), Ok(ClusterEntry::Compressed { host: 0x4567, len: 0x123 }));
        let largest = Ok(ClusterEntry::Compressed { host: (1 << 51) - 1, len: 4095 });
        assert_eq!(decode(u64::MAX), largest);
    }

    #[test]
    fn the_width_of_a_length_follows_the_cluster_size() {
        for bits in 9..=16 {
            let raw = COMPRESSED | 5 << (63 - u32::from(bits)) | 0x4d;
            let expected = ClusterEntry::Compressed { host: 0x4d, len: 5 };
            assert_eq!(ClusterEntry::decode(raw, &header(bits)), Ok(expected));
        }
    }
}
