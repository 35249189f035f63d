//! The program killed at random moments of every verb that writes: images are sound, disks read as before or after, and
//! no half image has a name. `COWIMG_KILLS` says how many times; `make soak` asks for 500.
#![allow(clippy::unwrap_used, reason = "what cannot fail here is part of what is tested")]

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use cowimg::{Format, Image};

use crate::workbench::Workbench;

/// What there must be after a kill.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Left {
    /// The disk of this image reads as it did.
    Same(&'static str),
    /// Each sector of this image's disk reads as it did, or as that one's.
    Either(&'static str, &'static str),
    /// There is no such image, or one that reads as that one.
    NoneOr(&'static str, &'static str),
    /// Each image of which the name begins so reads as that one.
    Each(&'static str, &'static str),
    /// The images can be opened and are sound; nothing else is said.
    Sound,
}

pub(crate) const VERBS: [(&str, Left); 19] = [
    ("convert base.qcow2 new.qcow2", Left::NoneOr("new.qcow2", "base.qcow2")),
    ("convert -c -W base.qcow2 new.qcow2", Left::NoneOr("new.qcow2", "base.qcow2")),
    ("convert -C -O raw base.qcow2 new.raw", Left::NoneOr("new.raw", "base.qcow2")),
    ("convert -n -O qcow2 other.qcow2 base.qcow2", Left::Either("base.qcow2", "other.qcow2")),
    ("convert -O qcow2 -o data_file=new.raw base.qcow2 new.qcow2", Left::NoneOr("new.qcow2", "base.qcow2")),
    ("dd if=base.qcow2 of=new.raw bs=64k", Left::NoneOr("new.raw", "base.qcow2")),
    ("create -o preallocation=metadata,cluster_size=512 new.qcow2 16M", Left::Sound),
    ("create -b base.qcow2 -F qcow2 new.qcow2", Left::NoneOr("new.qcow2", "base.qcow2")),
    ("create --force -b base.qcow2 -F qcow2 other.qcow2", Left::Either("other.qcow2", "base.qcow2")),
    ("clone -n 12 base.qcow2 new-%d.qcow2", Left::Each("new-", "base.qcow2")),
    ("commit top.qcow2", Left::Same("top.qcow2")),
    ("rebase -b other.qcow2 -F qcow2 top.qcow2", Left::Same("top.qcow2")),
    ("rebase -b --none-- top.qcow2", Left::Same("top.qcow2")),
    ("snapshot -c new base.qcow2", Left::Same("base.qcow2")),
    ("snapshot -a old snap.qcow2", Left::Sound),
    ("snapshot -d old snap.qcow2", Left::Same("snap.qcow2")),
    ("amend -o refcount_bits=64 base.qcow2", Left::Same("base.qcow2")),
    ("resize --preallocation=metadata base.qcow2 +4M", Left::Sound),
    ("bitmap --add -g 4k base.qcow2 new", Left::Same("base.qcow2")),
];

const SIZE: u64 = 4 << 20;

pub(crate) fn template() -> Workbench {
    let bench = Workbench::new();
    for name in ["base.qcow2", "other.qcow2", "snap.qcow2"] {
        bench.qemu_img(&format!("create -q -f qcow2 -o cluster_size=2k {name} {SIZE}"));
    }
    bench.qemu_io("base.qcow2", &["write -q -P 1 0 1500k", "write -q -z 700k 64k", "write -q -P 2 3M 300k"]);
    bench.qemu_io("other.qcow2", &["write -q -P 3 256k 2M"]);
    bench.qemu_img("create -q -f qcow2 -b base.qcow2 -F qcow2 -o cluster_size=2k top.qcow2");
    bench.qemu_io("top.qcow2", &["write -q -P 4 768k 900k", "write -q -P 5 3500k 400k"]);
    bench.qemu_io("snap.qcow2", &["write -q -P 6 0 2M"]);
    bench.qemu_img("snapshot -c old snap.qcow2");
    bench.qemu_io("snap.qcow2", &["write -q -P 7 1M 2M"]);
    bench
}

/// A copy of the template's images.
pub(crate) fn copy(template: &Workbench) -> Workbench {
    let bench = Workbench::new();
    for name in template.names() {
        fs::copy(template.path(&name), bench.path(&name)).unwrap();
    }
    bench
}

pub(crate) fn arguments(line: &str) -> Vec<&str> {
    // The one argument that is empty.
    line.split_whitespace().map(|word| if word == "--none--" { "" } else { word }).collect()
}

