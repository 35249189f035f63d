//! The method: a workload runs once over a storage that remembers every change and sync. Then, for every moment of it,
//! the states that a power cut could leave are made: nothing unsynced, everything, prefixes, torn writes, random
//! subsets. Each must open, pass the check without corruption, read back everything that a finished flush covered, hold
//! in every other sector something that was there since that flush, and be good to write on. Of snapshots there must be
//! those that were there before or after the call that the power cut met, each with its content to the byte.

use std::sync::Arc;

use cowimg::check::check_storage;
use cowimg::format::qcow2::layout::{self, FreshEncryption, FreshParams};
use cowimg::format::qcow2::{Geometry, HostOffset};
use cowimg::storage::{CrashChoice, Fault, FaultyStorage, MemoryStorage, OperationKind, Storage, StorageExt};
use cowimg::{
    Access, ByteRange, CompressionType, ErrorKind, Format, Image, LazyRefcounts, NewSnapshot, Preallocation,
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
    cluster_bits: u32,
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
}

impl Call {
    /// Whether what it did, and all before it, survives a power cut once it has returned.
    fn is_durable(self) -> bool {
        !matches!(self, Call::Write(..) | Call::Zero(..) | Call::Discard(_))
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
    sectors: Vec<u8>,
    snapshots: Vec<(Vec<u8>, Vec<u8>)>,
}

impl State {
    pub(crate) fn of(image: &Image, storage: &Arc<dyn Storage>) -> State {
        let ids = image.snapshots().unwrap().into_iter().map(|snapshot| snapshot.id);
        let content = |id: Vec<u8>| {
            let options = Image::options().format(Format::Qcow2).snapshot(SnapshotSelector::Id(id.clone()));
            let view = options.open_storage(storage.clone()).unwrap();
            (id, sectors_of(&view))
        };
        State { sectors: sectors_of(image), snapshots: ids.map(content).collect() }
    }

