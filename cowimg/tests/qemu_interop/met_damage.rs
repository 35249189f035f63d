//! Damage that is met while an image is written: real `qemu-io` and the library on equal copies. Where QEMU fails and marks
//! the image corrupt, the library does; neither it nor what is undamaged is lost by that.

use std::path::{Path, PathBuf};

use cowimg::corruption::Corruption;
use cowimg::{Access, ByteRange, ErrorKind, Image, Result, ZeroMode};
use tempfile::TempDir;

use crate::header_bytes::{self, INCOMPATIBLE};
use crate::qemu_tools;

const CORRUPT: u64 = 2;
const COPIED: u64 = 1 << 63;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const CLUSTER: u64 = 4096;

/// An image with data, a snapshot and a bitmap, and where its tables are.
struct Patient {
    bytes: Vec<u8>,
    l1: u64,
    l2: u64,
    refcount_table: u64,
    refcount_block: u64,
    snapshot_table: u64,
    snapshot_l1: u64,
    snapshot_l2: u64,
}

impl Patient {
    fn new(compat: &str) -> Patient {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("image.qcow2");
        let words = format!("create -q -f qcow2 -o cluster_size=4k,compat={compat}");
        qemu_tools::img(&words, &[&path, Path::new("2M")]);
        qemu_tools::io(&path, &["write -q -P 1 0 256k".to_owned()]);
        qemu_tools::img("snapshot -c a", &[&path]);
        qemu_tools::io(&path, &["write -q -P 2 64k 16k".to_owned()]);
        let bytes = std::fs::read(&path).expect("the image can be read");
        let word = |at: u64| word_at(&bytes, at);
        let (l1, refcount_table, snapshot_table) = (word(40), word(48), word(64));
        let snapshot_l1 = word(snapshot_table);
        Patient {
            l2: word(l1) & OFFSET,
            refcount_block: word(refcount_table),
            snapshot_l2: word(snapshot_l1) & OFFSET,
            l1,
            refcount_table,
            snapshot_table,
            snapshot_l1,
            bytes,
        }
    }

    /// A copy with `value` as the number at `at`.
    fn with(&self, at: u64, value: u64) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes[at as usize..at as usize + 8].copy_from_slice(&value.to_be_bytes());
        bytes
    }

    /// A copy in which the cluster at `host` counts as free.
    fn with_free(&self, host: u64) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        let at = (self.refcount_block + host / CLUSTER * 2) as usize;
        bytes[at..at + 2].fill(0);
        bytes
    }

    /// Every table, by name.
    fn tables(&self) -> [(&'static str, u64); 7] {
        [
            ("the L1 table", self.l1),
            ("the L2 table", self.l2),
            ("the refcount table", self.refcount_table),
            ("the refcount block", self.refcount_block),
            ("the snapshot table", self.snapshot_table),
            ("the snapshot's L1 table", self.snapshot_l1),
            ("the snapshot's L2 table", self.snapshot_l2),
        ]
    }

    /// Damaged copies.
    fn damaged(&self) -> Vec<(String, Vec<u8>)> {
        let mut damaged = vec![
            ("an unaligned cluster".to_owned(), self.with(self.l2, COPIED | 0x10200)),
            ("an unaligned L2 table".to_owned(), self.with(self.l1, COPIED | (self.l2 + 512))),
            ("a cluster past the end".to_owned(), self.with(self.l2, COPIED | 1 << 28)),
            ("an L2 table past the end".to_owned(), self.with(self.l1, COPIED | 1 << 28)),
            (
                "an unaligned refcount block".to_owned(),
                self.with(self.refcount_table, self.refcount_block + 512),
            ),
            ("a refcount block past the end".to_owned(), self.with(self.refcount_table, 1 << 28)),
            ("no refcount block".to_owned(), self.with(self.refcount_table, 0)),
            ("compressed bytes that are none".to_owned(), self.with(self.l2, 1 << 62 | 0x10000)),
            ("the header free".to_owned(), self.with_free(0)),
        ];
        for (name, host) in self.tables() {
            damaged.push((format!("data in {name}"), self.with(self.l2, host | COPIED)));
            damaged.push((format!("shared data in {name}"), self.with(self.l2, host)));
            damaged
                .push((format!("zeroes with {name} as their space"), self.with(self.l2, host | COPIED | 1)));
            damaged.push((format!("{name} free"), self.with_free(host)));
        }
        damaged
    }
}

fn word_at(bytes: &[u8], at: u64) -> u64 {
    u64::from_be_bytes(bytes[at as usize..at as usize + 8].try_into().expect("eight bytes"))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Read,
    Write,
    WriteNew,
    Zero,
    Discard,
}

const ACTS: [Act; 5] = [Act::Read, Act::Write, Act::WriteNew, Act::Zero, Act::Discard];

