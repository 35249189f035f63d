//! Operations on a chain of three layers in random order, some by this library and some by real `qemu-img` on the same
//! files, against rows of bytes: after each step real `qemu-img` reads what is expected and finds the images sound.
//!
//! `COWIMG_TEST_SEED` chooses other draws; `make soak` does so each round.

mod qemu_tools;
mod seeded;

use std::path::{Path, PathBuf};

use cowimg::format::qcow2::layout::BackingName;
use cowimg::job::{self, Afterwards, CommitOptions, Compression, NewBacking, RebaseOptions};
use cowimg::progress::Control;
use cowimg::{
    Access, ByteRange, Image, LayerChoice, NewSnapshot, OpenOptions, ResizeOptions, Shrink, SnapshotSelector,
    ZeroMode,
};
use qemu_tools::{assert_check_clean, content, img};
use seeded::{Rng, noise};
use tempfile::TempDir;

const STEPS: usize = 24;
/// The largest of the cluster sizes in [`OPTIONS`].
const LARGEST_CLUSTER: u64 = 64 << 10;
/// Layers from the bottom up.
const NAMES: [&str; 3] = ["base.qcow2", "mid.qcow2", "top.qcow2"];
const OPTIONS: [&str; 5] = [
    "compat=1.1",
    "compat=1.1,cluster_size=4k",
    "compat=0.10,cluster_size=8k",
    "compat=1.1,cluster_size=1k,refcount_bits=64",
    "compat=1.1,extended_l2=on,cluster_size=16k",
];

/// The files, and what a guest is to see in the top.
struct World {
    folder: TempDir,
    rng: Rng,
    /// What the top reads as.
    expected: Vec<u8>,
    /// The snapshots of the top, with what they read as while the chain below stays as it is.
    snapshots: Vec<(String, Vec<u8>)>,
    /// Which layer the top is stacked on, if any: an index of [`NAMES`].
    below: Option<usize>,
    names_given: usize,
}

