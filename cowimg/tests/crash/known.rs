//! Damage that other programs have done, and some that this one did once: each a test by its name.

use std::io::ErrorKind;
use std::sync::Arc;

use cowimg::check::check_storage;
use cowimg::storage::{CrashChoice, Fault, FaultyStorage, MemoryStorage, OperationKind, Storage};
use cowimg::{Access, ByteRange, Image, ResizeOptions, Shrink, ZeroMode};

use crate::files::Cuts;
use crate::history::try_cuts;
use crate::lab::{Call, SECTOR, SHAPES, SIZE, open, sectors_of};
use crate::subject::{Subject, check_ours};

fn opened(storage: &Arc<FaultyStorage>) -> Image {
    open(storage.clone(), Access::ReadWrite).unwrap()
}

/// A Rust library left refcount 0 on live clusters when it was killed, and wrote over metadata afterwards. A kill keeps
/// all that was written, so that each prefix of the writes is a state to look at: no reference may be ahead of its count.
#[test]
fn refcount_0_on_live_clusters_after_a_kill() {
    let storage = Arc::new(FaultyStorage::new(SHAPES[0].fresh()));
    let image = opened(&storage);
    for nth in 0..40 {
        image.write_at(&[nth as u8 + 1; 700], nth * 2500).unwrap();
        if nth % 7 == 0 {
            image.flush().unwrap();
        }
    }
    image.close().unwrap();
    for moment in 0..=storage.log_len() {
        let killed = storage.crash_at(moment, CrashChoice::All);
        check_ours(&killed, &format!("killed at moment {moment}"));
        // Whoever opens the image next allocates; nothing that is in use is handed out.
        let next: Arc<dyn Storage> = Arc::new(killed);
        let image = open(next.clone(), Access::ReadWrite).unwrap();
        let before = sectors_of_part(&image, SIZE / 2);
        image.write_at(&vec![99; (SIZE / 2) as usize], SIZE / 2).unwrap();
        assert_eq!(sectors_of_part(&image, SIZE / 2), before, "killed at moment {moment}");
        image.close().unwrap();
        check_ours(&*next, &format!("killed at moment {moment}, written on"));
    }
}

