//! A fresh image is, byte for byte and to its length, the file that `qemu-img create` makes for the same options.
//!
//! Needs `qemu-img` of QEMU 10; fails, and says so, where there is none. Each case is laid out by this crate and
//! written to a file beside the one that `qemu-img` made; the two are then compared wherever one of them has data,
//! which is asked in Linux's way.
#![cfg(target_os = "linux")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use cowimg::format::qcow2::layout::{
    BackingName, FreshEncryption, FreshImage, FreshParams, LayoutError, LazyRefcounts, Preallocation, plan,
};
use cowimg::format::qcow2::{CompressionType, Geometry, Version};
use rustix::fs::{FallocateFlags, SeekFrom};
use tempfile::TempDir;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// Most bytes that are compared at a time.
const CHUNK: u64 = MIB;

fn params(cluster_size: u64, refcount_bits: u32, size: u64) -> FreshParams {
    let geometry =
        Geometry::new(cluster_size.ilog2(), refcount_bits.ilog2()).expect("a geometry of the format");
    FreshParams {
        version: Version::V3,
        geometry,
        size,
        lazy_refcounts: LazyRefcounts::Off,
        compression: CompressionType::Deflate,
        preallocation: Preallocation::Off,
        backing: None,
        data_file: None,
        encryption: FreshEncryption::None,
    }
}

fn preallocated(
    preallocation: Preallocation,
    cluster_size: u64,
    refcount_bits: u32,
    size: u64,
) -> FreshParams {
    FreshParams { preallocation, ..params(cluster_size, refcount_bits, size) }
}

fn overlay(cluster_size: u64, version: Version, name: &str, format: Option<&str>) -> FreshParams {
    let backing = BackingName { name: name.into(), format: format.map(|format| format.as_bytes().to_vec()) };
    FreshParams { version, backing: Some(backing), ..params(cluster_size, 16, 64 * MIB + 512) }
}

/// The options of `qemu-img create` that ask for the same.
fn arguments(params: &FreshParams, path: &Path) -> Vec<String> {
    let preallocation = match params.preallocation {
        Preallocation::Off => "off",
        Preallocation::Metadata => "metadata",
        Preallocation::Falloc => "falloc",
        Preallocation::Full => "full",
    };
    let options = [
        format!("cluster_size={}", params.geometry.cluster_size()),
        format!("refcount_bits={}", params.geometry.refcount_bits()),
        format!("compat={}", if params.version == Version::V2 { "0.10" } else { "1.1" }),
        format!("lazy_refcounts={}", if params.lazy_refcounts == LazyRefcounts::On { "on" } else { "off" }),
        format!(
            "compression_type={}",
            if params.compression == CompressionType::Zstd { "zstd" } else { "zlib" }
        ),
        format!("preallocation={preallocation}"),
        format!("extended_l2={}", if params.geometry.has_subclusters() { "on" } else { "off" }),
    ];
    let mut arguments: Vec<String> = ["create", "-q", "-f", "qcow2", "-o"].map(String::from).into();
    arguments.push(options.join(","));
    if let Some(backing) = &params.backing {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("a name in UTF-8");
        arguments.extend(["-u".into(), "-b".into(), text(&backing.name)]);
        arguments.extend(backing.format.iter().flat_map(|format| ["-F".into(), text(format)]));
    }
    arguments.extend([path.display().to_string(), params.size.to_string()]);
    arguments
}

/// Makes the image with `qemu-img`; whether it could.
fn make_theirs(params: &FreshParams, path: &Path) -> Result<(), String> {
    let made = Command::new("qemu-img").args(arguments(params, path)).output().unwrap_or_else(|error| {
        panic!("this test compares with the files of qemu-img (package qemu-utils), which does not start: {error}")
    });
    if made.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&made.stderr).into_owned()) }
}

