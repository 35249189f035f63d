//! A conversion into an image that is there already: each sector holds what it held or what the source has, and all have
//! what the source has once the target is closed. The host's copying, compression and zeroes come with it.

use std::ffi::OsStr;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;

use cowimg::job::{Compression, ConvertOptions, Copying, TargetContent, convert};
use cowimg::progress::Control;
use cowimg::storage::{MemoryStorage, Storage};
use cowimg::{Access, CreateOptions, Format, Image, OpenOptions};

use crate::chain::{Layer, SMALL};
use crate::files::Cuts;
use crate::job::{Job, Met, shared};
use crate::lab::{SECTOR, sectors_of};
use crate::subject::check_ours;

/// The images of a conversion.
struct Images {
    /// The target, the source, and what else belongs to the target.
    files: Vec<MemoryStorage>,
    source: Format,
    target: Format,
    /// How the target is opened, which is told what else belongs to it.
    opened: fn(&[Arc<dyn Storage>]) -> OpenOptions,
}

fn job(name: &str, (source, target): (Layer, Layer), options: ConvertOptions) -> Job {
    let files = vec![target.make(None), source.make(None)];
    let (source, target) = (source.format, target.format);
    job_on(name, Images { files, source, target, opened: |_| Image::options() }, options)
}

/// From an image of the format qcow, version 1.
fn from_qcow1(source: Layer, target: Layer, options: ConvertOptions) -> Job {
    let folder = tempfile::tempdir().unwrap();
    let (raw, qcow) = (folder.path().join("raw"), folder.path().join("qcow"));
    std::fs::write(&raw, Layer { format: Format::Raw, ..source }.make(None).to_vec()).unwrap();
    let words: [&OsStr; 5] = ["convert", "-f", "raw", "-O", "qcow"].map(OsStr::new);
    let words: Vec<&OsStr> = words.into_iter().chain([raw.as_os_str(), qcow.as_os_str()]).collect();
    let answer = crate::qemu_tools::answer_of("qemu-img", &words);
    assert_eq!(answer.code, 0, "{}", answer.text);
    let files = vec![target.make(None), MemoryStorage::with_bytes(std::fs::read(&qcow).unwrap())];
    let images = Images { files, source: Format::Qcow, target: target.format, opened: |_| Image::options() };
    job_on("convert from qcow", images, options)
}

/// To an image whose data is in a file of its own.
fn to_data_file(source: Layer, options: ConvertOptions) -> Job {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let mut create = CreateOptions::qcow2(source.sectors * SECTOR);
    create.qcow2.cluster_size = 2048;
    create.qcow2.data_file = Some(folder.path().join("data").into_os_string());
    cowimg::create(&path, &create).unwrap();
    let read = |path: &Path| MemoryStorage::with_bytes(std::fs::read(path).unwrap());
    let files = vec![read(&path), source.make(None), read(&folder.path().join("data"))];
    let opened = |rest: &[Arc<dyn Storage>]| Image::options().data_storage(rest[0].clone());
    let images = Images { files, source: source.format, target: Format::Qcow2, opened };
    job_on("convert to a data file", images, options)
}

fn job_on(name: &str, images: Images, options: ConvertOptions) -> Job {
    let Images { files, source, target, opened } = images;
    let open = move |files: &[Arc<dyn Storage>], access: Access| {
        let options = opened(&files[2..]).access(access).cache_size(8192).format(target);
        options.open_storage(files[0].clone())
    };
    let start = shared(&files);
    let old = sectors_of(&open(&start, Access::ReadOnly).unwrap());
    let read = Image::options().format(source);
    let mut new = sectors_of(&read.open_storage(start[1].clone()).unwrap());
    new.extend_from_slice(&old[new.len()..]);
    let run = move |files: &[Arc<dyn Storage>]| {
        let source = Image::options().format(source).open_storage(files[1].clone())?;
        let target = open(files, Access::ReadWrite)?;
        convert(&source, &target, &options, &Control::default())?;
        target.flush()?;
        target.close()
    };
    let judge = move |files: &[MemoryStorage], met: Met, context: &str| {
        if target == Format::Qcow2 {
            check_ours(&files[0], context);
        }
        let files = shared(files);
        let found = sectors_of(&open(&files, Access::ReadOnly).unwrap());
        for (sector, value) in found.iter().enumerate() {
            let known = *value == new[sector] || (met == Met::Midway && *value == old[sector]);
            assert!(known, "{context}: sector {sector} holds {value}");
        }
        run(&files).unwrap_or_else(|error| panic!("{context}: again: {error}"));
        assert_eq!(sectors_of(&open(&files, Access::ReadOnly).unwrap()), new, "{context}: again");
    };
    Job { name: name.into(), files, run: Box::new(run), judge: Box::new(judge) }
}

/// Every way to convert into an image that is there; the seed decides what the images hold.
pub(crate) fn jobs(seed: u64) -> Vec<Job> {
    let source = Layer { seed: seed * 3, ..SMALL };
    let target = Layer { seed: seed * 3 + 1, ..SMALL };
    let raw = |layer: Layer| Layer { format: Format::Raw, ..layer };
    let larger = |layer: Layer| Layer { cluster_size: 4096, ..layer };
    let shorter = |layer: Layer| Layer { sectors: 41, ..layer };
    let plain = ConvertOptions { threads: 1, sparse_size: 512, ..ConvertOptions::default() };
    let by_host = ConvertOptions { copying: Copying::Host, ..plain };
    let packed = ConvertOptions { compression: Compression::On, ..plain };
    let similar = ConvertOptions { target_content: TargetContent::Similar, ..plain };
    let zeroes_too = ConvertOptions { sparse_size: 0, ..plain };
    let limited = ConvertOptions { rate: NonZeroU64::new(1 << 40), ..plain };
    vec![
        job("convert", (source, target), plain),
        job("convert by the host", (source, target), by_host),
        job("convert by the host, from raw", (raw(source), larger(target)), by_host),
        job("convert by the host, to raw", (source, raw(target)), by_host),
        job("convert by the host, a shorter one", (shorter(source), target), by_host),
        job("convert, compressed", (source, larger(target)), packed),
        job("convert, compressed, small clusters", (raw(source), target), packed),
        job("convert what is much the same", (source, target), similar),
        job("convert with zeroes written", (source, larger(target)), zeroes_too),
        job("convert, a shorter one", (shorter(raw(source)), target), limited),
        from_qcow1(source, larger(target), plain),
        to_data_file(source, plain),
        to_data_file(raw(source), by_host),
    ]
}

#[test]
fn a_conversion_leaves_old_or_new_sectors_whenever_the_power_fails() {
    let mut states = 0;
    for job in jobs(1) {
        let of_job = job.try_cuts(5, Cuts::Exhaustive);
        println!("{}: {of_job}", job.name);
        states += of_job;
    }
    println!("{states} states after a crash, none lost, none corrupt");
    assert!(states > 2_500, "only {states} states were tried");
}

#[test]
fn a_conversion_survives_failing_files() {
    let failures: usize = jobs(2).iter().map(Job::try_faults).sum();
    println!("{failures} failures, none lost, none corrupt");
    assert!(failures > 1_000, "only {failures} failures were met");
}
