//! The layers below an image as one disk, whose reads cost the same however many layers there are.
//!
//! A read that goes from layer to layer asks each of them in turn. Here the layers are asked once per *page* of the disk: the
//! page remembers for each of its granules which layer answers first, and where its bytes are in a file; a read goes there at
//! once, without a look into that layer's tables. What a granule holds of several layers, what is compressed or encrypted, and
//! what cannot be read at its place is left to the topmost layer that answers, which does its work in the ordinary way; so a
//! page is a short cut, and never the only one to know something.
//!
//! Extents are told in the same way where they are short. One that goes on beyond its page is walked to, so that a large disk
//! with little in it has no pages.
//!
//! Nobody writes to these layers while they are open, so that a page is good for as long as the chain. A page that cannot be
//! made, for damage in one of the layers, is not there: the layers are asked in turn, and the damage matters to whoever
//! comes upon it.

use std::sync::{Arc, PoisonError, RwLock};

use foldhash::HashMap;

use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::extent::Extent;
use crate::range::ByteRange;
use crate::storage::{Storage, StorageExt};

/// Layers below which walking from one to the next is as quick.
const FEW: usize = 3;
/// Granules of a page.
const PAGE: u64 = 512;
/// The least size of a granule, in bytes.
const SMALLEST: u64 = 4096;
/// The most pages that are kept, 4 KiB each: all of a disk of 256 GiB with clusters of 64 KiB. What lies outside of them is read
/// from layer to layer.
const MOST_PAGES: usize = 8192;

/// Who answers for each granule of a page.
type Page = [Answer; PAGE as usize];

/// The layer that answers for a granule, and where all of its bytes are in that layer's plain storage, if they are: one word of
/// 16 bits for the layer and 48 for the place, in sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Answer(u64);

impl Answer {
    const SECTOR: u64 = 512;
    const NOWHERE: u64 = (1 << 48) - 1;

    /// A place that cannot be told in this form is none.
    fn new(layer: u16, stored: Option<u64>) -> Answer {
        let sector = stored.filter(|place| place % Self::SECTOR == 0).map(|place| place / Self::SECTOR);
        Answer(
            u64::from(layer) << 48 | sector.filter(|&sector| sector < Self::NOWHERE).unwrap_or(Self::NOWHERE),
        )
    }

    fn layer(self) -> usize {
        (self.0 >> 48) as usize
    }

    fn stored(self) -> Option<u64> {
        let sector = self.0 & Self::NOWHERE;
        (sector != Self::NOWHERE).then_some(sector * Self::SECTOR)
    }
}

/// How a read goes on from a place of the disk.
struct Way {
    layer: usize,
    /// Where the bytes are in that layer's plain storage, if they are there in one piece.
    stored: Option<u64>,
    /// The offset on the disk up to which all that holds.
    end: u64,
}

/// The layers, from the top; each has the next one as its backing disk.
#[derive(Debug)]
pub(super) struct MergedDisk {
    layers: Vec<Arc<dyn Disk>>,
    /// The layers' plain storages.
    storages: Vec<Option<Arc<dyn Storage>>>,
    granule: u64,
    pages: RwLock<HashMap<u64, Box<Page>>>,
}

/// The disk that `layers` are, which are stacked on one another already; `unit` is the least size of their clusters in
/// bytes. None without layers.
pub(super) fn merged(layers: Vec<Arc<dyn Disk>>, unit: u64) -> Option<Arc<dyn Disk>> {
    if layers.len() < FEW || layers.len() > usize::from(u16::MAX) {
        return layers.into_iter().next();
    }
    let storages = layers.iter().map(|layer| layer.plain_storage()).collect();
    Some(Arc::new(MergedDisk { layers, storages, granule: unit.max(SMALLEST), pages: RwLock::default() }))
}

impl MergedDisk {
    fn top(&self) -> &dyn Disk {
        &*self.layers[0]
    }

    /// The guest bytes of a page.
    fn page_size(&self) -> u64 {
        PAGE * self.granule
    }

    /// What `look` sees in the page of this number, unless nobody has asked for that before.
    fn known_page<T>(&self, number: u64, look: impl Fn(&Page) -> T) -> Option<T> {
        self.pages.read().unwrap_or_else(PoisonError::into_inner).get(&number).map(|page| look(page))
    }

