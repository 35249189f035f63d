//! Persistent dirty bitmaps, by the library and by QEMU in turn: bits compared with a model through both readers, one of
//! which is `qemu-nbd -B`, which exports a bitmap as QEMU loads it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cowimg::job::{self, BrokenBitmaps, MeasureSource, MeasureTarget};
use cowimg::progress::Control;
use cowimg::{
    BitmapProblem, ByteRange, CreateOptions, ErrorKind, Image, NewBitmap, Qcow2CreateOptions, Recording,
    ResizeOptions, Shrink, ZeroMode,
};
use tempfile::TempDir;

use crate::header_bytes::{self, AUTOCLEAR};
use crate::qemu_tools;
use crate::seeded::Rng;
use crate::subject::{open, open_writable};

/// A bitmap as it should be: its bits, and whether it records.
#[derive(Debug, Clone)]
struct Model {
    name: String,
    granularity: u64,
    auto: bool,
    bits: Vec<bool>,
}

impl Model {
    fn new(name: &str, granularity: u64, auto: bool, size: u64) -> Model {
        let bits = vec![false; size.div_ceil(granularity) as usize];
        Model { name: name.to_owned(), granularity, auto, bits }
    }

    fn set(&mut self, range: ByteRange) {
        if !range.is_empty() {
            let (first, last) = (range.start() / self.granularity, (range.end() - 1) / self.granularity);
            self.bits[first as usize..=last as usize].fill(true);
        }
    }

    fn resize(&mut self, size: u64) {
        self.bits.resize(size.div_ceil(self.granularity) as usize, false);
    }

    fn merge(&mut self, other: &Model, size: u64) {
        other.ranges(size).into_iter().for_each(|range| self.set(range));
    }

    fn ranges(&self, size: u64) -> Vec<ByteRange> {
        let mut ranges: Vec<ByteRange> = Vec::new();
        for (nth, _) in self.bits.iter().enumerate().filter(|(_, bit)| **bit) {
            let (start, end) = (nth as u64 * self.granularity, (nth as u64 + 1) * self.granularity);
            match ranges.last_mut() {
                Some(last) if last.end() == start => *last = ByteRange::between(last.start(), end),
                _ => ranges.push(ByteRange::between(start, end)),
            }
        }
        if let Some(last) = ranges.last_mut() {
            *last = ByteRange::between(last.start(), last.end().min(size));
        }
        ranges
    }
}

/// Whether somebody takes connections there: the name alone comes a moment before.
fn is_listening(socket: &Path) -> bool {
    const TAKES_CONNECTIONS: &str = "00010000";
    let sockets = std::fs::read_to_string("/proc/net/unix").expect("the kernel lists sockets");
    let mut lines = sockets.lines().filter(|line| line.ends_with(&format!(" {}", socket.display())));
    lines.any(|line| line.split_whitespace().nth(3) == Some(TAKES_CONNECTIONS))
}

/// The dirty ranges of a bitmap as QEMU loads it.
pub(crate) fn as_qemu_sees(path: &Path, name: &str) -> Vec<ByteRange> {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let socket = folder.path().join("nbd");
    let mut server = Command::new("qemu-nbd")
        .args(["-r", "-f", "qcow2", "-B", name, "-k"])
        .args([&socket, path])
        .stdout(Stdio::null())
        .spawn()
        .expect("qemu-nbd is installed (package qemu-utils)");
    let begun = Instant::now();
    while !is_listening(&socket) {
        assert!(begun.elapsed() < Duration::from_secs(20), "qemu-nbd listens within 20 seconds");
        let ended = server.try_wait().expect("its state can be asked");
        assert!(ended.is_none_or(|status| status.success()), "qemu-nbd does not export {name}");
        std::thread::sleep(Duration::from_millis(2));
    }
    let options = format!(
        "driver=nbd,server.type=unix,server.path={},x-dirty-bitmap=qemu:dirty-bitmap:{name}",
        socket.display()
    );
    let map = qemu_tools::run("qemu-img", &["map", "--output=json", "--image-opts", &options]);
    server.wait().expect("the server ends with its client");
    let number = |line: &str, key: &str| -> u64 {
        let (_, rest) = line.split_once(&format!("\"{key}\": ")).expect("the map has the key");
        let digits = rest.split(|letter: char| !letter.is_ascii_digit()).next().expect("a number");
        digits.parse().expect("a number")
    };
    let mut ranges: Vec<ByteRange> = Vec::new();
    for line in map.lines().filter(|line| line.contains("\"data\": false")) {
        let start = number(line, "start");
        let end = start + number(line, "length");
        match ranges.last_mut() {
            Some(last) if last.end() == start => *last = ByteRange::between(last.start(), end),
            _ => ranges.push(ByteRange::between(start, end)),
        }
    }
    ranges
}

