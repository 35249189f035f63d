//! `compare` finds what `qemu-img compare` finds, at the same offset, in both strictnesses and with the same progress.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use cowimg::job::{self, CompareOptions, Comparison, Difference, Strictness};
use cowimg::progress::{Control, Progress};
use cowimg::{Format, Image};

use crate::qemu_tools;
use crate::seeded::Rng;

/// Clusters so small that a slice of an L2 table ends within a small disk.
const CLUSTER_SIZES: [u64; 4] = [512, 1024, 4096, 65536];

/// An image of a chain that was drawn.
struct Drawn {
    path: PathBuf,
    format: Format,
}

impl Drawn {
    fn open(&self) -> Image {
        Image::options().format(self.format).open(&self.path).expect("the image opens")
    }
}

/// A write that both images of a pair get, each in its own way.
#[derive(Clone, Copy)]
enum Change {
    Data { offset: u64, len: u64, pattern: u64 },
    Zero { offset: u64, len: u64 },
}

fn draw_changes(rng: &mut Rng, size: u64) -> Vec<Change> {
    let unit = *rng.pick(&[512, 4096, 65536]);
    let range = |rng: &mut Rng| {
        let offset = rng.below(size / unit) * unit;
        (offset, (rng.between(1, 24) * unit).min(size - offset))
    };
    (0..rng.between(0, 8))
        .map(|_| {
            let (offset, len) = range(rng);
            match rng.below(3) {
                0 => Change::Zero { offset, len },
                _ => Change::Data { offset, len, pattern: rng.between(1, 250) },
            }
        })
        .collect()
}

/// An image that reads as `changes` say, in a form of its own.
fn draw_image(rng: &mut Rng, folder: &Path, name: &str, size: u64, changes: &[Change]) -> Drawn {
    let format = *rng.pick(&[Format::Raw, Format::Qcow2, Format::Qcow2, Format::Qcow2]);
    let path = folder.join(name);
    let split = rng.below(changes.len() as u64 + 1) as usize;
    let size_text = size.to_string();
    if format == Format::Raw {
        qemu_tools::img("create -q -f raw", &[&path, Path::new(&size_text)]);
        apply(rng, &path, "raw", changes);
        return Drawn { path, format };
    }
    let cluster_size = *rng.pick(&CLUSTER_SIZES);
    let preallocation = *rng.pick(&["off", "off", "metadata"]);
    let options = format!("cluster_size={cluster_size}");
    if rng.below(3) > 0 {
        let words = format!("create -q -f qcow2 -o {options},preallocation={preallocation}");
        qemu_tools::img(&words, &[&path, Path::new(&size_text)]);
        apply(rng, &path, "qcow2", changes);
        return Drawn { path, format };
    }
    // A base of another size, which has what was written first.
    let base = folder.join(format!("{name}.base"));
    let base_format = *rng.pick(&["raw", "qcow2"]);
    qemu_tools::img(&format!("create -q -f {base_format}"), &[&base, Path::new(&size_text)]);
    apply(rng, &base, base_format, &changes[..split]);
    if rng.below(2) == 0 {
        let cut = written_end(&changes[..split]).to_string();
        qemu_tools::img(&format!("resize -q -f {base_format} --shrink"), &[&base, Path::new(&cut)]);
    }
    let words = format!("create -q -f qcow2 -o {options} -F {base_format} -b");
    qemu_tools::img(&words, &[&base, &path, Path::new(&size_text)]);
    apply(rng, &path, "qcow2", &changes[split..]);
    Drawn { path, format }
}

fn written_end(changes: &[Change]) -> u64 {
    changes
        .iter()
        .map(|change| match *change {
            Change::Data { offset, len, .. } | Change::Zero { offset, len } => offset + len,
        })
        .max()
        .unwrap_or(512)
}

fn apply(rng: &mut Rng, path: &Path, format: &str, changes: &[Change]) {
    let commands = changes.iter().map(|change| match *change {
        Change::Data { offset, len, pattern } => format!("write -P {pattern} {offset} {len}"),
        Change::Zero { offset, len } => {
            let how = *rng.pick(&["-z", "-z -u", "-P 0"]);
            format!("write {how} {offset} {len}")
        }
    });
    let mut arguments: Vec<String> =
        ["-f", format, "-d", "unmap", "-t", "unsafe"].iter().map(ToString::to_string).collect();
    for command in commands {
        arguments.extend(["-c".to_owned(), command]);
    }
    if arguments.len() == 6 {
        return;
    }
    arguments.push(path.display().to_string());
    let text = qemu_tools::run("qemu-io", &arguments);
    assert!(!text.contains("failed"), "qemu-io: {text}");
}

