//! Many threads on one image: each sector, taken by itself, behaves as if the calls that touch it had come one after the
//! other, each at some point between its start and its end. Snapshots are reads of the whole disk.
//!
//! `order.rs` has the judgement.

mod order;
#[path = "../seeded/mod.rs"]
mod seeded;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use cowimg::encryption::{Encryption, LuksOptions, Passphrase};
use cowimg::storage::MemoryStorage;
use cowimg::{
    Access, ByteRange, CreateOptions, ErrorKind, Format, Image, NewSnapshot, OpenOptions, Qcow2CreateOptions,
    ResizeOptions, Shrink, SnapshotSelector, Version, ZeroMode,
};
use order::{Event, objection, objection_by_search};
use seeded::Rng;

const SECTOR: u64 = 512;
const THREADS: u64 = 6;
const CALLS: u64 = 150;
/// Sectors that are looked at; the disk has more, which come and go.
const SECTORS: u64 = 64;
const CLUSTER: u64 = 2048;

/// What happened to each sector. The clock counts starts and ends.
struct Record {
    clock: AtomicU64,
    events: Vec<Mutex<Vec<Event>>>,
    next_value: AtomicU64,
    /// Sectors that have been zeroed: zero is a value like another, and comes once.
    zeroed: Vec<AtomicBool>,
}

impl Record {
    fn new() -> Record {
        Record {
            clock: AtomicU64::new(1),
            events: (0..SECTORS).map(|_| Mutex::default()).collect(),
            next_value: AtomicU64::new(1),
            zeroed: (0..SECTORS).map(|_| AtomicBool::new(false)).collect(),
        }
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn note(&self, sector: u64, event: Event) {
        self.events[sector as usize].lock().expect("nobody panics here").push(event);
    }

    /// Sectors that nobody has zeroed yet, of the clusters that lie in the range; they are the caller's to zero.
    fn claim(&self, sector: u64) -> bool {
        !self.zeroed[sector as usize].swap(true, Ordering::SeqCst)
    }
}

fn bytes_of(value: u64) -> Vec<u8> {
    value.to_be_bytes().repeat(SECTOR as usize / 8)
}

fn value_of(bytes: &[u8]) -> u64 {
    let words: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word)).collect();
    assert!(words.iter().all(|word| *word == words[0]), "a sector holds parts of two writes: {words:x?}");
    words[0]
}

fn range(first: u64, count: u64) -> ByteRange {
    ByteRange::between(first * SECTOR, (first + count) * SECTOR)
}

/// What an image is, as far as threads may notice.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    /// Version 2, whose clusters can only be given back; small ones.
    Version2,
    /// Clusters of 32 subclusters.
    Divided,
    Luks,
    DataFile,
    /// Some writes are compressed.
    Compressed,
}

impl Kind {
    const ALL: [Kind; 6] =
        [Kind::Plain, Kind::Version2, Kind::Divided, Kind::Luks, Kind::DataFile, Kind::Compressed];

    fn cluster(self) -> u64 {
        match self {
            Kind::Version2 => 512,
            Kind::Divided => 16384,
            Kind::Luks => 4096,
            _ => CLUSTER,
        }
    }

    /// QEMU takes no snapshots beside a data file.
    fn has_snapshots(self) -> bool {
        self != Kind::DataFile
    }

    /// QEMU resizes no image of version 2 that has snapshots.
    fn resizes(self) -> bool {
        self != Kind::Version2
    }

