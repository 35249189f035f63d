//! The images that rows work on, made once in a run, when the first row needs them.
//!
//! Each is made by real tools from real content: the file system holds files of this machine.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::run::{Failed, Run};
use super::sharing::Sharing;

/// Bytes of files in the file system.
const CONTENT: u64 = 1 << 30;
/// Where files are taken from.
const TREES: [&str; 4] = ["/usr/lib", "/usr/share", "/usr/bin", "/root"];

/// Scattered clusters of the fragmented images, and how far they lie apart.
const FRAGMENTS: u64 = 20_000;
const STRIDE: u64 = 128 << 10;

/// What a row may need. The names are those of the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Needed {
    /// `fs.raw`: an ext4 file system of 3 GiB with 1 GiB of files.
    FileSystem,
    /// `fs.qcow2`: the same.
    Qcow2,
    /// `zlib.qcow2`: the same, compressed.
    Zlib,
    /// `zstd.qcow2`: the same, compressed.
    Zstd,
    /// `snapshot.qcow2`: the same with a snapshot.
    Snapshot,
    /// `base.raw`: an empty disk of 10 GiB.
    Base,
    /// `small.qcow2`: an overlay of that.
    Small,
    /// `metadata.qcow2`: a disk of 1 TiB with all tables.
    Metadata,
    /// `fragments.qcow2`: a disk whose allocated clusters alternate with holes.
    Fragments,
    /// `scattered.qcow2` over `scattered-base.qcow2`: 4,000 writes of 4 KiB.
    Scattered,
    /// `near.qcow2`: `fs.qcow2` with some differences; `child.qcow2` over the latter.
    Near,
    /// `full.qcow2`: 1 GiB, every cluster allocated.
    Full,
    /// `xfs/fs.raw` and `xfs/fs.qcow2`, on a file system whose files share space.
    Sharing,
    /// `layer64.qcow2` and `layer200.qcow2`: chains of that many layers; `layer1.qcow2` is their lowest.
    Chain,
}

/// What there is so far.
pub(crate) struct Images<'a> {
    run: &'a Run,
    made: BTreeSet<Needed>,
    sharing: Option<Result<Sharing, String>>,
}

