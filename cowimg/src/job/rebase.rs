//! Putting another backing file below an image without a change to what it reads as.
//!
//! Where the image itself is silent, the old and the new chain are compared: first by what they know without reading
//! (the same layer answers in both, or both read as zeroes), then byte by byte. What differs is written to the image,
//! as the old chain has it. Only when all of that is durable does the header name the new backing file.

use std::sync::atomic::{AtomicU64, Ordering};

use super::convert::Compression;
use super::in_turn::Workers;
use crate::chain::{Image, Layer, Verification};
use crate::error::{Error, Result};
use crate::extent::{Extent, ExtentKind};
use crate::format::qcow2::layout::BackingName;
use crate::progress::Control;
use crate::range::ByteRange;
use crate::storage::PageBuffer;
use crate::zero_scan::is_zero;

/// Bytes of a piece, or one cluster where that is more.
const PIECE: u64 = 1 << 20;

/// How to rebase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RebaseOptions {
    /// Whether what is written to the image is compressed.
    pub compression: Compression,
    /// Threads that read and compare, at least 1.
    pub threads: usize,
}

impl Default for RebaseOptions {
    fn default() -> RebaseOptions {
        RebaseOptions { compression: Compression::Off, threads: super::default_threads() }
    }
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct RebaseReport {
    /// Bytes of the disk in which the chains were compared by reading.
    pub compared_bytes: u64,
    /// Bytes of the disk that were written to the image.
    pub written_bytes: u64,
    /// Bytes of the disk that the image now says are zeroes.
    pub zero_bytes: u64,
}

/// The backing file that an image is to have.
#[derive(Debug, Clone, Copy)]
pub struct NewBacking<'a> {
    /// How it is called in the image; its format has to be stated.
    pub name: &'a BackingName,
    /// The file of that name, open for reading: see [`Image::open_backing`].
    pub image: &'a Image,
}

/// Stacks `image`, which is open for writing, on `backing`, or on nothing. It reads as before; it is closed, because what
/// was opened below it is no longer what it is stacked on.
///
/// Internal snapshots are not looked at: where they are silent they show the new backing file from then on.
///
/// Everything that can be refused is refused before the image changes. A run that is cancelled or fails leaves it on its
/// old backing file; it reads as before and may be larger.
pub fn rebase(
    image: Image,
    backing: Option<NewBacking<'_>>,
    options: &RebaseOptions,
    control: &Control<'_>,
) -> Result<RebaseReport> {
    let name = backing.map(|backing| backing.name);
    image.check_backing_name(name)?;
    if name.is_some_and(|name| name.format.is_none()) {
        return Err(Error::invalid("the format of the new backing file must be stated"));
    }
    if let Some(backing) = backing {
        image.refuse_loop(backing.image)?;
    }
    let run = Run::new(&image, backing.map(|backing| backing.image), options)?;
    control.report(0, image.size());
    run.work(options.threads, control)?;
    let report = run.report();
    image.flush()?;
    control.check()?;
    image.set_backing(name, Verification::Trust)?;
    image.close()?;
    Ok(report)
}

/// What is to be done with a part of a piece.
enum Action {
    /// Write the bytes as they are.
    Data,
    /// Say that it is zeroes, whatever is below.
    Mask,
    /// Write these compressed bytes of a cluster.
    Packed(Vec<u8>),
}

struct Run<'a> {
    image: &'a Image,
    new: Option<&'a Image>,
    compression: Compression,
    cluster_size: u64,
    /// The chains are compared in steps of this many bytes: what the image can hold without the bytes around it.
    unit: u64,
    /// For each layer of the new chain, the layer of the old one that is the same file.
    same_as: Vec<Option<usize>>,
    compared: AtomicU64,
    written: AtomicU64,
    zeroed: AtomicU64,
}

