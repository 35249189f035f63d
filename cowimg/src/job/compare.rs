//! Whether two images hold the same disk.
//!
//! Threads take portions of the disk in order. What both images are known to hold as zeroes is not read, nor is what
//! both have at the same place of the same file; what one of them knows to be zero is read from the other only. The
//! answer is that of a walk from the start: of all differences and failures the first one counts.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::chain::{Image, Layer, Look};
use crate::error::{Error, ErrorKind};
use crate::extent::{Extent, ExtentKind};
use crate::progress::Control;
use crate::range::ByteRange;
use crate::storage::PageBuffer;
use crate::zero_scan::is_zero;

/// The most that is compared as one portion, in bytes.
const PORTION: u64 = 2 << 20;
/// Bytes that are read at a time. The host's copies of a MiB take a tenth less time than those of a quarter of it; larger ones
/// take more again.
const STEP: u64 = 1 << 20;
/// Differences are told to the sector.
const SECTOR: usize = 512;

/// What counts as the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Strictness {
    /// What a guest reads; what one disk has past the end of the other must be zeroes.
    #[default]
    Content,
    /// Sizes, what a guest reads, and which ranges are data, zeroes, compressed or unallocated.
    Mapping,
}

/// How to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompareOptions {
    /// What counts as the same.
    pub strictness: Strictness,
    /// Threads that work at it, at least 1.
    pub threads: usize,
}

impl Default for CompareOptions {
    fn default() -> CompareOptions {
        CompareOptions { strictness: Strictness::default(), threads: super::default_threads() }
    }
}

/// The first difference between two images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Difference {
    /// The disks have different sizes, and that counts.
    Size,
    /// A guest reads something else.
    Content {
        /// Where on the disk, in bytes: the start of the first sector that differs.
        offset: u64,
    },
    /// A guest reads the same up to here, and what the images say of the range from here on differs.
    Mapping {
        /// Where on the disk, in bytes.
        offset: u64,
    },
}

/// What came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Comparison {
    /// The first difference; none when the images are the same.
    pub difference: Option<Difference>,
    /// The disks' sizes in bytes, the first image's first.
    pub sizes: [u64; 2],
}

/// One of the two images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The first one.
    First,
    /// The second one.
    Second,
}

/// What was being done when a comparison failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CompareStep {
    /// Looking at what an image says of a range.
    Mapping,
    /// Reading its bytes.
    Reading,
}

/// Why the images could not be compared to the end.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct CompareError {
    /// Which image failed.
    pub side: Side,
    /// At what.
    pub step: CompareStep,
    /// Where on the disk, in bytes. All before it is the same in both images.
    pub offset: u64,
    /// What went wrong.
    #[source]
    pub error: Error,
}

