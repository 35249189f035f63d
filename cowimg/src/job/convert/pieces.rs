//! The source cut into pieces, in order.

use super::way::{Way, Ways};
use super::{ConvertOptions, Part, ReadErrors, TargetContent};
use crate::chain::{Image, Look};
use crate::error::Result;
use crate::extent::ExtentKind;
use crate::range::ByteRange;

/// Bytes that a thread takes at a time, or one cluster where that is more. Each piece costs the taking of space, the handing
/// over of its buffer and a look at the source; larger ones gain nothing more.
const PIECE: u64 = 2 << 20;
/// The same of what is compressed, which takes so long that those costs do not show, and of a raw target. There pieces lie in
/// the file as on the disk: for one of 2 MiB at a multiple of that the host may look for memory of 2 MiB in a row, which a virtual
/// machine has given back to its own host. Measured in one, that takes up to 1.1 s for a GiB, and 0.33 s otherwise.
const SMALL_PIECE: u64 = 1 << 20;
/// The same where the host copies or shares: that is one call for what lies in a row, and takes no memory.
const HOST_PIECE: u64 = 64 << 20;
/// Bytes of data between two reports of progress, as qemu-img has them.
const REPORTED: u64 = 2 << 20;
/// How far a source is taken for data where it cannot say what it has.
const UNKNOWN: u64 = 64 << 10;

/// What is to be done with a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// It is read and written.
    Copy,
    /// It is zeroes.
    Zero,
    /// The target has it through its backing file.
    Leave,
}

/// Where the bytes of a piece are stored as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Which part of the source.
    pub(super) part: usize,
    /// Which layer of it.
    pub(super) depth: usize,
    /// File offset of the first byte, in bytes.
    pub(super) host: u64,
}

/// A piece of the source.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece<'a> {
    /// Where, in bytes from the start of the first part.
    pub(super) range: ByteRange,
    pub(super) action: Action,
    /// How its data comes into the target.
    pub(super) way: Way<'a>,
}

/// A range of the source of which one thing is known.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    range: ByteRange,
    action: Action,
    place: Option<Place>,
}

impl Stretch {
    fn starting_at(self, start: u64) -> Stretch {
        let skipped = start - self.range.start();
        let place = self.place.map(|place| Place { host: place.host + skipped, ..place });
        Stretch { range: ByteRange::between(start, self.range.end()), place, ..self }
    }
}

/// The pieces of the source that are still to be done, in order.
#[derive(Debug)]
pub(super) struct Pieces<'a> {
    parts: &'a [Part<'a>],
    /// The part that comes next, and where it starts in the target.
    part: usize,
    part_start: u64,
    at: u64,
    /// What is left of the stretch that was cut last.
    current: Option<Stretch>,
    /// Pieces start and end at multiples of this, as far as the source does.
    unit: u64,
    /// Data ends at multiples of this, where it is read and written here.
    step: u64,
    options: ConvertOptions,
    ways: Ways<'a>,
    progress: Reported,
}

/// How much work has been taken up, in the portions in which it is told.
#[derive(Debug, Default)]
struct Reported {
    portion_end: u64,
    done: u64,
}

