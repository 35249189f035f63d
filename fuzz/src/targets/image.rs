//! A whole image of any bytes: it opens or is refused, reads, checks, is repaired, and takes writes, zeroes, discards,
//! snapshots, bitmaps and other sizes without a panic, in bounded memory and time.
//!
//! Where `check` finds the image sound, or a repair has made it so, the disk must do what a disk does: a model of its first
//! bytes goes along, and is compared after every step and after the image was opened anew; and what is left is sound.
//!
//! What is done stands in the image itself, in 16 bytes that belong to no structure ([`PROGRAM`]): each is a step.

use std::sync::Arc;

use cowimg::check::{CheckIssue, Finding, L1Problem, L2Problem, Severity, check_storage};
use cowimg::storage::MemoryStorage;
use cowimg::{
    Access, ByteRange, FilePolicy, Format, Image, NewBitmap, NewSnapshot, ResizeOptions, Result, Shrink,
    SnapshotNames, SnapshotSelector, ZeroMode,
};

use super::super::mutation::PROGRAM;
use super::{copy, read_all, repair};

/// Bytes of the disk that the model has.
const WINDOW: u64 = 48 << 10;
/// The snapshots that the program makes have this name.
const NAME: &[u8] = b"program's";

pub fn run(bytes: &[u8]) {
    let original = Arc::new(MemoryStorage::with_bytes(bytes));
    let strict = Image::options().backing(FilePolicy::DenyAll).refuse_probed_raw();
    let _ = strict.open_storage(original.clone()).and_then(|image| image.info());
    if let Ok(image) = options(Access::ReadOnly, &data_file()).open_storage(original.clone()) {
        read_all(&image);
        let _ = (image.info(), image.snapshots(), image.bitmaps());
    }
    let program = bytes.get(PROGRAM).unwrap_or(&[]);
    let report = check_storage(&*original);
    // In a damaged image two parts of the disk may share their bytes, or share them with a table.
    let is_sound = report.as_ref().is_ok_and(|report| report.corruptions == 0 && report.check_errors == 0);
    let is_clean = report.is_ok_and(|report| report.is_clean());
    let repaired = repair::repaired(&original);
    use_image(&copy(&original), is_sound, program);
    if let Some(storage) = repaired.filter(|_| !is_clean) {
        use_image(&storage, true, program);
    }
}

/// What stands for the data file of an image that has one.
fn data_file() -> Arc<MemoryStorage> {
    Arc::new(MemoryStorage::with_bytes(vec![0; WINDOW as usize]))
}

fn options(access: Access, data: &Arc<MemoryStorage>) -> cowimg::OpenOptions {
    Image::options().format(Format::Qcow2).no_backing().access(access).data_storage(data.clone())
}

/// Runs the program on the image in `storage`; a sound one must hold what it was given.
fn use_image(storage: &Arc<MemoryStorage>, is_sound: bool, program: &[u8]) {
    let data = &data_file();
    let Ok(image) = options(Access::ReadWrite, data).open_storage(storage.clone()) else { return };
    let mut session = Session { model: Model::read(&image, is_sound), image, storage, data };
    let has_program = program.iter().any(|&step| step != 0);
    let usual: Vec<u8> = (0..14).map(|step| step | step << 4).collect();
    for &step in if has_program { program } else { &usual } {
        if session.step(step).is_err() {
            // Why it was refused is another test's business. How far it came is not known.
            session.model = None;
        }
        session.compare();
        if session.image.size() == 0 {
            break;
        }
    }
    let Session { image, model, .. } = session;
    let size = image.size();
    let is_closed = image.close().is_ok();
    if !is_sound {
        return;
    }
    if let Ok(report) = check_storage(&**storage) {
        let mut damage = report.issues.iter().filter(|issue| is_damage(issue));
        assert!(damage.next().is_none(), "a sound image stays sound: {:?}", report.issues);
    }
    if let (Some(model), true) = (model, is_closed) {
        let image = options(Access::ReadOnly, data).open_storage(storage.clone()).expect("it opens again");
        assert_eq!(image.size(), size);
        model.compare(&image);
    }
}

/// Whether an issue is more than a missing flag. Of two parts of the disk that shared a cluster one may be left, which then is
/// alone and does not know it: its next write makes a copy that it could have saved. No image that anybody makes has such
/// parts, and QEMU leaves the flag away, too.
fn is_damage(issue: &CheckIssue) -> bool {
    const COPIED: u64 = 1 << 63;
    let is_missing_flag = match issue.finding {
        Finding::L1Entry { problem: L1Problem::Copied { refcount: 1 }, site } => site.entry & COPIED == 0,
        Finding::L2Entry { problem: L2Problem::Copied { refcount: 1 }, site } => site.entry & COPIED == 0,
        _ => false,
    };
    issue.severity == Severity::Corruption && !is_missing_flag
}

/// What the first bytes of the disk are, and were when a snapshot was taken.
struct Model {
    window: Vec<u8>,
    snapshots: Vec<Vec<u8>>,
}

impl Model {
    /// None where the image may not hold what it is given.
    fn read(image: &Image, is_sound: bool) -> Option<Model> {
        let mut window = vec![0; image.size().min(WINDOW) as usize];
        let is_readable = image.read_at(&mut window, 0).is_ok();
        (is_sound && is_readable).then_some(Model { window, snapshots: Vec::new() })
    }

    fn compare(&self, image: &Image) {
        let mut read = vec![0; self.window.len()];
        image.read_at(&mut read, 0).expect("what was read once is read again");
        let differs = read.iter().zip(&self.window).position(|(read, held)| read != held);
        assert_eq!(differs, None, "the disk has other bytes than it was given, from this one on");
    }
}