    /// An image of this kind, its files, and how it is opened.
    fn fresh(self) -> (Arc<MemoryStorage>, OpenOptions) {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("image.qcow2");
        let mut options = CreateOptions::qcow2(SECTORS * SECTOR);
        options.qcow2.cluster_size = self.cluster();
        let mut opening = Image::options().cache_size(8192);
        match self {
            Kind::Version2 => options.qcow2.version = Version::V2,
            Kind::Divided => options.qcow2.extended_l2 = true,
            Kind::Luks => {
                let passphrase = Passphrase::new("open sesame");
                let iteration_time = std::time::Duration::from_millis(1);
                let luks = LuksOptions { iteration_time, ..LuksOptions::new(passphrase.clone()) };
                options.qcow2.encryption = Some(Encryption::Luks(luks));
                opening = opening.passphrase(passphrase);
            }
            Kind::DataFile => {
                options.qcow2.data_file = Some(folder.path().join("data").into_os_string());
                let data = MemoryStorage::with_bytes(vec![0; (SECTORS * SECTOR) as usize]);
                opening = opening.data_storage(Arc::new(data));
            }
            Kind::Plain | Kind::Compressed => {}
        }
        cowimg::create(&path, &options).expect("it is created");
        let bytes = std::fs::read(&path).expect("the image can be read");
        (Arc::new(MemoryStorage::with_bytes(bytes)), opening)
    }
}

struct Worker<'a> {
    image: &'a Image,
    record: &'a Record,
    kind: Kind,
    rng: Rng,
    /// Which of the threads it is.
    number: u64,
}

impl Worker<'_> {
    fn write(&self, first: u64, count: u64) {
        self.put(first, count, |bytes, offset| self.image.write_at(bytes, offset));
    }

    /// The whole cluster of a sector, compressed where the image can have that.
    fn write_cluster(&self, sector: u64) {
        let per_cluster = self.kind.cluster() / SECTOR;
        let first = sector / per_cluster * per_cluster;
        self.put(first, per_cluster, |bytes, offset| match self.kind {
            Kind::Compressed => self.image.write_compressed_at(bytes, offset),
            _ => self.image.write_at(bytes, offset),
        });
    }

    fn put(&self, first: u64, count: u64, write: impl FnOnce(&[u8], u64) -> cowimg::Result<()>) {
        let value = self.record.next_value.fetch_add(1, Ordering::SeqCst);
        let bytes = bytes_of(value).repeat(count as usize);
        let start = self.record.tick();
        write(&bytes, first * SECTOR).expect("the write succeeds");
        let end = self.record.tick();
        for sector in first..first + count {
            self.record.note(sector, Event { start, end, value, is_write: true, thread: self.number });
        }
    }

    fn read(&self, first: u64, count: u64) {
        let mut bytes = vec![0xee; (count * SECTOR) as usize];
        let start = self.record.tick();
        self.image.read_at(&mut bytes, first * SECTOR).expect("the read succeeds");
        let end = self.record.tick();
        for (sector, bytes) in (first..).zip(bytes.chunks(SECTOR as usize)) {
            let value = value_of(bytes);
            self.record.note(sector, Event { start, end, value, is_write: false, thread: self.number });
        }
    }

    /// A whole cluster at a time, which then is zeroes for certain; each cluster once.
    fn clear(&mut self, sector: u64) {
        let per_cluster = self.kind.cluster() / SECTOR;
        let first = sector / per_cluster * per_cluster;
        if !self.record.claim(first) {
            return;
        }
        let whole = range(first, per_cluster);
        let start = self.record.tick();
        match self.rng.below(3) {
            0 => self.image.discard(whole).expect("the discard succeeds"),
            1 => self.image.write_zeroes(whole, ZeroMode::Unmap).expect("zeroing succeeds"),
            _ => self.image.write_zeroes(whole, ZeroMode::KeepSpace).expect("zeroing succeeds"),
        }
        let end = self.record.tick();
        for sector in first..first + per_cluster {
            self.record.note(sector, Event { start, end, value: 0, is_write: true, thread: self.number });
        }
    }

    fn work(&mut self) {
        for _ in 0..CALLS {
            let first = self.rng.below(SECTORS);
            let count = self.rng.between(1, (SECTORS - first).min(9) + 1);
            match self.rng.below(20) {
                0..6 => self.write(first, count.min(SECTORS - first)),
                6..9 => self.write_cluster(first),
                9..18 => self.read(first, count.min(SECTORS - first)),
                18 => self.clear(first),
                _ => self.image.flush().expect("the flush succeeds"),
            }
        }
    }
}