impl<'a> Pieces<'a> {
    /// All pieces of `parts`, on their way into `target`.
    pub(super) fn new(
        parts: &'a [Part<'a>],
        target: &'a Image,
        unit: u64,
        options: &ConvertOptions,
    ) -> Pieces<'a> {
        let is_small = unit > 1 || target.cluster_size().is_none();
        Pieces {
            parts,
            part: 0,
            part_start: 0,
            at: 0,
            current: None,
            unit,
            step: if is_small { SMALL_PIECE.max(unit) } else { PIECE },
            options: *options,
            ways: Ways::new(parts, target, options),
            progress: Reported::default(),
        }
    }

    /// The next piece. Zeroes come as far as they go, data in steps. `tell` hears how many bytes of work have been taken up,
    /// each time that a portion is begun.
    pub(super) fn next(&mut self, tell: &mut dyn FnMut(u64)) -> Result<Option<Piece<'a>>> {
        let unit = self.unit;
        let Some(first) = self.next_stretch()? else { return Ok(None) };
        let start = first.range.start();
        let whole_end = first.range.end() / unit * unit;
        let alone = first.action != Action::Copy && whole_end > start;
        let way = first.place.map_or(Way::Here, |place| self.ways.of(place, start));
        let is_paced = self.options.rate.is_some();
        let step = match way {
            Way::Host(_) | Way::Shared(_) if !is_paced => HOST_PIECE,
            _ => self.step,
        };
        let wanted = if alone {
            whole_end
        } else {
            first.range.end().next_multiple_of(unit).min((start / step + 1) * step)
        };
        // A unit that holds parts of several stretches is data, whatever they are.
        let mut last = first;
        while last.range.end() < wanted {
            match self.next_stretch()? {
                Some(stretch) => last = stretch,
                None => break,
            }
        }
        let end = wanted.min(last.range.end());
        if end < last.range.end() {
            self.current = Some(last.starting_at(end));
        }
        let action = if alone { first.action } else { Action::Copy };
        let range = ByteRange::between(start, end);
        self.count(range, action, first.range.end(), tell);
        Ok(Some(Piece { range, action, way }))
    }

    /// Counts the work of a piece, which is data or is written as if it were.
    fn count(&mut self, range: ByteRange, action: Action, stretch_end: u64, tell: &mut dyn FnMut(u64)) {
        let is_work = match action {
            Action::Copy => true,
            Action::Zero => self.options.sparse_size == 0,
            Action::Leave => false,
        };
        let portion = if self.unit > 1 { self.unit } else { REPORTED };
        while is_work && self.progress.portion_end < range.end() {
            let start = self.progress.portion_end.max(range.start());
            let most = if self.unit > 1 { range.end() } else { stretch_end.max(range.end()) };
            let end = (start + portion).min(most);
            self.progress.portion_end = end;
            self.progress.done += end - start;
            tell(self.progress.done);
        }
    }

    fn next_stretch(&mut self) -> Result<Option<Stretch>> {
        if let Some(rest) = self.current.take() {
            return Ok(Some(rest));
        }
        while let Some(part) = self.parts.get(self.part) {
            let in_part = self.at - self.part_start;
            if in_part >= part.range.len() {
                self.part_start += part.range.len();
                self.part += 1;
                continue;
            }
            let stretch =
                self.stretch(part, ByteRange::between(part.range.start() + in_part, part.range.end()))?;
            self.at = stretch.range.end();
            return Ok(Some(stretch));
        }
        Ok(None)
    }

    /// What the source says of the start of `wanted`, a range of the part's image.
    fn stretch(&self, part: &Part<'a>, wanted: ByteRange) -> Result<Stretch> {
        let in_target = |len| ByteRange::between(self.at, self.at + len);
        let look = match part.image.look_at(wanted.start(), wanted.len()) {
            Ok(look) => look,
            Err(error) if self.options.read_errors == ReadErrors::Fail => return Err(error),
            Err(_) => {
                // Reading will tell.
                let len = (UNKNOWN - wanted.start() % UNKNOWN).min(wanted.len());
                return Ok(Stretch { range: in_target(len), action: Action::Copy, place: None });
            }
        };
        let range = without_tail(look.extent.range, part.image.cluster_size());
        let stored = (look.extent.kind == ExtentKind::Data).then_some(look.extent.host).flatten();
        let place = stored.map(|host| Place { part: self.part, depth: look.extent.depth, host });
        let action = self.action(part, &look);
        Ok(Stretch { range: in_target(range.len()), action, place })
    }

    fn action(&self, part: &Part<'_>, look: &Look) -> Action {
        let layers = part.image.layers().len();
        let is_below = look.extent.depth > 0;
        match self.options.target_content {
            TargetContent::SameBacking if is_below && layers > 1 => Action::Leave,
            _ if look.extent.is_zero() => Action::Zero,
            _ => Action::Copy,
        }
    }
}

/// A range that ends within a cluster is cut at the boundary before it, if it has one: the rest of the cluster comes whole.
fn without_tail(range: ByteRange, cluster_size: Option<u64>) -> ByteRange {
    let tail = range.end() % cluster_size.unwrap_or(1);
    if range.len() > tail { ByteRange::between(range.start(), range.end() - tail) } else { range }
}
