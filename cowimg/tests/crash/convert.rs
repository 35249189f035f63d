//! A conversion into an image that is there already: each sector holds what it held or what the source has, and all have
//! what the source has once the target is closed. The host's copying, compression and zeroes come with it.

use std::num::NonZeroU64;
use std::sync::Arc;

use cowimg::job::{Compression, ConvertOptions, Copying, TargetContent, convert};
use cowimg::progress::Control;
use cowimg::storage::{MemoryStorage, Storage};
use cowimg::{Access, Format, Image};

use crate::chain::{Layer, SMALL};
use crate::files::Cuts;
use crate::job::{Job, Met, shared};
use crate::lab::sectors_of;
use crate::subject::check_ours;

fn job(name: &str, (source, target): (Layer, Layer), options: ConvertOptions) -> Job {
    let files = vec![target.make(None), source.make(None)];
    let open = move |files: &[Arc<dyn Storage>], access: Access| {
        let options = Image::options().access(access).cache_size(8192).format(target.format);
        options.open_storage(files[0].clone())
    };
    let start = shared(&files);
    let old = sectors_of(&open(&start, Access::ReadOnly).unwrap());
    let read = Image::options().format(source.format);
    let mut new = sectors_of(&read.open_storage(start[1].clone()).unwrap());
    new.extend_from_slice(&old[new.len()..]);
    let run = move |files: &[Arc<dyn Storage>]| {
        let source = Image::options().format(source.format).open_storage(files[1].clone())?;
        let target = open(files, Access::ReadWrite)?;
        convert(&source, &target, &options, &Control::default())?;
        target.flush()?;
        target.close()
    };
    let judge = move |files: &[MemoryStorage], met: Met, context: &str| {
        if target.format == Format::Qcow2 {
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