fn image_in_memory(size: u64, compat_base: Option<&Arc<MemoryStorage>>) -> (Arc<MemoryStorage>, Image) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("image.qcow2");
    let options = CreateOptions::qcow2(size);
    let qcow2 = Qcow2CreateOptions { cluster_size: CLUSTER, ..options.qcow2 };
    let backing = compat_base.map(|_| cowimg::BackingOptions {
        format: Some(Format::Raw),
        verification: cowimg::Verification::Trust,
        ..cowimg::BackingOptions::new("base")
    });
    cowimg::create(&path, &CreateOptions { qcow2, backing, ..CreateOptions::qcow2(size) })
        .expect("it is created");
    let storage = Arc::new(MemoryStorage::with_bytes(std::fs::read(&path).expect("the image can be read")));
    let mut options = Image::options().access(Access::ReadWrite).cache_size(8192);
    if let Some(base) = compat_base {
        options = options.backing_storage(base.clone(), Image::options().format(Format::Raw));
    }
    let image = options.open_storage(storage.clone()).expect("the image opens");
    (storage, image)
}

/// A snapshot that was taken or applied: when, and its name.
type Moment = (u64, u64, Vec<u8>);

/// What the thread beside the workers did.
#[derive(Default)]
struct Disturbances {
    taken: Vec<Moment>,
    applied: Vec<Moment>,
}

/// Whether snapshots are applied, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Applying {
    Never,
    Often,
}

/// Takes snapshots and deletes some, applies those that are wanted, makes the disk larger and smaller beyond what is looked at.
fn disturb(
    (image, kind): (&Image, Kind),
    (record, stop): (&Record, &AtomicBool),
    applying: Applying,
) -> Disturbances {
    let mut done = Disturbances::default();
    let mut rng = Rng::new("which snapshot is applied");
    for nth in 0_u64.. {
        if stop.load(Ordering::Relaxed) && nth > 3 {
            break;
        }
        if kind.has_snapshots() {
            let name = nth.to_string().into_bytes();
            let start = record.tick();
            image
                .create_snapshot(&NewSnapshot { name: name.clone(), ..NewSnapshot::default() })
                .expect("it is taken");
            let end = record.tick();
            if nth % 3 == 2 {
                image.delete_snapshot(&SnapshotSelector::Name(name)).expect("it is deleted");
            } else {
                done.taken.push((start, end, name));
            }
        }
        if applying == Applying::Often && !done.taken.is_empty() {
            let (.., name) = &done.taken[rng.below(done.taken.len() as u64) as usize];
            let start = record.tick();
            image.apply_snapshot(&SnapshotSelector::Name(name.clone())).expect("it is applied");
            done.applied.push((start, record.tick(), name.clone()));
        }
        if done.taken.len() > 40 {
            break;
        }
        if !kind.resizes() {
            continue;
        }
        let sectors = SECTORS + nth * 37 % 300;
        let options = ResizeOptions { shrink: Shrink::Allow, ..ResizeOptions::default() };
        image.resize(sectors * SECTOR, &options).expect("the disk is resized");
    }
    done
}

/// Notes what snapshots hold as what was read when they were taken, and written when they were applied.
fn note_snapshots(record: &Record, done: &Disturbances, read: impl Fn(&[u8]) -> Vec<u64>) {
    let thread = THREADS + 1;
    let mut held: HashMap<&[u8], Vec<u64>> = HashMap::new();
    let taken = done.taken.iter().map(|moment| (moment, false));
    for ((start, end, name), is_write) in taken.chain(done.applied.iter().map(|moment| (moment, true))) {
        let values = held.entry(name).or_insert_with(|| read(name));
        for (sector, &value) in (0..).zip(values.iter()) {
            record.note(sector, Event { start: *start, end: *end, value, is_write, thread });
        }
    }
}

