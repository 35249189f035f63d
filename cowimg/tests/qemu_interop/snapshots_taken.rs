//! Snapshots that the library takes, applies and deletes, in turns with real `qemu-img`, against a model of every one.

use std::path::{Path, PathBuf};

use cowimg::{Image, NewSnapshot, ResizeOptions, SnapshotSelector, SnapshotSize};

use crate::model::{Model, Operations};
use crate::qemu_tools::{self, assert_same_bytes};
use crate::seeded::noise;
use crate::subject::{self, Discarded};

const SIZE: u64 = 2 * 1024 * 1024 + 1536;

#[derive(Debug, Clone, Copy)]
struct Made {
    cluster: u64,
    refcount_bits: u32,
    compat: &'static str,
    /// "on" for entries with subclusters.
    extended_l2: &'static str,
    /// Words of `qemu-img convert`: compressed or not.
    convert: &'static str,
}

const MADE: [Made; 10] = [
    Made { cluster: 512, refcount_bits: 16, compat: "1.1", extended_l2: "off", convert: "convert" },
    Made { cluster: 512, refcount_bits: 64, compat: "1.1", extended_l2: "off", convert: "convert" },
    Made { cluster: 4096, refcount_bits: 16, compat: "0.10", extended_l2: "off", convert: "convert -c" },
    Made { cluster: 4096, refcount_bits: 8, compat: "1.1", extended_l2: "off", convert: "convert" },
    Made { cluster: 65536, refcount_bits: 16, compat: "1.1", extended_l2: "off", convert: "convert -c" },
    Made { cluster: 65536, refcount_bits: 4, compat: "1.1", extended_l2: "off", convert: "convert" },
    Made { cluster: 65536, refcount_bits: 32, compat: "0.10", extended_l2: "off", convert: "convert" },
    Made { cluster: 2097152, refcount_bits: 16, compat: "1.1", extended_l2: "off", convert: "convert" },
    Made { cluster: 16384, refcount_bits: 16, compat: "1.1", extended_l2: "on", convert: "convert" },
    Made { cluster: 65536, refcount_bits: 16, compat: "1.1", extended_l2: "on", convert: "convert -c" },
];

/// Who does the next thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hand {
    Ours,
    Qemus,
}

/// An image, and what it and its snapshots should hold.
struct Bench {
    _folder: tempfile::TempDir,
    path: PathBuf,
    disk: Model,
    snapshots: Vec<(String, Model)>,
    operations: Operations,
    cluster: u64,
    taken: usize,
}

impl Bench {
    fn new(made: Made) -> Bench {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let (raw, path) = (folder.path().join("source.raw"), folder.path().join("image.qcow2"));
        let mut bytes = noise(5, SIZE as usize);
        bytes[300_000..700_000].fill(0);
        bytes[1_000_000..1_600_000].fill(0x33);
        std::fs::write(&raw, &bytes).expect("the source can be written");
        let Made { cluster, refcount_bits, compat, extended_l2, convert } = made;
        // Version 2 has refcounts of 16 bits only.
        let bits = if compat == "0.10" { 16 } else { refcount_bits };
        qemu_tools::img(
            &format!(
                "{convert} -f raw -O qcow2 -o cluster_size={cluster},refcount_bits={bits},compat={compat},extended_l2={extended_l2}"
            ),
            &[&raw, &path],
        );
        Bench {
            _folder: folder,
            path,
            disk: Model::holding(bytes),
            snapshots: Vec::new(),
            operations: Operations::new(format!("snapshots taken {made:?}"), SIZE, cluster),
            cluster,
            taken: 0,
        }
    }

    fn write(&mut self) {
        let image = subject::open_writable(&self.path);
        self.write_through(&image, 12);
        image.close().expect("the image closes");
    }

    fn write_through(&mut self, image: &Image, calls: usize) {
        for _ in 0..calls {
            let rule = (Discarded::Zero, self.cluster);
            subject::apply(image, &mut self.disk, self.operations.next(), rule);
        }
    }

    fn take(&mut self, hand: Hand) {
        self.taken += 1;
        let name = format!("s{}", self.taken);
        match hand {
            Hand::Qemus => drop(qemu_tools::img(&format!("snapshot -c {name}"), &[&self.path])),
            Hand::Ours => {
                let image = subject::open_writable(&self.path);
                // With changes in memory on both sides of it.
                self.write_through(&image, 3);
                let made = image.create_snapshot(&named(&name)).expect("the snapshot is taken");
                assert_eq!(made.name, name.as_bytes());
                self.snapshots.push((name, self.disk.clone()));
                self.write_through(&image, 3);
                image.close().expect("the image closes");
                return;
            }
        }
        self.snapshots.push((name, self.disk.clone()));
    }

