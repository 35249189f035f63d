//! What hostile images cost: each kind that is known to have made some program eat memory, hang or follow a name is opened,
//! read, checked, repaired and written here, and the memory that this takes is counted by the allocator, and the time.
//!
//! One test per kind, by its name.

mod sound_image;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use cowimg::check::{
    Repair, check_file, check_storage_with, plan_storage, plan_storage_with, repair_storage,
    repair_storage_with,
};
use cowimg::encryption::{LuksOptions, Passphrase};
use cowimg::format::qcow2::CompressionType;
use cowimg::format::qcow2::layout::{BackingName, DataFileName, FreshParams};
use cowimg::progress::Control;
use cowimg::storage::{MemoryStorage, Storage};
use cowimg::{Access, ByteRange, CreateOptions, Error, ErrorKind, Image, Limits, NewSnapshot, Result};
use cowimg::{inspect, inspect_chain};

use sound_image::{
    L1_ENTRIES, L1_OFFSET, REFCOUNT_CLUSTERS, SNAPSHOT_COUNT, SNAPSHOT_TABLE, changed, fresh, open, params,
    put, sound, word,
};

/// The system's allocator, which counts.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promise about the layout is handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: it was allocated above, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Nothing here may take longer, on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(10);
const MIB: usize = 1 << 20;
/// What images may take that have nothing large in them: buffers of the jobs, caches.
const USUAL: usize = 16 * MIB;

/// Held by the test that runs: what another takes meanwhile would be counted as this one's.
static ALONE: Mutex<()> = Mutex::new(());

/// Keeps other tests from running until it is dropped.
fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `work`, which may take so many bytes of memory at a time.
fn measured<T>(what: &str, memory: usize, work: impl FnOnce() -> T) -> T {
    assert!(matches!(ALONE.try_lock(), Err(TryLockError::WouldBlock)), "{what}: the test is not alone");
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let start = Instant::now();
    let result = work();
    let (taken, took) = (PEAK.load(Ordering::Relaxed).saturating_sub(before), start.elapsed());
    println!("{what}: {taken} bytes, {took:?}");
    assert!(taken <= memory, "{what} took {taken} bytes of memory, and {memory} are allowed");
    assert!(took < PATIENCE, "{what} took {took:?}");
    result
}

/// Does with the image what anybody might; each is tried, whatever became of the one before. The copy counts, too.
fn use_it(what: &str, memory: usize, storage: &Arc<MemoryStorage>) {
    measured(what, memory, || {
        if let Ok(image) = open(storage, Access::ReadOnly) {
            let mut bytes = vec![0; MIB];
            for at in [0, image.size().saturating_sub(MIB as u64)] {
                let len = (image.size() - at).min(MIB as u64) as usize;
                let _ = image.read_at(&mut bytes[..len], at);
            }
            let _ = (image.info().is_ok(), image.check().is_ok(), image.bitmaps().is_ok());
            let _ = image.extents(ByteRange::between(0, image.size())).take(10_000).all(|it| it.is_ok());
        }
        let copy = Arc::new(MemoryStorage::copy_of(&**storage).expect("memory can be copied"));
        if let Ok(image) = open(&copy, Access::ReadWrite) {
            let _ = image.write_at(&[3; 5000], 3000).and_then(|()| image.flush());
            let _ = image.create_snapshot(&NewSnapshot::default());
            let _ = image.close();
        }
        let _ = plan_storage(&**storage, Repair::All);
        let _ = repair_storage(&**storage, Repair::All);
    });
}

fn refusal(result: Result<Image>) -> Error {
    result.map(drop).expect_err("the image must be refused")
}

/// A compressed stream whose content is far longer than a cluster.
fn bomb(compression: CompressionType) -> Vec<u8> {
    // Deflate, by hand: a fixed block with a zero and then copies of 258 bytes, without an end. zstd: one frame of
    // run-length blocks of 128 KiB.
    match compression {
        CompressionType::Deflate => {
            let mut bits = vec![true, true, false, false, false, true, true, false, false, false, false];
            for _ in 0..12_000 {
                bits.extend([
                    true, true, false, false, false, true, false, true, false, false, false, false, false,
                ]);
            }
            let byte = |bits: &[bool]| bits.iter().rev().fold(0, |byte, &bit| byte << 1 | u8::from(bit));
            bits.chunks(8).map(byte).collect()
        }
        CompressionType::Zstd => {
            let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58];
            for _ in 0..4000 {
                let header: u32 = (128 << 10) << 3 | 1 << 1;
                frame.extend(&header.to_le_bytes()[..3]);
                frame.push(0);
            }
            frame
        }
    }
}

