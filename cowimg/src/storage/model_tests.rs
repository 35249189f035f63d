//! Random sequences of changes against the plainest model of a storage: a `Vec<u8>`.

use proptest::prelude::*;

use super::{
    Access, AlignedStorage, CrashChoice, FaultyStorage, FileOptions, FileStorage, HostCache, MemoryStorage,
    Operation, Storage, StorageExt, StorageExtent, StorageExtentKind,
};
use crate::range::ByteRange;

#[derive(Debug, Clone)]
enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    SetLen(u64),
    WriteZeroes(ByteRange),
    PunchHole(ByteRange),
    Allocate(ByteRange),
    Sync,
}

const LIMIT: u64 = 60_000;

fn range() -> impl Strategy<Value = ByteRange> {
    // Ends on and beside page boundaries are as likely as all others together.
    let end = prop_oneof![
        0..LIMIT,
        (0..LIMIT / 4096, -1_i64..=1).prop_map(|(page, by)| (page * 4096).saturating_add_signed(by))
    ];
    (end.clone(), end).prop_map(|(a, b)| ByteRange::between(a.min(b), a.max(b)))
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (range(), any::<u8>()).prop_map(|(range, byte)| Change::Write {
            offset: range.start(),
            bytes: (0..range.len()).map(|i| (i / 512) as u8 ^ byte).collect(),
        }),
        1 => range().prop_map(|range| Change::SetLen(range.end())),
        1 => range().prop_map(Change::WriteZeroes),
        1 => range().prop_map(Change::PunchHole),
        1 => range().prop_map(Change::Allocate),
        1 => Just(Change::Sync),
    ]
}

fn apply_to_model(change: &Change, model: &mut Vec<u8>) {
    let grow = |model: &mut Vec<u8>, range: ByteRange| {
        if !range.is_empty() && model.len() < range.end() as usize {
            model.resize(range.end() as usize, 0);
        }
    };
    match change {
        Change::Write { offset, bytes } => {
            let range = ByteRange::new(*offset, bytes.len() as u64).unwrap();
            grow(model, range);
            if !bytes.is_empty() {
                model[range.start() as usize..range.end() as usize].copy_from_slice(bytes);
            }
        }
        Change::SetLen(len) => model.resize(*len as usize, 0),
        Change::WriteZeroes(range) => {
            grow(model, *range);
            zero(model, *range);
        }
        Change::PunchHole(range) => zero(model, *range),
        Change::Allocate(range) => grow(model, *range),
        Change::Sync => {}
    }
}

fn zero(model: &mut [u8], range: ByteRange) {
    let within = range.intersection(ByteRange::between(0, model.len() as u64));
    if !within.is_empty() {
        model[within.start() as usize..within.end() as usize].fill(0);
    }
}

/// Makes the change; whether the storage made it.
fn apply(change: &Change, storage: &dyn Storage) -> bool {
    match change {
        Change::Write { offset, bytes } => storage.write_all_at(bytes, *offset).unwrap(),
        Change::SetLen(len) => storage.set_len(*len).unwrap(),
        Change::WriteZeroes(range) => storage.write_zeroes(*range).unwrap(),
        Change::PunchHole(range) => return storage.punch_hole(*range).unwrap(),
        Change::Allocate(range) => storage.allocate(*range).unwrap(),
        Change::Sync => storage.sync().unwrap(),
    }
    true
}