    fn apply(&mut self, hand: Hand) {
        let Some(which) = self.pick() else { return };
        let (name, model) = self.snapshots[which].clone();
        match hand {
            Hand::Qemus => drop(qemu_tools::img(&format!("snapshot -a {name}"), &[&self.path])),
            Hand::Ours => {
                let image = subject::open_writable(&self.path);
                self.write_through(&image, 3);
                image.apply_snapshot(&by_name(&name)).expect("the snapshot is applied");
                assert_same_bytes(&subject::content_of(&image), model.bytes(), &format!("applied {name}"));
                self.disk = model;
                self.write_through(&image, 3);
                image.close().expect("the image closes");
                return;
            }
        }
        self.disk = model;
    }

    fn delete(&mut self, hand: Hand) {
        let Some(which) = self.pick() else { return };
        let (name, _) = self.snapshots.remove(which);
        match hand {
            Hand::Qemus => drop(qemu_tools::img(&format!("snapshot -d {name}"), &[&self.path])),
            Hand::Ours => {
                let image = subject::open_writable(&self.path);
                self.write_through(&image, 3);
                image.delete_snapshot(&by_name(&name)).expect("the snapshot is deleted");
                self.write_through(&image, 3);
                image.close().expect("the image closes");
            }
        }
    }

    fn pick(&mut self) -> Option<usize> {
        let count = self.snapshots.len() as u64;
        (count > 0).then(|| self.operations.rng().below(count) as usize)
    }

    fn assert_all_as_it_should_be(&self) {
        subject::assert_agreement(&self.path, &self.disk);
        qemu_tools::assert_check_clean(&self.path);
        let image = subject::open(&self.path);
        let names: Vec<_> = image.snapshots().expect("the snapshots are listed");
        let names: Vec<_> = names.iter().map(|s| String::from_utf8_lossy(&s.name).into_owned()).collect();
        let expected: Vec<_> = self.snapshots.iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(names, expected);
        for (name, model) in &self.snapshots {
            let theirs = qemu_tools::snapshot_content(&self.path, name);
            assert_same_bytes(&theirs, model.bytes(), &format!("QEMU's view of {name}"));
            let view = Image::options().snapshot(by_name(name)).open(&self.path).expect("the view opens");
            assert_same_bytes(&subject::content_of(&view), model.bytes(), &format!("our view of {name}"));
        }
    }
}

fn named(name: &str) -> NewSnapshot {
    NewSnapshot { name: name.into(), date_sec: 1_700_000_000, ..NewSnapshot::default() }
}

fn by_name(name: &str) -> SnapshotSelector {
    SnapshotSelector::Name(name.into())
}

#[test]
fn snapshots_taken_applied_and_deleted_in_turns_with_qemu_hold_what_they_should() {
    for made in MADE {
        let mut bench = Bench::new(made);
        for step in 0..18 {
            let hand = if bench.operations.rng().below(3) == 0 { Hand::Qemus } else { Hand::Ours };
            match bench.operations.rng().below(8) {
                0..=2 if bench.snapshots.len() < 4 => bench.take(hand),
                3..=4 => bench.apply(hand),
                5 => bench.delete(hand),
                _ => bench.write(),
            }
            if step % 3 == 2 {
                bench.assert_all_as_it_should_be();
            }
        }
        while !bench.snapshots.is_empty() {
            bench.delete(Hand::Ours);
        }
        bench.assert_all_as_it_should_be();
    }
}