fn make_ours(image: &FreshImage, preallocation: Preallocation, path: &Path) {
    let file = File::create_new(path).expect("a new file");
    let mut end = 0;
    for piece in image.pieces() {
        let (offset, len) = (piece.offset.get(), piece.bytes.len() as u64);
        assert!(offset >= end, "pieces ascend");
        assert!(len > 0 && len <= MIB, "a piece is neither empty nor large");
        end = offset + len;
        assert!(end <= image.file_len(), "the file has every piece");
        if let Some(area) = image.data_area() {
            assert!(end <= area.start() || offset >= area.end(), "no piece lies in the data");
        }
        file.write_all_at(&piece.bytes, offset).expect("written");
    }
    if let Some(area) = image.data_area() {
        assert!(area.end() <= image.file_len());
        if preallocation == Preallocation::Full {
            file.write_all_at(&vec![0; area.len() as usize], area.start()).expect("written");
        } else {
            rustix::fs::fallocate(&file, FallocateFlags::empty(), area.start(), area.len()).expect("space");
        }
    }
    assert!(file.metadata().expect("metadata").len() <= image.file_len());
    file.set_len(image.file_len()).expect("length");
}

/// The first byte that differs, where one of the files has data.
fn first_difference(one: &File, other: &File) -> Option<u64> {
    let next_data = |file: &File, from| match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Ok(offset) => offset,
        Err(rustix::io::Errno::NXIO) => u64::MAX,
        Err(error) => panic!("cannot find data: {error}"),
    };
    let mut at = 0;
    loop {
        at = next_data(one, at).min(next_data(other, at));
        if at == u64::MAX {
            return None;
        }
        let [left, right] = [one, other].map(|file| {
            let mut bytes = vec![0; CHUNK as usize];
            let mut len = 0;
            while len < bytes.len() {
                match file.read_at(&mut bytes[len..], at + len as u64).expect("read") {
                    0 => break,
                    n => len += n,
                }
            }
            bytes.truncate(len);
            bytes
        });
        if left != right {
            let same = left.iter().zip(&right).take_while(|(left, right)| left == right).count();
            return Some(at + same as u64);
        }
        at += CHUNK;
    }
}

/// What is wrong with a case, if anything is.
fn compare(params: &FreshParams, dir: &Path, number: usize) -> Option<String> {
    let (theirs, ours) = (dir.join(format!("{number}.theirs")), dir.join(format!("{number}.ours")));
    let complaint = match (make_theirs(params, &theirs), plan(params)) {
        (Err(_), Err(_)) => None,
        (Err(error), Ok(_)) => Some(format!("qemu-img refuses: {error}")),
        (Ok(()), Err(error)) => Some(format!("not laid out: {error}")),
        (Ok(()), Ok(image)) => {
            make_ours(&image, params.preallocation, &ours);
            let [theirs, ours] = [&theirs, &ours].map(|path| File::open(path).expect("opened"));
            let [their_len, our_len] = [&theirs, &ours].map(|file| file.metadata().expect("metadata").len());
            first_difference(&theirs, &ours)
                .map(|at| format!("differs at {at:#x}, cluster {:#x}", at / params.geometry.cluster_size()))
                .or_else(|| (their_len != our_len).then(|| format!("length {our_len}, not {their_len}")))
        }
    };
    for path in [theirs, ours] {
        let _ = fs::remove_file(path);
    }
    complaint.map(|complaint| format!("{complaint}: {params:?}"))
}

/// A folder for the images, in memory where there is room: `qemu-img` waits for the disk after every table.
fn directory(cases: &[FreshParams]) -> TempDir {
    const MEMORY: &str = "/dev/shm";
    let taken = |case: &FreshParams| match case.preallocation {
        Preallocation::Off | Preallocation::Metadata => 64 * MIB,
        Preallocation::Falloc | Preallocation::Full => case.size + 64 * MIB,
    };
    let needed = 8 * cases.iter().map(taken).max().unwrap_or_default();
    let free = rustix::fs::statvfs(MEMORY).map_or(0, |memory| memory.f_bavail * memory.f_frsize);
    let dir = if free > needed { tempfile::tempdir_in(MEMORY) } else { tempfile::tempdir() };
    dir.expect("a directory")
}

/// Compares all cases, on as many threads as there are processors.
fn compare_all(cases: &[FreshParams]) {
    let dir = directory(cases);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut complaints = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(case) = cases.get(number) else { return complaints };
            complaints.extend(compare(case, dir.path(), number));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let complaints: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("no panic")).collect()
    });
    assert!(complaints.is_empty(), "{} of {}:\n{}", complaints.len(), cases.len(), complaints.join("\n"));
}