/// The bytes of the disk up to `end`.
fn sectors_of_part(image: &Image, end: u64) -> Vec<u8> {
    let mut bytes = vec![0; end as usize];
    image.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// A VMM's driver lost L2 tables when several queues took tables and flushed at the same time: what one queue had put
/// into a table was gone when another's flush wrote the table first.
#[test]
fn l2_tables_lost_under_multi_queue_load() {
    const QUEUES: u64 = 8;
    let storage = Arc::new(FaultyStorage::new(SHAPES[0].fresh()));
    let image = opened(&storage);
    let sectors = SIZE / SECTOR;
    std::thread::scope(|scope| {
        for queue in 0..QUEUES {
            let image = &image;
            scope.spawn(move || {
                for sector in (queue..sectors).step_by(QUEUES as usize) {
                    image.write_at(&[queue as u8 + 1; SECTOR as usize], sector * SECTOR).unwrap();
                    image.flush().unwrap();
                }
            });
        }
    });
    // Every queue has flushed what it wrote: a power cut now costs nothing.
    let left: Arc<dyn Storage> = Arc::new(storage.crash(CrashChoice::Synced));
    check_ours(&*left, "after a power cut");
    let found = sectors_of(&open(left, Access::ReadOnly).unwrap());
    for (sector, value) in (0..).zip(found) {
        assert_eq!(u64::from(value), sector % QUEUES + 1, "sector {sector}");
    }
}

/// The same driver handed out a cluster twice after a write that met a full disk: the allocation was half undone.
#[test]
fn double_allocation_after_a_full_disk() {
    for nth in 0..60 {
        let storage = Arc::new(FaultyStorage::new(SHAPES[0].fresh()));
        let image = opened(&storage);
        image.write_at(&[1; 3000], 0).unwrap();
        storage.inject(Fault::error(ErrorKind::StorageFull).on(&[OperationKind::Write]).after(nth));
        let mut expected = vec![1; 3000];
        expected.resize(SIZE as usize, 0);
        for call in 0..12_u64 {
            let (at, byte) = (call * 5000 + 4000, call as u8 + 2);
            let range = at as usize..at as usize + 2048;
            match image.write_at(&[byte; 2048], at) {
                Ok(()) => expected[range].fill(byte),
                // Old or new, and a look decides which; it stays so.
                Err(_) => image.read_at(&mut expected[range], at).unwrap(),
            }
        }
        storage.clear_faults();
        let mut found = vec![0; SIZE as usize];
        image.read_at(&mut found, 0).unwrap();
        assert!(found == expected, "write {nth} failed: what was acknowledged has changed");
        drop(image);
        check_ours(&storage.crash(CrashChoice::All), &format!("write {nth} failed"));
    }
}

/// And it read what a cluster had held before, after a hole was punched and the cluster taken anew.
#[test]
fn stale_reads_after_a_punched_hole() {
    let whole = ByteRange::between(0, 8 * SECTOR);
    for shape in SHAPES {
        for mode in [Some(ZeroMode::Unmap), Some(ZeroMode::KeepSpace), None] {
            let storage = Arc::new(FaultyStorage::new(shape.fresh()));
            let image = opened(&storage);
            image.write_at(&[7; 8 * SECTOR as usize], 0).unwrap();
            image.flush().unwrap();
            match mode {
                Some(mode) => image.write_zeroes(whole, mode).unwrap(),
                None => image.discard(whole).unwrap(),
            }
            // Freed for good, and taken by others: parts of clusters, the rest of which must be zeroes.
            image.flush().unwrap();
            for nth in 3..20 {
                image.write_at(&[8; 100], nth * 8 * SECTOR - 300).unwrap();
            }
            let mut found = vec![1; SIZE as usize];
            image.read_at(&mut found, 0).unwrap();
            assert!(mode.is_none() || !found.contains(&7), "{shape:?}, {mode:?}: bytes are from before");
            assert!(found[8 * SECTOR as usize..].iter().all(|byte| [0, 8].contains(byte)), "{shape:?}");
        }
    }
}

/// Once ours: a shrink that could not read the second table it was to drop left the first one's entries in the cache. A
/// discard there freed its clusters again, which may have been somebody else's by then.
#[test]
fn a_shrink_that_fails_between_two_tables_frees_nothing_twice() {
    for nth in 0..400 {
        let storage = Arc::new(FaultyStorage::new(SHAPES[0].fresh()));
        let image = opened(&storage);
        image.write_at(&vec![1; SIZE as usize], 0).unwrap();
        image.flush().unwrap();
        storage.inject(Fault::error(ErrorKind::Other).on(&[OperationKind::Read]).after(nth));
        let options = ResizeOptions { shrink: Shrink::Allow, ..ResizeOptions::default() };
        let resized = image.resize(3 * SECTOR, &options);
        storage.clear_faults();
        if resized.is_err() {
            image.write_at(&[2; 9000], 0).unwrap();
            image.discard(ByteRange::between(0, SIZE)).unwrap();
            image.flush().unwrap_or_else(|error| panic!("read {nth} failed: {error}"));
            image.write_at(&[3; 9000], 20_000).unwrap();
        }
        image.close().unwrap_or_else(|error| panic!("read {nth} failed: {error}"));
        let report = check_storage(&storage.crash(CrashChoice::All)).unwrap();
        assert!(report.corruptions == 0, "read {nth} failed: {:?}", report.issues);
    }
}

/// A refcount block that counts itself and the first cluster after it, in every state of the commit that makes it.
#[test]
fn a_refcount_block_is_never_ahead_of_what_it_counts() {
    let shape = SHAPES[1];
    let all = ByteRange::between(0, SIZE);
    let subject = Subject::from(MemoryStorage::clone(&shape.fresh()));
    let states = try_cuts("new blocks", &subject, (7, Cuts::Sampled), &[Call::Write(all, 1), Call::Flush]);
    assert!(states > 100, "only {states} states were tried");
}