    /// What `look` sees in the page of this number, unless there are too many or it cannot be made.
    fn page<T>(&self, number: u64, look: impl Fn(&Page) -> T) -> Option<T> {
        if let Some(seen) = self.known_page(number, &look) {
            return Some(seen);
        }
        if self.pages.read().unwrap_or_else(PoisonError::into_inner).len() >= MOST_PAGES {
            return None;
        }
        let page = Box::new(self.fold(number).ok()?);
        let seen = look(&page);
        self.pages.write().unwrap_or_else(PoisonError::into_inner).insert(number, page);
        Some(seen)
    }

    /// The layer that answers at `offset`, and where the granules in a row end that it answers for.
    fn owner(&self, page: &Page, offset: u64) -> (usize, u64) {
        let first = (offset % self.page_size() / self.granule) as usize;
        let layer = page[first].layer();
        let count = page[first..].iter().take_while(|answer| answer.layer() == layer).count() as u64;
        (layer, (offset / self.granule + count) * self.granule)
    }

    /// How `len` bytes are read from `offset` on, as far as they are in a row.
    fn way(&self, page: &Page, offset: u64, len: u64) -> Way {
        let first = (offset % self.page_size() / self.granule) as usize;
        let in_granule = offset % self.granule;
        let wanted = (in_granule + len).div_ceil(self.granule) as usize;
        let answer = page[first];
        let follows = |(nth, other): (usize, &Answer)| {
            let next = answer.stored().and_then(|stored| stored.checked_add(nth as u64 * self.granule));
            *other == Answer::new(answer.layer() as u16, next)
        };
        let count = 1 + page[first..]
            .iter()
            .take(wanted)
            .enumerate()
            .skip(1)
            .take_while(|&each| follows(each))
            .count();
        Way {
            layer: answer.layer(),
            stored: answer.stored().map(|stored| stored + in_granule),
            end: (offset / self.granule + count as u64) * self.granule,
        }
    }

    /// Reads the start of `buf`, and tells how many bytes of it: from their place, where it is known.
    fn read_start(&self, buf: &mut [u8], offset: u64, way: &Way) -> Result<usize> {
        let len = (way.end - offset).min(buf.len() as u64) as usize;
        let part = &mut buf[..len];
        if let (Some(storage), Some(stored)) = (&self.storages[way.layer], way.stored)
            && storage.read_padded_at(part, stored).is_ok()
        {
            return Ok(len);
        }
        // What is wrong there is the layer's to tell.
        self.layers[way.layer].read_at(part, offset)?;
        Ok(len)
    }

    /// Asks every layer who answers for the granules of a page.
    fn fold(&self, number: u64) -> Result<Page> {
        let start = number * self.page_size();
        let whole = ByteRange::between(start, self.size().min(start.saturating_add(self.page_size())));
        let granules = whole.len().div_ceil(self.granule) as usize;
        let lowest = self.layers.len() - 1;
        let mut answers: Vec<Option<Answer>> = vec![None; granules];
        for (depth, layer) in self.layers.iter().enumerate() {
            let size_below = self.layers.get(depth + 1).map_or(u64::MAX, |below| below.size());
            let mut nth = 0;
            while nth < granules {
                // The granules in a row that nobody has answered for.
                let undecided = answers[nth..].iter().take_while(|answer| answer.is_none()).count();
                let at = start + nth as u64 * self.granule;
                let rest = ByteRange::between(at, at + undecided as u64 * self.granule).intersection(whole);
                self.ask(&**layer, rest, (whole, depth as u16), &mut answers)?;
                nth += undecided.max(1);
            }
            for (nth, answer) in answers.iter_mut().enumerate().filter(|(_, answer)| answer.is_none()) {
                let end = whole.end().min(start + (nth as u64 + 1) * self.granule);
                // Where the layer below ends, this one says that there are zeroes.
                if depth == lowest || end > size_below {
                    *answer = Some(Answer::new(depth as u16, None));
                }
            }
        }
        let mut page = [Answer::new(lowest as u16, None); PAGE as usize];
        for (place, answer) in page.iter_mut().zip(answers) {
            *place = answer.unwrap_or(*place);
        }
        Ok(page)
    }