pub(crate) fn as_we_see(image: &Image, name: &str) -> Vec<ByteRange> {
    let ranges = image.bitmap_ranges(name).expect("the bitmap can be read");
    ranges.collect::<cowimg::Result<_>>().expect("its ranges can be read")
}

fn created(size: u64, cluster_size: u64) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("image.qcow2");
    let qcow2 = Qcow2CreateOptions { cluster_size, ..Qcow2CreateOptions::default() };
    cowimg::create(&path, &CreateOptions { qcow2, ..CreateOptions::qcow2(size) }).expect("it is created");
    (folder, path)
}

/// Both readers see what the model says, and no checker finds fault.
fn compare(path: &Path, models: &[Model], size: u64, step: &str) {
    qemu_tools::assert_check_clean(path);
    let image = open(path);
    let listed: Vec<_> = image.bitmaps().expect("bitmaps are listed");
    let listed: Vec<_> = listed
        .iter()
        .map(|bitmap| {
            assert!(!bitmap.in_use, "{step}: {bitmap:?}");
            (String::from_utf8_lossy(&bitmap.name).into_owned(), bitmap.granularity, bitmap.auto)
        })
        .collect();
    let expected: Vec<_> =
        models.iter().map(|model| (model.name.clone(), model.granularity, model.auto)).collect();
    assert_eq!(listed, expected, "{step}");
    for model in models {
        let expected = model.ranges(size);
        assert_eq!(as_we_see(&image, &model.name), expected, "{step}: {} as we see it", model.name);
        assert_eq!(as_qemu_sees(path, &model.name), expected, "{step}: {} as QEMU sees it", model.name);
    }
}

/// Both sides' next calls, drawn once and done to the model at once.
struct Play {
    rng: Rng,
    size: u64,
    models: Vec<Model>,
    made: u32,
}

/// One call, for either side.
#[derive(Debug, Clone)]
enum Call {
    Write(ByteRange),
    Zero(ByteRange),
    Discard(ByteRange),
    Add(String, u64, Recording),
    Remove(String),
    Clear(String),
    Enable(String),
    Disable(String),
    Merge(String, String),
    Resize(u64),
}

impl Play {
    fn range(&mut self) -> ByteRange {
        let start = self.rng.below(self.size);
        let longest = if self.rng.below(6) == 0 { self.size / 2 } else { 100_000 };
        let end = (start + 1 + self.rng.below(longest)).min(self.size);
        ByteRange::between(start, end)
    }

    fn any(&mut self) -> usize {
        self.rng.below(self.models.len() as u64) as usize
    }

    fn draw(&mut self) -> Call {
        if self.models.is_empty() {
            return self.draw_add();
        }
        let index = self.any();
        let name = self.models[index].name.clone();
        match self.rng.below(20) {
            6..=7 => Call::Zero(self.range()),
            8..=9 => Call::Discard(self.range()),
            10 | 11 if self.models.len() < 4 => self.draw_add(),
            12 if self.models.len() > 1 => Call::Remove(name),
            13 => Call::Clear(name),
            14 => Call::Enable(name),
            15 => Call::Disable(name),
            16 | 17 => {
                let source = self.any();
                Call::Merge(name, self.models[source].name.clone())
            }
            18 => Call::Resize((self.size + 1 + self.rng.below(1 << 20)).next_multiple_of(512)),
            19 => Call::Resize((self.size - self.rng.below(1 << 20)).next_multiple_of(512)),
            _ => Call::Write(self.range()),
        }
    }

