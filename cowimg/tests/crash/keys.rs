//! Key slots that are filled and erased: at every moment the image opens with a passphrase that opened it before or is to
//! open it afterwards, with all that do both, and with no other.

use std::sync::Arc;
use std::time::Duration;

use cowimg::check::check_storage;
use cowimg::encryption::{
    CipherAlgorithm, CipherMode, Encryption, ErasedKeySlots, KeyLoss, KeySlotChange, LuksOptions, NewKeySlot,
    Passphrase,
};
use cowimg::progress::Control;
use cowimg::storage::{CrashChoice, Fault, FaultyStorage, MemoryStorage, OperationKind, Storage};
use cowimg::{Access, AmendOptions, CreateOptions, ErrorKind, Image};

use crate::lab::{Dice, choices};

const QUICK: Duration = Duration::from_millis(1);

/// One change, and which passphrases open the image before and after it.
struct Step {
    change: KeySlotChange,
    loss: KeyLoss,
    before: &'static [&'static str],
    after: &'static [&'static str],
}

fn passphrase(text: &str) -> Passphrase {
    Passphrase::new(text)
}

fn add(text: &str, slot: Option<u32>) -> KeySlotChange {
    KeySlotChange::Add(NewKeySlot { slot, iteration_time: QUICK, ..NewKeySlot::new(passphrase(text)) })
}

/// Each step begins where the one before has ended. Slot 6 lies in two sectors of the header.
fn steps() -> [Step; 4] {
    let (refuse, allow) = (KeyLoss::Refuse, KeyLoss::Allow);
    [
        Step { change: add("two", Some(6)), loss: refuse, before: &["one"], after: &["one", "two"] },
        Step {
            change: add("three", Some(0)),
            loss: allow,
            before: &["one", "two"],
            after: &["two", "three"],
        },
        Step {
            change: KeySlotChange::Erase(ErasedKeySlots::Holding(passphrase("three"))),
            loss: refuse,
            before: &["two", "three"],
            after: &["two"],
        },
        // The only slot in use: another holds the new passphrase meanwhile.
        Step { change: add("four", Some(6)), loss: allow, before: &["two"], after: &["four"] },
    ]
}

/// An image whose key material is short, so that many states can be tried.
fn fresh() -> MemoryStorage {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.qcow2");
    let mut options = CreateOptions::qcow2(1 << 20);
    options.qcow2.cluster_size = 4096;
    options.qcow2.encryption = Some(Encryption::Luks(LuksOptions {
        cipher: CipherAlgorithm::Aes128,
        mode: CipherMode::Cbc,
        iteration_time: QUICK,
        ..LuksOptions::new(passphrase("one"))
    }));
    cowimg::create(&path, &options).unwrap();
    let image = Image::options().access(Access::ReadWrite).passphrase(passphrase("one")).open(&path).unwrap();
    image.write_at(&[7; 4096], 8192).unwrap();
    image.close().unwrap();
    MemoryStorage::with_bytes(std::fs::read(&path).unwrap())
}

fn open(storage: &Arc<dyn Storage>, text: &str, access: Access) -> cowimg::Result<Image> {
    Image::options().access(access).passphrase(passphrase(text)).open_storage(Arc::clone(storage))
}

fn opens(storage: &Arc<dyn Storage>, text: &str) -> bool {
    match open(storage, text, Access::ReadOnly) {
        Ok(image) => {
            let mut bytes = [0; 4096];
            image.read_at(&mut bytes, 8192).unwrap();
            assert_eq!(bytes, [7; 4096], "the data under the passphrase {text}");
            true
        }
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::WrongPassphrase), "{error}");
            false
        }
    }
}

fn amend(storage: &Arc<dyn Storage>, step: &Step) -> cowimg::Result<()> {
    let mut image = open(storage, step.before[0], Access::ReadWrite)?;
    let key_slots = Some(step.change.clone());
    let wanted = AmendOptions { key_slots, key_loss: step.loss, ..AmendOptions::default() };
    image.amend(&wanted, &Control::default())?;
    image.close()
}