    /// Notes `depth` for each granule of `range`, which lies in the page of the bytes `whole`, in which `layer` answers for
    /// anything itself, and the place of those that it answers for all of.
    fn ask(
        &self,
        layer: &dyn Disk,
        range: ByteRange,
        (whole, depth): (ByteRange, u16),
        answers: &mut [Option<Answer>],
    ) -> Result<()> {
        let mut rest = range.intersection(ByteRange::between(0, layer.size()));
        while !rest.is_empty() {
            let part = layer.own_part(rest)?;
            let own = ByteRange::between(rest.start(), part.end);
            if part.answers {
                let first = (own.start() - whole.start()) / self.granule;
                let last = (own.end() - 1 - whole.start()) / self.granule;
                for nth in first..=last {
                    let start = whole.start() + nth * self.granule;
                    let granule = ByteRange::between(start, start + self.granule).intersection(whole);
                    let is_whole = granule.intersection(own) == granule;
                    let stored =
                        part.stored.filter(|_| is_whole).map(|stored| stored + (start - own.start()));
                    answers[nth as usize] = Some(Answer::new(depth, stored));
                }
            }
            rest = ByteRange::between(part.end, rest.end());
        }
        Ok(())
    }
}

impl Disk for MergedDisk {
    fn size(&self) -> u64 {
        self.top().size()
    }

    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        if offset.saturating_add(buf.len() as u64) > self.size() {
            return Err(Error::new(ErrorKind::OutOfBounds { size: self.size() }));
        }
        while !buf.is_empty() {
            let len = buf.len() as u64;
            let Some(way) = self.page(offset / self.page_size(), |page| self.way(page, offset, len)) else {
                return self.top().read_at(buf, offset);
            };
            let read = self.read_start(buf, offset, &way)?;
            offset += read as u64;
            buf = &mut buf[read..];
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64, max_len: u64) -> Result<Extent> {
        let number = offset / self.page_size();
        if let Some((owner, end)) = self.known_page(number, |page| self.owner(page, offset))
            && offset < self.size()
        {
            let extent = self.layers[owner].extent_at(offset, max_len.min(end - offset))?;
            return Ok(Extent { depth: extent.depth + owner, ..extent });
        }
        let extent = self.top().extent_at(offset, max_len)?;
        let page_end = number.saturating_add(1).saturating_mul(self.page_size());
        if extent.range.end() < page_end.min(self.size()) {
            // More of them are to be expected here: the page answers for those.
            self.page(number, |_| ());
        }
        Ok(extent)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::disk::OwnPart;
    use crate::extent::ExtentKind;
    use crate::storage::{Fault, FaultyStorage, MemoryStorage};

    const SECTOR: u64 = 512;

    /// Sectors of a fake disk that are in one piece where they are stored; the next ones are elsewhere.
    const PIECE: usize = 16;

    /// A disk that answers for some sectors and leaves the others to the one below it.
    #[derive(Debug)]
    struct Fake {
        own: Vec<Option<u8>>,
        below: Option<Arc<dyn Disk>>,
        is_plain: bool,
    }

    impl Fake {
        /// Where a sector of a plain disk is stored.
        fn place(sector: usize) -> usize {
            (1 + sector + sector / PIECE * 3) * SECTOR as usize
        }
    }

    impl Disk for Fake {
        fn size(&self) -> u64 {
            self.own.len() as u64 * SECTOR
        }

        fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
            for (at, byte) in (offset..).zip(buf) {
                let below = self.below.as_ref().filter(|below| at < below.size());
                *byte = match (self.own[(at / SECTOR) as usize], below) {
                    (Some(own), _) => own,
                    (None, None) => 0,
                    (None, Some(below)) => {
                        let mut one = [0];
                        below.read_at(&mut one, at)?;
                        one[0]
                    }
                };
            }
            Ok(())
        }

        fn own_part(&self, range: ByteRange) -> Result<OwnPart> {
            let first = (range.start() / SECTOR) as usize;
            let answers = self.own[first].is_some();
            let stored = self.is_plain && answers;
            let most = if stored { PIECE - first % PIECE } else { usize::MAX };
            let alike =
                self.own[first..].iter().take(most).take_while(|own| own.is_some() == answers).count();
            Ok(OwnPart {
                answers,
                end: ((first + alike) as u64 * SECTOR).min(range.end()),
                stored: stored.then_some(Fake::place(first) as u64 + range.start() % SECTOR),
            })
        }

        fn plain_storage(&self) -> Option<Arc<dyn Storage>> {
            let mut bytes = vec![0xee; Fake::place(self.own.len())];
            for (sector, own) in self.own.iter().enumerate() {
                bytes[Fake::place(sector)..][..SECTOR as usize].fill(own.unwrap_or(0xee));
            }
            self.is_plain.then(|| -> Arc<dyn Storage> { Arc::new(MemoryStorage::with_bytes(bytes)) })
        }

        fn extent_at(&self, offset: u64, max_len: u64) -> Result<Extent> {
            let range = ByteRange::between(offset, self.size().min(offset + max_len));
            let OwnPart { answers, end, .. } = self.own_part(range)?;
            let range = ByteRange::between(offset, end);
            let covered = self.below.as_ref().map_or(0, |below| below.size());
            match &self.below {
                Some(below) if !answers && offset < covered => {
                    let extent = below.extent_at(offset, range.len().min(covered - offset))?;
                    Ok(Extent { depth: extent.depth + 1, ..extent })
                }
                _ => Ok(Extent {
                    range,
                    kind: if answers { ExtentKind::Data } else { ExtentKind::Unallocated },
                    depth: 0,
                    host: answers.then_some(offset),
                    reads_zero: false,
                }),
            }
        }
    }