/// A snapshot of a machine that ran, as QEMU stores it: its state lies in the tables past the end of the disk. It is made
/// of a snapshot of a larger disk, by telling the table that the rest is the machine's. Its extra data has a field more
/// than anybody knows.
fn image_with_machine_state(path: &Path) -> Vec<u8> {
    let disk: u64 = 2 << 20;
    qemu_tools::img("create -q -f qcow2 -o cluster_size=4k", &[path, Path::new("8M")]);
    qemu_tools::io(path, &["write -q -P 1 0 1M".to_owned(), "write -q -P 9 2M 1M".to_owned()]);
    qemu_tools::img("snapshot -c running", &[path]);
    let mut bytes = std::fs::read(path).expect("the image can be read");
    let number =
        |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let entry = number(&bytes, 64) as usize;
    bytes.resize(bytes.len().next_multiple_of(4096), 0);
    let tail = bytes[entry + 64..entry + 64 + 8].to_vec();
    bytes[entry + 32..entry + 36].copy_from_slice(&(1_u32 << 20).to_be_bytes());
    bytes[entry + 36..entry + 40].copy_from_slice(&31_u32.to_be_bytes());
    bytes[entry + 40..entry + 48].copy_from_slice(&(1_u64 << 20).to_be_bytes());
    bytes[entry + 48..entry + 56].copy_from_slice(&disk.to_be_bytes());
    bytes[entry + 64..entry + 71].copy_from_slice(b"unknown");
    bytes[entry + 71..entry + 79].copy_from_slice(&tail);
    bytes[24..32].copy_from_slice(&disk.to_be_bytes());
    std::fs::write(path, &bytes).expect("the image can be written");
    bytes[entry + 24..entry + 79].to_vec()
}

#[test]
fn the_state_of_a_machine_is_kept_to_the_byte() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("image.qcow2");
    let entry = image_with_machine_state(&path);
    qemu_tools::assert_check_clean(&path);
    assert!(qemu_tools::img("snapshot -l", &[&path]).contains("1 MiB"), "the snapshot has a state of 1 MiB");

    let state_of = |name: &str| {
        // What lies past the end of the snapshot's disk, read as if the disk were as large as it was.
        let copy = folder.path().join("copy.qcow2");
        std::fs::copy(&path, &copy).expect("the image can be copied");
        let mut bytes = std::fs::read(&copy).expect("the image can be read");
        bytes[24..32].copy_from_slice(&(8_u64 << 20).to_be_bytes());
        std::fs::write(&copy, bytes).expect("the image can be written");
        let options = Image::options().snapshot(by_name(name)).snapshot_size(SnapshotSize::OfTheDisk);
        subject::content_of(&options.open(&copy).expect("the snapshot opens"))[2 << 20..3 << 20].to_vec()
    };
    let steps: [&dyn Fn(&Image); 5] = [
        &|image| image.create_snapshot(&named("other")).map(drop).expect("it is taken"),
        &|image| image.write_at(&vec![7; 300_000], 1_500_000).expect("the write succeeds"),
        &|image| image.delete_snapshot(&by_name("other")).expect("it is deleted"),
        &|image| image.apply_snapshot(&by_name("running")).expect("it is applied"),
        &|image| image.resize(6 << 20, &ResizeOptions::default()).expect("the disk grows"),
    ];
    for (nth, step) in steps.iter().enumerate() {
        let image = subject::open_writable(&path);
        step(&image);
        let snapshots = image.snapshots().expect("the snapshots are listed");
        assert_eq!(snapshots[0].vm_state_size(), 1 << 20);
        image.close().expect("the image closes");
        qemu_tools::assert_check_clean(&path);
        assert!(state_of("running").iter().all(|&byte| byte == 9), "after step {nth}");
        let bytes = std::fs::read(&path).expect("the image can be read");
        let table = u64::from_be_bytes(bytes[64..72].try_into().expect("eight bytes")) as usize;
        assert!(bytes[table + 24..].starts_with(&entry), "the entry has changed after step {nth}");
    }
    // The machine's state was past the end of the disk that grew over it: it must not show.
    let grown = subject::content(&path);
    assert!(grown[..1 << 20].iter().all(|&byte| byte == 1));
    assert!(grown[1 << 20..].iter().all(|&byte| byte == 0));
}

#[test]
fn an_empty_disk_and_one_of_a_single_sector_have_snapshots_too() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    for size in ["0", "512"] {
        let path = folder.path().join("image.qcow2");
        qemu_tools::img("create -q -f qcow2", &[&path, Path::new(size)]);
        let image = subject::open_writable(&path);
        image.create_snapshot(&named("a")).expect("it is taken");
        image.create_snapshot(&named("b")).expect("it is taken");
        image.apply_snapshot(&by_name("a")).expect("it is applied");
        image.delete_snapshot(&by_name("a")).expect("it is deleted");
        image.close().expect("the image closes");
        qemu_tools::assert_check_clean(&path);
        qemu_tools::img("snapshot -d b", &[&path]);
        qemu_tools::assert_check_clean(&path);
    }
}
