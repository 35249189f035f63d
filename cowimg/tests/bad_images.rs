//! Damaged and hostile images: whatever the bytes, opening, reading, checking and writing end soon, with success or
//! with a typed error, and never with a panic.

#[path = "qemu_tools/mod.rs"]
mod qemu_tools;
#[path = "seeded/mod.rs"]
mod seeded;

use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use cowimg::ByteRange;
use cowimg::ZeroMode;
use cowimg::corruption::Corruption;
use cowimg::storage::MemoryStorage;
use cowimg::{Access, FilePolicy, Format, Image};
use cowimg::{Error, ErrorKind, Result};
use cowimg::{NewSnapshot, ResizeOptions, Shrink, SnapshotSelector};
use seeded::{Rng, noise};

const CLUSTER: usize = 512;
const SIZE: u64 = 70_000;

/// No single image may take longer, on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(10);

const BACKING_NAME_OFFSET: usize = 8;
const L1_ENTRIES: usize = 36;
const L1_OFFSET: usize = 40;
const REFCOUNT_TABLE_OFFSET: usize = 48;
const SNAPSHOT_TABLE_OFFSET: usize = 64;

/// A small image with everything in it: data, holes, zero clusters, compressed clusters, a snapshot, a bitmap.
fn sound_image() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("image.qcow2");
        let size = Path::new("70000");
        qemu_tools::img("create -q -f qcow2 -o cluster_size=512", &[&path, size]);
        let commands = ["write -q -c -P 1 0 8192", "write -q -P 2 9000 5000", "write -q -z -u 20480 4096"];
        qemu_tools::io(&path, &commands.map(String::from));
        qemu_tools::img("snapshot -c before", &[&path]);
        qemu_tools::io(&path, &["write -q -P 3 12000 9000".to_string(), "discard 0 1024".to_string()]);
        qemu_tools::img("bitmap --add", &[&path, Path::new("changes")]);
        qemu_tools::assert_check_clean(&path);
        std::fs::read(&path).expect("the image can be read")
    })
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_be_bytes(bytes[offset..offset + 8].try_into().expect("eight bytes"))
}

fn put_u64(bytes: &mut [u8], offset: usize, value: u64) {
    bytes[offset..offset + 8].copy_from_slice(&value.to_be_bytes());
}

/// Where the first L2 table that an L1 table names starts, and which guest offset its first entry maps.
fn first_l2_table(bytes: &[u8]) -> usize {
    let l1 = u64_at(bytes, L1_OFFSET) as usize;
    (u64_at(bytes, l1) & 0x00ff_ffff_ffff_fe00) as usize
}

fn open(bytes: &[u8], access: Access) -> Result<(Arc<MemoryStorage>, Image)> {
    let storage = Arc::new(MemoryStorage::with_bytes(bytes));
    let options = Image::options().access(access).format(Format::Qcow2).backing(FilePolicy::DenyAll);
    let image = options.open_storage(storage.clone())?;
    Ok((storage, image))
}

/// Reads what can be read in short time: all of a small disk, both ends of a large one.
fn read_all(image: &Image) -> Result<()> {
    let mut piece = vec![0; 1 << 20];
    let starts = [0, image.size().saturating_sub(piece.len() as u64)];
    for start in starts {
        let len = (image.size() - start).min(piece.len() as u64) as usize;
        image.read_at(&mut piece[..len], start)?;
    }
    Ok(())
}

fn use_for_reading(bytes: &[u8]) -> Result<()> {
    let (_, image) = open(bytes, Access::ReadOnly)?;
    // Each is tried, whatever became of the one before.
    let read = read_all(&image);
    let checked = image.check().map(drop);
    let told = image.info().map(drop);
    let window = ByteRange::between(0, image.size().min(1 << 22));
    let mapped = image.extents(window).take(20_000).try_for_each(|extent| extent.map(drop));
    read.and(checked).and(told).and(mapped)
}

