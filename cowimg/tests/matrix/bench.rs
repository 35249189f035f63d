//! One image of a shape: made by QEMU or by the library, changed by both in turn, compared with a model all the way.

use std::path::{Path, PathBuf};

use cowimg::encryption::Passphrase;
use cowimg::{
    Access, ByteRange, ErrorKind, Image, NewBitmap, NewSnapshot, OpenOptions, ResizeOptions, Shrink,
    SnapshotSelector, Version,
};
use tempfile::TempDir;

use crate::model::{Model, Operation, Operations};
use crate::qemu_tools::{self, Answer, assert_same_bytes};
use crate::script::Script;
use crate::seeded::noise;
use crate::shape::{Base, Compressed, Data, Encrypted, PASSPHRASE, Refused, Shape};
use crate::subject::{self, Discarded};

const SECRET: [&str; 2] = ["--object", "secret,id=s,data=open-sesame"];

/// Operations of one hand before the other takes over.
const TURN: usize = 12;

/// Who does the next thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hand {
    Ours,
    Qemus,
}

/// An image, and what it and its snapshots should hold.
pub(crate) struct Bench {
    folder: TempDir,
    shape: Shape,
    model: Model,
    snapshots: Vec<(String, Model)>,
    /// What was changed since the bitmap was added.
    changed: Vec<ByteRange>,
    /// Clusters that something was done to. QEMU compresses into others only.
    touched: Vec<bool>,
    operations: Operations,
}

impl Bench {
    /// Makes the image. What is refused is refused by both, and there is no bench then.
    pub(crate) fn new(shape: Shape) -> Option<Bench> {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let size = shape.size();
        let operations = Operations::new(format!("matrix {shape:?}"), size, shape.cluster_size());
        let model = write_base(folder.path(), shape);
        let mut bench = Bench {
            folder,
            shape,
            model,
            snapshots: Vec::new(),
            changed: Vec::new(),
            touched: vec![false; (size / shape.cluster_size()) as usize],
            operations,
        };
        if shape.refused() == Some(Refused::Created) {
            bench.assert_not_created();
            return None;
        }
        // Deriving a key takes QEMU a second at least, however little is asked for.
        let luks = shape.encrypted == Encrypted::Luks;
        match bench.operations.rng().below(if luks { 24 } else { 2 }) {
            0 => {
                let answer = bench.qemu_creates(&bench.path());
                assert_eq!(answer.code, 0, "qemu-img create: {}", answer.text);
            }
            _ => bench.we_create(),
        }
        bench.assert_refusals();
        if bench.shape.refused().is_some() {
            return None;
        }
        if bench.starts_as_noise() {
            bench.model = Model::holding(bench.content_by_qemu(&[]));
        }
        if shape.bitmaps {
            bench.add_bitmap();
        }
        Some(bench)
    }

    /// Everything that is done to the image.
    pub(crate) fn run(mut self) {
        self.take_turn(Hand::Ours);
        self.take_turn(Hand::Qemus);
        self.assert_agreement("after both took a turn");
        if self.shape.snapshots {
            let hand = *self.operations.rng().pick(&[Hand::Ours, Hand::Qemus]);
            self.take_snapshot(hand, "first");
        }
        let sizes_by = *self.operations.rng().pick(&[Hand::Ours, Hand::Qemus]);
        self.resize(sizes_by);
        self.take_turn(Hand::Qemus);
        self.take_turn(Hand::Ours);
        self.assert_agreement("after two turns each");
        self.end_with_snapshots();
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("image.qcow2")
    }

    fn options(&self) -> OpenOptions {
        match self.shape.encrypted {
            Encrypted::Not => Image::options(),
            Encrypted::Luks | Encrypted::Aes => Image::options().passphrase(Passphrase::new(PASSPHRASE)),
        }
    }

    fn open_to_write(&self) -> Image {
        self.options().access(Access::ReadWrite).open(self.path()).expect("the image opens")
    }

    /// The image as QEMU's tools name it.
    fn qemu_name(&self) -> String {
        self.qemu_name_of(&self.path())
    }

    fn qemu_name_of(&self, path: &Path) -> String {
        let secret = if self.shape.encrypted == Encrypted::Not { "" } else { "encrypt.key-secret=s," };
        format!("driver=qcow2,{secret}file.filename={}", path.display())
    }

