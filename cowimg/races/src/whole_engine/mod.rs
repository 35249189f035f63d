//! The whole engine in many orders of steps: threads that take clusters, fill them, fail, give clusters up and flush.
//!
//! A thread follows a list of [`Op`]s. Each guest cluster has one thread that changes it, so that its content has a history
//! of versions, and whatever anybody reads must be one that was there during the read. When all have ended,
//!
//! * every cluster reads as its last version: no cluster of the file was given to two;
//! * at some moments the power is cut: the image is sound, what a flush covers is there, and no cluster has what was
//!   never its own: none was given out before the reference that it had was durably gone (rules W1 to W4, W9);
//! * the image is closed: nothing has leaked, whatever failed.

mod stepped;

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use cowimg::check::check_storage;
use cowimg::storage::{CrashChoice, Storage};
use cowimg::{Access, ByteRange, CreateOptions, Image};
use shuttle::rand::Rng;
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, Runner, thread};

use stepped::{POISON, SteppedStorage};

const SECTOR: u64 = 512;
const CLUSTER: u64 = 2 * SECTOR;
/// Guest clusters: an L2 table has 128 entries, so that there are two of them.
const CLUSTERS: u64 = 256;
/// The first of the other L2 table.
const FAR: u64 = 128;

/// Power cuts after each order of steps.
const CUTS: usize = 3;

/// The bytes that fill the two sectors of a cluster.
type Content = [u8; 2];

/// What a thread does.
#[derive(Debug, Clone, Copy)]
enum Op {
    /// Fills the cluster with the byte.
    Write(u64, u8),
    /// Fills its first sector only.
    WriteHalf(u64, u8),
    /// Its second sector only.
    WriteRest(u64, u8),
    /// Fills so many clusters from the first on, in one call.
    WriteRun(u64, u64, u8),
    /// The same, but the storage fails when it has written: for clusters that have no space yet.
    Fail(u64, u64),
    /// Fills the cluster with the byte, compressed: it shares a cluster of the file with others.
    Pack(u64, u8),
    /// Gives the cluster up.
    Discard(u64),
    /// Reads it.
    Read(u64),
    /// Reads its second sector only: of a compressed cluster the rest is kept for who reads on.
    ReadRest(u64),
    Flush,
}

use Op::{Discard, Fail, Flush, Pack, Read, ReadRest, Write, WriteHalf, WriteRest, WriteRun};

impl Op {
    /// The clusters whose content it changes.
    fn changes(self) -> std::ops::Range<u64> {
        match self {
            Write(at, _) | WriteHalf(at, _) | WriteRest(at, _) | Pack(at, _) | Discard(at) => at..at + 1,
            WriteRun(at, count, _) => at..at + count,
            Fail(..) | Read(_) | ReadRest(_) | Flush => 0..0,
        }
    }

    /// What it makes of a cluster that it changes.
    fn makes_of(self, before: Content) -> Content {
        match self {
            Write(_, byte) | WriteRun(_, _, byte) | Pack(_, byte) => [byte; 2],
            WriteHalf(_, byte) => [byte, before[1]],
            WriteRest(_, byte) => [before[0], byte],
            Discard(_) => [0; 2],
            Fail(..) | Read(_) | ReadRest(_) | Flush => before,
        }
    }
}

/// A cluster's contents, one after the other, and how far it has come.
#[derive(Debug, Default)]
struct History {
    versions: Vec<Content>,
    begun: AtomicUsize,
    acknowledged: AtomicUsize,
}

/// A flush that returned: what it covers survives every power cut after so many operations of the storage.
struct Promise {
    operations: usize,
    versions: Vec<usize>,
}

/// An image, what is known of it, and those who use it.
struct World {
    image: Image,
    storage: Arc<SteppedStorage>,
    clusters: Vec<History>,
    /// A lock of the standard library: no step is taken while it is held.
    promises: std::sync::Mutex<Vec<Promise>>,
}

impl World {
    fn new(start: &[Op], threads: &[&[Op]]) -> World {
        let storage = Arc::new(SteppedStorage::new(fresh_image()));
        let image = open(Arc::clone(&storage) as Arc<dyn Storage>, Access::ReadWrite);
        let mut clusters: Vec<History> = Vec::new();
        clusters.resize_with(CLUSTERS as usize, || History { versions: vec![[0; 2]], ..History::default() });
        for op in [start].iter().chain(threads).copied().flatten() {
            for cluster in op.changes() {
                let versions = &mut clusters[cluster as usize].versions;
                let before = versions[versions.len() - 1];
                versions.push(op.makes_of(before));
            }
        }
        let world = World { image, storage, clusters, promises: std::sync::Mutex::default() };
        start.iter().for_each(|op| world.perform(*op));
        world
    }