fn use_for_writing(bytes: &[u8]) -> Result<()> {
    let (_, image) = open(bytes, Access::ReadWrite)?;
    let size = image.size().min(SIZE);
    let any = || SnapshotSelector::IdOrName(b"1".to_vec());
    let shrunk = ResizeOptions { shrink: Shrink::Allow, ..ResizeOptions::default() };
    let steps: [&dyn Fn() -> Result<()>; 12] = [
        &|| image.write_at(&noise(1, 3000.min(size as usize)), 0),
        &|| image.write_at(&noise(2, (size / 4) as usize), size / 2),
        &|| image.flush(),
        &|| image.write_zeroes(ByteRange::between(size / 3, size / 2), ZeroMode::Unmap),
        &|| image.create_snapshot(&NewSnapshot::default()).map(drop),
        &|| image.discard(ByteRange::between(0, size)),
        &|| image.flush(),
        &|| image.remove_bitmap("changes"),
        &|| image.apply_snapshot(&any()),
        &|| image.delete_snapshot(&any()),
        &|| image.resize(image.size().saturating_add(40_960), &shrunk),
        &|| image.resize(4096, &shrunk),
    ];
    let results: Vec<Result<()>> = steps.iter().map(|step| step()).collect();
    let closed = image.close();
    results.into_iter().collect::<Result<Vec<()>>>().and(closed)
}

