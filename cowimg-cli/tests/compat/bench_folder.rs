//! Two folders with the same files, one for each program, and what is in them afterwards.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::SystemTime;

use tempfile::TempDir;

/// Functions for the scripts that make the images.
const PRELUDE: &str = r#"
set -eu
# io FORMAT FILE COMMAND...: writes into an image
io() { io_format=$1 io_file=$2; shift 2
    for io_command; do qemu-io -f "$io_format" -c "$io_command" "$io_file" >/dev/null; done; }
# new FILE SIZE [ARGUMENT...]: an empty qcow2 image
new() { new_file=$1 new_size=$2; shift 2; qemu-img create -q -f qcow2 "$@" "$new_file" "$new_size"; }
# over FILE BASE FORMAT [ARGUMENT...]: an empty qcow2 image over another
over() { over_file=$1 over_base=$2 over_format=$3; shift 3
    qemu-img create -q -f qcow2 -b "$over_base" -F "$over_format" "$@" "$over_file"; }
# poke FILE OFFSET BYTES: changes bytes of a file; BYTES as for printf
poke() { printf "$3" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none; }
"#;

/// The images of a table, made once, and room for a pair of copies.
pub(crate) struct BenchFolder {
    top: TempDir,
    /// The files as every row finds them.
    before: Files,
    /// When each of them was last changed.
    stamps: BTreeMap<PathBuf, Stamp>,
}

/// Files by their names in the folder.
pub(crate) type Files = BTreeMap<PathBuf, FileState>;

/// Length and time of the last change: what a copy has of its original for as long as nobody writes to it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    len: u64,
    changed: SystemTime,
}

/// Which of the two copies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    Theirs,
    Ours,
}

/// What is known of a file: its length, and its bytes or when it is large the time of its last change.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum FileState {
    Small(Arc<[u8]>),
    Large(u64, SystemTime),
    /// Not read at all: opening a pipe waits for somebody at its other end.
    Special(FileKind),
}

/// What is no file with bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    Folder,
    Device,
}

impl BenchFolder {
    /// Runs the script, which makes the images, in a folder.
    pub(crate) fn new(script: &str) -> BenchFolder {
        let top = tempfile::tempdir().expect("a folder to work in");
        let mut bench = BenchFolder { top, before: Files::new(), stamps: BTreeMap::new() };
        let images = bench.images();
        fs::create_dir(&images).expect("the folder can be written");
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("{PRELUDE}{script}")).env("OURS", OURS).current_dir(images);
        let output = shell.output().expect("there is a shell");
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "the images cannot be made (package qemu-utils): {words}");
        let bin = bench.top.path().join("bin");
        fs::create_dir(&bin).expect("the folder can be written");
        std::os::unix::fs::symlink(our_program(), bin.join("qemu-img")).expect("a link can be made");
        bench.stamps = stamps_under(&bench.images());
        bench.before = bench.files_in(&bench.images());
        for side in [Side::Theirs, Side::Ours] {
            fs::create_dir(bench.folder(side)).expect("the folder can be written");
        }
        bench
    }

    /// Fresh copies of the images for both: what the last row has changed is copied anew.
    pub(crate) fn reset(&self) {
        for side in [Side::Theirs, Side::Ours] {
            let folder = self.folder(side);
            let found = stamps_under(&folder);
            // Folders after what is in them.
            for name in found
                .iter()
                .rev()
                .filter(|(name, stamp)| self.stamps.get(*name) != Some(stamp))
                .map(|(name, _)| name)
            {
                let path = folder.join(name);
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.expect("the last row's files can go");
            }
            let lost: Vec<_> =
                self.stamps.iter().filter(|(name, stamp)| found.get(*name) != Some(stamp)).collect();
            if lost.is_empty() {
                continue;
            }
            // Holes stay holes, and a time of change stays, as they are told in reports.
            let mut copy = Command::new("cp");
            copy.args(["-a", "--reflink=auto", "--parents"])
                .args(lost.iter().map(|(name, _)| name))
                .arg(&folder);
            let copied = copy.current_dir(self.images()).status().expect("there is cp");
            assert!(copied.success(), "the images can be copied");
        }
    }

    pub(crate) fn folder(&self, side: Side) -> PathBuf {
        // Names of one length, or the columns of a report would differ.
        self.top.path().join(match side {
            Side::Theirs => "qemu",
            Side::Ours => "ours",
        })
    }

    fn images(&self) -> PathBuf {
        self.top.path().join("images")
    }

    /// A program, to be run in the folder of this side, which ends when it takes too long.
    pub(crate) fn command(&self, side: Side, program: &Path) -> Command {
        let mut command = Command::new("timeout");
        command.args(["-k", "1", "120"]).arg(program);
        command.current_dir(self.folder(side)).stdin(Stdio::null()).env("LC_ALL", "C.UTF-8");
        command
    }

    /// The `qemu-img` of this side.
    pub(crate) fn qemu_img(&self, side: Side) -> Command {
        match side {
            Side::Theirs => self.command(side, Path::new("qemu-img")),
            Side::Ours => self.command(side, &self.top.path().join("bin/qemu-img")),
        }
    }

    /// A line for the shell, which must succeed, run for this side.
    pub(crate) fn shell(&self, side: Side, line: &str) {
        let output = self.command(side, Path::new("sh")).arg("-c").arg(format!("{PRELUDE}{line}")).output();
        let output = output.expect("there is a shell");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Every file of a side, folders within included.
    pub(crate) fn state(&self, side: Side) -> Files {
        self.files_in(&self.folder(side))
    }

    /// Every file as the rows find it.
    pub(crate) fn state_before(&self) -> &Files {
        &self.before
    }

    fn files_in(&self, folder: &Path) -> Files {
        let files = stamps_under(folder).into_iter().map(|(name, stamp)| {
            let unchanged = self.before.get(&name).filter(|_| self.stamps.get(&name) == Some(&stamp));
            let state = unchanged.cloned().unwrap_or_else(|| FileState::of(&folder.join(&name), stamp));
            (name, state)
        });
        files.collect()
    }
}

