//! The images that contenders work on, made once in a run by qemu-img and qemu-io, and what is in them as raw files: what
//! contenders read and write is judged by the latter.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::work::{Failure, REQUEST, Work, digest, fill};

const MIB: u64 = 1 << 20;
const CHAIN_SIZE: u64 = 256 * MIB;
const LONGEST: u64 = 200;

/// What an image holds before the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Start {
    /// 1 GiB, every cluster with bytes of its own.
    Full,
    /// 4 GiB, nothing.
    Empty,
    /// Nothing, over the first.
    Overlay,
    /// The top of so many layers of 256 MiB: the lowest has all clusters, each other has 16.
    Chain(u64),
}

impl Start {
    /// The disk's size in bytes.
    pub(crate) fn size(self) -> u64 {
        match self {
            Start::Full | Start::Overlay => 1024 * MIB,
            Start::Empty => 4096 * MIB,
            Start::Chain(_) => CHAIN_SIZE,
        }
    }

    /// The image's name.
    pub(crate) fn image(self) -> String {
        match self {
            Start::Full => "full.qcow2".to_owned(),
            Start::Empty => "empty.qcow2".to_owned(),
            Start::Overlay => "overlay.qcow2".to_owned(),
            Start::Chain(depth) => format!("layer{depth}.qcow2"),
        }
    }

    /// The name of the raw file with the same content.
    fn raw(self) -> String {
        match self {
            Start::Full | Start::Overlay => "full.raw".to_owned(),
            Start::Empty => "empty.raw".to_owned(),
            Start::Chain(depth) => format!("layer{depth}.raw"),
        }
    }
}

/// What there is so far.
pub(crate) struct Images<'a> {
    folder: &'a Path,
    made: BTreeSet<Start>,
}

impl<'a> Images<'a> {
    pub(crate) fn new(folder: &'a Path) -> Images<'a> {
        Images { folder, made: BTreeSet::new() }
    }

    /// Makes an image and its raw file, unless they are there.
    pub(crate) fn make(&mut self, start: Start) -> Result<(), Failure> {
        if !self.made.insert(start) {
            return Ok(());
        }
        let folder = self.folder;
        match start {
            Start::Full => {
                numbered(&folder.join("full.raw"), start.size())?;
                run(folder, "qemu-img convert -f raw -O qcow2 full.raw full.qcow2")
            }
            Start::Empty => {
                File::create(folder.join("empty.raw"))?.set_len(start.size())?;
                run(folder, &format!("qemu-img create -q -f qcow2 empty.qcow2 {}", start.size()))
            }
            Start::Overlay => {
                self.make(Start::Full)?;
                run(folder, "qemu-img create -q -f qcow2 -b full.qcow2 -F qcow2 overlay.qcow2")
            }
            Start::Chain(depth) => {
                if !folder.join("layer1.qcow2").exists() {
                    chain(folder)?;
                }
                run(folder, &format!("qemu-img convert -f qcow2 -O raw layer{depth}.qcow2 layer{depth}.raw"))
            }
        }
    }

    /// The sum of what the requests read.
    pub(crate) fn sum(&self, start: Start, work: &Work) -> Result<u64, Failure> {
        let raw = File::open(self.folder.join(start.raw()))?;
        let mut buf = [0; REQUEST];
        let mut sum = 0_u64;
        for nth in 0..work.count {
            let offset = work.offset(nth);
            raw.read_exact_at(&mut buf, offset)?;
            sum = sum.wrapping_add(digest(&buf, offset));
        }
        Ok(sum)
    }

    /// Makes `expected.raw`, which is what the requests leave.
    pub(crate) fn expect(&self, start: Start, work: &Work) -> Result<(), Failure> {
        run(self.folder, &format!("cp --sparse=always {} expected.raw", start.raw()))?;
        let raw = File::options().write(true).open(self.folder.join("expected.raw"))?;
        let mut buf = [0; REQUEST];
        for nth in 0..work.count {
            fill(&mut buf, work.offset(nth));
            raw.write_all_at(&buf, work.offset(nth))?;
        }
        Ok(())
    }

    /// What is wrong with `out.qcow2`, by qemu-img's judgement.
    pub(crate) fn judge(&self) -> Result<(), Failure> {
        run(self.folder, "qemu-img check -q out.qcow2").map_err(|_| "**fails qemu-img check**")?;
        let compare = "qemu-img compare -q -f raw -F qcow2 expected.raw out.qcow2";
        Ok(run(self.folder, compare).map_err(|_| "**wrote wrong bytes**")?)
    }
}

/// Runs a command, its words parted by spaces.
pub(crate) fn run(folder: &Path, line: &str) -> Result<(), Failure> {
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().unwrap_or_default());
    let command = command.args(words).current_dir(folder).stdin(Stdio::null());
    let output = command.output()?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("{line}: {}", String::from_utf8_lossy(&output.stderr)).into())
    }
}

/// A file in which every eight bytes are other ones.
fn numbered(path: &Path, size: u64) -> Result<(), Failure> {
    let mut file = File::create(path)?;
    let mut buf = vec![0; MIB as usize];
    for start in (0..size).step_by(MIB as usize) {
        for (word, place) in buf.chunks_exact_mut(8).zip((start..).step_by(8)) {
            word.copy_from_slice(&(!place).to_le_bytes());
        }
        file.write_all(&buf)?;
    }
    Ok(())
}

fn chain(folder: &Path) -> Result<(), Failure> {
    run(folder, &format!("qemu-img create -q -f qcow2 layer1.qcow2 {CHAIN_SIZE}"))?;
    written(folder, 1, (0..CHAIN_SIZE / (4 * MIB)).map(|nth| (nth * 4 * MIB, 4 * MIB)))?;
    for depth in 2..=LONGEST {
        let below = depth - 1;
        let create = "qemu-img create -q -f qcow2 -F qcow2";
        run(folder, &format!("{create} -b layer{below}.qcow2 layer{depth}.qcow2"))?;
        let clusters = CHAIN_SIZE >> 16;
        written(folder, depth, (0..16).map(|nth| (((nth * 251 + depth * 17) % clusters) << 16, 1 << 16)))?;
    }
    Ok(())
}

/// Writes (start, length) to a layer, a byte for each that depends on both.
fn written(folder: &Path, depth: u64, writes: impl Iterator<Item = (u64, u64)>) -> Result<(), Failure> {
    let mut script = String::new();
    for (start, len) in writes {
        writeln!(script, "write -q -P {} {start} {len}", (start / 65536 + depth * 7) % 255 + 1)?;
    }
    fs::write(folder.join("script"), script)?;
    let input = File::open(folder.join("script"))?;
    let image = format!("layer{depth}.qcow2");
    let mut command = Command::new("qemu-io");
    let command = command.args(["-f", "qcow2", "-t", "unsafe", &image]).current_dir(folder);
    let status = command.stdin(input).stdout(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(format!("qemu-io {image}: {status}").into()) }
}
