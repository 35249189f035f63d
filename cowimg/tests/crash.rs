//! What a power cut or a failing disk may do to an image, tried at every moment of a workload.
//!
//! A workload runs once over a storage that remembers every change and sync. Then, for every moment of it, the states
//! that a power cut could leave are made: nothing unsynced, everything, prefixes, torn writes, random subsets. Each
//! must open, pass the check without corruption, read back everything that a finished flush covered, hold in every
//! other sector something that was there since that flush, and be good to write on.
#![allow(clippy::unwrap_used, reason = "what cannot fail here is part of what is tested")]

use std::sync::Arc;

use cowimg::check::check_storage;
use cowimg::format::qcow2::layout::{self, FreshParams};
use cowimg::format::qcow2::{Geometry, HostOffset};
use cowimg::storage::{
    CrashChoice, Fault, FaultyStorage, MemoryStorage, Operation, OperationKind, Storage, StorageExt,
};
use cowimg::{
    Access, ByteRange, CompressionType, ErrorKind, Format, Image, LazyRefcounts, Preallocation, Version,
    ZeroMode,
};

const SECTOR: u64 = 512;
/// Not a multiple of the larger clusters, so that the last one is a part.
const SIZE: u64 = 200 * SECTOR;

/// A small random number generator; the seed is printed when a test fails.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// An image to begin with.
#[derive(Debug, Clone, Copy)]
struct Shape {
    version: Version,
    cluster_bits: u32,
    refcount_order: u32,
    preallocation: Preallocation,
}