    fn perform(&self, op: Op) {
        let histories = || op.changes().map(|cluster| &self.clusters[cluster as usize]);
        for history in histories() {
            history.begun.fetch_add(1, SeqCst);
        }
        let at = |cluster: u64| cluster * CLUSTER;
        let filled = |count: u64, byte: u8| vec![byte; (count * CLUSTER) as usize];
        let done = match op {
            Write(cluster, byte) => self.image.write_at(&filled(1, byte), at(cluster)),
            Pack(cluster, byte) => self.image.write_compressed_at(&filled(1, byte), at(cluster)),
            WriteRun(first, count, byte) => self.image.write_at(&filled(count, byte), at(first)),
            WriteHalf(cluster, byte) => self.image.write_at(&[byte; SECTOR as usize], at(cluster)),
            WriteRest(cluster, byte) => self.image.write_at(&[byte; SECTOR as usize], at(cluster) + SECTOR),
            Discard(cluster) => self.image.discard(ByteRange::between(at(cluster), at(cluster + 1))),
            Read(cluster) => return self.read(cluster, 0),
            ReadRest(cluster) => return self.read(cluster, 1),
            Flush => return self.flush(),
            Fail(first, count) => {
                let failed = self.image.write_at(&filled(count, POISON), at(first));
                return assert!(failed.is_err(), "a write that failed was acknowledged");
            }
        };
        done.unwrap_or_else(|error| panic!("{op:?} failed: {error}"));
        for history in histories() {
            history.acknowledged.fetch_add(1, SeqCst);
        }
    }

    /// Reads a cluster from one of its sectors on.
    fn read(&self, cluster: u64, from: usize) {
        let history = &self.clusters[cluster as usize];
        let oldest = history.acknowledged.load(SeqCst);
        let content = content_from(&self.image, cluster, from);
        let newest = history.begun.load(SeqCst);
        let may_be = &history.versions[oldest..=newest];
        assert_is_any(&content, from, may_be, &format!("cluster {cluster} reads as what it is not"));
    }

    fn flush(&self) {
        let versions = self.clusters.iter().map(|history| history.acknowledged.load(SeqCst)).collect();
        self.image.flush().expect("the flush succeeds");
        let operations = self.storage.recorded().log_len();
        self.promises.lock().expect("nobody panics here").push(Promise { operations, versions });
    }

    /// What the power leaves when it fails after so many operations.
    fn cut(&self, operations: usize, seed: u64) {
        let left = Arc::new(self.storage.recorded().crash_at(operations, CrashChoice::Random { seed }));
        let report = check_storage(&*left).expect("what a power cut leaves can be checked");
        let sound = report.corruptions == 0 && report.check_errors == 0;
        assert!(sound, "after a power cut: {:?}", report.issues);
        let promises = self.promises.lock().expect("nobody panics here");
        let image = open(left, Access::ReadOnly);
        for (cluster, history) in self.clusters.iter().enumerate().filter(|(_, h)| h.versions.len() > 1) {
            let kept = promises.iter().filter(|promise| promise.operations <= operations);
            let oldest = kept.map(|promise| promise.versions[cluster]).max().unwrap_or(0);
            let content = content_of(&image, cluster as u64);
            let what = format!("cluster {cluster} lost, or not its own, after a power cut");
            assert_is_any(&content, 0, &history.versions[oldest..], &what);
        }
    }

    fn end(self) {
        for cluster in 0..CLUSTERS {
            let versions = &self.clusters[cluster as usize].versions;
            let last = &versions[versions.len() - 1..];
            let content = content_of(&self.image, cluster);
            assert_is_any(&content, 0, last, &format!("cluster {cluster} at the end"));
        }
        let operations = self.storage.recorded().log_len();
        let mut random = shuttle::rand::thread_rng();
        for _ in 0..CUTS {
            self.cut(random.gen_range(0..=operations), random.gen_range(0..u64::MAX));
        }
        self.image.close().expect("the image closes");
        let report = check_storage(self.storage.recorded()).expect("the image can be checked");
        let clean = report.corruptions == 0 && report.check_errors == 0 && report.leaks == 0;
        assert!(clean, "after the end: {:?}", report.issues);
    }
}

/// Each of the sectors from `from` on is as in one of the contents.
fn assert_is_any(sectors: &[u8], from: usize, may_be: &[Content], what: &str) {
    for (sector, byte) in (from..).zip(sectors) {
        let as_in_one = may_be.iter().any(|version| version[sector] == *byte);
        assert!(as_in_one, "{what}: sector {sector} has {byte:#x}, and may have one of {may_be:x?}");
    }
}

fn content_of(image: &Image, cluster: u64) -> Vec<u8> {
    content_from(image, cluster, 0)
}