impl<'a> Run<'a> {
    fn new(image: &'a Image, new: Option<&'a Image>, options: &RebaseOptions) -> Result<Run<'a>> {
        let Some((cluster_size, subcluster_size)) = image.cluster_size().zip(image.subcluster_size()) else {
            return Err(Error::unsupported("a raw image cannot have a backing file"));
        };
        let unit = match options.compression {
            Compression::Off => subcluster_size,
            Compression::On => cluster_size,
        };
        let old = image.layers();
        let twin = |layer: &Layer| old.iter().position(|other| other.is_same_file(layer));
        Ok(Run {
            image,
            new,
            compression: options.compression,
            cluster_size,
            unit,
            same_as: new.map_or(Vec::new(), |new| new.layers().iter().map(twin).collect()),
            compared: AtomicU64::new(0),
            written: AtomicU64::new(0),
            zeroed: AtomicU64::new(0),
        })
    }

    fn report(&self) -> RebaseReport {
        RebaseReport {
            compared_bytes: self.compared.load(Ordering::Relaxed),
            written_bytes: self.written.load(Ordering::Relaxed),
            zero_bytes: self.zeroed.load(Ordering::Relaxed),
        }
    }

    fn work(&self, threads: usize, control: &Control<'_>) -> Result<()> {
        let mut at = 0;
        Workers::in_order(threads).work(
            control,
            || self.next_piece(&mut at),
            |piece, buf| self.compare(*piece, buf),
            |piece, actions, buf| {
                self.carry_out(*piece, actions, buf)?;
                control.report(piece.end(), self.image.size());
                Ok(())
            },
        )
    }

    /// The next whole units from `at` on in which the chains may differ and the image is silent.
    fn next_piece(&self, at: &mut u64) -> Result<Option<ByteRange>> {
        let size = self.image.size();
        let step = PIECE.max(self.cluster_size);
        let mut piece: Option<ByteRange> = None;
        while *at < size {
            let old = self.image.extent_at(*at, size - *at)?;
            let is_own = old.depth == 0 && old.kind != ExtentKind::Unallocated;
            let (differs, end) = if is_own { (false, old.range.end()) } else { self.may_differ(&old)? };
            match piece {
                Some(piece) if !differs => return Ok(Some(piece)),
                None if !differs => *at = end,
                _ => {
                    let start = piece.map_or(*at - *at % self.unit, ByteRange::start);
                    let whole = end.next_multiple_of(self.unit).min((start / step + 1) * step).min(size);
                    *at = whole;
                    let grown = ByteRange::between(start, whole);
                    if whole.is_multiple_of(step) {
                        return Ok(Some(grown));
                    }
                    piece = Some(grown);
                }
            }
        }
        Ok(piece)
    }

    /// Whether the new chain may read otherwise where `old` starts, and up to where that is the answer.
    fn may_differ(&self, old: &Extent) -> Result<(bool, u64)> {
        let (start, end) = (old.range.start(), old.range.end());
        let new_size = self.new.map_or(0, Image::size);
        let Some(new) = self.new.filter(|_| start < new_size) else { return Ok((!old.is_zero(), end)) };
        let new = new.extent_at(start, end - start)?;
        let end = end.min(new.range.end());
        let both_zero = old.is_zero() && new.is_zero();
        let one_layer = self.same_as.get(new.depth).copied().flatten() == Some(old.depth);
        let alike = both_zero || (one_layer && old.kind == new.kind);
        Ok((!alike, end))
    }

    /// Reads what a piece is in both chains, the old one into the first half of `buf`; what is to be done, by ranges of `buf`.
    fn compare(
        &self,
        piece: ByteRange,
        buf: &mut PageBuffer,
    ) -> Result<Vec<(std::ops::Range<usize>, Action)>> {
        let len = piece.len() as usize;
        buf.resize(2 * len);
        let (old, new) = buf.split_at_mut(len);
        self.image.read_at(old, piece.start())?;
        let size = self.new.map_or(0, Image::size);
        let (below, past_end) =
            new.split_at_mut(size.saturating_sub(piece.start()).min(piece.len()) as usize);
        if let (Some(image), false) = (self.new, below.is_empty()) {
            image.read_at(below, piece.start())?;
        }
        past_end.fill(0);
        self.compared.fetch_add(piece.len(), Ordering::Relaxed);
        let mut actions: Vec<(std::ops::Range<usize>, Action)> = Vec::new();
        let mut at = 0;
        while at < len {
            let end = (at + self.unit as usize).min(len);
            let (old, new) = (&old[at..end], &new[at..end]);
            if old != new {
                let action = self.action_for(old)?;
                match (actions.last_mut(), &action) {
                    (Some((range, Action::Data)), Action::Data)
                    | (Some((range, Action::Mask)), Action::Mask)
                        if range.end == at =>
                    {
                        range.end = end;
                    }
                    _ => actions.push((at..end, action)),
                }
            }
            at = end;
        }
        Ok(actions)
    }

    /// How a unit that reads as `old` is brought into the image.
    fn action_for(&self, old: &[u8]) -> Result<Action> {
        if is_zero(old) {
            return Ok(Action::Mask);
        }
        let packed = match self.compression {
            Compression::On => self.image.pack(old)?,
            Compression::Off => None,
        };
        Ok(packed.map_or(Action::Data, Action::Packed))
    }

    fn carry_out(
        &self,
        piece: ByteRange,
        actions: Vec<(std::ops::Range<usize>, Action)>,
        buf: &[u8],
    ) -> Result<()> {
        for (range, action) in actions {
            let at = piece.start() + range.start as u64;
            let len = range.len() as u64;
            match action {
                Action::Mask => {
                    self.image.mask(ByteRange::between(at, at + len))?;
                    self.zeroed.fetch_add(len, Ordering::Relaxed);
                    continue;
                }
                Action::Data => self.image.write_at(&buf[range], at)?,
                Action::Packed(bytes) => self.image.write_compressed(&bytes, at)?,
            }
            self.written.fetch_add(len, Ordering::Relaxed);
        }
        Ok(())
    }
}