fn cluster_sizes() -> impl Iterator<Item = u64> {
    (9..=21).map(|bits| 1 << bits)
}

/// A refcount width that goes round with the cluster size, so that together all widths come up.
fn some_width(cluster_size: u64) -> u32 {
    1 << (cluster_size.ilog2() % 7)
}

#[test]
fn every_cluster_size_starts_as_qemus() {
    let sizes = [0, 512, 65 * KIB, GIB, 10 * GIB + 512];
    let cases: Vec<_> = cluster_sizes()
        .flat_map(|cluster| sizes.map(|size| params(cluster, some_width(cluster), size)))
        .collect();
    compare_all(&cases);
}

#[test]
fn every_refcount_width_starts_as_qemus() {
    let widths = (0..=6).map(|order| 1 << order);
    let cases: Vec<_> = widths
        .flat_map(|width| {
            [params(512, width, 20 * GIB), params(64 * KIB, width, GIB), params(2 * MIB, width, TIB)]
        })
        .collect();
    compare_all(&cases);
}

#[test]
fn versions_and_features_are_in_the_header_as_qemu_puts_them() {
    let cases: Vec<_> = [512, 4 * KIB, 8 * KIB, 64 * KIB]
        .into_iter()
        .flat_map(|cluster| {
            let base = params(cluster, 16, 5 * GIB);
            let old = FreshParams { version: Version::V2, ..base.clone() };
            [
                FreshParams { lazy_refcounts: LazyRefcounts::On, ..base.clone() },
                FreshParams { compression: CompressionType::Zstd, ..base.clone() },
                FreshParams {
                    lazy_refcounts: LazyRefcounts::On,
                    compression: CompressionType::Zstd,
                    ..params(cluster, 1, 3 * GIB)
                },
                FreshParams { preallocation: Preallocation::Metadata, size: 40 * MIB, ..old.clone() },
                old,
            ]
        })
        .collect();
    compare_all(&cases);
}

#[test]
fn images_with_subclusters_start_as_qemus() {
    let extended = |case: FreshParams| FreshParams { geometry: case.geometry.with_extended_l2(true), ..case };
    let mut cases = Vec::new();
    for cluster in cluster_sizes().filter(|&size| size >= 16 * KIB) {
        cases.extend([0, 65 * KIB, 10 * GIB + 512].map(|size| params(cluster, some_width(cluster), size)));
        cases.push(preallocated(Preallocation::Metadata, cluster, 16, 300 * MIB + 512));
        cases.push(preallocated(Preallocation::Falloc, cluster, 16, 3 * MIB));
    }
    cases.push(overlay(64 * KIB, Version::V3, "base.img", Some("raw")));
    let cases: Vec<_> = cases.into_iter().map(extended).collect();
    compare_all(&cases);
}

#[test]
fn a_backing_file_is_named_where_qemu_names_it() {
    let long = "directory/".repeat(102) + "abc";
    assert_eq!(long.len(), 1023);
    let mut cases = Vec::new();
    for version in [Version::V2, Version::V3] {
        for format in [Some("raw"), Some("qcow2"), Some("vmdk")] {
            cases.push(overlay(512, version, "base.img", format));
            cases.push(overlay(4 * KIB, version, "/images/base, with a strange = name.img", format));
            cases.push(overlay(64 * KIB, version, &long, format));
        }
    }
    compare_all(&cases);
}

#[test]
fn a_name_without_room_is_refused_as_by_qemu() {
    let cases =
        [Version::V2, Version::V3].map(|version| overlay(512, version, &"x".repeat(450), Some("raw")));
    for case in &cases {
        assert!(matches!(plan(case), Err(LayoutError::Header(_))), "{case:?}");
    }
    compare_all(&cases);
}