    /// What it should be after a call that changes the whole disk; the guest's calls are looked up in the image.
    fn after(&self, call: Call) -> State {
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
    fn during(&self, call: Call) -> Option<State> {
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

/// A call that has returned.
struct Done {
    /// The log's length when it did.
    end: usize,
    durable: bool,
    /// What the image may hold when the call was met halfway and done; the last is what it held afterwards.
    states: Vec<State>,
}

/// What may be there at a moment: what was there at the last durable call that had returned, and all that was put
/// there since.
pub(crate) struct History {
    done: Vec<Done>,
    initial: State,
}

impl History {
    fn new(image: &Image, storage: &Arc<dyn Storage>) -> History {
        History { done: Vec::new(), initial: State::of(image, storage) }
    }

    fn last(&self) -> &State {
        self.done.last().and_then(|done| done.states.last()).unwrap_or(&self.initial)
    }

    fn possible(&self, moment: usize) -> Vec<&State> {
        let durable = self.done.iter().rposition(|done| done.durable && done.end <= moment);
        let running = self.done.iter().position(|done| done.end > moment).unwrap_or(self.done.len() - 1);
        let first = durable.map_or(Some(&self.initial), |at| self.done[at].states.last());
        let since = durable.map_or(0, |at| at + 1);
        let later = self.done.get(since..=running).unwrap_or_default().iter().flat_map(|done| &done.states);
        first.into_iter().chain(later).collect()
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
        let snapshots = image.snapshots().unwrap();
        let id = (!snapshots.is_empty()).then(|| snapshots[which % snapshots.len()].id.clone());
        id.map(SnapshotSelector::Id)
    };
    match call {
        Call::Write(range, byte) => {
            let range = within(image, range);
            image.write_at(&vec![byte; range.len() as usize], range.start())
        }
        Call::Zero(range, mode) => image.write_zeroes(within(image, range), mode),
        Call::Discard(range) => image.discard(within(image, range)),
        Call::Flush => image.flush(),
        Call::Take => image
            .create_snapshot(&NewSnapshot { names: SnapshotNames::MayRepeat, ..NewSnapshot::default() })
            .map(drop),
        Call::Apply(which) => pick(which).map_or_else(|| image.flush(), |it| image.apply_snapshot(&it)),
        Call::Resize(size) => image.resize(size, &resizing(image.size() < size, Preallocation::Off)),
        Call::Preallocate(size) => {
            image.resize(size, &resizing(image.size() < size, Preallocation::Metadata))
        }
        Call::Delete(which) => pick(which).map_or_else(|| image.flush(), |it| image.delete_snapshot(&it)),
    }
}

/// Runs the calls, and notes what there is after each.
fn run(storage: &Arc<FaultyStorage>, calls: &[Call]) -> History {
    let shared: Arc<dyn Storage> = storage.clone();
    let image = open(shared.clone(), Access::ReadWrite).unwrap();
    let mut history = History::new(&image, &shared);
    for call in calls {
        let expected = history.last().after(*call);
        carry_out(&image, *call).unwrap_or_else(|error| panic!("{call:?}: {error}"));
        let state = State::of(&image, &shared);
        assert_eq!(state.snapshots, expected.snapshots, "{call:?}");
        if matches!(call, Call::Apply(_) | Call::Resize(_) | Call::Preallocate(_)) {
            assert_eq!(state.sectors, expected.sectors, "{call:?}");
        }
        let states = history.last().during(*call).into_iter().chain([state]).collect();
        history.done.push(Done { end: storage.log_len(), durable: call.is_durable(), states });
    }
    image.close().unwrap();
    history
}

/// Holds one state after a crash against the promise.
fn judge(state: MemoryStorage, history: &History, moment: usize, context: &str) {
    let report = check_storage(&state).unwrap_or_else(|error| panic!("{context}: check: {error}"));
    assert!(report.corruptions == 0 && report.check_errors == 0, "{context}: {:?}", report.issues);
    let storage: Arc<dyn Storage> = Arc::new(state);
    let image = open(storage.clone(), Access::ReadWrite).unwrap_or_else(|error| panic!("{context}: {error}"));
    let found = State::of(&image, &storage);
    let possible = history.possible(moment);
    assert!(
        possible.iter().any(|state| state.snapshots == found.snapshots),
        "{context}: the snapshots are neither those before nor those after"
    );
    assert!(
        possible.iter().any(|state| state.sectors.len() == found.sectors.len()),
        "{context}: the disk has {} sectors",
        found.sectors.len()
    );
    for (sector, value) in found.sectors.iter().enumerate() {
        assert!(
            possible.iter().any(|state| state.sectors.get(sector) == Some(value)),
            "{context}: sector {sector} holds {value}, which was not there since the last flush"
        );
    }
    // What is left must be good to work on: writes everywhere land, and damage nothing.
    for sector in (0..found.sectors.len() as u64).step_by(3) {
        image.write_at(&[251; SECTOR as usize], sector * SECTOR).unwrap();
    }
    image.close().unwrap();
    let report = check_storage(&*storage).unwrap();
    assert!(report.corruptions == 0, "{context}: after writing on: {:?}", report.issues);
    let now = State::of(&open(storage.clone(), Access::ReadOnly).unwrap(), &storage);
    assert_eq!(now.snapshots, found.snapshots, "{context}: snapshots after writing on");
    for (sector, value) in now.sectors.into_iter().enumerate() {
        let expected = if sector % 3 == 0 { 251 } else { found.sectors[sector] };
        assert_eq!(value, expected, "{context}: sector {sector} after writing on");
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

/// Tries every moment of a workload; returns how many states that were.
pub(crate) fn try_every_moment(name: &str, start: MemoryStorage, seed: u64, calls: &[Call]) -> usize {
    let mut dice = Dice(seed);
    let storage = Arc::new(FaultyStorage::new(start));
    let history = run(&storage, calls);
    let mut states = 0;
    for moment in 0..=storage.log_len() {
        for choice in choices(&mut dice, storage.unsynced_at(moment)) {
            let context = format!("{name}, seed {seed}, moment {moment}, {choice:?}");
            judge(storage.crash_at(moment, choice), &history, moment, &context);
            states += 1;
        }
    }
    states
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

/// Fails the n-th change of a workload, for every n: the call returns an error, nothing that was durable is gone, and
/// the image is consistent, as it stands and after a power cut. Returns how many failures that were.
pub(crate) fn fail_every_change(
    name: &str,
    start: &MemoryStorage,
    calls: &[Call],
    kind: std::io::ErrorKind,
) -> u64 {
    let changes =
        [OperationKind::Write, OperationKind::Sync, OperationKind::SetLen, OperationKind::WriteZeroes];
    let mut failures = 0;
    for nth in 0.. {
        let context = format!("{name}, change {nth} failed");
        let storage = Arc::new(FaultyStorage::new(start.clone()));
        storage.inject(Fault::error(kind).on(&changes).after(nth));
        let shared: Arc<dyn Storage> = storage.clone();
        let image = open(shared.clone(), Access::ReadWrite).unwrap();
        let mut history = History::new(&image, &shared);
        let mut failed = 0;
        for call in calls {
            let expected = history.last().after(*call);
            let done = carry_out(&image, *call);
            if let Err(error) = &done {
                let known = matches!(error.kind(), ErrorKind::Io { .. } | ErrorKind::Failed { .. });
                assert!(known, "{context}: {call:?}: {error}");
                failed += 1;
            }
            // A call that failed on the way may have done a part of its work, and one that changes the whole disk all.
            let durable = done.is_ok() && call.is_durable();
            let mut now = State { sectors: sectors_of(&image), ..history.last().clone() };
            let mut states = Vec::new();
            if done.is_ok() && call.is_durable() {
                now.snapshots = expected.snapshots;
            } else if call.is_durable() {
                states.extend(history.last().during(*call));
                states.push(expected);
            }
            states.push(now);
            history.done.push(Done { end: storage.log_len(), durable, states });
        }
        let closed = image.close();
        if failed == 0 && closed.is_ok() {
            return failures;
        }
        failures += 1;
        storage.clear_faults();
        let moment = storage.log_len();
        judge(storage.crash(CrashChoice::Synced), &history, moment, &format!("{context}, power cut"));
        judge(storage.crash(CrashChoice::All), &history, moment, &context);
    }
    failures
}