fn compression_bomb(compression: CompressionType) {
    for cluster_bits in [9, 16, 21] {
        let storage = sound(cluster_bits, compression);
        let at = storage.len().expect("memory tells its length").next_multiple_of(512);
        let packed = bomb(compression);
        storage.set_len(at + packed.len().next_multiple_of(512) as u64).expect("memory can grow");
        put(&storage, at, &packed);
        // The entry of the second cluster: as many sectors as it can say.
        let l2 = word(&storage, word(&storage, L1_OFFSET as u64)) & 0x00ff_ffff_ffff_fe00;
        let sectors = (1_u64 << (cluster_bits - 8)) - 1;
        let entry = 1 << 62 | sectors << (62 - (cluster_bits - 8)) | at;
        put(&storage, l2 + 8, &entry.to_be_bytes());
        let what = format!("{compression:?} bomb in a cluster of {} bytes", 1 << cluster_bits);
        let image = open(&storage, Access::ReadOnly).expect("it opens");
        // Whatever comes of it, it is a cluster or an error.
        let cluster = 1 << cluster_bits;
        let mut read = vec![0; cluster as usize];
        measured(&what, 4 * MIB + 4 * cluster as usize, || {
            let _ = image.read_at(&mut read[..512], cluster);
            let _ = image.read_at(&mut read, cluster);
        });
        drop(image);
        use_it(&what, USUAL + 16 * cluster as usize, &storage);
    }
}

#[test]
fn a_deflate_bomb_costs_a_cluster() {
    let _alone = alone();
    compression_bomb(CompressionType::Deflate);
}

#[test]
fn a_zstd_bomb_costs_a_cluster() {
    let _alone = alone();
    compression_bomb(CompressionType::Zstd);
}

#[test]
fn a_compressed_cluster_that_claims_to_lie_past_the_end_of_the_file_is_refused() {
    let _alone = alone();
    let storage = sound(16, CompressionType::Deflate);
    let l2 = word(&storage, word(&storage, L1_OFFSET as u64)) & 0x00ff_ffff_ffff_fe00;
    for place in [1 << 40, storage.len().unwrap() + 512, (1 << 53) - 512] {
        put(&storage, l2 + 8, &(1 << 62 | 0xff << 54 | place).to_be_bytes());
        let mut read = vec![0; 65536];
        let image = open(&storage, Access::ReadOnly).expect("it opens");
        assert!(image.read_at(&mut read, 65536).is_err(), "{place:#x}");
        drop(image);
        use_it("a compressed cluster past the end", USUAL, &storage);
    }
}

#[test]
fn l2_tables_that_are_each_other_themselves_the_header_or_the_l1_table_cost_nothing() {
    let _alone = alone();
    let storage = sound(9, CompressionType::Deflate);
    let l1 = word(&storage, L1_OFFSET as u64);
    let table = |index: u64| word(&storage, l1 + 8 * index) & 0x00ff_ffff_ffff_fe00;
    let (first, second) = (table(0), table(1));
    let copied = 1_u64 << 63;
    for (what, at, to) in [
        ("an L2 table that names itself", first, first),
        ("an L2 table that names another", first, second),
        ("an L2 table that names the header", first, 0),
        ("an L2 table that names the L1 table", first, l1),
        ("an L1 entry that names the L1 table", l1, l1),
        ("an L1 entry that names the header", l1, 0),
        ("an L1 entry that names another's table", l1 + 8, first),
    ] {
        use_it(what, USUAL, &changed(&storage, at as usize, &(to | copied).to_be_bytes()));
    }
    // All of them at once: every entry of every table is a table.
    let tangled = MemoryStorage::copy_of(&*storage).expect("memory can be copied");
    for entry in 0..64 {
        put(&tangled, first + 8 * entry, &(second | copied).to_be_bytes());
        put(&tangled, second + 8 * entry, &(first | copied).to_be_bytes());
    }
    use_it("two L2 tables of nothing but each other", USUAL, &Arc::new(tangled));
}

