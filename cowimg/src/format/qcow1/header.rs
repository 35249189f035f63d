//! The header of a qcow image of version 1, and the arithmetic that follows from it.
//!
//! ```text
//! offset  size  field
//!  0      4     "QFI\xfb"
//!  4      4     version: 1
//!  8      8     where the backing file's name is; 0: no backing file
//! 16      4     length of that name, at most 1023
//! 20      4     modification time of the backing file, which nobody keeps
//! 24      8     size of the disk in bytes, at least 2
//! 32      1     log2 of the cluster size: 9 to 16
//! 33      1     log2 of the number of entries in an L2 table: 6 to 13
//! 34      2     unused
//! 36      4     encryption: 0 none, 1 AES
//! 40      8     where the L1 table is
//! ```

use std::ops::Range;

/// Sizes of disks are counted in these; a last part of one is not seen.
const SECTOR_SIZE: u64 = 512;
const L1_ENTRY_SIZE: u64 = 8;

/// How the guest's data is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CryptMethod {
    /// It is not.
    None,
    /// AES with 128 bits, chained within a sector, numbered by the guest's sectors.
    Aes,
}

/// A header that was found sound: what is derived from it does not overflow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Where in the file the backing file's name is, as bytes; at most [`Header::MAX_BACKING_NAME`] long.
    pub backing_name: Option<Range<u64>>,
    /// Size of the disk in bytes, a multiple of 512.
    pub size: u64,
    /// log2 of the cluster size.
    cluster_bits: u32,
    /// log2 of the number of entries in an L2 table.
    l2_bits: u32,
    /// How the guest's data is encrypted.
    pub crypt_method: CryptMethod,
    /// Where in the file the L1 table is.
    pub l1_table: u64,
}

/// Why a header was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// The file ends within its header.
    #[error("it needs {} bytes, and the file has {len}", Header::LEN)]
    Truncated {
        /// Bytes that are there.
        len: usize,
    },
    /// The first bytes are not those of a qcow image.
    #[error("the file does not start with the qcow magic")]
    Magic,
    /// Another version than 1.
    #[error("version {0} is not 1")]
    Version(u32),
    /// A disk of no size, or of a byte.
    #[error("a disk of {0} bytes is too small")]
    SizeTooSmall(u64),
    /// A disk whose L1 table would pass its limit.
    #[error("a disk of {size} bytes is too large for L2 tables that map {l2_coverage} bytes each")]
    SizeTooLarge {
        /// Size of the disk in bytes.
        size: u64,
        /// Bytes of the disk that an L2 table maps.
        l2_coverage: u64,
    },
    /// A cluster size out of bounds.
    #[error("clusters of 2^{0} bytes: they must have 512 to 65536")]
    ClusterSize(u8),
    /// A size of L2 tables out of bounds.
    #[error("L2 tables of 2^{0} entries: they must have 64 to 8192")]
    L2Size(u8),
    /// An encryption method that does not exist.
    #[error("the unknown encryption method {0}")]
    CryptMethod(u32),
    /// A name of the backing file that is too long.
    #[error("a name of {len} bytes for its backing file; the limit is {}", Header::MAX_BACKING_NAME)]
    BackingNameLength {
        /// Its length in bytes.
        len: u32,
    },
    /// An offset that no file can have.
    #[error("{what} at file offset {host:#x}, where no file can have it")]
    PastLimit {
        /// What is said to be there.
        what: &'static str,
        /// Where.
        host: u64,
    },
}

impl Header {
    /// Bytes that a header takes.
    pub const LEN: usize = 48;
    /// The first bytes of an image, the version included.
    pub const START: [u8; 8] = *b"QFI\xfb\0\0\0\x01";
    /// The longest name of a backing file, in bytes.
    pub const MAX_BACKING_NAME: u32 = 1023;
    /// The most entries of an L1 table: QEMU has its bytes counted by a signed 32-bit number.
    pub const MAX_L1_ENTRIES: u64 = i32::MAX as u64 / L1_ENTRY_SIZE;

