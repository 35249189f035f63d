//! What is done to an image, what it should hold afterwards, and images to begin with.

use std::sync::Arc;

use cowimg::format::qcow2::layout::{self, FreshEncryption, FreshParams};
use cowimg::format::qcow2::{Geometry, HostOffset};
use cowimg::storage::{CrashChoice, MemoryStorage, Storage, StorageExt};
use cowimg::{
    Access, ByteRange, CompressionType, Format, Image, LazyRefcounts, NewSnapshot, Preallocation,
    ResizeOptions, Shrink, SnapshotNames, SnapshotSelector, Version, ZeroMode,
};

pub(crate) const SECTOR: u64 = 512;
/// Not a multiple of the larger clusters, so that the last one is a part.
pub(crate) const SIZE: u64 = 200 * SECTOR;

/// A small random number generator; the seed is printed when a test fails.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// An image to begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) version: Version,
    pub(crate) cluster_bits: u32,
    pub(crate) refcount_order: u32,
    preallocation: Preallocation,
}

pub(crate) const SHAPES: [Shape; 5] = [
    Shape { version: Version::V3, cluster_bits: 9, refcount_order: 4, preallocation: Preallocation::Off },
    Shape { version: Version::V3, cluster_bits: 9, refcount_order: 6, preallocation: Preallocation::Off },
    Shape { version: Version::V2, cluster_bits: 9, refcount_order: 4, preallocation: Preallocation::Off },
    Shape { version: Version::V3, cluster_bits: 12, refcount_order: 0, preallocation: Preallocation::Off },
    Shape {
        version: Version::V3,
        cluster_bits: 10,
        refcount_order: 4,
        preallocation: Preallocation::Metadata,
    },
];

impl Shape {
    pub(crate) fn fresh(self) -> MemoryStorage {
        let image = layout::plan(&FreshParams {
            version: self.version,
            geometry: Geometry::new(self.cluster_bits, self.refcount_order).unwrap(),
            size: SIZE,
            lazy_refcounts: LazyRefcounts::Off,
            compression: CompressionType::Deflate,
            preallocation: self.preallocation,
            backing: None,
            data_file: None,
            encryption: FreshEncryption::None,
        })
        .unwrap();
        let storage = MemoryStorage::new();
        for piece in image.pieces() {
            let HostOffset(at) = piece.offset;
            storage.write_all_at(&piece.bytes, at).unwrap();
        }
        storage.set_len(image.file_len()).unwrap();
        storage
    }
}

/// What is done to the image.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Call {
    /// Writes this byte everywhere in the range.
    Write(ByteRange, u8),
    Zero(ByteRange, ZeroMode),
    Discard(ByteRange),
    Flush,
    /// Takes a snapshot.
    Take,
    /// Applies one of the snapshots that there are.
    Apply(usize),
    /// Deletes one of the snapshots that there are.
    Delete(usize),
    /// Gives the disk another size in bytes.
    Resize(u64),
    /// The same, with space taken for what is new.
    Preallocate(u64),
    /// Writes this byte, compressed, to the whole clusters that the range touches.
    Compressed(ByteRange, u8),
}

impl Call {
    /// Whether what it did, and all before it, survives a power cut once it has returned.
    pub(crate) fn is_durable(self) -> bool {
        !matches!(self, Call::Write(..) | Call::Zero(..) | Call::Discard(_) | Call::Compressed(..))
    }
}

/// What a guest does.
pub(crate) fn workload(dice: &mut Dice, calls: usize) -> Vec<Call> {
    (0..calls).map(|nth| guest_call(dice, nth)).collect()
}

/// One call of a guest; `nth` makes its bytes differ from those of others.
pub(crate) fn guest_call(dice: &mut Dice, nth: usize) -> Call {
    let start = dice.roll(SIZE / SECTOR);
    let len = 1 + dice.roll((SIZE / SECTOR - start).min(24));
    let range = ByteRange::between(start * SECTOR, (start + len) * SECTOR);
    match dice.roll(10) {
        0..=4 => Call::Write(range, (nth % 250) as u8 + 1),
        5 => Call::Zero(range, ZeroMode::KeepSpace),
        6 => Call::Zero(range, ZeroMode::Unmap),
        7 => Call::Discard(range),
        _ => Call::Flush,
    }
}

/// What an image should hold: the disk's sectors, and those of each snapshot with its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) sectors: Vec<u8>,
    pub(crate) snapshots: Vec<(Vec<u8>, Vec<u8>)>,
}

impl State {
    pub(crate) fn of(image: &Image, storage: &Arc<dyn Storage>) -> State {
        let options = Image::options().format(Format::Qcow2);
        State::seen(image, |selector| options.clone().snapshot(selector).open_storage(storage.clone()))
    }

    /// The same of an image that is opened in its own way.
    pub(crate) fn seen(image: &Image, open: impl Fn(SnapshotSelector) -> cowimg::Result<Image>) -> State {
        let ids = image.snapshots().unwrap().into_iter().map(|snapshot| snapshot.id);
        let content = |id: Vec<u8>| {
            let view = open(SnapshotSelector::Id(id.clone())).unwrap();
            (id, sectors_of(&view))
        };
        State { sectors: sectors_of(image), snapshots: ids.map(content).collect() }
    }