impl<'a> Images<'a> {
    pub(crate) fn new(run: &'a Run) -> Images<'a> {
        Images { run, made: BTreeSet::new(), sharing: None }
    }

    /// Why an image cannot be had here, if so.
    pub(crate) fn lacks(&mut self, image: Needed) -> Option<String> {
        if image != Needed::Sharing {
            return None;
        }
        let sharing = self.sharing.get_or_insert_with(|| Sharing::mount(&self.run.folder));
        sharing.as_ref().err().cloned()
    }

    /// Makes an image, unless it is there.
    pub(crate) fn make(&mut self, image: Needed) -> Result<(), Failed> {
        if !self.made.insert(image) {
            return Ok(());
        }
        self.make_new(image)?;
        // What is left to be written to the disk would disturb what is measured.
        self.run.quietly("sync")
    }

    fn make_new(&mut self, image: Needed) -> Result<(), Failed> {
        let run = self.run;
        match image {
            Needed::FileSystem => file_system(&run.folder),
            Needed::Qcow2 => self.converted("fs.qcow2", ""),
            Needed::Zlib => self.converted("zlib.qcow2", "-c"),
            Needed::Zstd => self.converted("zstd.qcow2", "-c -o compression_type=zstd"),
            Needed::Snapshot => {
                self.make(Needed::Qcow2)?;
                run.quietly("cp fs.qcow2 snapshot.qcow2")?;
                run.quietly("qemu-img snapshot -c first snapshot.qcow2")
            }
            Needed::Base => run.quietly("truncate -s 10G base.raw"),
            Needed::Small => {
                self.make(Needed::Base)?;
                run.quietly("qemu-img create -q -f qcow2 -b base.raw -F raw small.qcow2")
            }
            Needed::Metadata => {
                run.quietly("qemu-img create -q -f qcow2 -o preallocation=metadata metadata.qcow2 1T")
            }
            Needed::Fragments => {
                run.quietly("qemu-img create -q -f qcow2 fragments.qcow2 4G")?;
                write(run, "fragments.qcow2", (0..FRAGMENTS).map(|nth| (nth * STRIDE, 64 << 10)))
            }
            Needed::Scattered => {
                run.quietly("qemu-img create -q -f qcow2 scattered-base.qcow2 4G")?;
                run.quietly("qemu-img create -q -f qcow2 -b scattered-base.qcow2 -F qcow2 scattered.qcow2")?;
                write(run, "scattered.qcow2", scattered(4000, 4 << 30))
            }
            Needed::Near => {
                self.make(Needed::Qcow2)?;
                run.quietly("cp fs.qcow2 near.qcow2")?;
                write(run, "near.qcow2", scattered(200, 3 << 30))?;
                run.quietly("qemu-img create -q -f qcow2 -b fs.qcow2 -F qcow2 child.qcow2")?;
                write(run, "child.qcow2", scattered(100, 3 << 30))
            }
            Needed::Full => {
                run.quietly("qemu-img create -q -f qcow2 full.qcow2 1G")?;
                write(run, "full.qcow2", (0..256).map(|nth| (nth << 22, 4 << 20)))
            }
            Needed::Sharing => {
                self.make(Needed::Qcow2)?;
                run.quietly("cp --sparse=always fs.raw xfs/fs.raw")?;
                run.quietly("cp fs.qcow2 xfs/fs.qcow2")?;
                // A file that is not written out yet cannot be shared at once.
                run.quietly("sync -f xfs")
            }
            Needed::Chain => chain(run),
        }
    }

    fn converted(&mut self, name: &str, options: &str) -> Result<(), Failed> {
        self.make(Needed::FileSystem)?;
        self.run.quietly(&format!("cowimg convert -f raw -O qcow2 {options} fs.raw {name}"))?;
        self.run.quietly(&format!("qemu-img compare -q -f raw -F qcow2 fs.raw {name}"))
    }
}

/// Writes of 4 KiB at places that look random and are the same each time.
fn scattered(count: u64, size: u64) -> impl Iterator<Item = (u64, u64)> {
    let blocks = size / 4096;
    (0..count).map(move |nth| (nth.wrapping_mul(0x9E37_79B9_7F4A_7C15) % blocks * 4096, 4096))
}

/// Writes (start, length) with qemu-io.
pub(crate) fn write(run: &Run, image: &str, writes: impl Iterator<Item = (u64, u64)>) -> Result<(), Failed> {
    let script = writes.fold(String::new(), |mut script, (start, len)| {
        // Writing to a string does not fail.
        _ = writeln!(script, "write -q -P {} {start} {len}", start / 4096 % 255 + 1);
        script
    });
    let path = run.folder.join("script");
    fs::write(&path, script).map_err(|error| Failed(error.to_string()))?;
    let input = fs::File::open(&path).map_err(|error| Failed(error.to_string()))?;
    let status = Command::new("qemu-io")
        .args(["-f", "qcow2", "-t", "unsafe", image])
        .current_dir(&run.folder)
        .stdin(input)
        .stdout(std::process::Stdio::null())
        .status();
    match status {
        Ok(status) if status.success() => Ok(()),
        other => Err(Failed(format!("qemu-io {image}: {other:?}"))),
    }
}

/// A chain of 200 layers over a full disk of 256 MiB; each layer has 16 clusters of its own.
fn chain(run: &Run) -> Result<(), Failed> {
    run.quietly("qemu-img create -q -f qcow2 layer1.qcow2 256M")?;
    write(run, "layer1.qcow2", (0..64).map(|nth| (nth << 22, 4 << 20)))?;
    for depth in 2..=200_u64 {
        let below = depth - 1;
        run.quietly(&format!(
            "qemu-img create -q -f qcow2 -b layer{below}.qcow2 -F qcow2 layer{depth}.qcow2"
        ))?;
        let image = format!("layer{depth}.qcow2");
        write(run, &image, (0..16).map(|nth| (((nth * 251 + depth * 17) % 4096) << 16, 64 << 10)))?;
    }
    Ok(())
}

/// `fs.raw`, from files of this machine.
fn file_system(folder: &Path) -> Result<(), Failed> {
    let tree = folder.join("tree");
    let mut left = CONTENT;
    for source in TREES {
        copy_some(Path::new(source), &tree.join(source.trim_start_matches('/')), &mut left)?;
    }
    let made = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-d", "tree", "fs.raw", "3G"])
        .current_dir(folder)
        .stdout(std::process::Stdio::null())
        .env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()))
        .status();
    fs::remove_dir_all(&tree).map_err(|error| Failed(error.to_string()))?;
    match made {
        Ok(status) if status.success() => Ok(()),
        other => Err(Failed(format!("mkfs.ext4: {other:?}"))),
    }
}

/// Copies files of `source` to `target`, until `left` bytes are used up. What cannot be read is left out.
fn copy_some(source: &Path, target: &Path, left: &mut u64) -> Result<(), Failed> {
    let Ok(entries) = fs::read_dir(source) else { return Ok(()) };
    fs::create_dir_all(target).map_err(|error| Failed(error.to_string()))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let (Ok(metadata), Some(name)) = (path.symlink_metadata(), path.file_name()) else { continue };
        let place = target.join(name);
        if metadata.is_dir() {
            copy_some(&path, &place, left)?;
        } else if metadata.is_file() && metadata.len() <= *left && fs::copy(&path, &place).is_ok() {
            *left -= metadata.len();
        }
    }
    Ok(())
}