impl World {
    fn new(round: usize) -> World {
        let mut rng = Rng::new(format!("chain sequences {round}"));
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        for (nth, name) in NAMES.iter().enumerate() {
            let words = format!("create -q -f qcow2 -o {}", rng.pick(&OPTIONS));
            let words = match nth {
                0 => words,
                _ => format!("{words} -F qcow2 -b {}", NAMES[nth - 1]),
            };
            // QEMU shows what is left in a last cluster that was cut when it grows the disk: the top ends with a cluster.
            let size =
                if nth == 2 { rng.between(1, 12) * LARGEST_CLUSTER } else { rng.between(100, 1500) * 512 };
            img(&words, &[&folder.path().join(name), Path::new(&size.to_string())]);
        }
        let mut world = World {
            folder,
            rng,
            expected: Vec::new(),
            snapshots: Vec::new(),
            below: Some(1),
            names_given: 0,
        };
        for name in NAMES {
            world.write_somewhere(name);
        }
        world.expected = content(&world.path("top.qcow2"));
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn open(&self, name: &str, options: OpenOptions) -> Image {
        options.access(Access::ReadWrite).open(self.path(name)).expect("the image opens")
    }

    /// Writes, zeroes and discards in one image; returns nothing, for what it reads as is read by QEMU.
    fn write_somewhere(&mut self, name: &str) {
        let image = self.open(name, Image::options());
        for _ in 0..self.rng.between(1, 4) {
            let start = self.rng.below(image.size());
            let len = self.rng.between(1, 90_000).min(image.size() - start);
            let range = ByteRange::between(start, start + len);
            match self.rng.below(4) {
                0 => image.write_zeroes(range, ZeroMode::Unmap).expect("zeroing succeeds"),
                1 => image.discard(range).expect("the discard succeeds"),
                _ => {
                    let bytes = noise(self.rng.next(), len as usize);
                    image.write_at(&bytes, start).expect("the write succeeds");
                }
            }
        }
        image.close().expect("the image closes");
    }

    /// One operation; returns its name.
    fn step(&mut self) -> String {
        let by_qemu = self.rng.below(3) == 0;
        let who = if by_qemu { "qemu-img" } else { "cowimg" };
        let what = match self.rng.below(10) {
            0 | 1 => {
                self.write_somewhere("top.qcow2");
                self.expected = content(&self.path("top.qcow2"));
                return "write".to_owned();
            }
            2 | 3 => self.commit(by_qemu),
            4..=6 => self.rebase(by_qemu),
            7 => self.resize(by_qemu),
            8 => self.take_snapshot(by_qemu),
            _ => self.use_snapshot(by_qemu),
        };
        format!("{what} by {who}")
    }

    fn commit(&mut self, by_qemu: bool) -> String {
        let Some(below) = self.below else { return "no commit".to_owned() };
        let target = self.rng.below(below as u64 + 1) as usize;
        let is_direct = target == below && self.rng.below(2) == 0;
        // What a snapshot shows from below changes with a commit.
        self.snapshots.iter_mut().for_each(|(_, content)| content.clear());
        match (by_qemu, is_direct) {
            (true, true) => drop(img("commit -q", &[&self.path("top.qcow2")])),
            (true, false) => {
                drop(img(&format!("commit -q -b {}", NAMES[target]), &[&self.path("top.qcow2")]));
            }
            (false, _) => {
                let (choice, afterwards) = if is_direct {
                    (LayerChoice::Below, Afterwards::Empty)
                } else {
                    (LayerChoice::Named(NAMES[target].into()), Afterwards::Keep)
                };
                let image = self.open("top.qcow2", Image::options().writable_layer(choice));
                let options = CommitOptions { afterwards, ..CommitOptions::default() };
                job::commit(&image, &options, &Control::default()).expect("the commit succeeds");
                image.close().expect("the image closes");
            }
        }
        let committed = content(&self.path(NAMES[target]));
        assert!(
            committed[..self.expected.len()] == self.expected,
            "the layer differs from what was committed"
        );
        format!("commit to {} ({is_direct})", NAMES[target])
    }

    fn rebase(&mut self, by_qemu: bool) -> String {
        let target = *self.rng.pick(&[None, Some(0), Some(1)]);
        self.snapshots.iter_mut().for_each(|(_, content)| content.clear());
        let compress = self.rng.below(3) == 0;
        // QEMU loses zeroes of a version 2 image that had no backing file.
        if by_qemu && self.below.is_some() {
            let words = match target {
                None => vec!["rebase", "-b", ""],
                Some(layer) => vec!["rebase", "-F", "qcow2", "-b", NAMES[layer]],
            };
            let path = self.path("top.qcow2");
            let path = path.to_str().expect("a plain path");
            qemu_tools::run("qemu-img", &[words, vec![path]].concat());
        } else {
            let image = self.open("top.qcow2", Image::options());
            let name = target.map(|layer| BackingName {
                name: NAMES[layer].as_bytes().to_vec(),
                format: Some(b"qcow2".to_vec()),
            });
            let opened = name.as_ref().map(|name| {
                image.open_backing(name, &OpenOptions::default()).expect("the new backing file opens")
            });
            let new = name.as_ref().zip(opened.as_ref()).map(|(name, image)| NewBacking { name, image });
            let compression = if compress { Compression::On } else { Compression::Off };
            let options = RebaseOptions { compression, ..RebaseOptions::default() };
            job::rebase(image, new, &options, &Control::default()).expect("the rebase succeeds");
        }
        self.below = target;
        format!("rebase to {target:?}, compressed {compress}")
    }

    fn resize(&mut self, by_qemu: bool) -> String {
        let size = self.rng.between(1, 14) * LARGEST_CLUSTER;
        // Version 2 images with snapshots keep their size.
        if !self.snapshots.is_empty() {
            return "no resize".to_owned();
        }
        // QEMU does not hide what is below with zeroes where version 2 has no entry for them.
        let grows_over = self.below.is_some() && size > self.expected.len() as u64;
        if by_qemu && !(grows_over && self.top_is_version_2()) {
            img("resize -q --shrink", &[&self.path("top.qcow2"), Path::new(&size.to_string())]);
        } else {
            let image = self.open("top.qcow2", Image::options());
            let options = ResizeOptions { shrink: Shrink::Allow, ..ResizeOptions::default() };
            image.resize(size, &options).expect("the resize succeeds");
            image.close().expect("the image closes");
        }
        self.expected.resize(size as usize, 0);
        format!("resize to {size}")
    }

    fn top_is_version_2(&self) -> bool {
        let header = std::fs::read(self.path("top.qcow2")).expect("the image can be read");
        header[4..8] == [0, 0, 0, 2]
    }

    fn take_snapshot(&mut self, by_qemu: bool) -> String {
        self.names_given += 1;
        let name = format!("s{}", self.names_given);
        if by_qemu {
            img(&format!("snapshot -c {name}"), &[&self.path("top.qcow2")]);
        } else {
            let image = self.open("top.qcow2", Image::options());
            let new = NewSnapshot { name: name.clone().into_bytes(), ..NewSnapshot::default() };
            image.create_snapshot(&new).expect("the snapshot is taken");
            image.close().expect("the image closes");
        }
        self.snapshots.push((name.clone(), self.expected.clone()));
        format!("snapshot {name}")
    }

    fn use_snapshot(&mut self, by_qemu: bool) -> String {
        if self.snapshots.is_empty() {
            return "no snapshot".to_owned();
        }
        let nth = self.rng.below(self.snapshots.len() as u64) as usize;
        let (name, kept) = self.snapshots[nth].clone();
        let deletes = self.rng.below(2) == 0;
        let selector = SnapshotSelector::Name(name.clone().into_bytes());
        match (by_qemu, deletes) {
            (true, true) => drop(img(&format!("snapshot -d {name}"), &[&self.path("top.qcow2")])),
            (true, false) => drop(img(&format!("snapshot -a {name}"), &[&self.path("top.qcow2")])),
            (false, _) => {
                let image = self.open("top.qcow2", Image::options());
                let done =
                    if deletes { image.delete_snapshot(&selector) } else { image.apply_snapshot(&selector) };
                done.expect("the snapshot is applied or deleted");
                image.close().expect("the image closes");
            }
        }
        if deletes {
            self.snapshots.remove(nth);
        } else if kept.is_empty() {
            // What is below is another since: QEMU says what that means.
            self.expected = content(&self.path("top.qcow2"));
        } else {
            self.expected = kept;
        }
        format!("snapshot {name}, deleted {deletes}")
    }

    fn judge(&self, history: &[String]) {
        let history = history.join(", ");
        for name in NAMES {
            let answer = qemu_tools::img_answer("check -f qcow2", &[&self.path(name)]);
            assert_eq!(answer.code, 0, "{name} after {history}: {}", answer.text);
        }
        assert_check_clean(&self.path("top.qcow2"));
        assert!(content(&self.path("top.qcow2")) == self.expected, "the top differs after {history}");
        let image = Image::open(self.path("top.qcow2")).expect("the image opens");
        let mut bytes = vec![0; image.size() as usize];
        image.read_at(&mut bytes, 0).expect("the image can be read");
        assert!(bytes == self.expected, "the top reads otherwise here after {history}");
    }
}

#[test]
fn a_chain_keeps_its_content_whatever_is_done_to_it() {
    for round in 0..8 {
        let mut world = World::new(round);
        let mut history = Vec::new();
        for _ in 0..STEPS {
            history.push(world.step());
            world.judge(&history);
        }
    }
}