/// Our program, which makes what takes qemu-img seconds (`$OURS` in scripts).
const OURS: &str = env!("CARGO_BIN_EXE_cowimg");

/// The program that is proven. The tables themselves are proven with a real qemu-img in its place.
fn our_program() -> PathBuf {
    std::env::var_os("COWIMG_COMPAT_PROGRAM").map_or_else(|| OURS.into(), PathBuf::from)
}

/// Every file below a folder.
fn stamps_under(folder: &Path) -> BTreeMap<PathBuf, Stamp> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(inside) = waiting.pop() {
        for entry in fs::read_dir(folder.join(&inside)).expect("the folder is there") {
            let entry = entry.expect("the folder can be read");
            let name = inside.join(entry.file_name());
            let metadata = entry.metadata().expect("the file can be looked at");
            if metadata.is_dir() {
                // A folder changes with what is in it, which is looked at by itself.
                found.insert(name.clone(), Stamp { len: 0, changed: SystemTime::UNIX_EPOCH });
                waiting.push(name);
            } else {
                let changed = metadata.modified().expect("a file has a time");
                found.insert(name, Stamp { len: metadata.len(), changed });
            }
        }
    }
    found
}

impl FileState {
    fn of(path: &Path, stamp: Stamp) -> FileState {
        /// A larger file is known by length and time: most of it is a hole, and reading it would take long.
        const SMALL: u64 = 16 << 20;
        let metadata = fs::symlink_metadata(path).expect("the file can be looked at");
        if metadata.is_dir() {
            FileState::Special(FileKind::Folder)
        } else if !metadata.is_file() {
            FileState::Special(FileKind::Device)
        } else if stamp.len <= SMALL {
            FileState::Small(fs::read(path).expect("the file can be read").into())
        } else {
            FileState::Large(stamp.len, stamp.changed)
        }
    }

    /// Whether it is a qcow2 image over another; where nobody has looked inside, it may be.
    pub(crate) fn has_base(&self) -> bool {
        match self {
            FileState::Small(bytes) => bytes.starts_with(b"QFI\xfb") && bytes.get(8..16) != Some(&[0; 8]),
            FileState::Large(..) => true,
            FileState::Special(_) => false,
        }
    }

    /// Whether it begins as a LUKS image does.
    pub(crate) fn is_luks(&self) -> bool {
        matches!(self, FileState::Small(bytes) if bytes.starts_with(b"LUKS"))
    }

    /// Its length, if it is a small file.
    pub(crate) fn len(&self) -> Option<usize> {
        match self {
            FileState::Small(bytes) => Some(bytes.len()),
            FileState::Large(..) | FileState::Special(_) => None,
        }
    }

    /// Whether it begins as a qcow2 image does.
    pub(crate) fn is_qcow2(&self, path: &Path) -> bool {
        const MAGIC: &[u8] = b"QFI\xfb";
        match self {
            FileState::Small(bytes) => bytes.starts_with(MAGIC),
            FileState::Large(..) => {
                let mut start = [0; 4];
                let read = fs::File::open(path)
                    .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut start));
                read.is_ok() && start == *MAGIC
            }
            FileState::Special(_) => false,
        }
    }
}