#[test]
fn a_backing_file_that_is_there_changes_no_byte() {
    let dir = tempfile::tempdir().expect("a directory");
    let [base, theirs, ours] = ["base", "theirs", "ours"].map(|name| dir.path().join(name));
    let size = 3 * MIB + 512;
    File::create_new(&base).and_then(|file| file.set_len(size)).expect("a raw image of zeroes");
    let name = base.to_str().expect("a path in UTF-8");
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b", name])
        .arg(&theirs)
        .status()
        .expect("qemu-img (package qemu-utils) starts");
    assert!(made.success());
    let case = FreshParams { size, ..overlay(64 * KIB, Version::V3, name, Some("raw")) };
    make_ours(&plan(&case).expect("laid out"), case.preallocation, &ours);
    assert_eq!(fs::read(ours).expect("read"), fs::read(theirs).expect("read"));
}

#[test]
fn the_largest_disks_start_as_qemus_and_larger_ones_are_refused() {
    let mut cases = Vec::new();
    for (cluster, width) in [(512, 1), (512, 16), (KIB, 64), (4 * KIB, 64), (64 * KIB, 16), (2 * MIB, 1)] {
        let most = (32 * MIB / 8) * params(cluster, width, 0).geometry.l2_coverage();
        cases.extend([most, most / 3, most + 512].map(|size| params(cluster, width, size)));
        let refused = plan(&params(cluster, width, most + 512));
        assert!(matches!(refused, Err(LayoutError::DiskTooLarge { .. })), "{refused:?}");
    }
    compare_all(&cases);
}

#[test]
fn metadata_is_preallocated_where_qemu_puts_it() {
    let all = |cluster, width, sizes: &[u64]| -> Vec<_> {
        sizes.iter().map(|&size| preallocated(Preallocation::Metadata, cluster, width, size)).collect()
    };
    let mut cases = Vec::new();
    for cluster in cluster_sizes() {
        cases.extend(all(cluster, some_width(cluster), &[0, 512, 3 * MIB + 1536]));
    }
    for width in (0..=6).map(|order| 1 << order) {
        cases.extend(all(512, width, &[33 * MIB + 512, 100 * MIB]));
    }
    cases.extend(all(KIB, 64, &[100 * MIB, 300 * MIB + 512]));
    cases.extend(all(4 * KIB, 64, &[GIB, 2 * GIB + 4 * KIB]));
    cases.extend(all(4 * KIB, 16, &[3 * GIB]));
    cases.extend(all(16 * KIB, 32, &[5 * GIB]));
    cases.extend(all(64 * KIB, 16, &[GIB, 2 * GIB, 5 * GIB + 512, 64 * GIB]));
    cases.extend(all(64 * KIB, 64, &[20 * GIB]));
    cases.extend(all(MIB, 64, &[300 * GIB]));
    cases.extend(all(2 * MIB, 8, &[3 * GIB, 3 * TIB]));
    compare_all(&cases);
}

#[test]
fn data_is_preallocated_where_qemu_puts_it() {
    let mut cases = Vec::new();
    for preallocation in [Preallocation::Falloc, Preallocation::Full] {
        for cluster in cluster_sizes() {
            for size in [0, 512, 3 * MIB + 1536] {
                cases.push(preallocated(preallocation, cluster, some_width(cluster), size));
            }
        }
    }
    for (cluster, width, size) in [
        (512, 64, 40 * MIB),
        (512, 64, 40 * MIB + 512),
        (512, 1, 40 * MIB),
        (KIB, 16, 50 * MIB),
        (4 * KIB, 64, 150 * MIB),
        (4 * KIB, 2, 150 * MIB),
        (64 * KIB, 16, 600 * MIB),
        (64 * KIB, 16, GIB),
        (2 * MIB, 8, 100 * MIB),
    ] {
        cases.push(preallocated(Preallocation::Falloc, cluster, width, size));
    }
    compare_all(&cases);
}

#[test]
fn a_default_image_is_one_write_and_a_large_preallocated_one_costs_little() {
    let image = plan(&params(64 * KIB, 16, GIB)).expect("laid out");
    assert_eq!(image.pieces().count(), 1);
    assert_eq!(image.file_len(), 3 * 64 * KIB + 16);
    let image = plan(&preallocated(Preallocation::Metadata, 64 * KIB, 16, TIB)).expect("laid out");
    assert!(image.file_len() > TIB);
    assert!(image.pieces().count() < 5000);
}