struct Session<'a> {
    image: Image,
    model: Option<Model>,
    storage: &'a Arc<MemoryStorage>,
    data: &'a Arc<MemoryStorage>,
}

impl Session<'_> {
    fn compare(&self) {
        if let Some(model) = &self.model {
            model.compare(&self.image);
        }
    }

    /// Changes the model's bytes in a range.
    fn change(&mut self, range: ByteRange, change: impl Fn(&mut [u8])) {
        if let Some(model) = &mut self.model {
            change(&mut model.window[range.start() as usize..range.end() as usize]);
        }
    }

    /// One step: its kind in the low four bits, where and how much in the others.
    fn step(&mut self, step: u8) -> Result<()> {
        let range = self.range(step >> 4);
        let by_name = || SnapshotSelector::Name(NAME.to_vec());
        match step & 15 {
            0 | 1 => {
                self.image.write_at(&vec![step | 1; range.len() as usize], range.start())?;
                self.change(range, |bytes| bytes.fill(step | 1));
            }
            2 | 3 => {
                let mode = if step & 1 == 0 { ZeroMode::Unmap } else { ZeroMode::KeepSpace };
                self.image.write_zeroes(range, mode)?;
                self.change(range, |bytes| bytes.fill(0));
            }
            4 => self.discard(range)?,
            5 => self.image.flush()?,
            6 => self.write_compressed(step)?,
            7 => self.take_snapshot()?,
            8 => {
                self.image.apply_snapshot(&by_name())?;
                self.model = self.model.take().and_then(Model::applied);
            }
            9 => {
                self.image.delete_snapshot(&by_name())?;
                self.model.iter_mut().for_each(|model| drop(model.snapshots.remove(0)));
            }
            10 => self.use_old_snapshot(step)?,
            11 => self.resize(self.image.size().saturating_add(u64::from(step) * 700))?,
            12 => self.resize(self.image.size() - self.image.size() / u64::from(1 + step / 16))?,
            13 => self.image.add_bitmap([b'n', step], &NewBitmap::default())?,
            14 => self.image.remove_bitmap("b")?,
            _ => self.reopen()?,
        }
        Ok(())
    }

    /// The part of the window that a step is about; there are 16.
    fn range(&self, place: u8) -> ByteRange {
        let size = self.image.size().min(WINDOW);
        let start = size * u64::from(place) / 16;
        let len = [1, 512, 3000, 512 * 9, 16 << 10][usize::from(place) % 5];
        ByteRange::between(start, (start + len).min(size))
    }

    /// A discarded byte reads as before or as zero.
    fn discard(&mut self, range: ByteRange) -> Result<()> {
        self.image.discard(range)?;
        let mut read = vec![0; range.len() as usize];
        self.image.read_at(&mut read, range.start())?;
        self.change(range, |bytes| {
            for (held, &read) in bytes.iter_mut().zip(&read) {
                assert!(read == 0 || read == *held, "a discarded byte is what it was, or zero");
                *held = read;
            }
        });
        Ok(())
    }

    fn write_compressed(&mut self, step: u8) -> Result<()> {
        let cluster = self.image.cluster_size().unwrap_or(512);
        let start = self.range(step >> 4).start() / cluster * cluster;
        let len = cluster.min(self.image.size() - start);
        self.image.write_compressed_at(&vec![step; len as usize], start)?;
        let end = (start + len).min(self.image.size().min(WINDOW));
        self.change(ByteRange::between(start, end), |bytes| bytes.fill(step));
        Ok(())
    }

    fn take_snapshot(&mut self) -> Result<()> {
        let (name, names) = (NAME.to_vec(), SnapshotNames::MayRepeat);
        self.image.create_snapshot(&NewSnapshot { name, names, ..NewSnapshot::default() })?;
        self.model.iter_mut().for_each(|model| model.snapshots.push(model.window.clone()));
        Ok(())
    }

    /// Goes back to a snapshot that was there before, or deletes it.
    fn use_old_snapshot(&mut self, step: u8) -> Result<()> {
        let snapshots = self.image.snapshots()?;
        let Some(first) = snapshots.first().filter(|first| first.name != NAME) else { return Ok(()) };
        let selector = SnapshotSelector::Id(first.id.clone());
        if step >> 4 & 1 == 0 {
            return self.image.delete_snapshot(&selector);
        }
        self.image.apply_snapshot(&selector)?;
        let kept = self.model.take().map(|model| model.snapshots);
        self.model = kept
            .and_then(|snapshots| Model::read(&self.image, true).map(|model| Model { snapshots, ..model }));
        Ok(())
    }

    fn resize(&mut self, size: u64) -> Result<()> {
        let size = size & !511;
        self.image.resize(size, &ResizeOptions { shrink: Shrink::Allow, ..ResizeOptions::default() })?;
        if let Some(model) = &mut self.model {
            model.window.truncate(size as usize);
            // What is new reads as zeroes.
            model.window.resize(self.image.size().min(WINDOW) as usize, 0);
        }
        Ok(())
    }

    fn reopen(&mut self) -> Result<()> {
        let nothing = Image::options().format(Format::Raw).open_storage(Arc::new(MemoryStorage::new()))?;
        std::mem::replace(&mut self.image, nothing).close()?;
        self.image = options(Access::ReadWrite, self.data).open_storage(self.storage.clone())?;
        Ok(())
    }
}

impl Model {
    /// Goes back to the first of the program's snapshots.
    fn applied(self) -> Option<Model> {
        let window = self.snapshots.first()?.clone();
        Some(Model { window, ..self })
    }
}
