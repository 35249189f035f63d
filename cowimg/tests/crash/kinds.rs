//! What images can be beside their version and cluster size: divided clusters, a backing file, a data file, encryption,
//! compressed clusters, refcounts marked lazy, a refcount table that has no room left.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cowimg::encryption::{Encryption, LuksOptions, Passphrase};
use cowimg::storage::{MemoryStorage, Storage, StorageExt};
use cowimg::{
    Access, BackingOptions, CompressionType, CreateOptions, Format, Image, LazyRefcounts, OpenOptions,
    Qcow2CreateOptions, Version,
};

use crate::faults::{Trouble, fail_every_operation, shorten_every_transfer};
use crate::files::Cuts;
use crate::history::try_cuts;
use crate::lab::{Call, Dice, SIZE, guest_call};
use crate::subject::Subject;
use crate::{chain, convert};

/// A kind of image, with what may be done to it.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    subject: fn() -> Subject,
    compresses: bool,
    has_snapshots: bool,
    resizes: bool,
    /// How much longer a state takes than one of the others.
    cost: u64,
}

pub(crate) const KINDS: [Kind; 9] = [
    Kind::new("divided clusters", || created(&divided(), &[])),
    Kind { resizes: false, ..Kind::new("divided clusters over a base", || over_base(&divided())) },
    Kind { resizes: false, ..Kind::new("version 2 over a base", || over_base(&version_2())) },
    Kind { has_snapshots: false, ..Kind::new("a data file", data_file) },
    Kind { cost: 10, ..Kind::new("LUKS", luks) },
    Kind {
        compresses: true,
        ..Kind::new("compressed with zlib", || created(&compressed(CompressionType::Deflate), &[]))
    },
    Kind {
        compresses: true,
        ..Kind::new("compressed with zstd", || created(&compressed(CompressionType::Zstd), &[]))
    },
    Kind::new("lazy refcounts", || created(&lazy(), &[])),
    Kind { cost: 3, ..Kind::new("a full refcount table", full_refcount_table) },
];

impl Kind {
    const fn new(name: &'static str, subject: fn() -> Subject) -> Kind {
        Kind { name, subject, compresses: false, has_snapshots: true, resizes: true, cost: 1 }
    }

    /// An image to begin with.
    pub(crate) fn subject(&self) -> Subject {
        (self.subject)()
    }

    /// Whether many states of it can be tried in little time.
    pub(crate) fn is_quick(&self) -> bool {
        self.cost == 1
    }

    pub(crate) fn compresses(&self) -> bool {
        self.compresses
    }

    pub(crate) fn has_snapshots(&self) -> bool {
        self.has_snapshots
    }

    /// Whether all of these can be done to it.
    pub(crate) fn bears(&self, calls: &[Call]) -> bool {
        self.resizes || !calls.iter().any(|call| matches!(call, Call::Resize(_) | Call::Preallocate(_)))
    }

    /// How many calls make a workload of some hundred states.
    pub(crate) fn calls(&self) -> usize {
        (14 / self.cost as usize).max(4)
    }

    /// Guest calls, with all else that the kind can bear between them.
    pub(crate) fn workload(&self, dice: &mut Dice, calls: usize) -> Vec<Call> {
        let call = |nth| match (dice.roll(12), guest_call(dice, nth)) {
            (0..=4, Call::Write(range, byte)) if self.compresses => Call::Compressed(range, byte),
            (5, _) if self.has_snapshots => Call::Take,
            (6, _) if self.has_snapshots => Call::Apply(dice.roll(4) as usize),
            (7, _) if self.has_snapshots => Call::Delete(dice.roll(4) as usize),
            (8, _) if self.resizes => Call::Resize(SIZE / 2 + dice.roll(SIZE / 512) * 512),
            (_, call) => call,
        };
        (0..calls).map(call).collect()
    }

    /// Tries every moment of a workload that the seed determines.
    pub(crate) fn try_seed(&self, seed: u64, calls: usize) -> usize {
        let calls = self.workload(&mut Dice(seed), calls);
        try_cuts(self.name, &self.subject(), (seed, Cuts::Sampled), &calls)
    }
}

fn qcow2() -> CreateOptions {
    let options = CreateOptions::qcow2(SIZE);
    CreateOptions { qcow2: Qcow2CreateOptions { cluster_size: 512, ..options.qcow2 }, ..options }
}

fn with(qcow2_options: Qcow2CreateOptions) -> CreateOptions {
    CreateOptions { qcow2: qcow2_options, ..qcow2() }
}

