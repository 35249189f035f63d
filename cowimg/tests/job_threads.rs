//! Jobs come out the same with one thread and with several: conversions byte for byte, comparisons to the place of the
//! difference, commit and rebase as the disk reads. No other program has a part in it, and nothing is
//! compressed by code in C, so that tools which watch threads can run it.

#[path = "seeded/mod.rs"]
mod seeded;

use std::path::{Path, PathBuf};

use cowimg::format::qcow2::layout::BackingName;
use cowimg::job::{
    self, CommitOptions, CompareOptions, Compression, ConvertOptions, NewBacking, Order, RebaseOptions,
};
use cowimg::progress::Control;
use cowimg::{Access, CreateOptions, Format, Image, LayerChoice, OpenOptions};
use seeded::{Rng, noise};

const SIZE: u64 = 4 << 20;
const THREADS: usize = 4;

/// A folder with base.qcow2, other.qcow2 and, over the base, top.qcow2; pieces of each are data, of some kinds.
fn images() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = |name: &str| folder.path().join(name);
    for (salt, name) in (1..).zip(["base.qcow2", "other.qcow2", "top.qcow2"]) {
        let mut options = match name {
            "top.qcow2" => CreateOptions::overlay("base.qcow2"),
            _ => CreateOptions::qcow2(SIZE),
        };
        options.qcow2.cluster_size = 4096;
        cowimg::create(path(name), &options).expect("it is created");
        let image = open(&path(name), Access::ReadWrite);
        let mut rng = Rng::new(format!("pieces of {name}"));
        for _ in 0..60 {
            let len = rng.between(1, 40_000);
            let at = rng.below(SIZE - len);
            let bytes =
                if rng.below(3) == 0 { vec![salt; len as usize] } else { noise(rng.next(), len as usize) };
            image.write_at(&bytes, at).expect("it takes data");
        }
        image.close().expect("it closes");
    }
    folder
}

fn open(path: &Path, access: Access) -> Image {
    Image::options().access(access).open(path).unwrap_or_else(|error| panic!("{error}"))
}

fn disk(path: &Path) -> Vec<u8> {
    let image = open(path, Access::ReadOnly);
    let mut bytes = vec![0; image.size() as usize];
    image.read_at(&mut bytes, 0).expect("it can be read");
    bytes
}

/// The source converted into a new image of this name.
fn converted(folder: &Path, (name, format): (&str, Format), options: &ConvertOptions) -> PathBuf {
    let path = folder.join(name);
    cowimg::create(&path, &CreateOptions { size: Some(SIZE), ..CreateOptions::new(format) })
        .expect("it is created");
    let source = open(&folder.join("top.qcow2"), Access::ReadOnly);
    let target = Image::options().access(Access::ReadWrite).format(format).open(&path).expect("it opens");
    job::convert(&source, &target, options, &Control::default()).expect("it is converted");
    target.close().expect("it closes");
    path
}

#[test]
fn a_conversion_is_the_same_with_any_number_of_threads() {
    let folder = images();
    let expected = disk(&folder.path().join("top.qcow2"));
    for (nth, compression) in [Compression::Off, Compression::On].into_iter().enumerate() {
        for format in [Format::Qcow2, Format::Raw] {
            if compression == Compression::On && format == Format::Raw {
                continue;
            }
            let with = |threads, order| {
                let options = ConvertOptions { compression, threads, order, ..ConvertOptions::default() };
                let name = format!("{nth}-{threads}-{order:?}.{format}");
                converted(folder.path(), (&name, format), &options)
            };
            let alone = with(1, Order::Source);
            let together = with(THREADS, Order::Source);
            let read = |path: &Path| std::fs::read(path).expect("it can be read");
            assert!(read(&alone) == read(&together), "{compression:?} {format}: not the same file");
            let anyhow = with(THREADS, Order::Any);
            for path in [alone, together, anyhow] {
                assert!(disk(&path) == expected, "{}: not the same disk", path.display());
                if format == Format::Qcow2 {
                    let report = open(&path, Access::ReadOnly).check().expect("the check runs");
                    assert!(report.is_clean(), "{}: {:?}", path.display(), report.issues);
                }
            }
        }
    }
}

#[test]
fn a_comparison_finds_the_same_difference_with_any_number_of_threads() {
    let folder = images();
    let top = folder.path().join("top.qcow2");
    let copy = converted(folder.path(), ("copy", Format::Qcow2), &ConvertOptions::default());
    let difference = |threads| {
        let options = CompareOptions { threads, ..CompareOptions::default() };
        let (first, second) = (open(&top, Access::ReadOnly), open(&copy, Access::ReadOnly));
        let compared = job::compare(&first, &second, &options, &Control::default());
        format!("{:?}", compared.expect("both can be read").difference)
    };
    assert_eq!((difference(1), difference(THREADS)), ("None".into(), "None".into()));
    let mut rng = Rng::new("where they differ");
    for _ in 0..8 {
        let image = open(&copy, Access::ReadWrite);
        image.write_at(&noise(rng.next(), 700), rng.below(SIZE - 700)).expect("it takes data");
        image.close().expect("it closes");
        assert_ne!(difference(1), "None");
        assert_eq!(difference(1), difference(THREADS));
    }
}

#[test]
fn commit_and_rebase_keep_the_disk_with_any_number_of_threads() {
    for threads in [1, THREADS] {
        let folder = images();
        let path = |name: &str| folder.path().join(name);
        let expected = disk(&path("top.qcow2"));
        let image = open(&path("top.qcow2"), Access::ReadWrite);
        let name = BackingName { name: b"other.qcow2".to_vec(), format: Some(b"qcow2".to_vec()) };
        let below = image.open_backing(&name, &OpenOptions::default()).expect("it opens");
        let options = RebaseOptions { threads, ..RebaseOptions::default() };
        let new = NewBacking { name: &name, image: &below };
        job::rebase(image, Some(new), &options, &Control::default()).expect("it is rebased");
        assert!(disk(&path("top.qcow2")) == expected, "{threads} threads: rebased, it reads otherwise");
        drop(below);
        let options = Image::options().access(Access::ReadWrite).writable_layer(LayerChoice::Below);
        let image = options.open(path("top.qcow2")).expect("it opens");
        let options = CommitOptions { threads, ..CommitOptions::default() };
        job::commit(&image, &options, &Control::default()).expect("it is committed");
        image.close().expect("it closes");
        assert!(
            disk(&path("other.qcow2")) == expected,
            "{threads} threads: what was committed reads otherwise"
        );
    }
}