    fn draw_add(&mut self) -> Call {
        self.made += 1;
        let granularity = *self.rng.pick(&[512, 4096, 65536, 1 << 20, 1 << 31]);
        let recording = if self.rng.below(4) == 0 { Recording::Off } else { Recording::On };
        Call::Add(format!("b{}", self.made), granularity, recording)
    }

    fn model(&mut self, name: &str) -> &mut Model {
        self.models.iter_mut().find(|model| model.name == name).expect("it was drawn from these")
    }

    fn apply(&mut self, call: &Call) {
        match call {
            Call::Write(range) | Call::Zero(range) | Call::Discard(range) => {
                self.models.iter_mut().filter(|model| model.auto).for_each(|model| model.set(*range));
            }
            Call::Add(name, granularity, recording) => {
                self.models.push(Model::new(name, *granularity, *recording == Recording::On, self.size));
            }
            Call::Remove(name) => self.models.retain(|model| model.name != *name),
            Call::Clear(name) => self.model(name).bits.fill(false),
            Call::Enable(name) => self.model(name).auto = true,
            Call::Disable(name) => self.model(name).auto = false,
            Call::Merge(name, from) => {
                let (from, size) = (self.model(from).clone(), self.size);
                self.model(name).merge(&from, size);
            }
            Call::Resize(size) => {
                self.size = *size;
                self.models.iter_mut().for_each(|model| model.resize(*size));
            }
        }
    }
}

fn resize(image: &Image, size: u64) -> cowimg::Result<()> {
    image.resize(size, &ResizeOptions { shrink: Shrink::Allow, ..ResizeOptions::default() })
}

fn by_us(image: &Image, call: &Call) {
    let done = match call {
        Call::Write(range) => image.write_at(&vec![7; range.len() as usize], range.start()),
        Call::Zero(range) => image.write_zeroes(*range, ZeroMode::Unmap),
        Call::Discard(range) => image.discard(*range),
        Call::Add(name, granularity, recording) => {
            image.add_bitmap(name, &NewBitmap { granularity: Some(*granularity), recording: *recording })
        }
        Call::Remove(name) => image.remove_bitmap(name),
        Call::Clear(name) => image.clear_bitmap(name),
        Call::Enable(name) => image.enable_bitmap(name),
        Call::Disable(name) => image.disable_bitmap(name),
        Call::Merge(name, from) => image.merge_bitmap(name, image, from),
        Call::Resize(size) => resize(image, *size),
    };
    done.unwrap_or_else(|error| panic!("{call:?}: {error}"));
}

fn by_qemu(path: &Path, call: &Call) {
    let bitmap = |words: &str, name: &String| {
        qemu_tools::img(&format!("bitmap -f qcow2 {words}"), &[path, Path::new(name)]);
    };
    let io = |what: &str, range: &ByteRange| {
        qemu_tools::io(path, &[format!("{what} {} {}", range.start(), range.len())]);
    };
    match call {
        Call::Write(range) => io("write -P 9", range),
        Call::Zero(range) => io("write -z -u", range),
        Call::Discard(range) => io("discard", range),
        Call::Add(name, granularity, recording) => {
            let off = if *recording == Recording::Off { "--disable" } else { "" };
            bitmap(&format!("--add {off} -g {granularity}"), name);
        }
        Call::Remove(name) => bitmap("--remove", name),
        Call::Clear(name) => bitmap("--clear", name),
        Call::Enable(name) => bitmap("--enable", name),
        Call::Disable(name) => bitmap("--disable", name),
        Call::Merge(name, from) => bitmap(&format!("--merge {from}"), name),
        Call::Resize(size) => {
            qemu_tools::img("resize -q -f qcow2 --shrink", &[path, Path::new(&size.to_string())]);
        }
    }
}

