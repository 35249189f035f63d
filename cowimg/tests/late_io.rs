//! I/O that reaches the storage late never touches a cluster that has another owner by then.
//!
//! An operation looks its mapping up first and does its I/O afterwards, without a lock. Here the storage holds one such
//! read or write back, while the cluster that it is meant for is given up, flushed and wanted for other data.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use cowimg::storage::{MemoryStorage, Storage};
use cowimg::{Access, ByteRange, CreateOptions, Image, ZeroMode};

const CLUSTER: u64 = 4096;
const CLUSTERS: u64 = 128;
const SIZE: u64 = CLUSTERS * CLUSTER;

/// The cluster whose I/O comes late.
const LATE: ByteRange = ByteRange::between(5 * CLUSTER, 6 * CLUSTER);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Punch,
}

/// What is held back: at most one operation.
#[derive(Debug, Default)]
struct Gate {
    /// The next operation of this kind that touches this range of the file is held.
    armed: Option<(Kind, ByteRange)>,
    holds: bool,
}

/// Memory that holds one operation back until it is told to let it go.
#[derive(Debug)]
struct LateStorage {
    memory: MemoryStorage,
    gate: Mutex<Gate>,
    changed: Condvar,
}

impl LateStorage {
    fn lock(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().expect("nobody panics with the gate")
    }

    fn arm(&self, kind: Kind, range: ByteRange) {
        *self.lock() = Gate { armed: Some((kind, range)), holds: false };
    }

    /// Waits until the operation has come.
    fn wait_until_it_holds(&self) {
        let (gate, waited) = self
            .changed
            .wait_timeout_while(self.lock(), Duration::from_secs(20), |gate| !gate.holds)
            .expect("nobody panics with the gate");
        drop(gate);
        assert!(!waited.timed_out(), "the operation never came to the storage");
    }

    fn let_go(&self) {
        *self.lock() = Gate::default();
        self.changed.notify_all();
    }

    fn pass(&self, kind: Kind, offset: u64, len: usize) {
        let mut gate = self.lock();
        let touched = ByteRange::between(offset, offset + len as u64);
        if gate.armed.is_some_and(|(armed, range)| armed == kind && range.overlaps(touched)) {
            *gate = Gate { armed: None, holds: true };
            self.changed.notify_all();
            drop(self.changed.wait_while(gate, |gate| gate.holds).expect("nobody panics with the gate"));
        }
    }
}

impl Storage for LateStorage {
    fn len(&self) -> io::Result<u64> {
        self.memory.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.pass(Kind::Read, offset, buf.len());
        self.memory.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        self.pass(Kind::Write, offset, buf.len());
        self.memory.write_at(buf, offset)
    }

    fn punch_hole(&self, range: ByteRange) -> io::Result<bool> {
        self.pass(Kind::Punch, range.start(), range.len() as usize);
        self.memory.punch_hole(range)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.memory.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.memory.sync()
    }

    fn is_read_only(&self) -> bool {
        self.memory.is_read_only()
    }
}

/// The byte that fills a cluster at first, and the one that fills it later; no two clusters have one in common.
fn byte_of(cluster: u64) -> u8 {
    cluster as u8 + 1
}

fn open(storage: &Arc<LateStorage>) -> Image {
    Image::options().access(Access::ReadWrite).open_storage(storage.clone()).expect("the image opens")
}

/// An image whose first half is written.
fn half_full() -> (Arc<LateStorage>, Image) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("image.qcow2");
    let mut options = CreateOptions::qcow2(SIZE);
    options.qcow2.cluster_size = CLUSTER;
    cowimg::create(&path, &options).expect("the image is created");
    let memory = MemoryStorage::with_bytes(std::fs::read(&path).expect("the image can be read"));
    let storage = Arc::new(LateStorage { memory, gate: Mutex::default(), changed: Condvar::new() });
    let image = open(&storage);
    for cluster in 0..CLUSTERS / 2 {
        write(&image, cluster);
    }
    image.flush().expect("the flush succeeds");
    (storage, image)
}

fn write(image: &Image, cluster: u64) {
    image.write_at(&[byte_of(cluster); CLUSTER as usize], cluster * CLUSTER).expect("the write succeeds");
}