    /// The header in the first bytes of a file.
    pub fn decode(bytes: &[u8]) -> Result<Header, HeaderError> {
        let mut fields = Fields(bytes);
        let truncated = HeaderError::Truncated { len: bytes.len() };
        let mut decode = || -> Option<Result<Header, HeaderError>> {
            let magic = fields.take::<4>()?;
            let version = u32::from_be_bytes(fields.take()?);
            let name_offset = u64::from_be_bytes(fields.take()?);
            let name_len = u32::from_be_bytes(fields.take()?);
            let _time_of_backing_file = fields.take::<4>()?;
            let size = u64::from_be_bytes(fields.take()?);
            let [cluster_bits, l2_bits, _, _] = fields.take()?;
            let crypt_method = u32::from_be_bytes(fields.take()?);
            let l1_table = u64::from_be_bytes(fields.take()?);
            if magic != *b"QFI\xfb" {
                return Some(Err(HeaderError::Magic));
            }
            let raw = RawHeader {
                version,
                backing_name: (name_offset, name_len),
                size,
                bits: (cluster_bits, l2_bits),
                crypt_method,
                l1_table,
            };
            Some(raw.validate())
        };
        decode().unwrap_or(Err(truncated))
    }

    /// Bytes in a cluster.
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// The bits of an offset that say where in its cluster it is.
    pub fn offset_mask(&self) -> u64 {
        !(u64::MAX << self.cluster_bits)
    }

    /// log2 of the cluster size.
    pub fn cluster_bits(&self) -> u32 {
        self.cluster_bits
    }

    /// log2 of the number of entries in an L2 table.
    pub fn l2_bits(&self) -> u32 {
        self.l2_bits
    }

    /// Bytes of the disk that an L2 table maps.
    pub fn l2_coverage(&self) -> u64 {
        1 << (self.cluster_bits.saturating_add(self.l2_bits))
    }

    /// Where in the file the L1 entry for `guest`, an offset on the disk, is.
    pub fn l1_entry(&self, guest: u64) -> u64 {
        let index = guest.checked_div(self.l2_coverage()).unwrap_or(0);
        // Within the disk it cannot overflow: the table's end was validated.
        self.l1_table.saturating_add(index.saturating_mul(L1_ENTRY_SIZE))
    }

    /// Where in its L2 table the entry for `guest` is, in bytes.
    pub fn place_in_l2(&self, guest: u64) -> u64 {
        let index = (guest >> self.cluster_bits) & !(u64::MAX << self.l2_bits);
        index.saturating_mul(L1_ENTRY_SIZE)
    }
}

/// A header's fields, of which nothing is known yet.
struct RawHeader {
    version: u32,
    backing_name: (u64, u32),
    size: u64,
    bits: (u8, u8),
    crypt_method: u32,
    l1_table: u64,
}

impl RawHeader {
    fn validate(self) -> Result<Header, HeaderError> {
        if self.version != 1 {
            return Err(HeaderError::Version(self.version));
        }
        if self.size <= 1 {
            return Err(HeaderError::SizeTooSmall(self.size));
        }
        let (cluster_bits, l2_bits) = self.bits;
        if !(9..=16).contains(&cluster_bits) {
            return Err(HeaderError::ClusterSize(cluster_bits));
        }
        if !(6..=13).contains(&l2_bits) {
            return Err(HeaderError::L2Size(l2_bits));
        }
        let crypt_method = match self.crypt_method {
            0 => CryptMethod::None,
            1 => CryptMethod::Aes,
            unknown => return Err(HeaderError::CryptMethod(unknown)),
        };
        let header = Header {
            backing_name: self.backing_name()?,
            size: self.size & !(SECTOR_SIZE - 1),
            cluster_bits: cluster_bits.into(),
            l2_bits: l2_bits.into(),
            crypt_method,
            l1_table: self.l1_table,
        };
        let l2_coverage = header.l2_coverage();
        let l1_entries = self.size.div_ceil(l2_coverage);
        if l1_entries > Header::MAX_L1_ENTRIES {
            return Err(HeaderError::SizeTooLarge { size: self.size, l2_coverage });
        }
        within_a_file("its L1 table", self.l1_table, l1_entries.saturating_mul(L1_ENTRY_SIZE))?;
        Ok(header)
    }

    fn backing_name(&self) -> Result<Option<Range<u64>>, HeaderError> {
        let (start, len) = self.backing_name;
        if start == 0 || len == 0 {
            return Ok(None);
        }
        if len > Header::MAX_BACKING_NAME {
            return Err(HeaderError::BackingNameLength { len });
        }
        let end = within_a_file("the name of its backing file", start, len.into())?;
        Ok(Some(start..end))
    }
}