/// Holds one state against the promise.
fn judge(state: MemoryStorage, step: &Step, context: &str) {
    let report = check_storage(&state).unwrap_or_else(|error| panic!("{context}: check: {error}"));
    assert!(report.corruptions == 0, "{context}: {:?}", report.issues);
    let storage: Arc<dyn Storage> = Arc::new(state);
    let opening: Vec<_> = step.before.iter().chain(step.after).filter(|text| opens(&storage, text)).collect();
    assert!(!opening.is_empty(), "{context}: nothing opens the image");
    for text in step.before.iter().filter(|text| step.after.contains(text)) {
        assert!(opening.contains(&text), "{context}: {text} opens it no longer");
    }
}

/// Fails every operation of a step, reads among them; returns how many failures that were.
fn fail_every_operation(start: &MemoryStorage, (nth, step): (usize, &Step)) -> usize {
    let kinds = [std::io::ErrorKind::Other, std::io::ErrorKind::StorageFull];
    for operation in 0.. {
        let storage = Arc::new(FaultyStorage::new(start.clone()));
        storage.inject(Fault::error(kinds[operation as usize % 2]).after(operation));
        let shared: Arc<dyn Storage> = storage.clone();
        let _failed_where_it_mattered = amend(&shared, step);
        if OperationKind::ALL.iter().map(|kind| storage.count(*kind)).sum::<u64>() <= operation {
            return operation as usize;
        }
        storage.clear_faults();
        judge(storage.crash(CrashChoice::All), step, &format!("step {nth}, operation {operation} failed"));
    }
    0
}

/// Tries one of the steps, on an image that has taken those before it.
fn try_step(nth: usize) {
    let steps = steps();
    let mut start = fresh();
    for (nth, step) in steps.iter().enumerate().take(nth) {
        let shared: Arc<dyn Storage> = Arc::new(start.clone());
        amend(&shared, step).unwrap_or_else(|error| panic!("step {nth}: {error}"));
        start = MemoryStorage::copy_of(&*shared).unwrap();
    }
    let step = &steps[nth];
    let mut dice = Dice(71 + nth as u64);
    let mut states = 0;
    let storage = Arc::new(FaultyStorage::new(start.clone()));
    let shared: Arc<dyn Storage> = storage.clone();
    amend(&shared, step).unwrap_or_else(|error| panic!("step {nth}: {error}"));
    for moment in 0..=storage.log_len() {
        // Each state costs the derivation of many keys: not all choices.
        for choice in choices(&mut dice, storage.unsynced_at(moment)).into_iter().skip(1).take(3) {
            let context = format!("step {nth}, moment {moment}, {choice:?}");
            judge(storage.crash_at(moment, choice), step, &context);
            states += 1;
        }
    }
    states += fail_every_operation(&start, (nth, step));
    // What is there when the call has returned is there after a power cut.
    let durable: Arc<dyn Storage> = Arc::new(storage.crash(CrashChoice::Synced));
    for text in ["one", "two", "three", "four"] {
        assert_eq!(opens(&durable, text), step.after.contains(&text), "step {nth}: {text}");
    }
    println!("{states} states after a crash, each opens");
    assert!(states > 20, "only {states} states were tried");
}

#[test]
fn an_image_opens_whenever_the_power_fails_as_a_key_is_added() {
    try_step(0);
}

#[test]
fn an_image_opens_whenever_the_power_fails_as_a_key_takes_anothers_place() {
    try_step(1);
}

#[test]
fn an_image_opens_whenever_the_power_fails_as_a_key_is_erased() {
    try_step(2);
}

#[test]
fn an_image_opens_whenever_the_power_fails_as_its_only_key_is_exchanged() {
    try_step(3);
}