/// Uses every image that `make` draws, in a thread of its own, and fails when one takes too long.
fn use_all(count: usize, make: impl Fn(usize) -> Vec<u8> + Send + 'static, what: &'static str) {
    let (told, hear) = mpsc::channel();
    let worker = std::thread::spawn(move || {
        for index in 0..count {
            let bytes = make(index);
            let start = Instant::now();
            // Success and typed errors are both fine here; only panics and endless work are not.
            let _read = use_for_reading(&bytes);
            let _written = use_for_writing(&bytes);
            if told.send((index, start.elapsed())).is_err() {
                return;
            }
        }
    });
    let mut next = 0;
    while next < count {
        match hear.recv_timeout(PATIENCE) {
            Ok((index, took)) => {
                assert!(took < PATIENCE / 2, "{what} {index} took {took:?}");
                next = index + 1;
            }
            Err(RecvTimeoutError::Timeout) => panic!("{what} {next} does not end"),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    assert!(worker.join().is_ok() && next == count, "{what} {next} panicked");
}

#[test]
fn the_sound_image_is_sound() {
    use_for_reading(sound_image()).expect("it can be read");
    use_for_writing(sound_image()).expect("it can be written");
}

#[test]
fn an_image_may_be_cut_off_anywhere() {
    let image = sound_image();
    let lengths: Vec<usize> = (0..600).chain((600..image.len()).step_by(61)).collect();
    use_all(lengths.len(), move |index| image[..lengths[index]].to_vec(), "cut-off image");
}

#[test]
fn a_header_that_is_cut_off_is_refused_as_such() {
    let image = sound_image();
    for len in 0..112 {
        let error = open(&image[..len], Access::ReadOnly).expect_err("the image must be refused");
        let is_typed = matches!(error.kind(), ErrorKind::Corrupt(_) | ErrorKind::WrongFormat { .. });
        assert!(is_typed, "{len} bytes: {error}");
    }
}

/// Every byte of the image, in several ways each: all of it is metadata, or small.
#[test]
fn any_byte_may_be_changed() {
    let image = sound_image();
    let ways: [fn(u8) -> u8; 4] =
        [|byte| byte ^ 1, |byte| byte ^ 0x80, |byte| !byte, |byte| byte.wrapping_add(2)];
    let make = move |index: usize| {
        let mut bytes = image.to_vec();
        let at = index / ways.len();
        bytes[at] = ways[index % ways.len()](bytes[at]);
        bytes
    };
    use_all(metadata_end(image) * ways.len(), make, "changed byte");
}

/// One past the last byte that is not guest data, as far as the sample goes.
fn metadata_end(image: &[u8]) -> usize {
    image.len().min(24 * CLUSTER)
}

#[test]
fn any_number_may_be_replaced() {
    let image = sound_image();
    let extremes =
        [0, 1, 0x200, 0x1ff, 1 << 31, 1 << 62, i64::MAX as u64, 1 << 63, u64::MAX, image.len() as u64];
    let make = move |index: usize| {
        let mut bytes = image.to_vec();
        let at = index / extremes.len() * 4;
        put_u64(&mut bytes, at, extremes[index % extremes.len()]);
        bytes
    };
    let numbers = 4 * CLUSTER / 4;
    use_all(numbers * extremes.len(), make, "replaced number");
}

#[test]
fn many_bytes_may_be_changed_at_once() {
    let image = sound_image();
    let make = move |index: usize| {
        let mut rng = Rng::new(format!("many bytes {index}"));
        let mut bytes = image.to_vec();
        for _ in 0..rng.between(2, 12) {
            let at = rng.below(bytes.len() as u64) as usize;
            bytes[at] = rng.next() as u8;
        }
        // Offsets that differ in few places are likelier to point at something.
        let from = rng.below(bytes.len() as u64 / 8) as usize * 8;
        let to = rng.below(bytes.len() as u64 / 8) as usize * 8;
        bytes.copy_within(from..from + 8, to);
        bytes
    };
    use_all(2500, make, "image with many changes");
}

#[test]
fn an_l2_entry_past_the_end_is_found_when_it_is_read_and_when_it_is_checked() {
    let mut bytes = sound_image().to_vec();
    let entry = first_l2_table(&bytes) + 8 * 40;
    put_u64(&mut bytes, entry, 1 << 63 | 1 << 30);
    let (_, image) = open(&bytes, Access::ReadOnly).expect("the image opens");
    let mut buffer = [0; 10];
    let error = image.read_at(&mut buffer, 40 * CLUSTER as u64 + 7).expect_err("the read must fail");
    let is_named =
        matches!(error.kind(), ErrorKind::Corrupt(Corruption::L2EntryPastEnd { guest: 20480, .. }));
    assert!(is_named, "{error}");
    image.read_at(&mut buffer, 39 * CLUSTER as u64).expect("the neighbour can be read");
    assert!(!image.check().expect("the check runs").is_clean());
}

/// Patches, what they make refer to itself, and whether the check must call it damage.
fn self_referring() -> Vec<(&'static str, Vec<u8>)> {
    let sound = sound_image();
    let l1 = u64_at(sound, L1_OFFSET);
    let l2 = first_l2_table(sound) as u64;
    let refcounts = u64_at(sound, REFCOUNT_TABLE_OFFSET);
    let snapshots = u64_at(sound, SNAPSHOT_TABLE_OFFSET);
    let copied = 1 << 63;
    let patches = [
        ("an L1 entry that names the L1 table", l1, l1 | copied),
        ("an L1 entry that names the header", l1, copied),
        ("an L2 entry that names its own table", l2 + 8 * 60, l2 | copied),
        ("an L2 entry that names the L1 table", l2 + 8 * 60, l1 | copied),
        ("an L2 entry that names the refcount table", l2 + 8 * 60, refcounts | copied),
        ("a refcount table that names itself", refcounts, refcounts),
        ("a refcount table that names the L1 table", refcounts, l1),
        ("two L1 entries with one table", l1 + 8, u64_at(sound, l1 as usize)),
        ("a snapshot table that is the L1 table", SNAPSHOT_TABLE_OFFSET as u64, l1),
        ("a snapshot whose L1 table is the snapshot table", snapshots, snapshots),
        ("an L1 table that is the header", L1_OFFSET as u64, 0),
        ("a refcount table that is the header", REFCOUNT_TABLE_OFFSET as u64, 0),
    ];
    patches
        .into_iter()
        .map(|(what, at, value)| {
            let mut bytes = sound.to_vec();
            put_u64(&mut bytes, at as usize, value);
            (what, bytes)
        })
        .collect()
}

#[test]
fn tables_that_refer_to_themselves_are_found_by_the_check() {
    for (what, bytes) in self_referring() {
        if let Ok((_, image)) = open(&bytes, Access::ReadOnly) {
            match image.check() {
                Ok(report) => assert!(!report.is_clean(), "{what}: the check finds nothing"),
                Err(error) => assert!(matches!(error.kind(), ErrorKind::Corrupt(_)), "{what}: {error}"),
            }
        }
    }
}

/// Writing must not make it worse: the header stays what it was, but for what a first change clears.
#[test]
fn tables_that_refer_to_themselves_never_get_the_header_overwritten() {
    for (what, bytes) in self_referring() {
        let Ok((storage, image)) = open(&bytes, Access::ReadWrite) else { continue };
        for start in (0..SIZE - 700).step_by(700) {
            let _written_or_refused = image.write_at(&noise(start, 700), start);
        }
        let _closed_or_not = image.close();
        assert_eq!(storage.to_vec()[..72], bytes[..72], "{what}: the header was overwritten");
    }
}

#[test]
fn guest_data_is_never_written_over_metadata() {
    let sound = sound_image();
    let targets =
        [0, u64_at(sound, L1_OFFSET), first_l2_table(sound) as u64, u64_at(sound, REFCOUNT_TABLE_OFFSET)];
    for host in targets.into_iter().skip(1) {
        let mut bytes = sound.to_vec();
        let entry = first_l2_table(&bytes) + 8 * 50;
        put_u64(&mut bytes, entry, host | 1 << 63);
        let Ok((_, image)) = open(&bytes, Access::ReadWrite) else { continue };
        let written: Result<(), Error> =
            image.write_at(&[0xaa; 512], 50 * CLUSTER as u64).and_then(|()| image.flush());
        let error = written.expect_err("a write over metadata must be refused");
        assert!(matches!(error.kind(), ErrorKind::Corrupt(_)), "host offset {host:#x}: {error}");
    }
}

/// Refcounts that call a cluster free which is in use: QEMU's widths are 16 bits here.
#[test]
fn metadata_that_a_refcount_calls_free_is_not_given_to_data() {
    let sound = sound_image();
    let refcount_table = u64_at(sound, REFCOUNT_TABLE_OFFSET);
    let refcount_block = u64_at(sound, refcount_table as usize);
    let l1 = u64_at(sound, L1_OFFSET);
    let snapshot_table = u64_at(sound, SNAPSHOT_TABLE_OFFSET);
    let snapshot_l1 = u64_at(sound, snapshot_table as usize);
    let tables = [
        ("the header", 0),
        ("the refcount table", refcount_table),
        ("the refcount block", refcount_block),
        ("the L1 table", l1),
        ("an L2 table", first_l2_table(sound) as u64),
        ("the snapshot table", snapshot_table),
        ("a snapshot's L1 table", snapshot_l1),
        ("a snapshot's L2 table", u64_at(sound, snapshot_l1 as usize) & 0x00ff_ffff_ffff_fe00),
    ];
    for (what, host) in tables {
        let mut bytes = sound.to_vec();
        let refcount = refcount_block as usize + host as usize / CLUSTER * 2;
        bytes[refcount..refcount + 2].fill(0);
        let before = bytes[host as usize..host as usize + 48].to_vec();
        let Ok((storage, image)) = open(&bytes, Access::ReadWrite) else { continue };
        let data = vec![0xa5; SIZE as usize];
        let _written_or_refused = image.write_at(&data, 0).and_then(|()| image.flush());
        let after = storage.to_vec()[host as usize..host as usize + 48].to_vec();
        assert!(after == before || !after.contains(&0xa5), "{what} was overwritten with a guest's data");
    }
}

#[test]
fn an_l1_table_that_is_too_short_or_absurdly_long_is_refused() {
    for entries in [0_u32, 1, u32::MAX, 0x0100_0000] {
        let mut bytes = sound_image().to_vec();
        bytes[L1_ENTRIES..L1_ENTRIES + 4].copy_from_slice(&entries.to_be_bytes());
        let error = open(&bytes, Access::ReadOnly).expect_err("the image must be refused");
        assert!(matches!(error.kind(), ErrorKind::Corrupt(_) | ErrorKind::LimitExceeded { .. }), "{error}");
    }
}

#[test]
fn a_backing_name_outside_of_the_header_is_refused() {
    for offset in [100, 511, 513, 1 << 40, u64::MAX] {
        let mut bytes = sound_image().to_vec();
        put_u64(&mut bytes, BACKING_NAME_OFFSET, offset);
        bytes[19] = 20;
        let error = open(&bytes, Access::ReadOnly).expect_err("the image must be refused");
        assert!(
            matches!(error.kind(), ErrorKind::Corrupt(_) | ErrorKind::Refused { .. }),
            "{offset}: {error}"
        );
    }
}
