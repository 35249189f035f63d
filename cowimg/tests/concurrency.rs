//! Eight threads on one image: every sector has one owner, neighbours within a cluster have different ones, and
//! nobody ever reads another sector's bytes.
//!
//! Each 8-byte word of a sector says which sector it belongs to and which of its versions it is. So an owner can say
//! exactly what its sector must hold, and an onlooker can tell at any time that no word has strayed.

#[path = "qemu_tools/mod.rs"]
mod qemu_tools;
#[path = "seeded/mod.rs"]
mod seeded;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use cowimg::storage::MemoryStorage;
use cowimg::{
    Access, BackingOptions, ByteRange, CreateOptions, Format, Image, NewSnapshot, ResizeOptions,
    SnapshotSelector, ZeroMode,
};
use seeded::Rng;

const THREADS: u64 = 8;
const SECTOR: u64 = 512;
const SIZE: u64 = 6 * 1024 * 1024 + 5 * SECTOR;
const SECTORS: u64 = SIZE / SECTOR;
const VERSION_BITS: u32 = 24;

/// The word that fills `sector` in its `version`; version 0 is a sector of zeroes.
fn word(sector: u64, version: u32) -> u64 {
    if version == 0 { 0 } else { ((sector + 1) << VERSION_BITS) | u64::from(version) }
}

fn sector_bytes(sector: u64, version: u32) -> Vec<u8> {
    word(sector, version).to_be_bytes().repeat(SECTOR as usize / 8)
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.chunks_exact(8).map(|chunk| u64::from_be_bytes(chunk.try_into().expect("eight bytes")))
}

/// The disk as it should be: a version per sector, which only the sector's owner changes.
struct Versions(Vec<AtomicU32>);

impl Versions {
    fn all(version: u32) -> Versions {
        Versions((0..SECTORS).map(|_| AtomicU32::new(version)).collect())
    }

    fn get(&self, sector: u64) -> u32 {
        self.0[sector as usize].load(Ordering::Relaxed)
    }

    fn set(&self, sector: u64, version: u32) {
        self.0[sector as usize].store(version, Ordering::Relaxed);
    }

    fn bytes(&self) -> Vec<u8> {
        (0..SECTORS).flat_map(|sector| sector_bytes(sector, self.get(sector))).collect()
    }
}

/// One thread's view of the test.
struct Worker<'a> {
    image: &'a Image,
    versions: &'a Versions,
    rng: Rng,
    number: u64,
    /// Counts up, so that no version of a sector comes twice.
    next_version: u32,
}

impl Worker<'_> {
    fn new_version(&mut self) -> u32 {
        self.next_version += 1;
        self.next_version
    }

    fn write(&mut self, first: u64, count: u64) {
        let version = self.new_version();
        let bytes: Vec<u8> =
            (first..first + count).flat_map(|sector| sector_bytes(sector, version)).collect();
        self.image.write_at(&bytes, first * SECTOR).expect("the write succeeds");
        for sector in first..first + count {
            self.versions.set(sector, version);
        }
    }

    fn zero(&mut self, first: u64, count: u64) {
        let range = ByteRange::between(first * SECTOR, (first + count) * SECTOR);
        let mode = *self.rng.pick(&[ZeroMode::KeepSpace, ZeroMode::Unmap]);
        self.image.write_zeroes(range, mode).expect("zeroing succeeds");
        for sector in first..first + count {
            self.versions.set(sector, 0);
        }
    }

    /// After a discard a sector reads as zeroes or as it did; what it reads as then is what it stays.
    fn discard(&mut self, first: u64, count: u64) {
        let range = ByteRange::between(first * SECTOR, (first + count) * SECTOR);
        self.image.discard(range).expect("the discard succeeds");
        let bytes = self.read(first, count);
        for (sector, bytes) in (first..).zip(bytes.chunks(SECTOR as usize)) {
            if bytes.iter().all(|byte| *byte == 0) {
                self.versions.set(sector, 0);
            }
        }
        self.expect(first, count, "after a discard");
    }

    fn read(&self, first: u64, count: u64) -> Vec<u8> {
        let mut bytes = vec![0xee; (count * SECTOR) as usize];
        self.image.read_at(&mut bytes, first * SECTOR).expect("the read succeeds");
        bytes
    }

    fn expect(&self, first: u64, count: u64, when: &str) {
        let bytes = self.read(first, count);
        for (sector, bytes) in (first..).zip(bytes.chunks(SECTOR as usize)) {
            let (expected, found) = (sector_bytes(sector, self.versions.get(sector)), words(bytes).next());
            let number = self.number;
            assert!(bytes == expected, "{when}: sector {sector} of thread {number} holds {found:x?}");
        }
    }

    /// Single sectors: every neighbour is another thread's.
    fn interleaved_sectors(&mut self, operations: u32) {
        for _ in 0..operations {
            let sector = self.rng.below(SECTORS / THREADS) * THREADS + self.number;
            match self.rng.below(100) {
                0..55 => self.write(sector, 1),
                55..60 => self.zero(sector, 1),
                60..64 => self.discard(sector, 1),
                64..99 => self.expect(sector, 1, "its own sector"),
                _ => self.image.flush().expect("the flush succeeds"),
            }
        }
    }

    /// Ranges of sectors: chunks of `chunk` sectors, which no cluster size divides, go round the threads.
    fn ranges(&mut self, operations: u32, chunk: u64) {
        for _ in 0..operations {
            let round = self.rng.below(SECTORS / (chunk * THREADS));
            let start = (round * THREADS + self.number) * chunk;
            let first = start + self.rng.below(chunk);
            let count = self.rng.between(1, start + chunk - first);
            match self.rng.below(100) {
                0..35 => self.write(first, count),
                35..55 => self.zero(first, count),
                55..70 => self.discard(first, count),
                70..97 => self.expect(first, count, "its own range"),
                _ => self.image.flush().expect("the flush succeeds"),
            }
        }
    }
}