fn divided() -> CreateOptions {
    with(Qcow2CreateOptions { cluster_size: 16384, extended_l2: true, ..qcow2().qcow2 })
}

fn version_2() -> CreateOptions {
    with(Qcow2CreateOptions { version: Version::V2, ..qcow2().qcow2 })
}

fn compressed(compression: CompressionType) -> CreateOptions {
    with(Qcow2CreateOptions { cluster_size: 2048, compression, ..qcow2().qcow2 })
}

fn lazy() -> CreateOptions {
    with(Qcow2CreateOptions { lazy_refcounts: LazyRefcounts::On, ..qcow2().qcow2 })
}

fn read(path: &Path) -> MemoryStorage {
    MemoryStorage::with_bytes(std::fs::read(path).unwrap())
}

/// An image that is created so, with these files beside it.
fn created(options: &CreateOptions, beside: &[MemoryStorage]) -> Subject {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.qcow2");
    cowimg::create(&path, options).unwrap();
    let files = std::iter::once(read(&path)).chain(beside.iter().cloned()).collect();
    Subject { files, ..Subject::from(MemoryStorage::new()) }
}

/// An image over a base that is shorter than it, and that nothing writes to.
fn over_base(options: &CreateOptions) -> Subject {
    let base = MemoryStorage::new();
    for sector in 0..SIZE / 512 - 9 {
        base.write_all_at(&[200 + (sector % 40) as u8; 512], sector * 512).unwrap();
    }
    let backing = BackingOptions {
        format: Some(Format::Raw),
        verification: cowimg::Verification::Trust,
        ..BackingOptions::new("base.raw")
    };
    let options = CreateOptions { backing: Some(backing), ..options.clone() };
    // QEMU would look for the base.
    Subject { options: over_raw, qemu: None, ..created(&options, &[base]) }
}

fn data_file() -> Subject {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data");
    let options = with(Qcow2CreateOptions { data_file: Some(path.into_os_string()), ..qcow2().qcow2 });
    let data = MemoryStorage::new();
    data.set_len(SIZE).unwrap();
    Subject { options: with_data, qemu: None, ..created(&options, &[data]) }
}

fn over_raw(files: &[Arc<dyn Storage>]) -> OpenOptions {
    Image::options().backing_storage(files[0].clone(), Image::options().format(Format::Raw))
}

fn with_data(files: &[Arc<dyn Storage>]) -> OpenOptions {
    Image::options().data_storage(files[0].clone())
}

fn passphrase() -> Passphrase {
    Passphrase::new(*b"open sesame")
}

/// Made once: a key slot takes its time.
fn luks() -> Subject {
    static MADE: OnceLock<MemoryStorage> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let luks = LuksOptions { iteration_time: Duration::from_millis(1), ..LuksOptions::new(passphrase()) };
        let encryption = Some(Encryption::Luks(luks));
        let options = with(Qcow2CreateOptions { cluster_size: 4096, encryption, ..qcow2().qcow2 });
        created(&options, &[]).files.remove(0)
    });
    Subject {
        options: |_| Image::options().passphrase(passphrase()),
        qemu: None,
        ..Subject::from(made.clone())
    }
}

/// An image whose file has all but a few of the clusters that its refcount table can count; leaked, so that nobody has
/// to read them.
fn full_refcount_table() -> Subject {
    static MADE: OnceLock<MemoryStorage> = OnceLock::new();
    /// What a table of one cluster covers: 64 blocks that count 64 clusters each.
    const COVERED: u64 = 64 * 64 * 512;
    let made = MADE.get_or_init(|| {
        let options = with(Qcow2CreateOptions { refcount_bits: 64, ..qcow2().qcow2 });
        let file = created(&CreateOptions { size: Some(COVERED), ..options }, &[]).files.remove(0);
        let storage: Arc<dyn Storage> = Arc::new(file.clone());
        let image = crate::lab::open(storage.clone(), Access::ReadWrite).unwrap();
        let mut at = 0;
        while storage.len().unwrap() < COVERED - 40 * 512 {
            image.write_at(&[9; 4096], at).unwrap();
            image.flush().unwrap();
            at += 4096;
        }
        image.close().unwrap();
        let mut l1 = [0; 16];
        storage.read_exact_at(&mut l1, 36).unwrap();
        let entries = u64::from(u32::from_be_bytes(l1[..4].try_into().unwrap()));
        let offset = u64::from_be_bytes(l1[4..12].try_into().unwrap());
        storage.write_all_at(&vec![0; entries as usize * 8], offset).unwrap();
        storage.write_all_at(&SIZE.to_be_bytes(), 24).unwrap();
        let forgotten = MemoryStorage::new();
        forgotten
            .write_all_at(
                &{
                    let mut all = vec![0; storage.len().unwrap() as usize];
                    storage.read_exact_at(&mut all, 0).unwrap();
                    all
                },
                0,
            )
            .unwrap();
        forgotten
    });
    Subject::from(made.clone())
}