#[test]
fn bitmaps_hold_the_same_bits_whoever_writes() {
    for (cluster_size, seed) in [(512, "a"), (4096, "b"), (65536, "c")] {
        let size = 5 * (1 << 20) + 1536;
        let (_folder, path) = created(size, cluster_size);
        let rng = Rng::new(format!("bitmaps in turn, {cluster_size}, {seed}"));
        let mut play = Play { rng, size, models: Vec::new(), made: 0 };
        for round in 0..10 {
            let calls: Vec<Call> = (0..play.rng.between(1, 6))
                .map(|_| {
                    let call = play.draw();
                    play.apply(&call);
                    call
                })
                .collect();
            if round % 2 == 0 {
                let image = open_writable(&path);
                for call in &calls {
                    by_us(&image, call);
                }
                for model in &play.models {
                    let live = as_we_see(&image, &model.name);
                    assert_eq!(live, model.ranges(play.size), "{} before it is saved, {calls:?}", model.name);
                }
                image.close().expect("the image closes");
            } else {
                for call in &calls {
                    by_qemu(&path, call);
                }
            }
            let step = format!("clusters of {cluster_size}, round {round}, {calls:?}");
            compare(&path, &play.models, play.size, &step);
        }
    }
}

#[test]
fn a_compressed_write_is_recorded() {
    let (_folder, path) = created(1 << 20, 65536);
    qemu_tools::img("bitmap --add", &[&path, Path::new("b")]);
    qemu_tools::io(&path, &["write -c 128k 64k".to_string()]);
    let image = open_writable(&path);
    image.write_at(&[3; 512], 130 << 10).expect("a write into a compressed cluster succeeds");
    image.close().expect("the image closes");
    assert_eq!(as_qemu_sees(&path, "b"), [ByteRange::between(128 << 10, 192 << 10)]);
}

/// Leaves the image as a writer does that is killed.
fn die(image: Image) {
    std::mem::forget(image);
}

#[test]
fn a_writer_that_dies_leaves_what_it_recorded_to_marked_in_use() {
    let (folder, path) = created(1 << 20, 65536);
    for name in ["on", "off"] {
        let words = if name == "off" { "bitmap --add --disable" } else { "bitmap --add" };
        qemu_tools::img(words, &[&path, Path::new(name)]);
    }
    let image = open_writable(&path);
    image.write_at(&[1; 512], 0).expect("the write succeeds");
    image.flush().expect("the flush succeeds");
    // The process lives on and holds its locks: the copy is what the next one finds.
    let left = folder.path().join("left.qcow2");
    std::fs::copy(&path, &left).expect("the file can be copied");
    die(image);

    let info = qemu_tools::img("info", &[&left]);
    let words: Vec<&str> = info.split_whitespace().collect();
    // The other bitmap records nothing, so that it missed nothing.
    let expected = "[0]: flags: [0]: in-use [1]: auto name: on granularity: 65536 [1]: flags: name: off";
    assert!(words.join(" ").contains(expected), "{info}");

    let image = open_writable(&left);
    let inconsistent = |done: cowimg::Result<()>| match done.expect_err("it is refused").kind() {
        ErrorKind::Bitmap { problem: BitmapProblem::Inconsistent, .. } => {}
        other => panic!("{other}"),
    };
    inconsistent(image.clear_bitmap("on"));
    inconsistent(image.enable_bitmap("on"));
    inconsistent(image.merge_bitmap("off", &image, "on"));
    inconsistent(image.bitmap_ranges("on").map(drop));
    inconsistent(resize(&image, 2 << 20));
    image.write_at(&[1; 512], 0).expect("the disk can be written all the same");
    image.close().expect("the image closes");
    assert!(open(&left).bitmaps().expect("bitmaps are listed")[0].in_use, "nothing makes it consistent");
    qemu_tools::assert_check_clean(&left);

    let image = open_writable(&left);
    image.remove_bitmap("on").expect("it can be removed");
    image.close().expect("the image closes");
    qemu_tools::assert_check_clean(&left);
    assert_eq!(open(&left).bitmaps().expect("bitmaps are listed").len(), 1);
}