/// Reads everything again and again until told to stop: a word is zero or its own sector's.
fn look_on(image: &Image, stop: &AtomicBool) {
    let mut bytes = vec![0; 256 * 1024];
    while !stop.load(Ordering::Relaxed) {
        for start in (0..SIZE).step_by(bytes.len()) {
            let len = (SIZE - start).min(bytes.len() as u64) as usize;
            image.read_at(&mut bytes[..len], start).expect("the read succeeds");
            for (at, word) in words(&bytes[..len]).enumerate() {
                let sector = (start + at as u64 * 8) / SECTOR;
                assert!(word == 0 || word >> VERSION_BITS == sector + 1, "sector {sector} holds {word:x}");
            }
        }
        let covered: u64 = image
            .extents(ByteRange::between(0, SIZE))
            .map(|extent| extent.expect("the mapping can be read").range.len())
            .sum();
        assert_eq!(covered, SIZE);
    }
}

/// Stops the onlooker when the workers are done, and when one of them has panicked.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn in_all_threads(image: &Image, versions: &Versions, purpose: &str, work: impl Fn(&mut Worker<'_>) + Sync) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| look_on(image, &stop));
        let _stop_at_end = StopAtEnd(&stop);
        let workers: Vec<_> = (0..THREADS)
            .map(|number| {
                let rng = Rng::new(format!("{purpose}, thread {number}"));
                let next_version = (0..SECTORS).map(|sector| versions.get(sector)).max().unwrap_or(0);
                let mut worker = Worker { image, versions, rng, number, next_version };
                let work = &work;
                scope.spawn(move || work(&mut worker))
            })
            .collect();
        for worker in workers {
            worker.join().expect("a thread found a fault");
        }
    });
}

/// Both phases on an image, then flush, close, and everything compared by `reopen`.
fn stress(image: Image, versions: &Versions, purpose: &str, chunk: u64) {
    in_all_threads(&image, versions, &format!("{purpose}: sectors"), |worker| {
        worker.interleaved_sectors(1200);
    });
    in_all_threads(&image, versions, &format!("{purpose}: ranges"), |worker| worker.ranges(300, chunk));
    image.flush().expect("the flush succeeds");
    image.close().expect("the image closes");
}

/// Seven threads write their own sectors of what the disk has at the time, while one makes it larger.
#[test]
fn a_disk_grows_while_it_is_written() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("image.qcow2");
    let start_sectors = 100;
    let mut options = CreateOptions::qcow2(start_sectors * SECTOR);
    options.qcow2.cluster_size = 4096;
    let image = Image::create(&path, &options).expect("the image is created");
    let versions = Versions::all(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for sectors in (start_sectors..=SECTORS).step_by(61).chain([SECTORS]) {
                image.resize(sectors * SECTOR, &ResizeOptions::default()).expect("the disk grows");
            }
        });
        for number in 1..THREADS {
            let rng = Rng::new(format!("grows while it is written, thread {number}"));
            let mut worker = Worker { image: &image, versions: &versions, rng, number, next_version: 0 };
            scope.spawn(move || {
                for _ in 0..1500 {
                    let sectors = worker.image.size() / SECTOR;
                    let sector = worker.rng.below(sectors / THREADS) * THREADS + worker.number;
                    match worker.rng.below(10) {
                        0..7 => worker.write(sector, 1),
                        7 => worker.zero(sector, 1),
                        _ => worker.expect(sector, 1, "while the disk grows"),
                    }
                }
            });
        }
    });
    assert_eq!(image.size(), SIZE);
    image.close().expect("the image closes");
    compare_file(&path, &versions);
}

