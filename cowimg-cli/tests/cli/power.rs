//! The power fails while the program works, on a real file system in a machine of its own: whatever its disk had got, images
//! are sound, disks read as before or after, and what a verb has said that it did is done.
#![allow(clippy::unwrap_used, reason = "what cannot fail here is part of what is tested")]

use std::fs;
use std::path::Path;

use crate::killed::{self, Left};
use crate::power_cut::{MOUNTED, is_wanted, recover, run_in_machine};
use crate::workbench::Workbench;

/// The images and disks of a folder: what each reads as, and how many snapshots and bitmaps it has.
fn content(bench: &Workbench) -> Vec<(String, Vec<u8>, usize, usize)> {
    let names = bench.names().into_iter().filter(|name| !name.contains(".part"));
    let of = |name: String| {
        let path = bench.path(&name);
        let disk = killed::disk(&path);
        if !name.contains(".qcow2") {
            return (name, disk, 0, 0);
        }
        let image = killed::open(&path);
        let (snapshots, bitmaps) = (image.snapshots().unwrap().len(), image.bitmaps().unwrap().len());
        (name, disk, snapshots, bitmaps)
    };
    names.map(of).collect()
}

/// A verb as it is tried here: conversions are not durable unless they are asked to be, as with qemu-img.
fn durable(line: &str) -> String {
    line.strip_prefix("convert ").map_or_else(|| line.into(), |rest| format!("convert -t writeback {rest}"))
}

/// The folder that a verb had to itself, as a power cut left it.
fn left_by(disk: &[u8], which: usize) -> Workbench {
    let bench = Workbench::new();
    let memory = Path::new("/dev/shm");
    let scratch =
        tempfile::tempdir_in(if memory.is_dir() { memory.into() } else { std::env::temp_dir() }).unwrap();
    recover(disk, &format!("/{which}"), scratch.path());
    for entry in fs::read_dir(scratch.path().join(which.to_string())).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), bench.path(entry.file_name())).unwrap();
    }
    bench
}

/// What the machine runs: each verb in a folder of its own, and a mark before and after it.
fn script(template: &Workbench) -> String {
    use std::fmt::Write;
    let mut script = format!("set -e\ncd {MOUNTED}\n");
    for (which, (line, _)) in killed::VERBS.iter().enumerate() {
        let line = durable(line).replace("--none--", "''");
        let (program, images) = (env!("CARGO_BIN_EXE_cowimg"), template.folder().display());
        let mark = |when| format!("sync; dmsetup message power 0 mark {which}-{when}");
        // The sync after it is no part of the promise: the disk as it was before that sync is looked at, too.
        writeln!(
            script,
            "mkdir {which}; cp {images}/* {which}; {}\n(cd {which}; {program} {line} >/dev/null)\n\
             dmsetup message power 0 mark {which}-done; {}\nrm -r {which}",
            mark("start"),
            mark("over")
        )
        .unwrap();
    }
    script
}

#[test]
fn what_a_verb_has_done_is_done_when_a_real_file_system_loses_its_power() {
    if !is_wanted() {
        return;
    }
    let template = killed::template();
    let finished: Vec<_> = killed::VERBS
        .iter()
        .map(|(line, _)| {
            let bench = killed::copy(&template);
            bench.cowimg_with(&killed::arguments(&durable(line))).ok();
            content(&bench)
        })
        .collect();
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut replay = run_in_machine(folder.path(), "data=ordered", &script(&template));
    let (mut flushes, mut states) = (0, 0);
    let mut random = std::env::var("COWIMG_TEST_SEED").map_or(1, |text| text.parse::<u64>().unwrap());
    let mut roll = |below| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    while let Some(moment) = replay.next_flush(&mut roll) {
        flushes += 1;
        let Some((which, when)) = moment.mark.and_then(|mark| mark.split_once('-')) else { continue };
        let which: usize = which.parse().unwrap();
        let (line, left) = killed::VERBS[which];
        for disk in [Some(moment.disk), moment.torn.as_deref()].into_iter().flatten() {
            if when == "over" {
                continue;
            }
            let context = format!("`{}`, flush {flushes}, {when}", durable(line));
            let bench = left_by(disk, which);
            if when == "done" {
                assert!(content(&bench) == finished[which], "{context}: it is not done");
            }
            let left = if when == "done" && matches!(left, Left::NoneOr(..)) { Left::Sound } else { left };
            killed::judge(&template, &bench, (line, left), &context);
            states += 1;
        }
    }
    println!("{flushes} flushes of a real file system's disk, {states} states, nothing lost");
    assert!(states > 50, "only {states} states were tried");
}
