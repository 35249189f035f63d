//! What a creation leaves when one operation on one of its files fails: an error and nothing else, whichever it was.
//!
//! Every read, write, length change, allocation and look of each file is failed in turn. What happens before and after, the
//! making of files and the giving of names, are calls of the host and no storage's: the program's tests fail those.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::create::{CreateOptions, Overwrite, Qcow2CreateOptions, plan};
use super::encrypt::{Encryption, LuksOptions};
use super::staged::StagedImage;
use super::{BackingOptions, Image};
use crate::codec::crypt::{CipherAlgorithm, CipherMode, Passphrase};
use crate::error::Result;
use crate::format::probe::Format;
use crate::format::qcow2::layout::Preallocation;
use crate::progress::Control;
use crate::storage::{Fault, FaultyStorage, OperationKind, Storage};

type Faulty = Arc<FaultyStorage<Arc<dyn Storage>>>;

const SIZE: u64 = 1 << 20;

/// What an operation meets.
#[derive(Debug, Clone, Copy)]
enum Trouble {
    /// It fails.
    Fails(io::ErrorKind),
    /// It reads or writes no more than so many bytes.
    Short(usize),
}

impl Trouble {
    /// The kinds of operations that it may meet.
    fn kinds(self) -> &'static [OperationKind] {
        match self {
            Trouble::Fails(_) => &OperationKind::ALL,
            Trouble::Short(_) => &[OperationKind::Read, OperationKind::Write],
        }
    }

    fn fault(self, nth: u64) -> Fault {
        match self {
            Trouble::Fails(kind) => Fault::error(kind).after(nth),
            Trouble::Short(bytes) => Fault::short(bytes).after(nth),
        }
    }
}

fn passphrase() -> Passphrase {
    Passphrase::new("open-sesame")
}

/// Short keys, that take as little time and space as keys may.
fn luks() -> LuksOptions {
    LuksOptions {
        cipher: CipherAlgorithm::Aes128,
        mode: CipherMode::Cbc,
        iteration_time: Duration::ZERO,
        ..LuksOptions::new(passphrase())
    }
}

/// What is created, in a folder that has a file "base".
fn shapes(folder: &Path) -> Vec<(&'static str, CreateOptions)> {
    let small = |preallocation, qcow2: Qcow2CreateOptions| CreateOptions {
        preallocation,
        qcow2: Qcow2CreateOptions { cluster_size: 4096, ..qcow2 },
        ..CreateOptions::qcow2(SIZE)
    };
    let usual = Qcow2CreateOptions::default;
    let data_file = Some(folder.join("data").into_os_string());
    let raw = CreateOptions { size: Some(SIZE), ..CreateOptions::new(Format::Raw) };
    let backing = BackingOptions { format: Some(Format::Raw), ..BackingOptions::new("base") };
    let encryption = Some(Encryption::Luks(luks()));
    vec![
        ("plain", small(Preallocation::Off, usual())),
        ("metadata", small(Preallocation::Metadata, usual())),
        ("falloc", small(Preallocation::Falloc, usual())),
        ("full", small(Preallocation::Full, usual())),
        (
            "data file",
            small(Preallocation::Off, Qcow2CreateOptions { data_file: data_file.clone(), ..usual() }),
        ),
        ("full data file", small(Preallocation::Full, Qcow2CreateOptions { data_file, ..usual() })),
        ("overlay", CreateOptions { backing: Some(backing), ..CreateOptions::new(Format::Qcow2) }),
        ("raw", raw.clone()),
        ("raw, full", CreateOptions { preallocation: Preallocation::Full, ..raw }),
        ("encrypted", small(Preallocation::Off, Qcow2CreateOptions { encryption, ..usual() })),
        ("luks", CreateOptions::luks(SIZE, luks())),
    ]
}