    fn img(&self, words: &[&str]) -> Answer {
        let mut arguments = vec![words[0]];
        if self.shape.encrypted != Encrypted::Not {
            arguments.extend(SECRET);
        }
        arguments.extend(&words[1..]);
        qemu_tools::answer_of("qemu-img", &arguments)
    }

    fn qemu_creates(&self, path: &Path) -> Answer {
        let (options, size) = (self.shape.qemu_options(self.folder.path()), self.shape.size().to_string());
        let path = path.display().to_string();
        self.img(&["create", "-q", "-f", "qcow2", "-o", &options, &path, &size])
    }

    fn we_create(&self) {
        let options = self.shape.our_options(self.folder.path(), self.shape.size());
        cowimg::create(self.path(), &options).expect("the image is created");
    }

    fn assert_not_created(&self) {
        let answer = self.qemu_creates(&self.path());
        assert_ne!(answer.code, 0, "qemu-img creates what the list says it refuses");
        // A file that QEMU leaves behind is not the library's.
        let path = self.folder.path().join("ours.qcow2");
        let options = self.shape.our_options(&self.folder.path().join("ours"), self.shape.size());
        cowimg::create(&path, &options).expect_err("the library refuses what qemu-img refuses");
        assert!(!path.exists(), "what is refused leaves nothing behind");
    }

    /// What the image cannot have is refused by both hands and changes nothing.
    fn assert_refusals(&self) {
        let Some(refused) = self.shape.refused() else { return };
        let before = std::fs::read(self.path()).expect("the image can be read");
        let image = self.open_to_write();
        let cluster = vec![1; self.shape.cluster_size() as usize];
        let (ours, theirs) = match refused {
            Refused::Created => return,
            Refused::Bitmap => (image.add_bitmap("b", &NewBitmap::default()), self.qemu_adds_bitmap()),
            Refused::Snapshot => {
                (image.create_snapshot(&named("s")).map(drop), self.qemu_snapshot("-c", "s"))
            }
            Refused::Compressed => (image.write_compressed_at(&cluster, 0), self.qemu_compresses()),
        };
        let error = ours.expect_err("the library refuses what QEMU refuses");
        assert!(matches!(error.kind(), ErrorKind::Unsupported(_)), "{error}");
        assert_ne!(theirs.code, 0, "QEMU does what the list says it refuses: {}", theirs.text);
        image.close().expect("the image closes");
        if refused != Refused::Compressed {
            let after = std::fs::read(self.path()).expect("the image can be read");
            assert!(before == after, "what was refused has changed the image");
        }
    }

    fn qemu_adds_bitmap(&self) -> Answer {
        self.img(&["bitmap", "--add", "--image-opts", &self.qemu_name(), "b"])
    }

    fn qemu_snapshot(&self, action: &str, name: &str) -> Answer {
        self.img(&["snapshot", "--image-opts", action, name, &self.qemu_name()])
    }

    /// Encrypted or with a data file: `convert -c` refuses either.
    fn qemu_compresses(&self) -> Answer {
        let raw = self.folder.path().join("one.raw");
        std::fs::write(&raw, vec![1; self.shape.size() as usize]).expect("a file can be written");
        let (raw, name) = (raw.display().to_string(), self.qemu_name());
        self.img(&["convert", "-c", "-n", "-f", "raw", "--target-image-opts", &raw, &name])
    }

    fn add_bitmap(&mut self) {
        if self.operations.rng().below(2) == 0 {
            let answer = self.qemu_adds_bitmap();
            assert_eq!(answer.code, 0, "qemu-img bitmap: {}", answer.text);
        } else {
            let image = self.open_to_write();
            image.add_bitmap("b", &NewBitmap::default()).expect("the bitmap is added");
            image.close().expect("the image closes");
        }
    }

    fn take_turn(&mut self, hand: Hand) {
        match hand {
            Hand::Ours => self.write_ourselves(),
            Hand::Qemus => self.let_qemu_write(),
        }
    }

    /// A raw data file is all data from the start, and zeroes that nobody has encrypted read as noise: the same to all.
    fn starts_as_noise(&self) -> bool {
        self.shape.data == Data::Raw && self.shape.encrypted != Encrypted::Not
    }

    /// What a discard may leave where nothing says "zero".
    fn keeps_what_is_discarded(&self) -> bool {
        self.shape.version == Version::V2 && self.shape.base != Base::None
    }