    /// All extents, those that touch and are alike as one.
    fn extents(disk: &dyn Disk, longest: u64) -> Vec<Extent> {
        let mut found: Vec<Extent> = Vec::new();
        let mut at = 0;
        while at < disk.size() {
            let extent = disk.extent_at(at, longest.min(disk.size() - at)).unwrap();
            assert_eq!(extent.range.start(), at);
            at = extent.range.end();
            match found.last().and_then(|last| last.merged_with(&extent)) {
                Some(merged) => *found.last_mut().unwrap() = merged,
                None => found.push(extent),
            }
        }
        found
    }

    fn sectors() -> impl Strategy<Value = Vec<Option<u8>>> {
        let run = (prop_oneof![2 => Just(None), 1 => (1..=255_u8).prop_map(Some)], 1..40_usize);
        prop::collection::vec(run, 1..8).prop_map(|runs| {
            runs.into_iter().flat_map(|(own, count)| std::iter::repeat_n(own, count)).collect()
        })
    }

    proptest! {
        /// Layers of all sizes, with holes anywhere, and granules that hold parts of several of them.
        #[test]
        fn it_reads_as_the_layers_do_one_after_the_other(
            from_below in prop::collection::vec((sectors(), any::<bool>()), FEW..8),
            granule in prop_oneof![Just(4096_u64), Just(8192)],
            reads in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..20),
        ) {
            let mut layers: Vec<Arc<dyn Disk>> = Vec::new();
            for (own, is_plain) in from_below {
                layers.insert(0, Arc::new(Fake { own, below: layers.first().cloned(), is_plain }));
            }
            let plain = Arc::clone(&layers[0]);
            let merged = merged(layers, granule).unwrap();
            let size = plain.size();
            prop_assert_eq!(merged.size(), size);
            for (start, end) in reads {
                let (a, b) = (start.index(size as usize + 1), end.index(size as usize + 1));
                let (start, end) = (a.min(b), a.max(b));
                let (mut expected, mut got) = (vec![0; end - start], vec![1; end - start]);
                plain.read_at(&mut expected, start as u64).unwrap();
                merged.read_at(&mut got, start as u64).unwrap();
                prop_assert_eq!(got, expected);
            }
            prop_assert!(merged.read_at(&mut [0], size).is_err());
            prop_assert_eq!(extents(&*merged, 40 * SECTOR), extents(&*plain, 40 * SECTOR));
        }