/// Makes a bitmap inconsistent by killing a writer, so to speak; gives the image that it left.
fn with_a_broken_bitmap() -> (TempDir, PathBuf) {
    let (folder, path) = created(10 << 20, 65536);
    for (name, options) in [("broken", ""), ("fine", "-g 512 --disable")] {
        qemu_tools::img(&format!("bitmap --add {options}"), &[&path, Path::new(name)]);
    }
    let image = open_writable(&path);
    image.merge_bitmap("fine", &image, "broken").expect("it is merged");
    image.enable_bitmap("fine").expect("it is enabled");
    image.write_at(&[1; 512], 5 << 20).expect("the write succeeds");
    image.close().expect("the image closes");
    let image = open_writable(&path);
    image.disable_bitmap("fine").expect("it is disabled");
    image.close().expect("the image closes");
    let image = open_writable(&path);
    image.write_at(&[1; 512], 0).expect("the write succeeds");
    let left = folder.path().join("left.qcow2");
    std::fs::copy(&path, &left).expect("the file can be copied");
    die(image);
    (folder, left)
}

#[test]
fn bitmaps_are_copied_as_by_qemu_img_convert() {
    let (folder, source) = with_a_broken_bitmap();
    let (target, theirs) = (folder.path().join("target.qcow2"), folder.path().join("theirs.qcow2"));
    let answer = qemu_tools::img_answer("convert --bitmaps -O qcow2", &[&source, &theirs]);
    assert_eq!(answer.code, 1, "{}", answer.text);
    let words = "convert --bitmaps --skip-broken-bitmaps -O qcow2 -o cluster_size=4k";
    qemu_tools::img(words, &[&source, &theirs]);

    let from = open(&source);
    let refused = job::check_bitmaps(&from, BrokenBitmaps::Refuse).expect_err("one is inconsistent");
    assert!(refused.to_string().contains("broken"), "{refused}");
    job::check_bitmaps(&from, BrokenBitmaps::Skip).expect("it is left out");
    let qcow2 = Qcow2CreateOptions { cluster_size: 4096, ..Qcow2CreateOptions::default() };
    let options = CreateOptions { qcow2, ..CreateOptions::qcow2(10 << 20) };
    let into = Image::create(&target, &options).expect("it is created");
    assert!(job::copy_bitmaps(&from, &into, BrokenBitmaps::Refuse).is_err());
    let skipped = job::copy_bitmaps(&from, &into, BrokenBitmaps::Skip).expect("the other is copied");
    assert_eq!(skipped, [b"broken".to_vec()]);
    into.close().expect("the image closes");
    for path in [&target, &theirs] {
        let mut model = Model::new("fine", 512, false, 10 << 20);
        model.set(ByteRange::between(5 << 20, (5 << 20) + 512));
        compare(path, &[model], 10 << 20, "copied");
    }
}

#[test]
fn the_room_for_copies_of_bitmaps_is_what_qemu_img_measures() {
    let (_folder, source) = with_a_broken_bitmap();
    let image = open(&source);
    for cluster_size in [512, 4096, 65536, 2 << 20] {
        let words = format!("measure -O qcow2 -o cluster_size={cluster_size}");
        let theirs = qemu_tools::img(&words, &[&source]);
        let target = MeasureTarget { cluster_size, ..MeasureTarget::from(&CreateOptions::qcow2(0)) };
        let ours =
            job::measure(MeasureSource::Image(&image), &target, &Control::default()).expect("measured");
        let expected = format!("bitmaps size: {}", ours.bitmaps.expect("it may have bitmaps"));
        assert!(theirs.contains(&expected), "{theirs}, not {expected}");
    }
}