    /// Remembers what of `range` holds other bytes than `before`.
    fn note_change(&mut self, range: ByteRange, before: &[u8]) {
        let differs = |(old, new): (&u8, &u8)| old != new;
        let now = self.model.at(range);
        let first = before.iter().zip(now).position(differs);
        let last = before.iter().zip(now).rposition(differs);
        if let (Some(first), Some(last)) = (first, last) {
            let start = range.start();
            self.changed.push(ByteRange::between(start + first as u64, start + last as u64 + 1));
        }
    }

    /// What an operation may change, and what is there.
    fn before(&mut self, operation: Operation) -> (ByteRange, Vec<u8>) {
        match operation {
            Operation::Write(range, _) | Operation::Zeroes(range, _) | Operation::Discard(range) => {
                self.touch(range);
                (range, self.model.at(range).to_vec())
            }
            Operation::Read(_) | Operation::Flush => (ByteRange::between(0, 0), Vec::new()),
        }
    }

    /// Some whole clusters, to be compressed.
    fn whole_clusters(&mut self) -> ByteRange {
        let (cluster, size) = (self.shape.cluster_size(), self.model.size());
        let rng = self.operations.rng();
        let start = rng.below(size / cluster) * cluster;
        let end = (start + rng.between(1, 3) * cluster).min(size / cluster * cluster);
        ByteRange::between(start, end)
    }

    fn compresses_next(&mut self) -> bool {
        self.shape.compressed != Compressed::Never && self.operations.rng().below(3) == 0
    }

    fn write_ourselves(&mut self) {
        let image = self.open_to_write();
        assert_same_bytes(&subject::content_of(&image), self.model.bytes(), "read by us before our turn");
        let rule = if self.keeps_what_is_discarded() { Discarded::ZeroOrFormer } else { Discarded::Zero };
        for _ in 0..TURN {
            if self.compresses_next() {
                let (range, fill) = (self.whole_clusters(), self.operations.fill());
                let (bytes, before) = (fill.bytes(range.len()), self.model.at(range).to_vec());
                image.write_compressed_at(&bytes, range.start()).expect("a compressed write succeeds");
                self.touch(range);
                self.model.write(range.start(), &bytes);
                self.note_change(range, &before);
            } else {
                let operation = self.operations.next();
                let (range, before) = self.before(operation);
                subject::apply(&image, &mut self.model, operation, (rule, self.shape.cluster_size()));
                self.note_change(range, &before);
            }
        }
        assert_same_bytes(&subject::content_of(&image), self.model.bytes(), "read by us after our turn");
        image.close().expect("the image closes");
        self.assert_checked("after our turn");
    }

    fn let_qemu_write(&mut self) {
        let mut script = Script::new(self.shape.cluster_size());
        for nth in 0..TURN {
            // Compressed writes come first. QEMU remembers where in a cluster of the file its last compressed bytes end, also
            // when that cluster is freed meanwhile and holds another's data: the next compressed write damages it.
            if nth < TURN / 3 && self.compresses_next() {
                let range = self.whole_clusters();
                let clusters = self.clusters_of(range);
                if !self.touched[clusters].iter().any(|touched| *touched) {
                    let (fill, before) = (self.operations.fill(), self.model.at(range).to_vec());
                    script.add_compressed(range, fill, &mut self.model);
                    self.note_change(range, &before);
                    self.touch(range);
                }
                continue;
            }
            let operation = self.operations.next();
            let (range, before) = self.before(operation);
            match operation {
                Operation::Discard(_) if self.keeps_what_is_discarded() => {}
                operation => script.add(operation, &mut self.model),
            }
            self.note_change(range, &before);
        }
        let before: &[&str] = if self.shape.encrypted == Encrypted::Not { &[] } else { &SECRET };
        script.run_on(before, &self.qemu_name());
        self.assert_checked("after QEMU's turn");
    }

    fn assert_checked(&self, when: &str) {
        let image = self.options().open(self.path()).expect("the image opens");
        let report = image.check().expect("the check runs");
        assert!(report.is_clean(), "{when}: our check: {report:?}");
    }

    fn clusters_of(&self, range: ByteRange) -> std::ops::Range<usize> {
        let cluster = self.shape.cluster_size();
        (range.start() / cluster) as usize..range.end().div_ceil(cluster) as usize
    }

    fn touch(&mut self, range: ByteRange) {
        let clusters = self.clusters_of(range);
        self.touched[clusters].fill(true);
    }

