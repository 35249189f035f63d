//! Power cuts that are no simulation: the workloads run on a file system in a machine of its own whose disk logs what
//! reaches it. For each flush of that disk the file system is as it was when the power had failed there; its journal is
//! replayed, and the images in it are held against the same promise as simulated ones.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use cowimg::Access;
use cowimg::storage::{FileOptions, FileStorage, MemoryStorage, Storage};

use crate::files::Files;
use crate::history::{History, judge, run};
use crate::kinds::KINDS;
use crate::lab::{Call, Dice, SHAPES, carry_out, image_with_snapshot, workload};
use crate::power_cut::{MOUNTED, is_wanted, recover, run_in_machine};
use crate::subject::Subject;

/// Says in the machine where the first images lie.
const INSIDE: &str = "COWIMG_POWER_CUT_INSIDE";
/// Calls on each image.
const CALLS: usize = 30;

/// What is done to one image.
struct Work {
    name: String,
    subject: Subject,
    calls: Vec<Call>,
}

/// The work of a seed: the same calls inside the machine as outside.
fn calls(seed: u64, subjects: usize) -> Vec<Vec<Call>> {
    let of_shape = |nth: usize| workload(&mut Dice(seed * 100 + nth as u64 + 1), CALLS);
    let of_kind = |nth: usize| KINDS[nth].workload(&mut Dice(seed * 100 + nth as u64 + 51), CALLS);
    let plain = SHAPES.len() + 1;
    let mut calls: Vec<Vec<Call>> =
        (0..subjects).map(|nth| if nth < plain { of_shape(nth) } else { of_kind(nth - plain) }).collect();
    // Each ends with something that was acknowledged.
    for calls in &mut calls {
        calls.push(Call::Flush);
    }
    calls
}

fn works(seed: u64) -> Vec<Work> {
    let shapes = SHAPES.iter().map(|shape| (format!("{shape:?}"), Subject::from(shape.fresh())));
    let snapshot = ("a snapshot's clusters".to_owned(), Subject::from(image_with_snapshot()));
    let kinds = KINDS.iter().map(|kind| (kind.name.to_owned(), kind.subject()));
    let subjects: Vec<_> = shapes.chain([snapshot]).chain(kinds).collect();
    let calls = calls(seed, subjects.len());
    subjects.into_iter().zip(calls).map(|((name, subject), calls)| Work { name, subject, calls }).collect()
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

fn file_name(work: usize, file: usize) -> String {
    format!("{work}-{file}")
}

/// What the machine runs; nothing elsewhere.
#[test]
fn inside_the_machine() {
    let Ok(start) = std::env::var(INSIDE) else { return };
    let (start, disk) = (Path::new(&start), Path::new(MOUNTED));
    let seed = number("COWIMG_TEST_SEED", 1);
    // Only the ways to open them are asked for; the images come from outside, for no two LUKS images are equal.
    let options = SHAPES.iter().map(|_| Subject::from(MemoryStorage::new()).options);
    let options = options.chain([Subject::from(MemoryStorage::new()).options]);
    let options: Vec<_> = options.chain(KINDS.iter().map(|kind| kind.subject().options)).collect();
    for (nth, (calls, options)) in calls(seed, options.len()).into_iter().zip(options).enumerate() {
        let names = (0..).map(|file| file_name(nth, file)).take_while(|name| start.join(name).exists());
        let files: Vec<Arc<dyn Storage>> = names
            .map(|name| -> Arc<dyn Storage> {
                fs::copy(start.join(&name), disk.join(&name)).unwrap();
                fs::File::open(disk.join(&name)).unwrap().sync_all().unwrap();
                Arc::new(FileStorage::open(disk.join(&name), &FileOptions::read_write()).unwrap())
            })
            .collect();
        fs::File::open(disk).unwrap().sync_all().unwrap();
        let subject = Subject { files: Vec::new(), options, qemu: None };
        let image = subject.open(&files, Access::ReadWrite).unwrap();
        mark(nth, 0);
        for (done, call) in calls.iter().enumerate() {
            carry_out(&image, *call).unwrap();
            mark(nth, done + 1);
        }
        image.close().unwrap();
    }
}

fn mark(work: usize, calls: usize) {
    let text = format!("{work}-{calls}");
    let done = Command::new("dmsetup").args(["message", "power", "0", "mark", &text]).status().unwrap();
    assert!(done.success());
}

/// What each image may hold when so many calls had returned.
fn history(work: &Work) -> History {
    let mut history = run(&work.subject, &Files::new(&work.subject.files), &work.calls);
    history.done.iter_mut().enumerate().for_each(|(nth, done)| done.end = nth + 1);
    history
}

/// Holds the image that was worked on when the power failed against the promise.
fn judge_disk(disk: &[u8], mark: &str, (works, histories): (&[Work], &[History]), context: &str) {
    let (which, calls) = mark.split_once('-').unwrap();
    let (which, calls): (usize, usize) = (which.parse().unwrap(), calls.parse().unwrap());
    // In memory where that goes: e2fsck syncs.
    let memory = Path::new("/dev/shm");
    let folder =
        tempfile::tempdir_in(if memory.is_dir() { memory.into() } else { std::env::temp_dir() }).unwrap();
    recover(disk, "/", folder.path());
    let files = (0..works[which].subject.files.len())
        .map(|file| MemoryStorage::with_bytes(fs::read(folder.path().join(file_name(which, file))).unwrap()))
        .collect();
    let context = format!("{}, {calls} calls done, {context}", works[which].name);
    judge(&works[which].subject, files, &histories[which], (calls, &context));
}

#[test]
fn nothing_acknowledged_is_lost_when_a_real_file_system_loses_its_power() {
    if !is_wanted() {
        return;
    }
    let seed = number("COWIMG_TEST_SEED", 1);
    let works = works(seed);
    let histories: Vec<History> = works.iter().map(history).collect();
    let (mut flushes, mut states) = (0, 0);
    for mount_options in ["data=ordered", "data=writeback"] {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let start = folder.path().join("start");
        fs::create_dir(&start).unwrap();
        for (nth, work) in works.iter().enumerate() {
            for (file, bytes) in work.subject.files.iter().enumerate() {
                fs::write(start.join(file_name(nth, file)), bytes.to_vec()).unwrap();
            }
        }
        let program = std::env::current_exe().unwrap();
        let script = format!(
            "{INSIDE}={} COWIMG_TEST_SEED={seed} TMPDIR=/mnt {} --exact power::inside_the_machine --nocapture",
            start.display(),
            program.display()
        );
        let mut replay = run_in_machine(folder.path(), mount_options, &script);
        println!("{mount_options}: the power failed");
        let mut dice = Dice(seed);
        while let Some(moment) = replay.next_flush(|below| dice.roll(below)) {
            flushes += 1;
            // Before the first mark there is no image yet.
            let Some(mark) = moment.mark else { continue };
            let context = format!("{mount_options}, seed {seed}, flush {flushes}");
            judge_disk(moment.disk, mark, (&works, &histories), &context);
            states += 1;
            if let Some(torn) = moment.torn {
                judge_disk(&torn, mark, (&works, &histories), &format!("{context}, and writes after it"));
                states += 1;
            }
        }
    }
    println!(
        "seed {seed}: {flushes} flushes of a real file system's disk, {states} states, none lost, none corrupt"
    );
    assert!(states > 100, "only {states} states were tried");
}