/// The image at `path`, and its data file, which is beside it where it has one.
pub(crate) fn open(path: &Path) -> Image {
    let is_raw = |path: &Path| path.extension().is_some_and(|ending| ending == "raw");
    let mut options = Image::options().format(if is_raw(path) { Format::Raw } else { Format::Qcow2 });
    let data_file = path.with_extension("raw");
    if !is_raw(path) && data_file.exists() {
        options = options.data_file(data_file);
    }
    options.open(path).unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) fn disk(path: &Path) -> Vec<u8> {
    let image = open(path);
    let mut bytes = vec![0; image.size() as usize];
    image.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// Whether the file system has files without a name, of which nothing is left.
fn has_nameless_files(bench: &Workbench) -> bool {
    let flags = rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR;
    rustix::fs::open(bench.folder(), flags, rustix::fs::Mode::RUSR).is_ok()
}

/// Kills the verb after `delay`; whether it was still at work.
fn kill(bench: &Workbench, line: &str, delay: Duration) -> bool {
    let mut command = bench.command(env!("CARGO_BIN_EXE_cowimg"));
    command.args(arguments(line)).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    std::thread::sleep(delay);
    let was_at_work = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    was_at_work
}

pub(crate) fn judge(template: &Workbench, bench: &Workbench, (line, left): (&str, Left), context: &str) {
    for name in bench.names().iter().filter(|name| name.contains(".qcow2")) {
        let check = bench.try_qemu_img(&["check", "-q", name]);
        assert!(matches!(check.code, Some(0 | 3)), "{context}: {name}: {}{}", check.text(), check.stderr);
    }
    let read = |name: &str| disk(&bench.path(name));
    let old = |name: &str| disk(&template.path(name));
    match left {
        Left::Same(name) => assert!(read(name) == old(name), "{context}: {name} reads otherwise"),
        Left::NoneOr(name, expected) => {
            assert!(
                !bench.path(name).exists() || read(name) == old(expected),
                "{context}: {name} is half an image"
            );
        }
        Left::Either(name, other) => {
            let (now, before, after) = (read(name), old(name), old(other));
            let sectors = now.chunks(512).zip(before.chunks(512).zip(after.chunks(512)));
            for (sector, (now, (before, after))) in sectors.enumerate() {
                assert!(now == before || now == after, "{context}: sector {sector} of {name}");
            }
        }
        Left::Each(start, expected) => {
            for name in bench.names().iter().filter(|name| name.starts_with(start)) {
                assert!(read(name) == old(expected), "{context}: {name} is half an image");
            }
        }
        Left::Sound => {}
    }
    // A name that is taken over is the one thing for which a second is needed.
    let may_have_parts = line.contains("--force") || !has_nameless_files(bench);
    let names = bench.names();
    let parts = names.iter().filter(|name| name.contains(".part")).count();
    assert!(parts == 0 || may_have_parts, "{context}: {names:?}");
    // The lock went with the process, and what is there can be worked on.
    let target = if line.contains("top.qcow2") { "top.qcow2" } else { "base.qcow2" };
    bench.cowimg(&format!("write {target} 1M --pattern 9 --length 64k")).ok();
    assert!(
        matches!(bench.try_qemu_img(&["check", "-q", target]).code, Some(0 | 3)),
        "{context}, written on"
    );
}

#[test]
fn a_kill_at_any_moment_of_any_verb_leaves_sound_images_and_no_half_ones() {
    let kills = std::env::var("COWIMG_KILLS").map_or(VERBS.len() as u64, |text| text.parse().unwrap());
    let mut random = std::env::var("COWIMG_TEST_SEED").map_or(1, |text| text.parse::<u64>().unwrap());
    let template = template();
    let mut durations = [None; VERBS.len()];
    let mut at_work = 0;
    for nth in 0..kills {
        let which = nth as usize % VERBS.len();
        let (line, left) = VERBS[which];
        // The shortest of a few: one that had to wait would let the others end before they are killed.
        let whole = *durations[which].get_or_insert_with(|| {
            let runs = (0..3).map(|_| {
                let bench = copy(&template);
                let start = Instant::now();
                bench.cowimg_with(&arguments(line)).ok();
                start.elapsed()
            });
            runs.min().unwrap()
        });
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let delay = whole.mul_f64(f64::from((random >> 40) as u32) / f64::from(1 << 24));
        let bench = copy(&template);
        at_work += u64::from(kill(&bench, line, delay));
        judge(&template, &bench, (line, left), &format!("`{line}` killed after {delay:?} of {whole:?}"));
    }
    println!("{kills} kills, {at_work} of them in the middle of the work; nothing lost");
    assert!(at_work * 3 > kills, "only {at_work} of {kills} kills met the program at work");
}