/// Threads, and what disturbs them, on one fresh image; returns how many calls the sectors saw.
fn try_round(kind: Kind, round: u64, applying: Applying) -> usize {
    let (storage, opening) = kind.fresh();
    let image = opening.clone().access(Access::ReadWrite).open_storage(storage.clone()).expect("it opens");
    let record = Record::new();
    // A value that nobody else writes, so that the zeroes of a new disk are not in the way.
    let rng = Rng::new("the first write");
    let first = Worker { image: &image, record: &record, kind, rng, number: THREADS };
    first.write(0, SECTORS);
    let stop = AtomicBool::new(false);
    let done = std::thread::scope(|scope| {
        let disturbing = scope.spawn(|| disturb((&image, kind), (&record, &stop), applying));
        let workers: Vec<_> = (0..THREADS)
            .map(|number| {
                let rng = Rng::new(format!("one after the other, round {round}, thread {number}"));
                let mut worker = Worker { image: &image, record: &record, kind, rng, number };
                scope.spawn(move || worker.work())
            })
            .collect();
        for worker in workers {
            worker.join().expect("a thread found a fault");
        }
        stop.store(true, Ordering::Relaxed);
        disturbing.join().expect("a thread found a fault")
    });
    first.read(0, SECTORS);
    image.close().expect("the image closes");
    note_snapshots(&record, &done, |name| {
        let view = opening.clone().snapshot(SnapshotSelector::Name(name.to_vec()));
        let view = view.open_storage(storage.clone()).expect("the snapshot opens");
        let mut bytes = vec![0xee; (SECTORS * SECTOR) as usize];
        view.read_at(&mut bytes, 0).expect("the snapshot can be read");
        bytes.chunks(SECTOR as usize).map(value_of).collect()
    });
    let report = opening.open_storage(storage).and_then(|image| image.check()).expect("the check runs");
    assert!(report.is_clean(), "{:?}", report.issues);
    let mut seen = 0;
    for (sector, events) in record.events.iter().enumerate() {
        let events = events.lock().expect("nobody panics here");
        let why = if applying == Applying::Often { objection_by_search(&events) } else { objection(&events) };
        if let Some(why) = why {
            panic!("round {round}, sector {sector}: {why}");
        }
        seen += events.len();
    }
    assert!(applying == Applying::Never || done.applied.len() > 2, "{} were applied", done.applied.len());
    seen
}

#[test]
fn every_sector_is_as_if_calls_had_come_one_after_the_other() {
    let rounds: Vec<_> = (0..2).flat_map(|_| Kind::ALL).collect();
    let seen: usize =
        rounds.iter().zip(0..).map(|(kind, round)| try_round(*kind, round, Applying::Never)).sum();
    println!("{} histories of {seen} calls on sectors, each as if one had come after the other", {
        rounds.len() as u64 * SECTORS
    });
}

/// The disk as it was comes back at one moment, which has its place among the calls of each sector.
#[test]
fn every_sector_is_so_while_snapshots_are_applied() {
    let rounds: Vec<_> = Kind::ALL.into_iter().filter(|kind| kind.has_snapshots()).collect();
    let seen: usize =
        rounds.iter().zip(100..).map(|(kind, round)| try_round(*kind, round, Applying::Often)).sum();
    println!("{} histories of {seen} calls on sectors, snapshots applied among them", {
        rounds.len() as u64 * SECTORS
    });
}