fn read(image: &Image, range: ByteRange) -> Vec<u8> {
    let mut bytes = vec![0xee; range.len() as usize];
    image.read_at(&mut bytes, range.start()).expect("the read succeeds");
    bytes
}

/// Where the late cluster is in the file.
fn host_of_late(image: &Image) -> ByteRange {
    let extent = image.extent_at(LATE.start(), LATE.len()).expect("the mapping can be read");
    let host = extent.host.expect("the cluster is stored");
    ByteRange::between(host, host + LATE.len())
}

/// Gives the late cluster up and writes so much that its place in the file is wanted.
fn give_up_and_write_on(image: &Image, give_up: impl Fn(&Image)) {
    give_up(image);
    for cluster in CLUSTERS / 2..CLUSTERS {
        image.flush().expect("the flush succeeds");
        write(image, cluster);
    }
    image.flush().expect("the flush succeeds");
}

/// Starts `late`, which the storage holds back, and meanwhile runs `other`. The flushes in there may wait for the late
/// operation, or not: it is let go after a while in any case.
fn run_late<T: Send>(
    (storage, image): (&LateStorage, &Image),
    kind: Kind,
    late: impl FnOnce() -> T + Send,
    other: impl FnOnce() + Send,
) -> T {
    storage.arm(kind, host_of_late(image));
    std::thread::scope(|scope| {
        let late = scope.spawn(late);
        storage.wait_until_it_holds();
        let other = scope.spawn(other);
        for _ in 0..50 {
            if other.is_finished() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        storage.let_go();
        other.join().expect("the other operations succeed");
        late.join().expect("the late operation succeeds")
    })
}

fn assert_others_are_whole(storage: &Arc<LateStorage>, image: Image) {
    image.close().expect("the image closes");
    let image = open(storage);
    for cluster in (0..CLUSTERS).filter(|cluster| cluster * CLUSTER != LATE.start()) {
        let range = ByteRange::between(cluster * CLUSTER, (cluster + 1) * CLUSTER);
        let found = read(&image, range);
        assert!(found.iter().all(|byte| *byte == byte_of(cluster)), "cluster {cluster} holds {}", found[0]);
    }
    let report = image.check().expect("the check runs");
    assert!(report.is_clean(), "the library's check: {report:?}");
}

const GIVE_UP: [fn(&Image); 2] = [
    |image| image.discard(LATE).expect("the discard succeeds"),
    |image| image.write_zeroes(LATE, ZeroMode::Unmap).expect("zeroing succeeds"),
];

#[test]
fn a_late_write_does_not_hit_the_clusters_next_owner() {
    for give_up in GIVE_UP {
        let (storage, image) = half_full();
        let write = || image.write_at(&[0xfa; 1024], LATE.start() + 512).expect("the write succeeds");
        run_late((&*storage, &image), Kind::Write, write, || give_up_and_write_on(&image, give_up));
        let found = read(&image, LATE);
        assert!(
            found.iter().all(|byte| [0, 0xfa].contains(byte)),
            "the late cluster itself holds {}",
            found[0]
        );
        assert_others_are_whole(&storage, image);
    }
}

#[test]
fn a_late_read_does_not_see_the_clusters_next_owner() {
    for give_up in GIVE_UP {
        let (storage, image) = half_full();
        let found = run_late(
            (&*storage, &image),
            Kind::Read,
            || read(&image, LATE),
            || give_up_and_write_on(&image, give_up),
        );
        let own = byte_of(LATE.start() / CLUSTER);
        assert!(found.iter().all(|byte| [0, own].contains(byte)), "the late read saw {}", found[0]);
        assert_others_are_whole(&storage, image);
    }
}

/// The space of a discarded cluster goes back to the host before anybody else may have the cluster, never after.
#[test]
fn a_late_hole_is_not_punched_into_the_clusters_next_owner() {
    for give_up in GIVE_UP {
        let (storage, image) = half_full();
        let discard = || {
            give_up(&image);
            for _ in 0..3 {
                image.flush().expect("the flush succeeds");
            }
        };
        let write_on = || (CLUSTERS / 2..CLUSTERS).for_each(|cluster| write(&image, cluster));
        run_late((&*storage, &image), Kind::Punch, discard, write_on);
        assert_others_are_whole(&storage, image);
    }
}