#[test]
fn a_refcount_table_of_millions_of_clusters_is_refused() {
    let _alone = alone();
    for cluster_bits in [9, 16, 21] {
        let storage = sound(cluster_bits, CompressionType::Deflate);
        for clusters in [1_u32 << 24, 1 << 31, u32::MAX] {
            let hostile = changed(&storage, REFCOUNT_CLUSTERS, &clusters.to_be_bytes());
            let error =
                measured("a huge refcount table", USUAL, || refusal(open(&hostile, Access::ReadWrite)));
            let is_typed = matches!(error.kind(), ErrorKind::Corrupt(_) | ErrorKind::LimitExceeded { .. });
            assert!(is_typed, "{clusters} clusters: {error}");
            use_it("a huge refcount table", USUAL + 16 * (1 << cluster_bits), &hostile);
        }
    }
}

#[test]
fn an_l1_table_of_billions_of_entries_is_refused() {
    let _alone = alone();
    let storage = sound(16, CompressionType::Deflate);
    for entries in [1_u32 << 23, u32::MAX] {
        let hostile = changed(&storage, L1_ENTRIES, &entries.to_be_bytes());
        measured("a huge L1 table", USUAL, || drop(refusal(open(&hostile, Access::ReadOnly))));
        use_it("a huge L1 table", USUAL, &hostile);
    }
}

#[test]
fn snapshots_that_overlap_the_header_cost_nothing_and_leave_it_whole() {
    let _alone = alone();
    let storage = sound(9, CompressionType::Deflate);
    let table = word(&storage, SNAPSHOT_TABLE as u64) as usize;
    let header = storage.to_vec()[..104].to_vec();
    for (what, at, value) in [
        ("a snapshot table that is the header", SNAPSHOT_TABLE, 0_u64),
        ("a snapshot whose L1 table is the header", table, 0),
        ("a snapshot whose L1 table is the snapshot table", table, table as u64),
    ] {
        let hostile = changed(&storage, at, &value.to_be_bytes());
        if let Ok(image) = open(&hostile, Access::ReadWrite) {
            let _ = image.write_at(&vec![0xaa; 70_000], 0);
            let _ = image.delete_snapshot(&cowimg::SnapshotSelector::Name(b"one".to_vec()));
            let _ = image.close();
        }
        let after = hostile.to_vec();
        assert_eq!(after[..24], header[..24], "{what}");
        assert!(!after[..104].contains(&0xaa), "{what}: the header has guest data in it");
        use_it(what, USUAL, &hostile);
    }
}

#[test]
fn huge_numbers_of_snapshots_bitmaps_and_extensions_cost_nothing() {
    let _alone = alone();
    let storage = sound(16, CompressionType::Deflate);
    for count in [65_536_u32, u32::MAX] {
        use_it("many snapshots", USUAL, &changed(&storage, SNAPSHOT_COUNT, &count.to_be_bytes()));
    }
    // The extension that tells of bitmaps, wherever it stands.
    let bytes = storage.to_vec();
    let kind = 0x2385_2875_u32.to_be_bytes();
    let at = bytes.windows(4).position(|window| window == kind).expect("the extension is there");
    for (what, field, value) in [
        ("many bitmaps", at + 8, u64::from(u32::MAX) << 32),
        ("as many bitmaps as may be", at + 8, 65_535 << 32),
        ("a huge bitmap directory", at + 16, 65_535 * 1024),
        ("an endless bitmap directory", at + 16, u64::MAX),
        ("a bitmap directory that is the header", at + 24, 0),
        ("an endless extension", at, u64::from(u32::MAX)),
    ] {
        use_it(what, USUAL, &changed(&storage, field, &value.to_be_bytes()));
    }
    // A file that is long enough for all that it claims, and sparse.
    let long = changed(&storage, SNAPSHOT_COUNT, &65_536_u32.to_be_bytes());
    long.set_len(1 << 40).expect("memory can be sparse");
    use_it("many snapshots in a long file", 64 * MIB + USUAL + 32 * MIB, &long);
}

