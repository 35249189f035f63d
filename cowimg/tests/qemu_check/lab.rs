//! Images of every kind, made by QEMU's programs, and what it takes to break them.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// Bits of an L1 or L2 entry that name an offset in the file.
pub(crate) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

pub(crate) fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).output().unwrap_or_else(|error| {
        panic!("this test compares with QEMU and needs {program} (Debian: apt install qemu-utils): {error}")
    })
}

pub(crate) fn run_ok(program: &str, args: &[&str]) {
    let output = run(program, args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {errors}");
}

/// A folder with images, gone at the end.
pub(crate) struct Lab(TempDir);

impl Lab {
    pub(crate) fn new() -> Lab {
        Lab(TempDir::new().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn create(&self, name: &str, options: &str, size: &str) -> PathBuf {
        let path = self.path(name);
        let mut args = vec!["create", "-q", "-f", "qcow2"];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        args.extend([path.to_str().unwrap(), size]);
        run_ok("qemu-img", &args);
        path
    }

    /// A raw disk with data that compresses well, data that does not, and zeroes.
    pub(crate) fn raw(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        let mut state = 1_u64;
        let noise = (0..300_000).map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        });
        let text = b"copy on write ".iter().copied().cycle().take(1 << 20);
        let bytes: Vec<u8> = text.chain(noise).chain(std::iter::repeat_n(0, 500_000)).chain(1..200).collect();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub(crate) fn convert(&self, name: &str, options: &[&str]) -> PathBuf {
        let (raw, path) = (self.raw("disk.raw"), self.path(name));
        let args = [&["convert", "-f", "raw", "-O", "qcow2"], options];
        let args = [args.concat(), vec![raw.to_str().unwrap(), path.to_str().unwrap()]].concat();
        run_ok("qemu-img", &args);
        path
    }

    /// An image with data in one piece, a gap, and data elsewhere.
    pub(crate) fn with_data(&self, options: &str) -> PathBuf {
        let path = self.create("data.qcow2", options, "64M");
        io(&path, &["write 0 256k", "write 1M 64k", "write 33M 64k"]);
        path
    }

    /// Small clusters, four snapshots (one of them deleted), and data that has changed in between.
    pub(crate) fn with_snapshots(&self, options: &str) -> PathBuf {
        let path = self.create("snapshots.qcow2", options, "20M");
        io(&path, &["write 0 100k"]);
        for nth in 0..5 {
            snapshot(&path, "-c", &format!("s{nth}"));
            io(&path, &[&format!("write {}k 40k", nth * 30), &format!("write {}M 64k", 5 + nth)]);
        }
        snapshot(&path, "-d", "s2");
        path
    }
}

pub(crate) fn io(image: &Path, commands: &[&str]) {
    let mut args: Vec<&str> = commands.iter().flat_map(|command| ["-c", command]).collect();
    args.push(image.to_str().unwrap());
    run_ok("qemu-io", &args);
}

pub(crate) fn snapshot(image: &Path, action: &str, name: &str) {
    run_ok("qemu-img", &["snapshot", action, name, image.to_str().unwrap()]);
}

/// An image whose bytes can be changed, and where its structures are.
pub(crate) struct Patient {
    pub(crate) file: File,
    pub(crate) cluster_size: u64,
    pub(crate) l1: u64,
    pub(crate) l2: u64,
    pub(crate) refcount_table: u64,
    pub(crate) refcount_block: u64,
    pub(crate) snapshot_table: u64,
}

impl Patient {
    pub(crate) fn open(path: &Path) -> Patient {
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let word = |at| read_word(&file, at);
        let cluster_size = 1 << (word(16) & 0xffff_ffff);
        let (l1, refcount_table, snapshot_table) = (word(40), word(48), word(64));
        let (l2, refcount_block) = (word(l1) & OFFSET, word(refcount_table));
        Patient { file, cluster_size, l1, l2, refcount_table, refcount_block, snapshot_table }
    }

    pub(crate) fn word(&self, at: u64) -> u64 {
        read_word(&self.file, at)
    }

    pub(crate) fn put(&self, at: u64, value: u64) {
        self.file.write_all_at(&value.to_be_bytes(), at).unwrap();
    }

    pub(crate) fn change(&self, at: u64, change: impl FnOnce(u64) -> u64) {
        self.put(at, change(self.word(at)));
    }

    /// Changes a refcount of 16 bits in the first block.
    pub(crate) fn set_refcount(&self, cluster: u64, refcount: u16) {
        self.file.write_all_at(&refcount.to_be_bytes(), self.refcount_block + 2 * cluster).unwrap();
    }

    pub(crate) fn len(&self) -> u64 {
        self.file.metadata().unwrap().len()
    }
}

fn read_word(file: &File, at: u64) -> u64 {
    let mut word = [0; 8];
    file.read_exact_at(&mut word, at).unwrap();
    u64::from_be_bytes(word)
}