    fn assert_agreement(&self, when: &str) {
        let answer = self.img(&["check", "--image-opts", &self.qemu_name()]);
        assert_eq!(answer.code, 0, "{when}: qemu-img check: {}", answer.text);
        let theirs = self.content_by_qemu(&[]);
        assert_same_bytes(&theirs, self.model.bytes(), &format!("{when}: read by QEMU"));
        let image = self.options().open(self.path()).expect("the image opens");
        assert_eq!(image.size(), self.model.size(), "{when}");
        let ours = subject::content_of(&image);
        assert_same_bytes(&ours, self.model.bytes(), &format!("{when}: read by us"));
        subject::assert_own_check_clean(&image);
        if self.shape.data == Data::Within && self.shape.encrypted == Encrypted::Not {
            subject::assert_extents_agree(&image, &self.model);
        }
        if self.shape.data == Data::Raw && self.shape.encrypted == Encrypted::Not {
            let raw = std::fs::read(self.folder.path().join("data.raw")).expect("the data file");
            assert_same_bytes(&raw[..self.model.size() as usize], self.model.bytes(), "the raw data file");
        }
        if self.shape.bitmaps {
            self.assert_recorded(&image);
        }
    }

    fn content_by_qemu(&self, words: &[&str]) -> Vec<u8> {
        let raw = self.folder.path().join("content.raw").display().to_string();
        let mut arguments = vec!["convert"];
        arguments.extend(words);
        let name = self.qemu_name();
        arguments.extend(["--image-opts", &name, "-O", "raw", &raw]);
        let answer = self.img(&arguments);
        assert_eq!(answer.code, 0, "qemu-img convert: {}", answer.text);
        std::fs::read(&raw).expect("qemu-img wrote the file")
    }

    /// Every change is in the bitmap, which both hands have kept.
    fn assert_recorded(&self, image: &Image) {
        let ranges: Vec<ByteRange> = image
            .bitmap_ranges("b")
            .expect("the bitmap can be read")
            .collect::<cowimg::Result<_>>()
            .expect("its ranges can be read");
        for changed in &self.changed {
            let mut at = changed.start();
            let end = changed.end().min(self.model.size());
            while at < end {
                let within = ranges.iter().find(|range| range.start() <= at && at < range.end());
                at = within.unwrap_or_else(|| panic!("the change at {at:#x} is not in the bitmap")).end();
            }
        }
    }

    /// Takes a snapshot by one hand; where counters are narrow it may be refused, and then the other refuses, too.
    fn take_snapshot(&mut self, hand: Hand, name: &str) {
        if self.shape.refcount_bits() > 4 {
            match hand {
                Hand::Ours => {
                    let image = self.open_to_write();
                    image.create_snapshot(&named(name)).expect("the snapshot is taken");
                    image.close().expect("the image closes");
                }
                Hand::Qemus => {
                    let answer = self.qemu_snapshot("-c", name);
                    assert_eq!(answer.code, 0, "qemu-img snapshot: {}", answer.text);
                }
            }
        } else if !self.both_take_snapshot(hand, name) {
            return;
        }
        self.snapshots.push((name.to_owned(), self.model.clone()));
    }

    /// Whether the snapshot was taken; what `hand` has made of the image stays.
    fn both_take_snapshot(&self, hand: Hand, name: &str) -> bool {
        let (path, copy) = (self.path(), self.folder.path().join("copy.qcow2"));
        std::fs::copy(&path, &copy).expect("the image can be copied");
        let image = self.open_to_write();
        let ours = image.create_snapshot(&named(name));
        image.close().expect("the image closes");
        let words = ["snapshot", "--image-opts", "-c", name, &self.qemu_name_of(&copy)];
        let theirs = self.img(&words);
        assert_eq!(ours.is_ok(), theirs.code == 0, "we: {ours:?}; QEMU: {}", theirs.text);
        // A snapshot that QEMU gives up leaves leaks.
        if hand == Hand::Qemus && ours.is_ok() {
            std::fs::rename(&copy, &path).expect("the copy takes the image's place");
        } else {
            std::fs::remove_file(&copy).expect("the copy can be removed");
        }
        ours.is_ok()
    }