/// A file of half a tebibyte with nothing in it, whose clusters could all be counted.
#[test]
fn counting_takes_no_more_memory_than_a_limit_says() {
    let _alone = alone();
    let storage = sound(9, CompressionType::Deflate);
    storage.set_len(1 << 39).expect("memory can be sparse");
    let limits = Limits::default().check_bytes(1 << 20);
    let control = Control::default();
    let all = measured("a long file", USUAL, || {
        let checked = check_storage_with(&*storage, &limits, &control).map(drop);
        let planned = plan_storage_with(&*storage, Repair::All, &limits, &control).map(drop);
        [checked, planned, repair_storage_with(&*storage, Repair::All, &limits, &control).map(drop)]
    });
    for result in all {
        let error = result.expect_err("over the limit");
        assert!(matches!(error.kind(), ErrorKind::OverLimit { name: "check_bytes", .. }), "{error}");
    }
}

/// A key slot of four billion iterations, and a digest of as many.
#[test]
fn keys_that_take_an_hour_are_refused_where_a_limit_says_so() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("disk.luks");
    let passphrase = || Passphrase::new("open-sesame");
    let luks = LuksOptions { iteration_time: Duration::ZERO, ..LuksOptions::new(passphrase()) };
    cowimg::create(&path, &CreateOptions::luks(4096, luks)).expect("a volume can be made");
    let bytes = fs::read(&path).expect("it can be read");
    let limited =
        Image::options().passphrase(passphrase()).limits(Limits::default().key_iterations(1_000_000));
    limited.open(&path).expect("the fewest iterations are within every limit");
    for at in [208 + 4, 164] {
        let mut hostile = bytes.clone();
        hostile[at..at + 4].fill(0xff);
        fs::write(&path, hostile).expect("it can be written");
        let error = measured("endless keys", USUAL, || refusal(limited.open(&path)));
        assert!(matches!(error.kind(), ErrorKind::OverLimit { name: "key_iterations", .. }), "{error}");
    }
}

/// A header that names a backing file, and nothing behind it: the smallest layer that there can be.
fn layer(backing: &str, format: &str) -> Vec<u8> {
    let backing = BackingName { name: backing.into(), format: Some(format.into()) };
    fresh(&FreshParams { backing: Some(backing), ..params(9, 0) }).to_vec()
}

#[test]
fn a_chain_that_comes_back_to_itself_is_refused() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = |name: &str| folder.path().join(name);
    for (name, backing) in [("self", "self"), ("a", "b"), ("b", "c"), ("c", "a"), ("dots", "../x/./dots")] {
        let backing = backing.replace("../x", folder.path().to_str().expect("the folder has a plain name"));
        fs::write(path(name), layer(&backing, "qcow2")).expect("a file can be written");
    }
    std::os::unix::fs::symlink(path("linked"), path("link")).expect("a link can be made");
    fs::write(path("linked"), layer("link", "qcow2")).expect("a file can be written");
    for name in ["self", "a", "dots", "linked"] {
        let error = measured(name, USUAL, || refusal(Image::open(path(name))));
        assert!(matches!(error.kind(), ErrorKind::BackingLoop), "{name}: {error}");
        assert!(inspect_chain(path(name), &Image::options()).is_err(), "{name}");
        assert!(inspect(path(name), &Image::options()).is_ok(), "{name}: one image tells of itself");
    }
}

#[test]
fn a_chain_of_ten_thousand_layers_is_refused_at_the_limit_and_at_its_end() {
    let _alone = alone();
    // In memory, if the host has such a place: so many files take long on a disk.
    let place = Some(Path::new("/dev/shm")).filter(|place| place.is_dir());
    let place = place.map_or_else(std::env::temp_dir, Path::to_path_buf);
    let folder = tempfile::tempdir_in(place).expect("a temporary folder can be made");
    let bytes = layer("00000000", "qcow2");
    let at = bytes.windows(8).position(|window| window == b"00000000").expect("the name is in the file");
    for number in 0..10_000 {
        let mut bytes = bytes.clone();
        bytes[at..at + 8].copy_from_slice(format!("./{:06}", number + 1).as_bytes());
        bytes.truncate(512);
        fs::write(folder.path().join(format!("{number:06}")), bytes).expect("a file can be written");
    }
    let top = folder.path().join("000000");
    let error = measured("10,000 layers", USUAL, || refusal(Image::open(&top)));
    assert!(matches!(error.kind(), ErrorKind::ChainTooDeep { limit: 256 }), "{error}");
    assert!(inspect_chain(&top, &Image::options()).is_err());
    let few = Image::options().limits(Limits::default().chain_depth(5));
    assert!(matches!(refusal(few.open(&top)).kind(), ErrorKind::ChainTooDeep { limit: 5 }));
    // Whoever raises the limit meets the host's own, on open files or, as here, on the end of the chain.
    let all = Image::options().limits(Limits::default().chain_depth(20_000));
    measured("10,000 layers that are allowed", 64 * MIB, || drop(refusal(all.open(&top))));
    measured("a check of the top", USUAL, || check_file(&top, &Image::options()).map(drop).is_ok());
}