impl Act {
    fn command(self) -> &'static str {
        match self {
            Act::Read => "read -q 0 4k",
            Act::Write => "write -q -P 7 0 4k",
            Act::WriteNew => "write -q -P 7 1M 4k",
            Act::Zero => "write -q -z 0 4k",
            Act::Discard => "discard -q 0 4k",
        }
    }

    fn take(self, image: &Image) -> Result<()> {
        let first = ByteRange::between(0, CLUSTER);
        match self {
            Act::Read => image.read_at(&mut [0; 4096], 0),
            Act::Write => image.write_at(&[7; 4096], 0),
            Act::WriteNew => image.write_at(&[7; 4096], 1 << 20),
            Act::Zero => image.write_zeroes(first, ZeroMode::KeepSpace),
            Act::Discard => image.discard(first),
        }
    }
}

/// What became of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Outcome {
    opened: bool,
    done: bool,
    marked: bool,
}

fn placed(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("image.qcow2");
    std::fs::write(&path, bytes).expect("the image can be written");
    (folder, path)
}

fn is_marked(path: &Path) -> bool {
    header_bytes::features(path, INCOMPATIBLE) & CORRUPT != 0
}

fn by_qemu(bytes: &[u8], act: Act) -> Outcome {
    let (_folder, path) = placed(bytes);
    let path_text = path.display().to_string();
    let answer = qemu_tools::answer_of(
        "qemu-io",
        &["-f", "qcow2", "-d", "unmap", "-c", act.command(), path_text.as_str()],
    );
    Outcome { opened: true, done: answer.code == 0, marked: is_marked(&path) }
}

fn by_us(bytes: &[u8], act: Act) -> Outcome {
    let (_folder, path) = placed(bytes);
    let Ok(image) = Image::options().access(Access::ReadWrite).open(&path) else {
        assert!(std::fs::read(&path).expect("it is there") == bytes, "what is not opened is not changed");
        return Outcome { opened: false, done: false, marked: false };
    };
    let done = act.take(&image).and_then(|()| image.flush());
    let outcome = Outcome { opened: true, done: done.is_ok(), marked: is_marked(&path) };
    if outcome.marked {
        assert_refuses_more(&image, &path);
    }
    let _closed_or_not = image.close();
    assert_eq!(is_marked(&path), outcome.marked, "closing changes nothing in this");
    outcome
}

fn assert_refuses_more(image: &Image, path: &Path) {
    let refused = image.write_at(&[1; 512], 512 << 10).expect_err("no more writes");
    assert!(matches!(refused.kind(), ErrorKind::MarkedCorrupt { met: Some(_) }), "{refused}");
    assert!(qemu_tools::img("info -U", &[path]).contains("corrupt: true"));
    let options = Image::options().access(Access::ReadWrite).lock(cowimg::LockMode::Off);
    let refused = options.open(path).expect_err("it is open for reading only now");
    assert!(matches!(refused.kind(), ErrorKind::MarkedCorrupt { met: None }), "{refused}");
}

#[test]
fn damage_is_met_where_qemu_meets_it_and_marked_as_qemu_marks_it() {
    let patient = Patient::new("1.1");
    let mut marked = 0;
    for (what, bytes) in patient.damaged() {
        for act in ACTS {
            let (ours, theirs) = (by_us(&bytes, act), by_qemu(&bytes, act));
            let said = format!("{what}, {act:?}: ours {ours:?}, QEMU's {theirs:?}");
            assert!(!ours.done || !ours.marked, "what marks an image fails: {said}");
            assert!(theirs.done || !ours.done, "what QEMU cannot do, the library does not do either: {said}");
            if theirs.marked && !theirs.done {
                assert!(ours.marked || !ours.opened, "QEMU marks the image: {said}");
            }
            marked += usize::from(ours.marked);
        }
    }
    assert!(marked >= 40, "only {marked} images were marked");
}

#[test]
fn each_table_is_kept_from_guest_data() {
    let patient = Patient::new("1.1");
    for (what, host) in patient.tables() {
        for entry in [host | COPIED, host | COPIED | 1, host] {
            for act in [Act::Write, Act::Discard] {
                let bytes = patient.with(patient.l2, entry);
                let outcome = by_us(&bytes, act);
                let expected = Outcome { opened: true, done: false, marked: true };
                assert_eq!(outcome, expected, "{what}, entry {entry:#x}, {act:?}");
            }
        }
        // Space for something new is looked for from the start of the file.
        let outcome = by_us(&patient.with_free(host), Act::WriteNew);
        assert!(!outcome.done && outcome.marked, "{what} counts as free: {outcome:?}");
    }
}