const SHAPES: [Shape; 5] = [
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
    fn fresh(self) -> MemoryStorage {
        let image = layout::plan(&FreshParams {
            version: self.version,
            geometry: Geometry::new(self.cluster_bits, self.refcount_order).unwrap(),
            size: SIZE,
            lazy_refcounts: LazyRefcounts::Off,
            compression: CompressionType::Deflate,
            preallocation: self.preallocation,
            backing: None,
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

/// What the guest does.
#[derive(Debug, Clone, Copy)]
enum Call {
    /// Writes this byte everywhere in the range.
    Write(ByteRange, u8),
    Zero(ByteRange, ZeroMode),
    Discard(ByteRange),
    Flush,
}

fn workload(dice: &mut Dice, calls: usize) -> Vec<Call> {
    (0..calls)
        .map(|nth| {
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
        })
        .collect()
}

/// What every sector may hold at a moment: for each, the bytes that were there at the last flush that had finished, and
/// all that were put there since.
struct History {
    /// For each call: the log's length when it returned, and the sectors as they were after it.
    after: Vec<(usize, Vec<u8>)>,
    /// Calls that were finished flushes.
    flushes: Vec<usize>,
    initial: Vec<u8>,
}

impl History {
    fn may_hold(&self, moment: usize, sector: usize, value: u8) -> bool {
        let state_before = |call: usize| match call.checked_sub(1) {
            Some(before) => self.after[before].1[sector],
            None => self.initial[sector],
        };
        let flushed =
            self.flushes.iter().rev().find(|&&call| self.after[call].0 <= moment).copied().unwrap_or(0);
        if state_before(flushed) == value {
            return true;
        }
        let running = self.after.iter().position(|(end, _)| *end > moment).unwrap_or(self.after.len() - 1);
        (flushed..=running).any(|call| self.after[call].1[sector] == value)
    }
}

fn open(storage: Arc<dyn Storage>, access: Access) -> cowimg::Result<Image> {
    Image::options().access(access).format(Format::Qcow2).cache_size(8192).open_storage(storage)
}

fn sectors_of(image: &Image) -> Vec<u8> {
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

fn carry_out(image: &Image, call: Call) -> cowimg::Result<()> {
    match call {
        Call::Write(range, byte) => image.write_at(&vec![byte; range.len() as usize], range.start()),
        Call::Zero(range, mode) => image.write_zeroes(range, mode),
        Call::Discard(range) => image.discard(range),
        Call::Flush => image.flush(),
    }
}

/// Runs the calls, and notes what the guest sees after each.
fn run(storage: &Arc<FaultyStorage>, calls: &[Call]) -> History {
    let image = open(storage.clone(), Access::ReadWrite).unwrap();
    let mut history = History { after: Vec::new(), flushes: Vec::new(), initial: sectors_of(&image) };
    for (nth, call) in calls.iter().enumerate() {
        carry_out(&image, *call).unwrap();
        if matches!(call, Call::Flush) {
            history.flushes.push(nth);
        }
        history.after.push((storage.log_len(), sectors_of(&image)));
    }
    image.close().unwrap();
    history
}

/// Holds one state after a crash against the promise.
fn judge(state: MemoryStorage, history: &History, moment: usize, context: &str) {
    let report = check_storage(&state).unwrap_or_else(|error| panic!("{context}: check: {error}"));
    assert!(report.corruptions == 0 && report.check_errors == 0, "{context}: {:?}", report.issues);
    let state: Arc<dyn Storage> = Arc::new(state);
    let image = open(state.clone(), Access::ReadWrite).unwrap_or_else(|error| panic!("{context}: {error}"));
    for (sector, value) in sectors_of(&image).into_iter().enumerate() {
        assert!(
            history.may_hold(moment, sector, value),
            "{context}: sector {sector} holds {value}, which was not there since the last flush"
        );
    }
    // What is left must be good to work on: writes everywhere land, and damage nothing.
    let before = sectors_of(&image);
    for sector in (0..SIZE / SECTOR).step_by(3) {
        image.write_at(&[251; SECTOR as usize], sector * SECTOR).unwrap();
    }
    image.close().unwrap();
    let report = check_storage(&*state).unwrap();
    assert!(report.corruptions == 0, "{context}: after writing on: {:?}", report.issues);
    let image = open(state, Access::ReadOnly).unwrap();
    for (sector, value) in sectors_of(&image).into_iter().enumerate() {
        let expected = if sector % 3 == 0 { 251 } else { before[sector] };
        assert_eq!(value, expected, "{context}: sector {sector} after writing on");
    }
}

fn choices(dice: &mut Dice, unsynced: usize) -> Vec<CrashChoice> {
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
fn try_every_moment(name: &str, start: MemoryStorage, seed: u64, calls: usize) -> usize {
    let mut dice = Dice(seed);
    let storage = Arc::new(FaultyStorage::new(start));
    let history = run(&storage, &workload(&mut dice, calls));
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

#[test]
fn nothing_flushed_is_lost_and_nothing_is_corrupt_whenever_the_power_fails() {
    let mut states = 0;
    for (nth, shape) in SHAPES.into_iter().enumerate() {
        for seed in 1..=3 {
            states += try_every_moment(&format!("{shape:?}"), shape.fresh(), seed * 7919 + nth as u64, 40);
        }
    }
    println!("{states} states after a crash, none lost, none corrupt");
    assert!(states > 5_000, "only {states} states were tried");
}

/// An image whose every cluster, and whose L2 tables, a snapshot shares: all that is written there is copied first.
fn image_with_snapshot() -> MemoryStorage {
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

#[test]
fn what_a_snapshot_shares_is_copied_safely_whenever_the_power_fails() {
    let start = image_with_snapshot();
    let states: usize = (1..=4).map(|seed| try_every_moment("snapshot", start.clone(), seed * 31, 30)).sum();
    println!("{states} states after a crash, none lost, none corrupt");
    assert!(states > 800, "only {states} states were tried");
}

/// The order itself, from the log: between two syncs there are either changes that nothing in the file refers to yet, or
/// changes to references, never the two that depend on each other. Seen from outside: a flush of a workload that maps
/// new clusters and takes new tables has at least two syncs, and ends with one.
#[test]
fn a_flush_ends_with_a_sync_and_writes_no_reference_before_one() {
    let storage = Arc::new(FaultyStorage::new(SHAPES[0].fresh()));
    let image = open(storage.clone(), Access::ReadWrite).unwrap();
    image.write_at(&[1; 4096], 0).unwrap();
    storage.restart_log();
    image.flush().unwrap();
    let log = storage.log();
    let syncs = log.iter().filter(|operation| matches!(operation, Operation::Sync)).count();
    assert!(syncs >= 2, "{log:?}");
    assert!(matches!(log.last(), Some(Operation::Sync)), "{log:?}");
}

/// Fails the n-th change of a workload, for every n: the call returns an error, nothing that was flushed is gone, and
/// the image is consistent, as it stands and after a power cut.
fn fail_every_change(shape: Shape, seed: u64, kind: std::io::ErrorKind) -> u64 {
    let changes =
        [OperationKind::Write, OperationKind::Sync, OperationKind::SetLen, OperationKind::WriteZeroes];
    let calls = workload(&mut Dice(seed), 25);
    let mut failures = 0;
    for nth in 0.. {
        let storage = Arc::new(FaultyStorage::new(shape.fresh()));
        storage.inject(Fault::error(kind).on(&changes).after(nth));
        let image = open(storage.clone(), Access::ReadWrite).unwrap();
        let mut history = History { after: Vec::new(), flushes: Vec::new(), initial: sectors_of(&image) };
        let mut failed = 0;
        for (number, call) in calls.iter().enumerate() {
            match carry_out(&image, *call) {
                Ok(()) if matches!(call, Call::Flush) => history.flushes.push(number),
                Ok(()) => {}
                Err(error) => {
                    let expected = matches!(error.kind(), ErrorKind::Io { .. } | ErrorKind::Failed { .. });
                    assert!(expected, "{shape:?}, seed {seed}, change {nth}: {error}");
                    failed += 1;
                }
            }
            // A write that failed on the way may have done a part of its work.
            history.after.push((storage.log_len(), sectors_of(&image)));
        }
        let closed = image.close();
        if failed == 0 && closed.is_ok() {
            return failures;
        }
        failures += 1;
        let context = format!("{shape:?}, seed {seed}, change {nth} failed");
        storage.clear_faults();
        let moment = storage.log_len();
        judge(storage.crash(CrashChoice::Synced), &history, moment, &format!("{context}, power cut"));
        judge(storage.crash(CrashChoice::All), &history, moment, &context);
    }
    failures
}

#[test]
fn a_failing_disk_costs_the_call_that_met_it_and_no_flushed_byte() {
    let mut failures = 0;
    for (shape, seed) in SHAPES.into_iter().zip(11..) {
        failures += fail_every_change(shape, seed, std::io::ErrorKind::StorageFull);
        failures += fail_every_change(shape, seed + 100, std::io::ErrorKind::Other);
    }
    assert!(failures > 200, "only {failures} failures were met");
}

/// Rule W8: after a sync that failed nobody knows what is in the file, so that writes stop.
#[test]
fn an_image_whose_commit_failed_refuses_writes_and_still_reads() {
    let storage = Arc::new(FaultyStorage::new(SHAPES[0].fresh()));
    let image = open(storage.clone(), Access::ReadWrite).unwrap();
    image.write_at(&[7; 1024], 1024).unwrap();
    storage.inject(Fault::error(std::io::ErrorKind::Other).on(&[OperationKind::Sync]));
    assert!(image.flush().is_err());
    let refused = image.write_at(&[8; 512], 0).unwrap_err();
    assert!(matches!(refused.kind(), ErrorKind::Failed { .. }), "{refused}");
    assert!(matches!(image.flush().unwrap_err().kind(), ErrorKind::Failed { .. }));
    let mut bytes = [0; 1024];
    image.read_at(&mut bytes, 1024).unwrap();
    assert_eq!(bytes, [7; 1024]);
}