    /// What it should be after a call that changes the whole disk; the guest's calls are looked up in the image.
    pub(crate) fn after(&self, call: Call) -> State {
        let mut next = self.clone();
        let pick = |which: usize| which % self.snapshots.len().max(1);
        match call {
            Call::Take => {
                let number = |(id, _): &(Vec<u8>, _)| String::from_utf8_lossy(id).parse::<u64>().unwrap();
                let last = self.snapshots.iter().map(number).max().unwrap_or(0);
                next.snapshots.push(((last + 1).to_string().into_bytes(), self.sectors.clone()));
            }
            Call::Apply(which) if !self.snapshots.is_empty() => {
                next.sectors.clone_from(&self.snapshots[pick(which)].1);
            }
            Call::Resize(size) | Call::Preallocate(size) => {
                next.sectors.resize((size / SECTOR) as usize, 0);
            }
            Call::Delete(which) if !self.snapshots.is_empty() => drop(next.snapshots.remove(pick(which))),
            _ => {}
        }
        next
    }

    /// What may be there while a call runs: of a disk that shrinks, zeroes where it will end no more.
    pub(crate) fn during(&self, call: Call) -> Option<State> {
        let mut between = self.clone();
        match call {
            Call::Resize(size) | Call::Preallocate(size) if size / SECTOR < self.sectors.len() as u64 => {
                between.sectors[(size / SECTOR) as usize..].fill(0);
                Some(between)
            }
            _ => None,
        }
    }
}

pub(crate) fn open(storage: Arc<dyn Storage>, access: Access) -> cowimg::Result<Image> {
    Image::options().access(access).format(Format::Qcow2).cache_size(8192).open_storage(storage)
}

pub(crate) fn sectors_of(image: &Image) -> Vec<u8> {
    let mut bytes = vec![0; image.size() as usize];
    image.read_at(&mut bytes, 0).unwrap();
    let sectors = bytes.chunks(SECTOR as usize);
    sectors
        .map(|sector| {
            assert!(sector.iter().all(|byte| byte == &sector[0]), "a sector holds parts of two writes");
            sector[0]
        })
        .collect()
}

fn resizing(growing: bool, preallocation: Preallocation) -> ResizeOptions {
    let preallocation = if growing { preallocation } else { Preallocation::Off };
    ResizeOptions { preallocation, shrink: Shrink::Allow }
}

/// The part of the range that the disk has: it may have shrunk.
fn within(image: &Image, range: ByteRange) -> ByteRange {
    let end = range.end().min(image.size());
    ByteRange::between(range.start().min(end), end)
}

pub(crate) fn carry_out(image: &Image, call: Call) -> cowimg::Result<()> {
    let pick = |which: usize| {
        let snapshots = image.snapshots()?;
        let id = (!snapshots.is_empty()).then(|| snapshots[which % snapshots.len()].id.clone());
        Ok::<_, cowimg::Error>(id.map(SnapshotSelector::Id))
    };
    match call {
        Call::Write(range, byte) => {
            let range = within(image, range);
            image.write_at(&vec![byte; range.len() as usize], range.start())
        }
        Call::Zero(range, mode) => image.write_zeroes(within(image, range), mode),
        Call::Compressed(range, byte) => {
            let cluster = image.cluster_size().unwrap_or(SECTOR);
            let (start, end) = (range.start() / cluster * cluster, range.end().next_multiple_of(cluster));
            let range = within(image, ByteRange::between(start, end));
            if range.is_empty() {
                return Ok(());
            }
            image.write_compressed_at(&vec![byte; range.len() as usize], range.start())
        }
        Call::Discard(range) => image.discard(within(image, range)),
        Call::Flush => image.flush(),
        Call::Take => image
            .create_snapshot(&NewSnapshot { names: SnapshotNames::MayRepeat, ..NewSnapshot::default() })
            .map(drop),
        Call::Apply(which) => pick(which)?.map_or_else(|| image.flush(), |it| image.apply_snapshot(&it)),
        Call::Resize(size) => image.resize(size, &resizing(image.size() < size, Preallocation::Off)),
        Call::Preallocate(size) => {
            image.resize(size, &resizing(image.size() < size, Preallocation::Metadata))
        }
        Call::Delete(which) => pick(which)?.map_or_else(|| image.flush(), |it| image.delete_snapshot(&it)),
    }
}

pub(crate) fn choices(dice: &mut Dice, unsynced: usize) -> Vec<CrashChoice> {
    let mut choices = vec![CrashChoice::Synced, CrashChoice::All];
    if unsynced > 0 {
        let whole = dice.roll(unsynced as u64) as usize;
        choices.push(CrashChoice::Prefix(whole));
        choices.push(CrashChoice::Torn { whole, sectors: dice.roll(4) });
        choices.extend((0..3).map(|_| CrashChoice::Random { seed: dice.roll(u64::MAX) }));
    }
    choices
}

/// An image whose every cluster, and whose L2 tables, a snapshot shares: all that is written there is copied first.
pub(crate) fn image_with_snapshot() -> MemoryStorage {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.qcow2");
    let run = |program: &str, arguments: &[&str]| {
        let done = std::process::Command::new(program).args(arguments).arg(&path).output();
        let done = done.unwrap_or_else(|error| panic!("{program} (apt-get install qemu-utils): {error}"));
        assert!(done.status.success(), "{program}: {}", String::from_utf8_lossy(&done.stderr));
    };
    // The size comes after the name, and so as an option here.
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &format!("cluster_size=1k,size={SIZE}")]);
    run("qemu-io", &["-f", "qcow2", "-c", "write -q -P 252 0 60k", "-c", "write -q -P 253 70k 20k"]);
    run("qemu-img", &["snapshot", "-c", "before"]);
    run("qemu-io", &["-f", "qcow2", "-c", "write -q -P 254 4k 4k"]);
    MemoryStorage::with_bytes(std::fs::read(&path).unwrap())
}
