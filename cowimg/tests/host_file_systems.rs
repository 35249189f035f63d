//! What only some file systems have: copies that share their space, files that are not copied on write, steps in which a
//! file gets space. Each test makes a Btrfs or XFS in a file and mounts it; where that cannot be done, the test says so and
//! does nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

use cowimg::job::{ConvertOptions, Copying, ReadErrors, TargetContent, convert};
use cowimg::progress::Control;
use cowimg::storage::HostAttributes;
use cowimg::{Access, CacheMode, CreateOptions, Format, Image};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const DATA: u64 = 32 * MIB;

/// A file system of its own, gone at the end.
struct Mounted {
    top: TempDir,
}

impl Mounted {
    /// A fresh one of `kind`, "btrfs" or "xfs"; none where this host cannot have it.
    fn new(kind: &str) -> Option<Mounted> {
        let top = tempfile::tempdir().expect("a folder to work in");
        let (disk, folder) = (top.path().join("disk"), top.path().join("mounted"));
        std::fs::create_dir(&folder).expect("a folder can be made");
        let file = std::fs::File::create(&disk).expect("a file can be made");
        file.set_len(512 * MIB).expect("a file can be sparse");
        let make = format!("mkfs.{kind}");
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let done = |program: &str, arguments: &[&Path]| {
            let run = Command::new(program).args(arguments).env("PATH", &path).output();
            run.is_ok_and(|run| run.status.success())
        };
        if !done(&make, &[Path::new("-q"), &disk])
            || !done("mount", &[Path::new("-o"), Path::new("loop"), &disk, &folder])
        {
            eprintln!(
                "LEFT OUT: {kind} cannot be made or mounted here (packages xfsprogs, btrfs-progs; as root)"
            );
            return None;
        }
        Some(Mounted { top })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.top.path().join("mounted").join(name)
    }

    /// Bytes that are free, with everything written out.
    fn free(&self) -> u64 {
        let folder = self.path("");
        let synced = Command::new("sync").arg("-f").arg(&folder).status().expect("sync starts");
        assert!(synced.success());
        let found = rustix::fs::statvfs(&folder).expect("a file system");
        found.f_bfree * found.f_frsize
    }

    fn said(program: &str, arguments: &[&str], path: &Path) -> String {
        let run = Command::new(program).args(arguments).arg(path).output();
        let run = run.unwrap_or_else(|error| panic!("{program}: {error}"));
        String::from_utf8_lossy(&run.stdout).into_owned()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _left_behind = Command::new("umount").arg(self.path("")).status();
    }
}

/// Bytes of which no two pieces are alike.
fn noise(len: u64) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = (0..len / 8).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.collect()
}

/// Copies a raw disk into a new image; gives the space that it took.
fn copied(mounted: &Mounted, format: Format, name: &str, copying: Copying) -> u64 {
    copied_with(mounted, format, name, &ConvertOptions { copying, ..ConvertOptions::default() })
}

fn copied_with(mounted: &Mounted, format: Format, name: &str, how: &ConvertOptions) -> u64 {
    let source = Image::options().format(Format::Raw).open(mounted.path("source.raw")).expect("opened");
    let path = mounted.path(name);
    cowimg::create(&path, &CreateOptions { size: Some(DATA), ..CreateOptions::new(format) }).expect("made");
    let options = Image::options().access(Access::ReadWrite).format(format).cache_mode(CacheMode::Unsafe);
    let target = options.open(&path).expect("opened");
    let before = mounted.free();
    let how = ConvertOptions { target_content: TargetContent::Zeroes, ..*how };
    convert(&source, &target, &how, &Control::default()).expect("copied");
    target.flush().expect("flushed");
    let taken = before.saturating_sub(mounted.free());
    let mut bytes = vec![0; DATA as usize];
    target.read_at(&mut bytes, 0).expect("read");
    let content = std::fs::read(mounted.path("source.raw")).expect("read");
    assert!(bytes == content, "{name} holds something else");
    taken
}

#[test]
fn the_host_shares_what_it_copies() {
    for kind in ["btrfs", "xfs"] {
        let Some(mounted) = Mounted::new(kind) else { continue };
        std::fs::write(mounted.path("source.raw"), noise(DATA)).expect("written");
        for (format, name) in [(Format::Raw, "copy.raw"), (Format::Qcow2, "copy.qcow2")] {
            let taken = copied(&mounted, format, name, Copying::Host);
            assert!(taken < DATA / 4, "{kind}: {name} took {taken} bytes of its own");
        }
    }
}

/// Takes a file out of the host's cache.
fn forget_content(path: &Path) {
    let file = std::fs::File::open(path).expect("opened");
    file.sync_all().expect("synced");
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("the host forgets");
}

