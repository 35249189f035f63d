//! Short sequences of operations on small images of every shape, in memory, against a row of bytes: what is read is
//! what was written, and the check finds neither error nor leak. A sequence that fails is shrunk to its core.

use std::sync::Arc;

use cowimg::storage::{MemoryStorage, Storage};
use cowimg::{
    Access, BackingOptions, ByteRange, CreateOptions, Format, Image, Qcow2CreateOptions, ResizeOptions,
    Version, ZeroMode,
};
use proptest::prelude::*;
use tempfile::TempDir;

/// What is done to the disk. Positions are fractions of 65536 of the size, so that they shrink with it.
#[derive(Debug, Clone)]
enum Step {
    Write { at: u16, len: u16, byte: u8 },
    Zero { at: u16, len: u16, mode: ZeroMode },
    Discard { at: u16, len: u16 },
    Read { at: u16, len: u16 },
    Flush,
    Reopen,
    Grow { sectors: u16 },
}

#[derive(Debug, Clone)]
struct Shape {
    version: Version,
    cluster_bits: u32,
    refcount_order: u32,
    extended_l2: bool,
    sectors: u64,
    /// Length in bytes of a raw backing file.
    base: Option<usize>,
}

fn shapes() -> impl Strategy<Value = Shape> {
    let versions = prop_oneof![1 => Just(Version::V2), 3 => Just(Version::V3)];
    let bases = prop::option::of(1_usize..400_000);
    (versions, 9_u32..=14, 0_u32..=6, any::<bool>(), 1_u64..=600, bases).prop_map(
        |(version, bits, order, divided, sectors, base)| {
            let extended_l2 = divided && version == Version::V3;
            let cluster_bits = if extended_l2 { 14 + bits % 3 } else { bits };
            let refcount_order = if version == Version::V2 { 4 } else { order };
            Shape { version, cluster_bits, refcount_order, extended_l2, sectors, base }
        },
    )
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let at = any::<u16>();
    let len = prop_oneof![1_u16..600, 1_u16..20_000];
    let mode = prop_oneof![Just(ZeroMode::KeepSpace), Just(ZeroMode::Unmap)];
    let step = prop_oneof![
        6 => (at, len.clone(), any::<u8>()).prop_map(|(at, len, byte)| Step::Write { at, len, byte }),
        3 => (at, len.clone(), mode).prop_map(|(at, len, mode)| Step::Zero { at, len, mode }),
        3 => (at, len.clone()).prop_map(|(at, len)| Step::Discard { at, len }),
        3 => (at, len).prop_map(|(at, len)| Step::Read { at, len }),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        1 => (1_u16..200).prop_map(|sectors| Step::Grow { sectors }),
    ];
    prop::collection::vec(step, 1..40)
}

fn open(storage: &Arc<MemoryStorage>) -> Image {
    Image::options().access(Access::ReadWrite).open_storage(storage.clone()).expect("the image opens")
}

/// An image in memory and the row of bytes that it should read as.
struct Pair {
    storage: Arc<MemoryStorage>,
    image: Image,
    model: Vec<u8>,
    /// Holds the backing file.
    _folder: TempDir,
}