/// What qemu-img prints for this answer, and its exit code.
fn said(answer: &Comparison) -> (String, i32) {
    let common = answer.sizes[0].min(answer.sizes[1]);
    let warning = "Warning: Image size mismatch!\n";
    let warned = |offset| if answer.sizes[0] != answer.sizes[1] && offset >= common { warning } else { "" };
    match answer.difference {
        None => (format!("{}Images are identical.\n", warned(u64::MAX)), 0),
        Some(Difference::Size) => ("Strict mode: Image size mismatch!\n".to_owned(), 1),
        Some(Difference::Content { offset }) => {
            (format!("{}Content mismatch at offset {offset}!\n", warned(offset)), 1)
        }
        Some(Difference::Mapping { offset }) => {
            (format!("Strict mode: Offset {offset} block status mismatch!\n"), 1)
        }
        Some(other) => panic!("{other:?}"),
    }
}

fn try_pair(rng: &mut Rng) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let size = rng.between(1, 9) * 1048576 + *rng.pick(&[0, 512, 65536]);
    let mut changes = draw_changes(rng, size);
    let first = draw_image(rng, folder.path(), "first", size, &changes);
    let mut second_size = size;
    match rng.below(4) {
        0 => changes.extend(draw_changes(rng, size).into_iter().take(1)),
        1 => second_size = size + rng.between(1, 4) * 512 * rng.between(1, 3000),
        _ => {}
    }
    if second_size > size && rng.below(2) == 0 {
        changes.extend(draw_changes(rng, second_size).into_iter().take(1));
    }
    let second = draw_image(rng, folder.path(), "second", second_size, &changes);
    for (strictness, switch) in [(Strictness::Content, ""), (Strictness::Mapping, "-s")] {
        let words = format!("compare {switch} -f {} -F {}", first.format, second.format);
        let theirs = qemu_tools::img_answer(&words, &[&first.path, &second.path]);
        for threads in [1, 3] {
            let options = CompareOptions { strictness, threads };
            let ours = job::compare(&first.open(), &second.open(), &options, &Control::default())
                .expect("the comparison succeeds");
            assert_eq!(said(&ours), (theirs.text.clone(), theirs.code), "{words}");
        }
    }
}

#[test]
fn differences_are_found_where_qemu_img_finds_them() {
    for round in 0..40 {
        try_pair(&mut Rng::new(format!("compare {round}")));
    }
}

/// The numbers that a job tells.
#[derive(Default)]
struct Told(Mutex<Vec<(u64, u64)>>);

impl Progress for Told {
    fn advanced(&self, done: u64, total: u64) {
        self.0.lock().expect("nobody panics").push((done, total));
    }
}

#[test]
fn progress_comes_in_order_whatever_the_threads_do() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("disk.raw");
    std::fs::write(&path, crate::seeded::noise(3, 9 << 20)).expect("the disk can be written");
    let other = folder.path().join("copy.raw");
    std::fs::copy(&path, &other).expect("the disk can be copied");
    let open = |path: &Path| Image::options().format(Format::Raw).open(path).expect("the image opens");
    let told = Told::default();
    let control = Control { progress: Some(&told), cancel: None };
    let options = CompareOptions { threads: 4, ..CompareOptions::default() };
    job::compare(&open(&path), &open(&other), &options, &control).expect("the comparison succeeds");
    let portions: Vec<u64> =
        told.0.into_inner().expect("nobody panics").iter().map(|told| told.0 >> 20).collect();
    assert_eq!(portions, [0, 2, 4, 6, 8, 9]);
}

#[test]
fn an_image_equals_itself_without_being_read() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("disk.raw");
    std::fs::write(&path, crate::seeded::noise(3, 1 << 20)).expect("the disk can be written");
    let open = || Image::options().format(Format::Raw).open(&path).expect("the image opens");
    let answer = job::compare(&open(), &open(), &CompareOptions::default(), &Control::default());
    assert_eq!(answer.expect("the comparison succeeds").difference, None);
}