/// The place of a write of the next test, which is a little shorter: parts of three clusters, so that it takes more than
/// one step.
const PLACE: u64 = 3 * 4096;
const WRITTEN: usize = PLACE as usize - 1024;

/// The version that fills the whole of a write; a snapshot that holds a part of one panics.
fn version_of(image: &Image, at: u64) -> u64 {
    let mut bytes = vec![0xee; WRITTEN];
    image.read_at(&mut bytes, at).expect("the snapshot can be read");
    let first = words(&bytes).next().expect("a write is not empty");
    assert!(words(&bytes).all(|word| word == first), "a snapshot holds a part of a write");
    first
}

/// Every thread writes one place, then another, with the same version. A snapshot that holds the second write holds the
/// first, one that was asked for after a write returned holds it, and each write is in it whole or not at all.
#[test]
fn a_snapshot_is_a_point_in_the_order_of_writes() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("image.qcow2");
    let mut options = CreateOptions::qcow2(THREADS * 2 * PLACE);
    options.qcow2.cluster_size = 4096;
    let image = Image::create(&path, &options).expect("the image is created");
    let places = |number: u64| (2 * number * PLACE + 512, (2 * number + 1) * PLACE + 1024);
    let returned: Vec<AtomicU32> = (0..THREADS).map(|_| AtomicU32::new(0)).collect();
    let done = AtomicBool::new(false);
    let mut floors = Vec::new();
    std::thread::scope(|scope| {
        for number in 0..THREADS {
            let (image, returned, done) = (&image, &returned[number as usize], &done);
            scope.spawn(move || {
                let (first, second) = places(number);
                for version in 1_u32.. {
                    let bytes = u64::from(version).to_be_bytes().repeat(WRITTEN / 8);
                    image.write_at(&bytes[..WRITTEN], first).expect("the write succeeds");
                    image.write_at(&bytes[..WRITTEN], second).expect("the write succeeds");
                    returned.store(version, Ordering::SeqCst);
                    if done.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        for nth in 0..12 {
            std::thread::sleep(std::time::Duration::from_millis(10));
            floors.push(returned.iter().map(|version| version.load(Ordering::SeqCst)).collect::<Vec<_>>());
            let name = nth.to_string().into_bytes();
            image.create_snapshot(&NewSnapshot { name, ..NewSnapshot::default() }).expect("it is taken");
        }
        done.store(true, Ordering::Relaxed);
    });
    image.close().expect("the image closes");
    for (nth, floor) in floors.iter().enumerate() {
        let selector = SnapshotSelector::Name(nth.to_string().into_bytes());
        let view = Image::options().snapshot(selector).open(&path).expect("the snapshot opens");
        for number in 0..THREADS {
            let (first, second) = places(number);
            let (first, second) = (version_of(&view, first), version_of(&view, second));
            assert!(first == second || first == second + 1, "snapshot {nth}: {first} and then {second}");
            assert!(
                second >= u64::from(floor[number as usize]),
                "snapshot {nth} misses a write that had returned"
            );
        }
    }
    let report = Image::open(&path).and_then(|image| image.check()).expect("the check runs");
    assert!(report.is_clean(), "the library's check: {report:?}");
}

fn compare_all(image: &Image, versions: &Versions) {
    let mut bytes = vec![0xee; SIZE as usize];
    image.read_at(&mut bytes, 0).expect("the disk can be read");
    qemu_tools::assert_same_bytes(&bytes, &versions.bytes(), "after it was opened again");
    let report = image.check().expect("the check runs");
    assert!(report.is_clean(), "the library's check: {report:?}");
}

fn compare_file(path: &Path, versions: &Versions) {
    compare_all(&Image::open(path).expect("the image opens"), versions);
    qemu_tools::assert_check_clean(path);
    qemu_tools::assert_same_bytes(&qemu_tools::content(path), &versions.bytes(), "read by QEMU");
}

fn create(path: &Path, cluster_size: u64, refcount_bits: u32, backing: Option<BackingOptions>) -> Image {
    let mut options = CreateOptions { backing, ..CreateOptions::qcow2(SIZE) };
    options.qcow2.cluster_size = cluster_size;
    options.qcow2.refcount_bits = refcount_bits;
    Image::create(path, &options).expect("the image is created")
}

/// In memory, so that threads meet in the engine and not in the kernel.
fn try_in_memory(cluster_size: u64, refcount_bits: u32, cache_bytes: Option<u64>) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("image.qcow2");
    create(&path, cluster_size, refcount_bits, None).close().expect("the image closes");
    let storage = Arc::new(MemoryStorage::with_bytes(std::fs::read(&path).expect("the image can be read")));
    let mut options = Image::options().access(Access::ReadWrite);
    if let Some(bytes) = cache_bytes {
        options = options.cache_size(bytes);
    }
    let image = options.open_storage(storage.clone()).expect("the image opens");
    let versions = Versions::all(0);
    let purpose = format!("memory, clusters of {cluster_size}, cache {cache_bytes:?}");
    stress(image, &versions, &purpose, cluster_size / SECTOR * 2 + 37);

    compare_all(&Image::options().open_storage(storage.clone()).expect("the image opens"), &versions);
    std::fs::write(&path, storage.to_vec()).expect("the image can be written");
    compare_file(&path, &versions);
}

#[test]
fn small_clusters_in_memory() {
    try_in_memory(4096, 16, None);
}

#[test]
fn small_clusters_in_memory_with_a_cache_that_holds_next_to_nothing() {
    try_in_memory(4096, 16, Some(1));
}

#[test]
fn the_usual_clusters_in_memory() {
    try_in_memory(65536, 1, None);
}

#[test]
fn large_clusters_in_memory() {
    try_in_memory(1 << 18, 64, None);
}

/// Subclusters of 512 bytes, so that threads meet in every cluster.
#[test]
fn divided_clusters_in_a_file_over_a_raw_base() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("image.qcow2");
    let versions = Versions::all(1);
    std::fs::write(folder.path().join("base.raw"), versions.bytes()).expect("the base can be written");
    let backing = BackingOptions { format: Some(Format::Raw), ..BackingOptions::new("base.raw") };
    let mut options = CreateOptions { backing: Some(backing), ..CreateOptions::qcow2(SIZE) };
    options.qcow2.cluster_size = 16384;
    options.qcow2.extended_l2 = true;
    let image = Image::create(&path, &options).expect("the image is created");
    stress(image, &versions, "divided clusters over a raw base", 16384 / SECTOR * 2 + 37);
    compare_file(&path, &versions);
}

#[test]
fn a_file_whose_divided_clusters_are_compressed_and_shared_with_a_snapshot() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let (raw, path) = (folder.path().join("source.raw"), folder.path().join("image.qcow2"));
    let versions = Versions::all(1);
    let before = versions.bytes();
    std::fs::write(&raw, &before).expect("the source can be written");
    drop(versions);
    for (compress, part) in [("-c ", "compressed"), ("", "plain")] {
        qemu_tools::img(
            &format!("convert {compress}-f raw -O qcow2 -o cluster_size=16k,extended_l2=on"),
            &[&raw, &path],
        );
        qemu_tools::img("snapshot -c before", &[&path]);
        let versions = Versions::all(1);
        let image = Image::options().access(Access::ReadWrite).open(&path).expect("the image opens");
        stress(image, &versions, &format!("divided and {part}, with a snapshot"), 16384 / SECTOR * 2 + 37);
        compare_file(&path, &versions);
        let snapshot = qemu_tools::snapshot_content(&path, "before");
        qemu_tools::assert_same_bytes(&snapshot, &before, "the snapshot");
    }
}