#[test]
fn the_last_bitmap_takes_the_extension_and_the_feature_bit_with_it() {
    let (_folder, path) = created(1 << 20, 65536);
    let before = header_bytes::extensions(&path);
    let image = open_writable(&path);
    image.add_bitmap("one", &NewBitmap::default()).expect("it is added");
    image.write_at(&[1; 512], 0).expect("the write succeeds");
    image.close().expect("the image closes");
    assert_eq!(header_bytes::features(&path, AUTOCLEAR), 1);
    assert_eq!(header_bytes::extensions(&path).len(), before.len() + 1);
    assert_eq!(as_qemu_sees(&path, "one"), [ByteRange::between(0, 65536)]);

    let image = open_writable(&path);
    image.remove_bitmap("one").expect("it is removed");
    image.close().expect("the image closes");
    assert_eq!(header_bytes::features(&path, AUTOCLEAR), 0);
    assert_eq!(header_bytes::extensions(&path), before);
    qemu_tools::assert_check_clean(&path);
}

#[test]
fn what_a_bitmap_cannot_be_is_refused_and_changes_nothing() {
    let (_folder, path) = created(1 << 20, 65536);
    qemu_tools::img("bitmap --add", &[&path, Path::new("b")]);
    let before = std::fs::read(&path).expect("the image can be read");
    let image = open_writable(&path);
    let long = "n".repeat(1024);
    let granularity = |granularity| NewBitmap { granularity: Some(granularity), ..NewBitmap::default() };
    let refused = [
        image.add_bitmap("", &NewBitmap::default()),
        image.add_bitmap(&long, &NewBitmap::default()),
        image.add_bitmap("x", &granularity(256)),
        image.add_bitmap("x", &granularity(1000)),
        image.add_bitmap("x", &granularity(1 << 32)),
        image.remove_bitmap("x"),
        image.clear_bitmap("x"),
        image.enable_bitmap("x"),
        image.disable_bitmap("x"),
        image.merge_bitmap("x", &image, "b"),
        image.merge_bitmap("b", &image, "x"),
    ];
    for (nth, refused) in refused.iter().enumerate() {
        assert!(refused.is_err(), "call {nth}");
    }
    image.close().expect("the image closes");
    assert!(std::fs::read(&path).expect("the image can be read") == before, "the file is as it was");
}

#[test]
fn bitmaps_of_another_image_are_merged_if_the_disks_are_of_one_size() {
    let (_folder, path) = created(1 << 20, 65536);
    let (_other_folder, other) = created(1 << 20, 4096);
    let source = open_writable(&other);
    source.add_bitmap("fine", &NewBitmap { granularity: Some(512), ..NewBitmap::default() }).expect("added");
    source.write_at(&[1; 512], 70_000).expect("the write succeeds");
    source.write_at(&[1; 512], (1 << 20) - 512).expect("the write succeeds");
    let image = open_writable(&path);
    image.add_bitmap("b", &NewBitmap::default()).expect("it is added");
    image.merge_bitmap("b", &source, "fine").expect("it is merged");
    resize(&source, 2 << 20).expect("the source grows");
    let refused = image.merge_bitmap("b", &source, "fine").expect_err("the sizes differ");
    assert!(refused.to_string().contains("1048576"), "{refused}");
    image.close().expect("the image closes");
    source.close().expect("the source closes");
    let expected = [ByteRange::between(65536, 131_072), ByteRange::between(983_040, 1 << 20)];
    assert_eq!(as_qemu_sees(&path, "b"), expected);
    let expected = [ByteRange::between(69_632, 70_656), ByteRange::between((1 << 20) - 512, 1 << 20)];
    assert_eq!(as_qemu_sees(&other, "fine"), expected);
}