    fn resize(&mut self, hand: Hand) {
        let (cluster, size) = (self.shape.cluster_size(), self.model.size());
        let new_size = match self.operations.rng().below(3) {
            0 => return,
            1 => size + self.operations.rng().between(1, size / cluster) * cluster,
            _ => size - self.operations.rng().between(1, size / cluster / 2) * cluster,
        };
        let is_2 = self.shape.version == Version::V2;
        let fixed = is_2 && !self.snapshots.is_empty();
        // Version 2 has no way to say zero over a base that is longer. QEMU gives up; the library writes zeroes.
        let hand = if is_2 && self.shape.base == Base::Qcow2 { Hand::Ours } else { hand };
        let options = ResizeOptions { shrink: Shrink::Allow, ..Default::default() };
        if hand == Hand::Ours || fixed {
            let image = self.open_to_write();
            let resized = image.resize(new_size, &options);
            assert_eq!(resized.is_ok(), !fixed, "{resized:?}");
            image.close().expect("the image closes");
        }
        if hand == Hand::Qemus || fixed {
            let (name, size) = (self.qemu_name(), new_size.to_string());
            let answer = self.img(&["resize", "-q", "--shrink", "--image-opts", &name, &size]);
            assert_eq!(answer.code == 0, !fixed, "qemu-img resize: {}", answer.text);
        }
        if !fixed {
            let mut bytes = self.model.bytes().to_vec();
            if new_size > size && self.starts_as_noise() {
                bytes.extend(&self.content_by_qemu(&[])[size as usize..]);
            }
            bytes.resize(new_size as usize, 0);
            self.model = Model::holding(bytes);
            self.operations.set_size(new_size);
            self.touched.resize((new_size / cluster) as usize, true);
        }
        self.assert_agreement("after a resize");
    }

    /// A second snapshot, the views of both, one applied and one deleted by each hand.
    fn end_with_snapshots(&mut self) {
        if self.snapshots.is_empty() {
            return;
        }
        self.take_snapshot(Hand::Ours, "second");
        for (name, model) in &self.snapshots {
            let theirs = self.content_by_qemu(&["-l", &format!("snapshot.name={name}")]);
            // QEMU shows a snapshot as long as the disk is now.
            let shown = theirs.len().min(model.size() as usize);
            assert_same_bytes(&theirs[..shown], &model.bytes()[..shown], &format!("QEMU's view of {name}"));
            let view = self.options().snapshot(by_name(name)).open(self.path()).expect("the view opens");
            assert_same_bytes(&subject::content_of(&view), model.bytes(), &format!("our view of {name}"));
        }
        let (first, model) = self.snapshots.remove(0);
        let image = self.open_to_write();
        let applied = image.apply_snapshot(&by_name(&first));
        assert_eq!(applied.is_ok(), !self.shape.bitmaps, "with bitmaps no snapshot is applied: {applied:?}");
        image.close().expect("the image closes");
        if applied.is_ok() {
            self.model = model;
        }
        self.assert_agreement("after a snapshot was applied");
        let answer = self.qemu_snapshot("-d", &first);
        assert_eq!(answer.code, 0, "qemu-img snapshot: {}", answer.text);
        let image = self.open_to_write();
        for (name, _) in self.snapshots.drain(..) {
            image.delete_snapshot(&by_name(&name)).expect("the snapshot is deleted");
        }
        image.close().expect("the image closes");
        self.assert_agreement("after the snapshots are gone");
    }
}

/// Writes the base: a raw one that is shorter than the disk and ends within a sector, a qcow2 one that is longer.
fn write_base(folder: &Path, shape: Shape) -> Model {
    let Some((name, format)) = shape.base_name() else { return Model::zeroed(shape.size()) };
    let len = if format == "raw" { shape.size() / 2 + 333 } else { shape.size() + 65536 };
    let mut bytes = noise(77, len as usize);
    let (from, to) = (bytes.len() / 5, bytes.len() / 3);
    bytes[from..to].fill(0);
    let raw = folder.join("base.raw");
    std::fs::write(&raw, &bytes).expect("the base can be written");
    if format == "qcow2" {
        qemu_tools::img("convert -f raw -O qcow2 -o cluster_size=4k", &[&raw, &folder.join(name)]);
    }
    Model::holding(bytes).overlay(shape.size())
}

fn named(name: &str) -> NewSnapshot {
    NewSnapshot { name: name.into(), date_sec: 1_700_000_000, ..NewSnapshot::default() }
}

fn by_name(name: &str) -> SnapshotSelector {
    SnapshotSelector::Name(name.into())
}