#[test]
fn what_was_written_before_damage_is_met_is_kept_and_the_rest_can_be_read() {
    let patient = Patient::new("1.1");
    let (_folder, path) = placed(&patient.with(patient.l2, COPIED | 0x10200));
    let image = Image::options().access(Access::ReadWrite).open(&path).expect("the image opens");
    image.write_at(&[9; 8192], 1 << 20).expect("nothing is wrong there");
    let error = image.read_at(&mut [0; 512], 0).expect_err("the entry is damaged");
    assert!(matches!(error.kind(), ErrorKind::Corrupt(Corruption::L2Entry { .. })), "{error}");
    assert!(is_marked(&path));
    let mut sound = [0; 4096];
    image.read_at(&mut sound, 65536).expect("the rest can be read");
    assert_eq!(sound, [2; 4096]);
    image.close().expect("what was acknowledged is in the file");
    let image = Image::open(&path).expect("it opens for reading");
    image.read_at(&mut sound, 1 << 20).expect("it can be read");
    assert_eq!(sound, [9; 4096]);
    image.close().expect("the image closes");
    let answer = qemu_tools::img_answer("check -r all", &[&path]);
    assert!(answer.text.contains("repaired"), "{}", answer.text);
}

#[test]
fn an_image_that_is_open_for_reading_is_not_marked() {
    let patient = Patient::new("1.1");
    let bytes = patient.with(patient.l2, COPIED | 0x10200);
    let (_folder, path) = placed(&bytes);
    let image = Image::open(&path).expect("the image opens");
    image.read_at(&mut [0; 512], 0).expect_err("the entry is damaged");
    image.close().expect("the image closes");
    assert!(std::fs::read(&path).expect("it is there") == bytes);
}

#[test]
fn version_2_has_no_place_for_a_mark_and_refuses_all_the_same() {
    let patient = Patient::new("0.10");
    let (_folder, path) = placed(&patient.with(patient.l2, patient.l1 | COPIED));
    let image = Image::options().access(Access::ReadWrite).open(&path).expect("the image opens");
    let error = image.write_at(&[1; 512], 0).expect_err("it would overwrite a table");
    assert!(matches!(error.kind(), ErrorKind::Corrupt(Corruption::OverlapsMetadata { .. })), "{error}");
    let error = image.write_at(&[1; 512], 1 << 20).expect_err("it takes no more writes");
    assert!(matches!(error.kind(), ErrorKind::MarkedCorrupt { met: Some(_) }), "{error}");
    image.close().expect("the image closes");
    assert_eq!(std::fs::read(&path).expect("it is there")[72..80], patient.bytes[72..80]);
}

/// In a data file each cluster has one place. An entry that names another would show, and change, another's data.
#[test]
fn an_entry_that_names_anothers_place_in_a_data_file_is_damage() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let [sound, path, data] = ["sound.qcow2", "image.qcow2", "data.raw"].map(|name| folder.path().join(name));
    let words = format!("create -q -f qcow2 -o cluster_size=4k,data_file={}", data.display());
    qemu_tools::img(&words, &[&sound, Path::new("1M")]);
    qemu_tools::io(&sound, &["write -q -P 1 0 64k".to_owned()]);
    let mut bytes = std::fs::read(&sound).expect("the image can be read");
    let l2 = word_at(&bytes, word_at(&bytes, 40)) & OFFSET;
    bytes[l2 as usize + 8..l2 as usize + 16].copy_from_slice(&(COPIED | 0x2000).to_be_bytes());
    std::fs::write(&path, &bytes).expect("the image can be written");
    let text = path.display().to_string();
    let theirs = qemu_tools::answer_of("qemu-io", &["-f", "qcow2", "-c", "read 4k 4k", &text]);
    assert!(theirs.code != 0 && is_marked(&path), "QEMU meets it: {}", theirs.text);
    for write in [false, true] {
        std::fs::write(&path, &bytes).expect("the image can be written");
        let image = Image::options().access(Access::ReadWrite).open(&path).expect("the image opens");
        let done = if write { image.write_at(&[7; 512], 4096) } else { image.read_at(&mut [0; 512], 4096) };
        let error = done.expect_err("the entry names the place of another cluster");
        assert!(matches!(error.kind(), ErrorKind::Corrupt(Corruption::L2Entry { .. })), "{error}");
        assert!(is_marked(&path));
        image.close().expect("the image closes");
    }
    assert!(std::fs::read(&data).expect("the data file")[..65536].iter().all(|&byte| byte == 1));
}

#[test]
fn damage_below_marks_no_overlay() {
    let patient = Patient::new("1.1");
    let (folder, base) = placed(&patient.with(patient.l2, COPIED | 0x10200));
    let overlay = folder.path().join("overlay.qcow2");
    qemu_tools::img("create -q -f qcow2 -F qcow2 -b image.qcow2", &[&overlay]);
    let image = Image::options().access(Access::ReadWrite).open(&overlay).expect("the chain opens");
    image.write_at(&[1; 512], 0).expect_err("the rest of the cluster cannot be read");
    image.write_at(&[1; 512], 1 << 20).expect("nothing is wrong with the overlay");
    image.close().expect("the image closes");
    assert!(!is_marked(&overlay) && !is_marked(&base));
}