/// What a conversion does unless it is told otherwise: data is shared, and zeroes that are stored as data are found.
#[test]
fn a_copy_that_looks_for_zeroes_shares_the_rest() {
    for kind in ["btrfs", "xfs"] {
        let Some(mounted) = Mounted::new(kind) else { continue };
        let mut bytes = noise(DATA);
        // Clusters and more, and parts of some; places that start and end anywhere.
        for (start, len) in [
            (3 * MIB, 2 * MIB),
            (8 * MIB + 4096, MIB),
            (12 * MIB + 100, 70_000),
            // Clusters that only begin with zeroes, or hold nothing but one byte.
            (16 * MIB, 100),
            (17 * MIB, 60_000),
            (18 * MIB, 65_535),
            (19 * MIB + 1, 65_535),
            // Within one group of clusters, and over several from the middle of one to that of another.
            (20 * MIB + 65_536, 131_072),
            (21 * MIB + 100_000, MIB),
            (DATA - 9000, 9000),
        ] {
            bytes[start as usize..(start + len) as usize].fill(0);
        }
        std::fs::write(mounted.path("source.raw"), bytes).expect("written");
        let named = [
            (Format::Raw, "copy.raw"),
            (Format::Qcow2, "copy.qcow2"),
            (Format::Raw, "cold.raw"),
            (Format::Qcow2, "cold.qcow2"),
        ];
        for (format, name) in named {
            if name.starts_with("cold") {
                forget_content(&mounted.path("source.raw"));
            }
            let taken = copied(&mounted, format, name, Copying::Shared);
            assert!(taken < DATA / 4, "{kind}: {name} took {taken} bytes of its own");
            let image = Image::options().format(format).open(mounted.path(name)).expect("opened");
            for (start, end) in [(3 * MIB, 5 * MIB), (21 * MIB + MIB / 4, 22 * MIB)] {
                let whole = cowimg::ByteRange::between(start, end);
                assert!(image.extents(whole).all(|extent| extent.expect("told").is_zero()), "{kind}: {name}");
            }
            let asked = format!("asked-{name}");
            let how = ConvertOptions {
                copying: Copying::Shared,
                sparse_size: 64 << 10,
                ..ConvertOptions::default()
            };
            copied_with(&mounted, format, &asked, &how);
            let image = Image::options().format(format).open(mounted.path(&asked)).expect("opened");
            let short = cowimg::ByteRange::between(20 * MIB + 65_536, 20 * MIB + 196_608);
            assert!(image.extents(short).all(|extent| extent.expect("told").is_zero()), "{kind}: {asked}");
        }
    }
}

/// Blocks that cannot be read would be the copy's, too.
#[test]
fn a_salvage_shares_nothing() {
    for kind in ["btrfs", "xfs"] {
        let Some(mounted) = Mounted::new(kind) else { continue };
        std::fs::write(mounted.path("source.raw"), noise(DATA)).expect("written");
        let how = ConvertOptions {
            copying: Copying::Shared,
            read_errors: ReadErrors::Zero,
            ..ConvertOptions::default()
        };
        for (format, name) in [(Format::Raw, "copy.raw"), (Format::Qcow2, "copy.qcow2")] {
            let taken = copied_with(&mounted, format, name, &how);
            assert!(taken >= DATA, "{kind}: {name} took {taken} bytes of its own");
        }
    }
}

fn create(path: &Path, format: Format, host: HostAttributes) {
    let mut options = CreateOptions { size: Some(MIB), host, ..CreateOptions::new(format) };
    if format == Format::Qcow2 {
        options.qcow2.data_file = Some(path.with_extension("data").into());
    }
    cowimg::create(path, &options).expect("the image is made");
}

#[test]
fn btrfs_is_told_to_write_in_place() {
    let Some(mounted) = Mounted::new("btrfs") else { return };
    for (format, no_cow) in [(Format::Raw, true), (Format::Qcow2, true), (Format::Qcow2, false)] {
        let path = mounted.path(&format!("{format}-{no_cow}"));
        create(&path, format, HostAttributes { no_cow, ..HostAttributes::default() });
        let files = [path.clone(), path.with_extension("data")];
        for file in files.iter().filter(|file| file.exists()) {
            let flags = Mounted::said("lsattr", &[], file);
            let flags = flags.split(' ').next().unwrap_or_default();
            assert_eq!(flags.contains('C'), no_cow, "{}: {flags}", file.display());
        }
    }
}

#[test]
fn xfs_is_told_the_steps_of_a_file() {
    let Some(mounted) = Mounted::new("xfs") else { return };
    for (hint, expected) in [(None, MIB), (Some(65536), 65536), (Some(0), 0), (Some(1000), 0)] {
        for format in [Format::Raw, Format::Qcow2] {
            let path = mounted.path(&format!("{format}-{hint:?}"));
            create(&path, format, HostAttributes { extent_size_hint: hint, ..HostAttributes::default() });
            let files = [path.clone(), path.with_extension("data")];
            for file in files.iter().filter(|file| file.exists()) {
                let said = Mounted::said("xfs_io", &["-r", "-c", "extsize"], file);
                assert!(said.starts_with(&format!("[{expected}]")), "{}: {said}", file.display());
            }
        }
    }
}