/// Compares what a guest sees in two images. A cancelled run fails with [`ErrorKind::Cancelled`]; nothing is changed by any.
pub fn compare(
    first: &Image,
    second: &Image,
    options: &CompareOptions,
    control: &Control<'_>,
) -> Result<Comparison, CompareError> {
    let sizes = [first.size(), second.size()];
    let answer = |difference| Comparison { difference, sizes };
    control.report(0, sizes[0].max(sizes[1]));
    if options.strictness == Strictness::Mapping && sizes[0] != sizes[1] {
        return Ok(answer(Some(Difference::Size)));
    }
    let run = Run {
        images: [Subject::new(first), Subject::new(second)],
        strictness: options.strictness,
        control,
        walk: Mutex::new(Walk::default()),
        finished: Mutex::new(Finished::default()),
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (1..options.threads).map(|_| scope.spawn(|| run.work())).collect();
        run.work();
        for worker in workers {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
    match run.walk.into_inner().unwrap_or_else(PoisonError::into_inner).first_event {
        None => Ok(answer(None)),
        Some((_, Event::Differs(difference))) => Ok(answer(Some(difference))),
        Some((_, Event::Failed(error))) => Err(error),
    }
}

/// An image, and which host files its layers are.
struct Subject<'a> {
    image: &'a Image,
    files: Vec<Option<(u64, u64)>>,
}

impl<'a> Subject<'a> {
    fn new(image: &'a Image) -> Subject<'a> {
        let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        // What is in the disk of another image has no place in the file.
        let in_file = |layer: &&Layer| layer.storage().host_file().is_some();
        let file_of = |layer: &Layer| Some(identity(layer.path()?.metadata().ok()?));
        let files =
            image.layers().iter().map(|layer| Some(layer).filter(in_file).and_then(file_of)).collect();
        Subject { image, files }
    }

    /// The file and the offset in it where the bytes of a data extent are.
    fn place(&self, extent: &Extent) -> Option<((u64, u64), u64)> {
        let stored = (extent.kind == ExtentKind::Data).then_some(extent.host).flatten()?;
        // Places count from where the image begins in its file.
        let start = self.image.layers().get(extent.depth)?.start();
        Some(((*self.files.get(extent.depth)?)?, start.checked_add(stored)?))
    }
}

/// What a portion asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Task {
    /// It is known to be the same.
    Nothing,
    /// Both images must be read.
    Both,
    /// This image must read as zeroes.
    Zero(Side),
}

#[derive(Debug, Clone, Copy)]
struct Portion {
    number: u64,
    range: ByteRange,
    task: Task,
}

#[derive(Debug)]
enum Event {
    Differs(Difference),
    Failed(CompareError),
}

/// How far portions have been handed out, and what ended the walk.
#[derive(Debug, Default)]
struct Walk {
    at: u64,
    next_number: u64,
    /// The last look at each image.
    looks: [Option<Look>; 2],
    /// The event with the lowest offset. Portions are handed out in order, so that none below it is missing.
    first_event: Option<(u64, Event)>,
}

impl Walk {
    fn note(&mut self, offset: u64, event: Event) {
        if self.first_event.as_ref().is_none_or(|(first, _)| offset < *first) {
            self.first_event = Some((offset, event));
        }
    }
}

/// Portions that are done; progress is told in their order.
#[derive(Debug, Default)]
struct Finished {
    next_number: u64,
    /// Ends of those that are done before their turn.
    waiting: BTreeMap<u64, u64>,
}

struct Run<'a> {
    images: [Subject<'a>; 2],
    strictness: Strictness,
    control: &'a Control<'a>,
    walk: Mutex<Walk>,
    finished: Mutex<Finished>,
}

impl Run<'_> {
    fn work(&self) {
        let mut bufs = [PageBuffer::new(STEP as usize), PageBuffer::new(STEP as usize)];
        while let Some(portion) = self.next_portion() {
            match self.examine(&portion, &mut bufs) {
                Ok(()) => self.tell_finished(&portion),
                Err((offset, event)) => self.lock_walk().note(offset, event),
            }
        }
    }

    fn lock_walk(&self) -> MutexGuard<'_, Walk> {
        self.walk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next portion, unless the end or an event has been reached.
    fn next_portion(&self) -> Option<Portion> {
        let mut walk = self.lock_walk();
        if walk.first_event.is_some() {
            return None;
        }
        let at = walk.at;
        match self.look(at, &mut walk.looks) {
            Ok(None) => None,
            Ok(Some((range, task))) => {
                let portion = Portion { number: walk.next_number, range, task };
                walk.next_number += 1;
                walk.at = range.end();
                Some(portion)
            }
            Err(event) => {
                walk.note(at, event);
                None
            }
        }
    }

    /// What is to be done from `at` on, and how far.
    fn look(&self, at: u64, kept: &mut [Option<Look>; 2]) -> Result<Option<(ByteRange, Task)>, Event> {
        self.control.check().map_err(|error| failed(Side::First, CompareStep::Reading, at, error))?;
        let sizes = [self.images[0].image.size(), self.images[1].image.size()];
        if at >= sizes[0].max(sizes[1]) {
            return Ok(None);
        }
        if at >= sizes[0].min(sizes[1]) {
            let longer = if sizes[0] > sizes[1] { Side::First } else { Side::Second };
            let look = self.look_at(longer, at, kept)?;
            let task = if look.extent.is_zero() { Task::Nothing } else { Task::Zero(longer) };
            return Ok(Some(portion(look.extent.range, task)));
        }
        let looks = [self.look_at(Side::First, at, kept)?, self.look_at(Side::Second, at, kept)?];
        if self.strictness == Strictness::Mapping && looks[0].kind(sizes[0]) != looks[1].kind(sizes[1]) {
            return Err(Event::Differs(Difference::Mapping { offset: at }));
        }
        let range = looks[0].extent.range.intersection(looks[1].extent.range);
        let task = match looks.map(|look| look.extent.is_zero()) {
            [true, true] => Task::Nothing,
            [true, false] => Task::Zero(Side::Second),
            [false, true] => Task::Zero(Side::First),
            [false, false] => Task::Both,
        };
        let (range, task) = portion(range, task);
        let places = [self.images[0].place(&looks[0].extent), self.images[1].place(&looks[1].extent)];
        let same_place = places[0].is_some() && places[0] == places[1];
        Ok(Some((range, if same_place { Task::Nothing } else { task })))
    }

    /// What the image says from `at` on. A look goes much further than a portion, and is not repeated for each; where mappings
    /// are compared it is, for the places where differences are told depend on where looks begin.
    fn look_at(&self, side: Side, at: u64, kept: &mut [Option<Look>; 2]) -> Result<Look, Event> {
        let image = self.image(side);
        let kept = match side {
            Side::First => &mut kept[0],
            Side::Second => &mut kept[1],
        };
        let known = kept.and_then(|look| look.rest_from(at));
        if let (Strictness::Content, Some(look)) = (self.strictness, known) {
            return Ok(look);
        }
        let look = image
            .look_at(at, image.size() - at)
            .map_err(|error| failed(side, CompareStep::Mapping, at, error))?;
        *kept = Some(look);
        Ok(look)
    }

    fn image(&self, side: Side) -> &Image {
        match side {
            Side::First => self.images[0].image,
            Side::Second => self.images[1].image,
        }
    }

    /// Does the work of a portion; the event that it comes to, and where.
    fn examine(&self, portion: &Portion, bufs: &mut [PageBuffer; 2]) -> Result<(), (u64, Event)> {
        if portion.task == Task::Nothing {
            return Ok(());
        }
        let mut at = portion.range.start();
        while at < portion.range.end() {
            let len = STEP.min(portion.range.end() - at) as usize;
            let [first, second] = &mut *bufs;
            let (first, second) = (&mut first[..len], &mut second[..len]);
            let difference = match portion.task {
                Task::Nothing => None,
                Task::Zero(side) => {
                    self.read(side, first, at)?;
                    first.chunks(SECTOR).position(|sector| !is_zero(sector))
                }
                Task::Both => {
                    self.read(Side::First, first, at)?;
                    self.read(Side::Second, second, at)?;
                    first_difference(first, second)
                }
            };
            if let Some(sector) = difference {
                let offset = at + (sector * SECTOR) as u64;
                return Err((offset, Event::Differs(Difference::Content { offset })));
            }
            at += len as u64;
        }
        Ok(())
    }

    fn read(&self, side: Side, buf: &mut [u8], at: u64) -> Result<(), (u64, Event)> {
        let read = self.image(side).read_at(buf, at);
        read.map_err(|error| (at, failed(side, CompareStep::Reading, at, error)))
    }

    fn tell_finished(&self, portion: &Portion) {
        if self.control.progress.is_none() {
            return;
        }
        let total = self.images[0].image.size().max(self.images[1].image.size());
        let mut finished = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
        finished.waiting.insert(portion.number, portion.range.end());
        loop {
            let next = finished.next_number;
            let Some(end) = finished.waiting.remove(&next) else { return };
            self.control.report(end, total);
            finished.next_number += 1;
        }
    }
}

/// A portion of `range`: only what is read has a limit.
fn portion(range: ByteRange, task: Task) -> (ByteRange, Task) {
    match task {
        Task::Nothing => (range, task),
        _ => (range.intersection(ByteRange::between(range.start(), range.start() + PORTION)), task),
    }
}

fn failed(side: Side, step: CompareStep, offset: u64, error: Error) -> Event {
    Event::Failed(CompareError { side, step, offset, error })
}

/// The first sector that differs.
fn first_difference(first: &[u8], second: &[u8]) -> Option<usize> {
    if first == second {
        return None;
    }
    first.chunks(SECTOR).zip(second.chunks(SECTOR)).position(|(first, second)| first != second)
}

impl CompareError {
    /// Whether the caller stopped the comparison.
    pub fn is_cancelled(&self) -> bool {
        matches!(self.error.kind(), ErrorKind::Cancelled)
    }
}