/// All files of the folder.
fn content(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

/// Creates the image "new"; the trouble meets file `which` in its operation `nth`. Returns how many it has had, too.
fn create(
    folder: &Path,
    options: &CreateOptions,
    (which, trouble, nth): (usize, Trouble, u64),
) -> (Result<()>, u64) {
    let target = folder.join("new");
    let files: Mutex<Vec<Faulty>> = Mutex::new(Vec::new());
    let between = |inner: Arc<dyn Storage>| -> Arc<dyn Storage> {
        let mut files = files.lock().unwrap();
        let file = Arc::new(FaultyStorage::over(inner).unwrap());
        if files.len() == which {
            file.inject(trouble.fault(nth));
        }
        files.push(Arc::clone(&file));
        file
    };
    let created = plan(&target, options).and_then(|plan| {
        let control = Control::default();
        StagedImage::write_through(&target, options.overwrite, &plan, (&control, &between))?.publish_synced()
    });
    let files = files.into_inner().unwrap();
    let done = files.get(which).map_or(0, |file| trouble.kinds().iter().map(|&kind| file.count(kind)).sum());
    (created, done)
}

/// The new image is what it was to be.
fn judge(
    folder: &Path,
    (name, options): &(&str, CreateOptions),
    expected: &[(String, Vec<u8>)],
    context: &str,
) {
    let is_encrypted = options.luks.is_some() || options.qcow2.encryption.is_some();
    if is_encrypted {
        // Its keys are drawn anew each time.
        let image = Image::options().passphrase(passphrase()).open(folder.join("new"));
        let image = image.unwrap_or_else(|error| panic!("{context}: {error}"));
        assert_eq!(image.size(), SIZE, "{context}");
        assert!(*name == "luks" || image.check().unwrap().is_clean(), "{context}");
    } else {
        assert!(content(folder) == expected, "{context}: it is not what it was to be");
    }
}

/// Makes trouble in each operation of each file in turn; returns how many that were.
fn fail_each(shape: usize, overwrite: Overwrite, trouble: Trouble) -> u64 {
    let folder = tempfile::tempdir().unwrap();
    let mut shape = shapes(folder.path()).swap_remove(shape);
    shape.1.overwrite = overwrite;
    let start = || {
        for (name, _) in content(folder.path()) {
            fs::remove_file(folder.path().join(name)).unwrap();
        }
        fs::write(folder.path().join("base"), vec![7; 4096]).unwrap();
        if overwrite == Overwrite::Replace {
            fs::write(folder.path().join("new"), "old").unwrap();
        }
        content(folder.path())
    };
    start();
    let (made, _) = create(folder.path(), &shape.1, (usize::MAX, trouble, 0));
    made.unwrap_or_else(|error| panic!("{}: {error}", shape.0));
    let expected = content(folder.path());
    let (mut faults, mut failures) = (0, 0);
    for which in 0..2 {
        for nth in 0.. {
            let before = start();
            let (created, done) = create(folder.path(), &shape.1, (which, trouble, nth));
            if done <= nth {
                break;
            }
            let context =
                format!("{}, {overwrite:?}, {trouble:?} in operation {nth} of file {which}", shape.0);
            faults += 1;
            // Else it was a look that tells nothing, or a call that another can stand in for.
            if created.is_err() {
                failures += 1;
                assert!(content(folder.path()) == before, "{context}: something is left, or gone");
                // Neither a lock nor anything else is in the way of another try.
                let (again, _) = create(folder.path(), &shape.1, (usize::MAX, trouble, 0));
                again.unwrap_or_else(|error| panic!("{context}, again: {error}"));
            }
            judge(folder.path(), &shape, &expected, &context);
        }
    }
    assert!(matches!(trouble, Trouble::Short(_)) == (failures == 0), "{}: {failures} of {faults}", shape.0);
    faults
}

/// Shapes of which the keys take their time, at the end of the list.
const ENCRYPTED: usize = 2;

fn fail_all(shapes: Range<usize>, overwrite: Overwrite, troubles: &[Trouble]) {
    let all = shapes.clone().flat_map(|shape| troubles.iter().map(move |trouble| (shape, *trouble)));
    let met: u64 = all.map(|(shape, trouble)| fail_each(shape, overwrite, trouble)).sum();
    assert!(met as usize > 2 * shapes.len() * troubles.len(), "only {met} faults were met");
}

/// All shapes but the encrypted ones, and these.
fn kinds() -> (Range<usize>, Range<usize>) {
    let count = shapes(Path::new("/")).len();
    (0..count - ENCRYPTED, count - ENCRYPTED..count)
}

#[test]
fn a_new_image_is_whole_or_not_there_whatever_fails() {
    let errors = [io::ErrorKind::Other, io::ErrorKind::StorageFull, io::ErrorKind::Interrupted];
    fail_all(kinds().0, Overwrite::Refuse, &errors.map(Trouble::Fails));
}

#[test]
fn a_new_encrypted_image_is_whole_or_not_there_whatever_fails() {
    fail_all(kinds().1, Overwrite::Refuse, &[Trouble::Fails(io::ErrorKind::StorageFull)]);
}

#[test]
fn an_image_that_is_to_be_replaced_stays_whatever_fails() {
    let (plain, encrypted) = kinds();
    fail_all(plain.start..encrypted.end, Overwrite::Replace, &[Trouble::Fails(io::ErrorKind::Other)]);
}

#[test]
fn transfers_of_a_few_bytes_make_the_same_image() {
    let (plain, encrypted) = kinds();
    fail_all(plain.start..encrypted.end, Overwrite::Refuse, &[Trouble::Short(1), Trouble::Short(1000)]);
}