impl Pair {
    fn new(shape: &Shape) -> Pair {
        let qcow2 = Qcow2CreateOptions {
            version: shape.version,
            cluster_size: 1 << shape.cluster_bits,
            refcount_bits: 1 << shape.refcount_order,
            extended_l2: shape.extended_l2,
            ..Default::default()
        };
        let size = shape.sectors * 512;
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let (path, base) = (folder.path().join("image.qcow2"), folder.path().join("base.raw"));
        let mut model = vec![0; size as usize];
        let backing = shape.base.map(|len| {
            let bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8 + 1).collect();
            std::fs::write(&base, &bytes).expect("the base can be written");
            let shown = len.min(model.len());
            model[..shown].copy_from_slice(&bytes[..shown]);
            let name = base.to_str().expect("a plain path");
            BackingOptions { format: Some(Format::Raw), ..BackingOptions::new(name) }
        });
        cowimg::create(&path, &CreateOptions { qcow2, backing, ..CreateOptions::qcow2(size) })
            .expect("the image is created");
        let storage =
            Arc::new(MemoryStorage::with_bytes(std::fs::read(&path).expect("the image can be read")));
        let image = open(&storage);
        Pair { storage, image, model, _folder: folder }
    }

    fn range(&self, at: u16, len: u16) -> ByteRange {
        let size = self.model.len() as u64;
        let start = size * u64::from(at) / 65536;
        ByteRange::between(start, (start + u64::from(len)).min(size))
    }

    fn read(&self, range: ByteRange) -> Vec<u8> {
        let mut bytes = vec![0xee; range.len() as usize];
        self.image.read_at(&mut bytes, range.start()).expect("the read succeeds");
        bytes
    }

    fn expected(&mut self, range: ByteRange) -> &mut [u8] {
        &mut self.model[range.start() as usize..range.end() as usize]
    }

    fn reopened(self) -> Pair {
        self.image.close().expect("the image closes");
        let image = open(&self.storage);
        Pair { image, ..self }
    }

    fn take(mut self, step: &Step) -> Pair {
        match *step {
            Step::Write { at, len, byte } => {
                let range = self.range(at, len);
                let bytes: Vec<u8> = (0..range.len()).map(|i| byte.wrapping_add(i as u8)).collect();
                self.image.write_at(&bytes, range.start()).expect("the write succeeds");
                self.expected(range).copy_from_slice(&bytes);
            }
            Step::Zero { at, len, mode } => {
                let range = self.range(at, len);
                self.image.write_zeroes(range, mode).expect("zeroing succeeds");
                self.expected(range).fill(0);
            }
            Step::Discard { at, len } => {
                let range = self.range(at, len);
                self.image.discard(range).expect("the discard succeeds");
                let now = self.read(range);
                let explained =
                    now.iter().zip(self.expected(range)).all(|(now, old)| *now == 0 || now == old);
                assert!(explained, "after the discard of {range} a byte is neither zero nor what it was");
                self.expected(range).copy_from_slice(&now);
            }
            Step::Read { at, len } => {
                let range = self.range(at, len);
                assert!(self.read(range) == self.expected(range), "the read of {range} differs");
            }
            Step::Flush => self.image.flush().expect("the flush succeeds"),
            Step::Reopen => return self.reopened(),
            Step::Grow { sectors } => {
                let size = self.model.len() + usize::from(sectors) * 512;
                self.image.resize(size as u64, &ResizeOptions::default()).expect("the resize succeeds");
                self.model.resize(size, 0);
            }
        }
        self
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_disk_holds_what_was_written(shape in shapes(), steps in steps()) {
        let mut pair = Pair::new(&shape);
        for step in &steps {
            pair = pair.take(step);
        }
        let pair = pair.reopened();
        let everything = ByteRange::between(0, pair.model.len() as u64);
        prop_assert!(pair.read(everything) == pair.model, "the disk differs after it was opened again");
        let report = pair.image.check().expect("the check runs");
        prop_assert!(report.is_clean(), "the check: {:?}", report);
    }

    #[test]
    fn a_file_does_not_grow_without_bound(byte in any::<u8>(), rounds in 3_u64..12) {
        let shape = Shape {
            version: Version::V3,
            cluster_bits: 12,
            refcount_order: 4,
            extended_l2: false,
            sectors: 256,
            base: None,
        };
        let mut pair = Pair::new(&shape);
        for _ in 0..rounds {
            for step in [Step::Write { at: 0, len: u16::MAX, byte }, Step::Flush, Step::Discard { at: 0, len: u16::MAX }, Step::Flush] {
                pair = pair.take(&step);
            }
        }
        let len = pair.storage.len().expect("memory has a length");
        prop_assert!(len < 4 * 131_072, "{} bytes after {} rounds", len, rounds);
    }
}