/// The end of what is said to start at `host`.
fn within_a_file(what: &'static str, host: u64, len: u64) -> Result<u64, HeaderError> {
    host.checked_add(len)
        .filter(|&end| i64::try_from(end).is_ok())
        .ok_or(HeaderError::PastLimit { what, host })
}

/// The bytes that have not been taken yet.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A header as qemu-img 10.0 writes it for a disk of 1000448 bytes.
    fn sound() -> [u8; Header::LEN] {
        let mut bytes = [0; Header::LEN];
        bytes[..8].copy_from_slice(&Header::START);
        bytes[24..32].copy_from_slice(&1_000_448_u64.to_be_bytes());
        bytes[32..34].copy_from_slice(&[12, 9]);
        bytes[40..48].copy_from_slice(&48_u64.to_be_bytes());
        bytes
    }

    fn with(at: usize, field: &[u8]) -> Result<Header, HeaderError> {
        let mut bytes = sound();
        bytes.iter_mut().skip(at).zip(field).for_each(|(byte, new)| *byte = *new);
        Header::decode(&bytes)
    }

    #[test]
    fn a_header_says_where_the_entry_of_each_byte_is() {
        let header = Header::decode(&sound()).unwrap();
        assert_eq!((header.cluster_size(), header.l2_coverage(), header.size), (4096, 2 << 20, 1_000_448));
        assert_eq!((header.l1_entry(0), header.l1_entry(5 << 20)), (48, 48 + 2 * 8));
        assert_eq!((header.place_in_l2(4095), header.place_in_l2((2 << 20) + 8192)), (0, 16));
        assert_eq!(header.backing_name, None);
    }

    #[test]
    fn the_limits_are_those_of_qemu() {
        assert_eq!(Header::decode(&sound()[..47]), Err(HeaderError::Truncated { len: 47 }));
        assert_eq!(with(0, b"QFI\0"), Err(HeaderError::Magic));
        assert_eq!(with(4, &[0, 0, 0, 2]), Err(HeaderError::Version(2)));
        assert_eq!(with(24, &1_u64.to_be_bytes()), Err(HeaderError::SizeTooSmall(1)));
        assert_eq!(with(24, &2_u64.to_be_bytes()).unwrap().size, 0);
        assert_eq!(with(24, &1023_u64.to_be_bytes()).unwrap().size, 512);
        for bits in [8, 17] {
            assert_eq!(with(32, &[bits]), Err(HeaderError::ClusterSize(bits)));
        }
        for bits in [5, 14] {
            assert_eq!(with(33, &[bits]), Err(HeaderError::L2Size(bits)));
        }
        assert_eq!(with(36, &[0, 0, 0, 2]), Err(HeaderError::CryptMethod(2)));
        let largest = Header::MAX_L1_ENTRIES << 21;
        assert!(with(24, &largest.to_be_bytes()).is_ok());
        let refused = with(24, &(largest + 1).to_be_bytes());
        assert!(matches!(refused, Err(HeaderError::SizeTooLarge { .. })));
        assert!(matches!(with(24, &[0xff; 8]), Err(HeaderError::SizeTooLarge { .. })));
        assert!(matches!(with(40, &[0xff; 8]), Err(HeaderError::PastLimit { .. })));
    }

    #[test]
    fn the_name_of_the_backing_file_has_its_limit() {
        let name = |start: u64, len: u32| {
            let field = [&start.to_be_bytes()[..], &len.to_be_bytes()[..]].concat();
            with(8, &field).map(|header| header.backing_name)
        };
        assert_eq!(name(48, 6), Ok(Some(48..54)));
        assert_eq!(name(0, 6), Ok(None));
        assert_eq!(name(48, 0), Ok(None));
        assert_eq!(name(48, 1024), Err(HeaderError::BackingNameLength { len: 1024 }));
        assert!(matches!(name(u64::MAX - 3, 6), Err(HeaderError::PastLimit { .. })));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..64), guest: u64) {
            for (byte, start) in bytes.iter_mut().zip(Header::START) {
                *byte = start;
            }
            if let Ok(header) = Header::decode(&bytes) {
                let _ = (header.l1_entry(guest), header.place_in_l2(guest), header.cluster_size());
            }
        }
    }
}
