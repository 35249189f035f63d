//! Valid images that changes start from, made by the library in memory: small clusters, and everything in them that an
//! image can have.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cowimg::encryption::{CipherAlgorithm, CipherMode, LuksOptions, Passphrase};
use cowimg::format::qcow2::layout::{FreshEncryption, FreshParams, LazyRefcounts, Preallocation, plan};
use cowimg::format::qcow2::{CompressionType, Geometry, Version};
use cowimg::storage::{MemoryStorage, Storage, StorageExt};
use cowimg::{Access, ByteRange, CreateOptions, Format, Image, NewBitmap, NewSnapshot, Result, ZeroMode};

/// What opens the encrypted ones.
pub const PASSPHRASE: &[u8] = b"open-sesame";

/// What kind of image; sizes as powers of two.
struct Kind {
    version: Version,
    cluster_bits: u32,
    refcount_order: u32,
    compression: CompressionType,
    is_divided: bool,
    preallocation: Preallocation,
}

const USUAL: Kind = Kind {
    version: Version::V3,
    cluster_bits: 9,
    refcount_order: 4,
    compression: CompressionType::Deflate,
    is_divided: false,
    preallocation: Preallocation::Off,
};

/// Images of the format qcow2.
pub fn qcow2() -> &'static [Vec<u8>] {
    static IMAGES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let kinds = [
            USUAL,
            Kind { version: Version::V2, ..USUAL },
            Kind { refcount_order: 0, ..USUAL },
            Kind { refcount_order: 6, compression: CompressionType::Zstd, ..USUAL },
            Kind { cluster_bits: 12, ..USUAL },
            Kind { preallocation: Preallocation::Metadata, ..USUAL },
            Kind { cluster_bits: 14, is_divided: true, ..USUAL },
        ];
        kinds.iter().map(|kind| filled(kind).expect("a sound image can be made and filled")).collect()
    })
}

/// Those of them that have bitmaps.
pub fn with_bitmaps() -> &'static [Vec<u8>] {
    static IMAGES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let has_bitmaps = |bytes: &Vec<u8>| {
            let image = open(Arc::new(MemoryStorage::with_bytes(bytes)));
            image.and_then(|image| image.bitmaps()).is_ok_and(|bitmaps| !bitmaps.is_empty())
        };
        qcow2().iter().filter(|bytes| has_bitmaps(bytes)).cloned().collect()
    })
}

fn open(storage: Arc<MemoryStorage>) -> Result<Image> {
    Image::options().format(Format::Qcow2).access(Access::ReadWrite).open_storage(storage)
}

fn filled(kind: &Kind) -> Result<Vec<u8>> {
    let geometry = Geometry::new(kind.cluster_bits, kind.refcount_order).expect("a geometry of the format");
    let geometry = geometry.with_extended_l2(kind.is_divided);
    let fresh = plan(&FreshParams {
        version: kind.version,
        geometry,
        size: 70_000,
        lazy_refcounts: LazyRefcounts::Off,
        compression: kind.compression,
        preallocation: kind.preallocation,
        backing: None,
        data_file: None,
        encryption: FreshEncryption::None,
    })
    .expect("a small image can be laid out");
    let storage = Arc::new(MemoryStorage::new());
    storage.set_len(fresh.file_len()).expect("memory can grow");
    for piece in fresh.pieces() {
        storage.write_all_at(&piece.bytes, piece.offset.get()).expect("memory can be written");
    }
    let image = open(storage.clone())?;
    let cluster = 1 << kind.cluster_bits;
    image.write_at(&[2; 3000], 9000)?;
    image.write_compressed_at(&vec![1; cluster], 0)?;
    image.write_zeroes(ByteRange::between(20_480, 24_576), ZeroMode::KeepSpace)?;
    if kind.refcount_order > 0 {
        image.create_snapshot(&NewSnapshot { name: b"one".to_vec(), ..NewSnapshot::default() })?;
    }
    image.write_at(&[3; 2000], 10_000)?;
    if kind.version == Version::V3 {
        image.add_bitmap("b", &NewBitmap { granularity: Some(512), ..NewBitmap::default() })?;
        image.add_bitmap("c", &NewBitmap { granularity: Some(4096), ..NewBitmap::default() })?;
        image.write_at(&[4; 600], 30_000)?;
    }
    image.close()?;
    Ok(storage.to_vec())
}

/// An image of the format LUKS with keys of 16 bytes, which [`PASSPHRASE`] opens after as few iterations as there may be.
pub fn luks() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("cowimg-fuzz-{}.luks", std::process::id()));
        let options = LuksOptions {
            cipher: CipherAlgorithm::Aes128,
            mode: CipherMode::Cbc,
            iteration_time: Duration::ZERO,
            ..LuksOptions::new(Passphrase::new(PASSPHRASE))
        };
        cowimg::create(&path, &CreateOptions::luks(4096, options)).expect("a volume can be made");
        let bytes = std::fs::read(&path).expect("the volume can be read");
        std::fs::remove_file(&path).expect("the volume can be removed");
        bytes
    })
}

/// An image of version 1 with clusters of 512 bytes: two clusters of data, one that is compressed, the rest absent.
pub fn qcow1() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let mut bytes = vec![0; 2560];
        bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x01");
        let packed = [0x63, 0xa0, 0x0c, 0, 0];
        let words =
            [(24, 100_000), (40, 48), (48, 512), (512, 1024), (520, 1536), (528, 1 << 63 | 5 << 54 | 2048)];
        for (at, word) in words {
            bytes[at..at + 8].copy_from_slice(&u64::to_be_bytes(word));
        }
        bytes[32..34].copy_from_slice(&[9, 6]);
        bytes[1024..2048].fill(7);
        bytes[2048..2048 + packed.len()].copy_from_slice(&packed);
        bytes
    })
}