/// What is there that is no file: names, and whether the host has them.
fn no_files(folder: &Path) -> Vec<String> {
    let made = std::process::Command::new("mkfifo").arg(folder.join("pipe")).status().expect("mkfifo runs");
    assert!(made.success());
    drop(UnixListener::bind(folder.join("socket")).expect("a socket can be bound"));
    fs::create_dir(folder.join("folder")).expect("a folder can be made");
    [
        "pipe",
        "socket",
        "folder",
        ".",
        "/",
        "/dev/zero",
        "/dev/null",
        "/dev/full",
        "/dev/random",
        "/dev/tty",
        "/dev/fd",
        "/proc",
        "/proc/self",
        "/proc/self/fd",
        "json:{\"driver\":\"file\",\"filename\":\"/etc/passwd\"}",
        "json:{\"driver\":\"nbd\",\"host\":\"127.0.0.1\"}",
        "nbd:127.0.0.1:1",
        "nbd://127.0.0.1:1/x",
        "http://127.0.0.1:1/x",
        "https://127.0.0.1:1/x",
        "ftp://127.0.0.1/x",
        "ssh://127.0.0.1/x",
        "rbd:pool/x",
        "iscsi://127.0.0.1/x/0",
        "fd:0",
        "fd://0",
        "exec:true",
        "blkdebug::x",
        "file:json:{}",
        "host_device:/dev/zero",
        "data:,x",
        "\n",
        "\u{1}:",
    ]
    .map(String::from)
    .to_vec()
}

#[test]
fn a_backing_file_that_is_no_file_is_refused_at_once() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let top = folder.path().join("top.qcow2");
    for name in no_files(folder.path()) {
        for format in ["raw", "qcow2"] {
            fs::write(&top, layer(&name, format)).expect("a file can be written");
            let what = format!("the backing file {name:?}");
            measured(&what, USUAL, || drop(refusal(Image::open(&top))));
            measured(&what, USUAL, || inspect_chain(&top, &Image::options()).map(drop).unwrap_err());
            measured(&what, USUAL, || inspect(&top, &Image::options()).expect("it tells of itself"));
        }
    }
}

#[test]
fn a_data_file_that_is_no_file_is_refused_at_once() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let top = folder.path().join("top.qcow2");
    for name in no_files(folder.path()) {
        // The names of data files start at the process's folder.
        let is_local = ["pipe", "socket", "folder"].contains(&name.as_str());
        let name = if is_local { folder.path().join(&name).display().to_string() } else { name };
        for raw in [false, true] {
            let data_file = Some(DataFileName { name: name.clone().into(), raw });
            fs::write(&top, fresh(&FreshParams { data_file, ..params(16, 1 << 20) }).to_vec())
                .expect("a file can be written");
            let what = format!("the data file {name:?}");
            measured(&what, USUAL, || drop(refusal(Image::open(&top))));
            let write = Image::options().access(Access::ReadWrite);
            measured(&what, USUAL, || drop(refusal(write.open(&top))));
            measured(&what, USUAL, || inspect(&top, &Image::options()).expect("it tells of itself"));
        }
    }
}

/// Files of the kernel have no length that would be theirs: as disks they are empty.
#[test]
fn files_of_the_kernel_are_empty_disks() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let top = folder.path().join("top.qcow2");
    for name in ["/proc/self/environ", "/proc/self/maps", "/proc/version", "/proc/self/mem"] {
        if !PathBuf::from(name).exists() {
            continue;
        }
        let backing = BackingName { name: name.into(), format: Some(b"raw".to_vec()) };
        let image = FreshParams { backing: Some(backing), ..params(16, 1 << 20) };
        fs::write(&top, fresh(&image).to_vec()).expect("a file can be written");
        measured(name, USUAL, || {
            let Ok(image) = Image::open(&top) else { return };
            let mut bytes = vec![1; MIB];
            image.read_at(&mut bytes, 0).expect("it is read");
            assert!(bytes.iter().all(|&byte| byte == 0), "{name} has been read");
        });
    }
}