#[test]
fn the_usual_clusters_in_a_file_over_a_raw_base() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("image.qcow2");
    let versions = Versions::all(1);
    std::fs::write(folder.path().join("base.raw"), versions.bytes()).expect("the base can be written");
    let backing = BackingOptions { format: Some(Format::Raw), ..BackingOptions::new("base.raw") };
    let image = create(&path, 65536, 16, Some(backing));
    stress(image, &versions, "file over a raw base", 65536 / SECTOR * 2 + 37);
    compare_file(&path, &versions);
}

#[test]
fn a_file_whose_clusters_are_compressed_and_shared_with_a_snapshot() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let (raw, path) = (folder.path().join("source.raw"), folder.path().join("image.qcow2"));
    let versions = Versions::all(1);
    let before = versions.bytes();
    std::fs::write(&raw, &before).expect("the source can be written");
    qemu_tools::img("convert -c -f raw -O qcow2 -o cluster_size=16k", &[&raw, &path]);
    qemu_tools::img("snapshot -c before", &[&path]);
    let image = Image::options().access(Access::ReadWrite).open(&path).expect("the image opens");
    stress(image, &versions, "compressed, with a snapshot", 16384 / SECTOR * 2 + 37);
    compare_file(&path, &versions);
    qemu_tools::assert_same_bytes(&qemu_tools::snapshot_content(&path, "before"), &before, "the snapshot");
}