fn content(storage: &dyn Storage) -> Vec<u8> {
    let mut bytes = vec![0xee; storage.len().unwrap() as usize];
    storage.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn holes_are_zero(storage: &dyn Storage, content: &[u8]) {
    let mut offset = 0;
    while let Some(StorageExtent { range, kind }) = storage.extent_at(offset).unwrap() {
        let bytes = &content[range.start() as usize..range.end() as usize];
        assert!(kind == StorageExtentKind::Data || bytes.iter().all(|byte| *byte == 0), "{range}");
        offset = range.end();
    }
    assert_eq!(offset, content.len() as u64);
}

fn follows_the_model(storage: &dyn Storage, changes: &[Change]) {
    let mut model = Vec::new();
    for change in changes {
        if apply(change, storage) {
            apply_to_model(change, &mut model);
        }
        assert!(content(storage) == model, "after {change:?}");
    }
    holes_are_zero(storage, &model);
}

fn file_in(dir: &std::path::Path) -> FileStorage {
    FileStorage::from_file(tempfile::tempfile_in(dir).unwrap(), Access::ReadWrite).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn memory_follows_the_model(changes in prop::collection::vec(change(), 1..30)) {
        follows_the_model(&MemoryStorage::new(), &changes);
    }

    #[test]
    fn files_follow_the_model(changes in prop::collection::vec(change(), 1..20)) {
        follows_the_model(&file_in(&std::env::temp_dir()), &changes);
    }

    #[test]
    fn files_follow_the_model_on_a_host_without_any_of_the_calls(
        changes in prop::collection::vec(change(), 1..20),
    ) {
        follows_the_model(&file_in(&std::env::temp_dir()).without_host_calls(), &changes);
    }

    /// A crash that loses nothing, and one at any moment that keeps the first changes, are states that were there.
    #[test]
    fn crashes_in_order_follow_the_model(changes in prop::collection::vec(change(), 1..40)) {
        let storage = FaultyStorage::new(MemoryStorage::new());
        let (mut model, mut models) = (Vec::new(), vec![Vec::new()]);
        for change in &changes {
            apply(change, &storage);
            apply_to_model(change, &mut model);
            // Changes of no bytes are not in the log.
            models.resize(storage.log_len(), models.last().unwrap().clone());
            models.push(model.clone());
        }
        let log = storage.log();
        for moment in 0..=log.len() {
            prop_assert!(storage.crash_at(moment, CrashChoice::All).to_vec() == models[moment]);
            let last_sync = log[..moment].iter().rposition(|operation| *operation == Operation::Sync);
            let synced = last_sync.map_or(0, |at| at + 1);
            prop_assert_eq!(storage.unsynced_at(moment), moment - synced);
            for kept in 0..=moment - synced {
                let left = storage.crash_at(moment, CrashChoice::Prefix(kept)).to_vec();
                prop_assert!(left == models[synced + kept], "{kept} kept at {moment} of {log:?}");
            }
            prop_assert!(storage.crash_at(moment, CrashChoice::Synced).to_vec() == models[synced]);
        }
    }

    /// Whatever a power cut leaves, a sector holds what it held at some time since the last sync, or zeroes that a new
    /// length gave it.
    #[test]
    fn no_sector_is_half_of_two_writes(
        writes in prop::collection::vec((0_u64..20, 1_usize..8, any::<bool>()), 1..12),
        seed in any::<u64>(),
    ) {
        let storage = FaultyStorage::new(MemoryStorage::with_bytes([0xff; 30 * 512]));
        let mut may_hold = vec![vec![0xff]; 30];
        for (value, (sector, sectors, sync)) in (1_u8..).zip(writes) {
            storage.write_all_at(&vec![value; sectors * 512], sector * 512).unwrap();
            for held in &mut may_hold[sector as usize..sector as usize + sectors] {
                held.push(value);
            }
            if sync {
                storage.sync().unwrap();
                for held in &mut may_hold {
                    held.drain(..held.len() - 1);
                }
            }
        }
        let choice = CrashChoice::Random { seed };
        let left = storage.crash(choice).to_vec();
        prop_assert!(left == storage.crash(choice).to_vec(), "a seed gives two crashes");
        for (sector, held) in left.chunks(512).zip(&may_hold) {
            prop_assert!(sector.iter().all(|byte| *byte == sector[0]), "a torn sector");
            prop_assert!(held.contains(&sector[0]), "{} is none of {held:?}", sector[0]);
        }
    }
}

proptest! {
    // Each change is a few accesses to the disk.
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// With and without the host's calls, where the file system lets files bypass its cache.
    #[test]
    fn files_past_the_hosts_cache_follow_the_model(changes in prop::collection::vec(change(), 1..20)) {
        for with_calls in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let options = FileOptions::create_new().host_cache(HostCache::Bypassed);
            let Ok(file) = FileStorage::open(dir.path().join("a"), &options) else { return Ok(()) };
            let file = if with_calls { file } else { file.without_host_calls() };
            follows_the_model(&AlignedStorage::direct(file).unwrap(), &changes);
        }
    }
}