        /// The same before anything was read, when pages are not there yet.
        #[test]
        fn its_extents_are_those_of_the_layers(
            from_below in prop::collection::vec((sectors(), any::<bool>()), FEW..8),
        ) {
            let mut layers: Vec<Arc<dyn Disk>> = Vec::new();
            for (own, is_plain) in from_below {
                layers.insert(0, Arc::new(Fake { own, below: layers.first().cloned(), is_plain }));
            }
            let plain = Arc::clone(&layers[0]);
            let merged = merged(layers, SMALLEST).unwrap();
            prop_assert_eq!(extents(&*merged, u64::MAX / 2), extents(&*plain, u64::MAX / 2));
        }
    }

    /// A disk that answers for nothing, and fails when it is asked.
    #[derive(Debug)]
    struct Broken(u64);

    impl Disk for Broken {
        fn size(&self) -> u64 {
            self.0
        }

        fn read_at(&self, _: &mut [u8], _: u64) -> Result<()> {
            Err(Error::invalid("broken"))
        }

        fn own_part(&self, _: ByteRange) -> Result<OwnPart> {
            Err(Error::invalid("broken"))
        }

        fn extent_at(&self, _: u64, _: u64) -> Result<Extent> {
            Err(Error::invalid("broken"))
        }
    }

    #[test]
    fn a_broken_layer_fails_reads_of_what_is_below_it_alone() {
        let broken: Arc<dyn Disk> = Arc::new(Broken(16 * SECTOR));
        let mut layers = vec![broken];
        for own in [Some(2), Some(1)] {
            let own = [vec![None; 8], vec![own; 8]].concat();
            layers.insert(0, Arc::new(Fake { own, below: layers.first().cloned(), is_plain: false }));
        }
        let merged = merged(layers, SMALLEST).unwrap();
        let mut byte = [0];
        merged.read_at(&mut byte, 8 * SECTOR).unwrap();
        assert_eq!(byte, [1]);
        assert_eq!(merged.extent_at(8 * SECTOR, SECTOR).unwrap().depth, 0);
        assert!(merged.read_at(&mut byte, 0).is_err());
    }

    /// A disk of ones whose bytes are said to be in `storage`, so that it need not be asked for them.
    #[derive(Debug)]
    struct Known {
        storage: Arc<dyn Storage>,
        reads: std::sync::atomic::AtomicUsize,
    }

    impl Disk for Known {
        fn size(&self) -> u64 {
            1 << 20
        }

        fn read_at(&self, buf: &mut [u8], _: u64) -> Result<()> {
            self.reads.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            buf.fill(1);
            Ok(())
        }

        fn own_part(&self, range: ByteRange) -> Result<OwnPart> {
            Ok(OwnPart { answers: true, end: range.end(), stored: Some(range.start()) })
        }

        fn plain_storage(&self) -> Option<Arc<dyn Storage>> {
            Some(Arc::clone(&self.storage))
        }

        fn extent_at(&self, _: u64, _: u64) -> Result<Extent> {
            Err(Error::invalid("nobody asks"))
        }
    }

    /// How often a layer was asked to read from offsets that are anywhere in a cluster.
    fn reads_of(storage: Arc<dyn Storage>) -> usize {
        let known = Arc::new(Known { storage, reads: 0.into() });
        let mut layers: Vec<Arc<dyn Disk>> = vec![Arc::clone(&known) as Arc<dyn Disk>];
        for _ in 0..2 {
            let own = vec![None; (1 << 20) / SECTOR as usize];
            layers.insert(0, Arc::new(Fake { own, below: layers.first().cloned(), is_plain: true }));
        }
        let merged = merged(layers, 1 << 16).unwrap();
        for (offset, len) in [(0, 4096), (5000, 7), (65000, 200_000), ((1 << 20) - 1, 1)] {
            let mut bytes = vec![0; len];
            merged.read_at(&mut bytes, offset).unwrap();
            assert!(bytes.iter().all(|&byte| byte == 1));
        }
        known.reads.load(std::sync::atomic::Ordering::Relaxed)
    }

    #[test]
    fn bytes_are_read_where_they_are_and_the_layer_is_asked_when_that_fails() {
        assert_eq!(reads_of(Arc::new(MemoryStorage::with_bytes(vec![1; 1 << 20]))), 0);
        let broken = FaultyStorage::new(MemoryStorage::with_bytes(vec![2; 1 << 20]));
        broken.inject(Fault::error(std::io::ErrorKind::Other).forever());
        assert_eq!(reads_of(Arc::new(broken)), 4);
    }

    #[test]
    fn a_place_that_cannot_be_told_is_none() {
        for (place, told) in
            [(0, true), (512, true), (513, false), ((1 << 57) - 1024, true), ((1 << 57) - 512, false)]
        {
            let answer = Answer::new(7, Some(place));
            assert_eq!((answer.layer(), answer.stored()), (7, told.then_some(place)));
        }
        assert_eq!(Answer::new(u16::MAX, None).layer(), usize::from(u16::MAX));
        assert_eq!(Answer::new(0, Some(u64::MAX)).stored(), None);
    }

    #[test]
    fn a_few_layers_are_walked() {
        let layer =
            || -> Arc<dyn Disk> { Arc::new(Fake { own: vec![Some(1)], below: None, is_plain: false }) };
        assert!(merged(Vec::new(), SMALLEST).is_none());
        let one = layer();
        let same = merged(vec![Arc::clone(&one), layer()], SMALLEST).unwrap();
        assert!(Arc::ptr_eq(&one, &same));
    }
}