/// A read that began before the disk became smaller sees what was there or is refused: never what the backing disk has, nor
/// an extent of no bytes.
#[test]
fn a_read_beside_a_shrink_shows_nothing_of_what_is_below() {
    const UPPER: u64 = 32;
    let base = Arc::new(MemoryStorage::with_bytes(vec![9; (2 * UPPER * SECTOR) as usize]));
    let (_, image) = image_in_memory(2 * UPPER * SECTOR, Some(&base));
    image.write_at(&vec![5; (2 * UPPER * SECTOR) as usize], 0).expect("the write succeeds");
    let done = AtomicBool::new(false);
    let refused =
        |error: cowimg::Error| assert!(matches!(error.kind(), ErrorKind::OutOfBounds { .. }), "{error}");
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut bytes = vec![0; (UPPER * SECTOR) as usize];
                while !done.load(Ordering::Relaxed) {
                    match image.read_at(&mut bytes, UPPER * SECTOR) {
                        Ok(()) => assert!(
                            bytes.iter().all(|byte| [0, 5].contains(byte)),
                            "{:?}",
                            bytes.iter().max()
                        ),
                        Err(error) => refused(error),
                    }
                    match image.extent_at(UPPER * SECTOR, UPPER * SECTOR) {
                        Ok(extent) => assert!(!extent.range.is_empty() && extent.depth == 0, "{extent:?}"),
                        Err(error) => refused(error),
                    }
                }
            });
        }
        for _ in 0..300 {
            let options = ResizeOptions { shrink: Shrink::Allow, ..ResizeOptions::default() };
            image.resize(UPPER * SECTOR, &options).expect("the disk shrinks");
            image.resize(2 * UPPER * SECTOR, &options).expect("the disk grows");
            image.write_at(&vec![5; (UPPER * SECTOR) as usize], UPPER * SECTOR).expect("the write succeeds");
        }
        done.store(true, Ordering::Relaxed);
    });
    image.close().expect("the image closes");
}

/// Snapshots of other sizes are applied while threads read and write: no call sees another sector's bytes, and what is left
/// is sound.
#[test]
fn snapshots_of_other_sizes_are_applied_under_load() {
    let (storage, image) = image_in_memory(SECTORS * SECTOR, None);
    let own = |sector: u64| bytes_of(sector + 1);
    let done = AtomicBool::new(false);
    let resized = |sectors: u64| {
        let options = ResizeOptions { shrink: Shrink::Allow, ..ResizeOptions::default() };
        image.resize(sectors * SECTOR, &options).expect("the disk is resized");
    };
    for (name, sectors) in [("small", SECTORS / 2), ("large", SECTORS * 9)] {
        resized(sectors);
        let new = NewSnapshot { name: name.as_bytes().to_vec(), ..NewSnapshot::default() };
        image.create_snapshot(&new).expect("it is taken");
    }
    std::thread::scope(|scope| {
        for number in 0..THREADS {
            let (image, done) = (&image, &done);
            scope.spawn(move || {
                let mut rng = Rng::new(format!("snapshots of other sizes, thread {number}"));
                while !done.load(Ordering::Relaxed) {
                    let sector = rng.below(SECTORS * 9);
                    let mut bytes = own(sector);
                    let called = match rng.below(3) {
                        0 => image.read_at(&mut bytes, sector * SECTOR),
                        1 => image.discard(range(sector, 1)),
                        _ => image.write_at(&bytes, sector * SECTOR),
                    };
                    if let Err(error) = called {
                        assert!(matches!(error.kind(), ErrorKind::OutOfBounds { .. }), "{error}");
                        continue;
                    }
                    assert!(
                        [0, sector + 1].contains(&value_of(&bytes)),
                        "sector {sector} has another's bytes"
                    );
                }
            });
        }
        for nth in 0..60 {
            let name = if nth % 2 == 0 { "small" } else { "large" };
            let selector = SnapshotSelector::Name(name.as_bytes().to_vec());
            image.apply_snapshot(&selector).expect("it is applied");
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(image.size(), SECTORS * 9 * SECTOR);
    image.close().expect("the image closes");
    let report =
        Image::options().open_storage(storage).and_then(|image| image.check()).expect("the check runs");
    assert!(report.is_clean(), "{:?}", report.issues);
}