#[test]
fn images_of_every_kind_lose_nothing_whenever_the_power_fails() {
    let mut states = 0;
    for kind in KINDS.iter().filter(|kind| kind.is_quick()) {
        let of_kind: usize = (1..=2).map(|seed| kind.try_seed(seed * 5003, kind.calls())).sum();
        println!("{}: {of_kind}", kind.name);
        states += of_kind;
    }
    println!("{states} states after a crash, none lost, none corrupt");
    assert!(states > 3_000, "only {states} states were tried");
}

#[test]
fn a_refcount_table_grows_without_loss_whenever_the_power_fails() {
    let kind = KINDS.iter().find(|kind| kind.name == "a full refcount table").unwrap();
    let states = kind.try_seed(17, kind.calls());
    println!("{states} states after a crash, none lost, none corrupt");
    assert!(states > 100, "only {states} states were tried");
}

#[test]
fn an_encrypted_image_loses_nothing_whenever_the_power_fails() {
    let kind = KINDS.iter().find(|kind| kind.name == "LUKS").unwrap();
    let states = kind.try_seed(19, kind.calls());
    println!("{states} states after a crash, none lost, none corrupt");
    assert!(states > 30, "only {states} states were tried");
}

#[test]
fn short_reads_and_writes_are_no_failure() {
    for (nth, kind) in KINDS.iter().filter(|kind| kind.is_quick()).enumerate() {
        for bytes in [7, 512, 700] {
            let calls = kind.workload(&mut Dice(nth as u64 + 91), 20);
            shorten_every_transfer(kind.name, &kind.subject(), &calls, bytes);
        }
    }
    for job in chain::jobs(3).into_iter().chain(convert::jobs(3)) {
        for bytes in [7, 512, 700] {
            job.try_short(bytes);
        }
    }
}

/// Each operation fails in each of these ways.
const TROUBLES: [Trouble; 4] = [
    Trouble::Once(std::io::ErrorKind::Other),
    Trouble::Once(std::io::ErrorKind::Interrupted),
    Trouble::ForGood(std::io::ErrorKind::StorageFull),
    Trouble::FullFor(3),
];

/// All quick kinds with one trouble in every operation.
fn fail_with(trouble: Trouble) {
    let mut failures = 0;
    for (nth, kind) in KINDS.iter().filter(|kind| kind.is_quick()).enumerate() {
        let calls = kind.workload(&mut Dice(nth as u64 + 71), 8);
        failures += fail_every_operation(kind.name, &kind.subject(), &calls, trouble);
    }
    println!("{trouble:?}: {failures} failures, none lost, none corrupt");
    assert!(failures > 150, "only {failures} failures were met");
}

#[test]
fn images_of_every_kind_survive_an_error_of_the_disk() {
    fail_with(TROUBLES[0]);
}

#[test]
fn images_of_every_kind_survive_an_interrupted_call() {
    fail_with(TROUBLES[1]);
}

#[test]
fn images_of_every_kind_survive_a_disk_that_stays_full() {
    fail_with(TROUBLES[2]);
}

#[test]
fn images_of_every_kind_survive_a_disk_that_is_full_for_a_while() {
    fail_with(TROUBLES[3]);
}

/// Those whose states take longer: encrypted images, and a refcount table that grows.
#[test]
fn images_of_slow_kinds_survive_a_failing_disk() {
    let mut failures = 0;
    for (nth, kind) in KINDS.iter().filter(|kind| !kind.is_quick()).enumerate() {
        let mut calls = kind.workload(&mut Dice(nth as u64 + 83), 3);
        // More than the clusters that a full table has left.
        calls.push(Call::Write(cowimg::ByteRange::between(0, SIZE / 2), 77));
        calls.push(Call::Flush);
        for trouble in [TROUBLES[nth % 2], TROUBLES[2 + nth % 2]] {
            failures += fail_every_operation(kind.name, &kind.subject(), &calls, trouble);
        }
        for bytes in [7, 700] {
            shorten_every_transfer(kind.name, &kind.subject(), &calls, bytes);
        }
    }
    println!("{failures} failures, none lost, none corrupt");
    assert!(failures > 50, "only {failures} failures were met");
}