/// The bytes that fill the sectors of a cluster from `from` on, read in one piece.
fn content_from(image: &Image, cluster: u64, from: usize) -> Vec<u8> {
    let start = from * SECTOR as usize;
    let mut bytes = vec![0; CLUSTER as usize - start];
    image.read_at(&mut bytes, cluster * CLUSTER + start as u64).expect("the read succeeds");
    let filled = |sector: &[u8]| sector.iter().all(|byte| *byte == sector[0]);
    let sectors = bytes.chunks(SECTOR as usize);
    sectors
        .inspect(|sector| assert!(filled(sector), "a sector of cluster {cluster} is torn"))
        .map(|sector| sector[0])
        .collect()
}

fn open(storage: Arc<dyn Storage>, access: Access) -> Image {
    Image::options().access(access).open_storage(storage).expect("the image opens")
}

/// The bytes of an image without any cluster in use.
fn fresh_image() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("image.qcow2");
        let mut options = CreateOptions::qcow2(CLUSTERS * CLUSTER);
        options.qcow2.cluster_size = CLUSTER;
        cowimg::create(&path, &options).expect("the image is created");
        std::fs::read(&path).expect("the image can be read")
    })
}

/// Runs the threads after `start`, in so many orders drawn at random and as many that switch at a few places only. Returns
/// how many that were.
fn many_orders(orders: usize, start: &'static [Op], threads: &'static [&'static [Op]]) -> u64 {
    let model = move || {
        let world = Arc::new(World::new(start, threads));
        let running = threads.iter().map(|ops| {
            let world = Arc::clone(&world);
            thread::spawn(move || ops.iter().for_each(|op| world.perform(*op)))
        });
        let running: Vec<_> = running.collect();
        running.into_iter().for_each(|thread| thread.join().expect("the thread ends"));
        Arc::into_inner(world).expect("all others have ended").end();
    };
    let run = |scheduler: Box<dyn Scheduler + Send>| {
        let mut config = Config::new();
        // The engine's calls go deeper than those of a model.
        config.stack_size = 1 << 20;
        Runner::new(scheduler, config).run(model) as u64
    };
    run(Box::new(RandomScheduler::new(orders))) + run(Box::new(PctScheduler::new(3, orders)))
}

/// Threads that reserve runs of clusters and use them never get one cluster twice: new tables of both kinds, runs, parts of
/// clusters, and flushes in between.
pub fn no_cluster_is_given_to_two(orders: usize) -> u64 {
    many_orders(
        orders,
        &[],
        &[
            &[Write(0, 1), Write(FAR, 2), WriteHalf(1, 3), WriteRest(1, 4)],
            &[WriteRun(2, 3, 5), WriteHalf(FAR + 1, 6), Read(0), Discard(3)],
            &[Flush, WriteRun(5, 2, 7), Flush, Write(FAR + 2, 8)],
        ],
    )
}

/// A reservation that fails gives back what it held, and nothing of what it wrote shows: not in the clusters that it was
/// meant for, and not beside what others write into the same clusters of the file later.
pub fn a_failed_reservation_loses_nothing(orders: usize) -> u64 {
    many_orders(
        orders,
        &[Write(9, 1), Flush],
        &[
            &[Fail(0, 3), Fail(FAR, 1), WriteHalf(0, 2)],
            &[WriteHalf(4, 3), Fail(6, 2), WriteRest(5, 4), WriteRun(FAR + 1, 2, 5)],
            &[Flush, WriteHalf(8, 6), Flush, Read(4)],
        ],
    )
}

/// A cluster that lost its reference is given out again only when that is durable and nobody reads it any more.
pub fn a_freed_cluster_waits_until_that_is_durable(orders: usize) -> u64 {
    many_orders(
        orders,
        &[WriteRun(0, 4, 1), Write(FAR, 2), Flush],
        &[
            &[Discard(0), Write(0, 3), Discard(FAR), Flush, Write(FAR, 4)],
            &[Discard(1), Flush, WriteRun(5, 2, 5), Flush, Write(7, 6)],
            &[Read(1), Read(0), Discard(2), Write(8, 7), Read(FAR)],
        ],
    )
}

/// A cluster of the file that holds compressed clusters of several threads is free when the last of them has gone, and what is
/// added to it meanwhile is in nobody else's.
pub fn compressed_clusters_share_without_harm(orders: usize) -> u64 {
    many_orders(
        orders,
        &[Pack(0, 1), Pack(1, 2), Flush],
        &[
            &[Discard(0), Pack(2, 3), Discard(2), Pack(3, 4)],
            &[Write(1, 5), Flush, Pack(4, 6), Flush],
            &[Read(0), Pack(FAR, 7), Flush, Write(FAR, 8), Read(1)],
        ],
    )
}

/// What readers keep of a compressed cluster is not taken for what is stored at its place later.
pub fn what_is_kept_is_forgotten_in_time(orders: usize) -> u64 {
    many_orders(
        orders,
        &[Pack(0, 1), Flush],
        &[&[Write(0, 2), Flush, Flush, Pack(0, 3), ReadRest(0)], &[ReadRest(0), ReadRest(0)]],
    )
}
