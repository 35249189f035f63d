//! The layers below an image as one disk, whose reads cost the same however many layers there are.
//!
//! A read that goes from layer to layer asks each of them in turn. Here the layers are asked once per *page* of the disk: the
//! page remembers for each of its granules which layer answers first, and a read goes there at once. What a granule
//! holds of several layers is left to the topmost of them, which asks those below it in the ordinary way; so a page is a
//! short cut, and never the only one to know something.
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

/// Layers below which walking from one to the next is as quick.
const FEW: usize = 3;
/// Granules of a page.
const PAGE: u64 = 512;
/// The least size of a granule, in bytes.
const SMALLEST: u64 = 4096;
/// The most pages that are kept, 1 KiB each. What lies outside of them is read from layer to layer.
const MOST_PAGES: usize = 16384;

/// For each granule of a page the layer that answers.
type Page = [u16; PAGE as usize];

/// The layers, from the top; each has the next one as its backing disk.
#[derive(Debug)]
pub(super) struct MergedDisk {
    layers: Vec<Arc<dyn Disk>>,
    granule: u64,
    pages: RwLock<HashMap<u64, Arc<Page>>>,
}

/// The disk that `layers` are, which are stacked on one another already; `unit` is the least size of their clusters in
/// bytes. None without layers.
pub(super) fn merged(layers: Vec<Arc<dyn Disk>>, unit: u64) -> Option<Arc<dyn Disk>> {
    if layers.len() < FEW || layers.len() > usize::from(u16::MAX) {
        return layers.into_iter().next();
    }
    Some(Arc::new(MergedDisk { layers, granule: unit.max(SMALLEST), pages: RwLock::default() }))
}

impl MergedDisk {
    fn top(&self) -> &dyn Disk {
        &*self.layers[0]
    }

    /// The guest bytes of a page.
    fn page_size(&self) -> u64 {
        PAGE * self.granule
    }

    /// The page of this number, unless nobody has asked for it before.
    fn known_page(&self, number: u64) -> Option<Arc<Page>> {
        self.pages.read().unwrap_or_else(PoisonError::into_inner).get(&number).map(Arc::clone)
    }

    /// The page of this number, unless there are too many or it cannot be made.
    fn page(&self, number: u64) -> Option<Arc<Page>> {
        if let Some(page) = self.known_page(number) {
            return Some(page);
        }
        if self.pages.read().unwrap_or_else(PoisonError::into_inner).len() >= MOST_PAGES {
            return None;
        }
        let page = Arc::new(self.fold(number).ok()?);
        self.pages.write().unwrap_or_else(PoisonError::into_inner).insert(number, Arc::clone(&page));
        Some(page)
    }

    /// The layer that answers at `offset`, and where the granules in a row end that it answers for.
    fn owner(&self, page: &Page, offset: u64) -> (usize, u64) {
        let first = (offset % self.page_size() / self.granule) as usize;
        let owner = page[first];
        let count = page[first..].iter().take_while(|&&other| other == owner).count() as u64;
        (usize::from(owner), (offset / self.granule + count) * self.granule)
    }

    /// Asks every layer who answers for the granules of a page.
    fn fold(&self, number: u64) -> Result<Page> {
        let start = number * self.page_size();
        let whole = ByteRange::between(start, self.size().min(start.saturating_add(self.page_size())));
        let granules = whole.len().div_ceil(self.granule) as usize;
        let lowest = self.layers.len() - 1;
        let mut owners: Vec<Option<u16>> = vec![None; granules];
        for (depth, layer) in self.layers.iter().enumerate() {
            let size_below = self.layers.get(depth + 1).map_or(u64::MAX, |below| below.size());
            let mut nth = 0;
            while nth < granules {
                // The granules in a row that nobody has answered for.
                let undecided = owners[nth..].iter().take_while(|owner| owner.is_none()).count();
                let at = start + nth as u64 * self.granule;
                let rest = ByteRange::between(at, at + undecided as u64 * self.granule).intersection(whole);
                self.ask(&**layer, rest, (start, depth as u16), &mut owners)?;
                nth += undecided.max(1);
            }
            for (nth, owner) in owners.iter_mut().enumerate().filter(|(_, owner)| owner.is_none()) {
                let end = whole.end().min(start + (nth as u64 + 1) * self.granule);
                // Where the layer below ends, this one says that there are zeroes.
                if depth == lowest || end > size_below {
                    *owner = Some(depth as u16);
                }
            }
        }
        let mut page = [lowest as u16; PAGE as usize];
        for (place, owner) in page.iter_mut().zip(owners) {
            *place = owner.unwrap_or(*place);
        }
        Ok(page)
    }

    /// Notes `depth` for each granule of `range` in which `layer` answers for anything itself.
    fn ask(
        &self,
        layer: &dyn Disk,
        range: ByteRange,
        (start, depth): (u64, u16),
        owners: &mut [Option<u16>],
    ) -> Result<()> {
        let mut rest = range.intersection(ByteRange::between(0, layer.size()));
        while !rest.is_empty() {
            let (answers, end) = layer.own_part(rest)?;
            if answers {
                let first = (rest.start() - start) / self.granule;
                let last = (end - 1 - start) / self.granule;
                owners[first as usize..=last as usize].fill(Some(depth));
            }
            rest = ByteRange::between(end, rest.end());
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
            let Some(page) = self.page(offset / self.page_size()) else {
                return self.top().read_at(buf, offset);
            };
            let (owner, end) = self.owner(&page, offset);
            let len = (end - offset).min(buf.len() as u64);
            let (part, rest) = buf.split_at_mut(len as usize);
            self.layers[owner].read_at(part, offset)?;
            offset += len;
            buf = rest;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64, max_len: u64) -> Result<Extent> {
        let number = offset / self.page_size();
        if let Some(page) = self.known_page(number).filter(|_| offset < self.size()) {
            let (owner, end) = self.owner(&page, offset);
            let extent = self.layers[owner].extent_at(offset, max_len.min(end - offset))?;
            return Ok(Extent { depth: extent.depth + owner, ..extent });
        }
        let extent = self.top().extent_at(offset, max_len)?;
        let page_end = number.saturating_add(1).saturating_mul(self.page_size());
        if extent.range.end() < page_end.min(self.size()) {
            // More of them are to be expected here: the page answers for those.
            self.page(number);
        }
        Ok(extent)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::extent::ExtentKind;

    const SECTOR: u64 = 512;

    /// A disk that answers for some sectors and leaves the others to the one below it.
    #[derive(Debug)]
    struct Fake {
        own: Vec<Option<u8>>,
        below: Option<Arc<dyn Disk>>,
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

        fn own_part(&self, range: ByteRange) -> Result<(bool, u64)> {
            let first = (range.start() / SECTOR) as usize;
            let answers = self.own[first].is_some();
            let alike = self.own[first..].iter().take_while(|own| own.is_some() == answers).count();
            Ok((answers, ((first + alike) as u64 * SECTOR).min(range.end())))
        }

        fn extent_at(&self, offset: u64, max_len: u64) -> Result<Extent> {
            let range = ByteRange::between(offset, self.size().min(offset + max_len));
            let (answers, end) = self.own_part(range)?;
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
            from_below in prop::collection::vec(sectors(), FEW..8),
            granule in prop_oneof![Just(4096_u64), Just(8192)],
            reads in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..20),
        ) {
            let mut layers: Vec<Arc<dyn Disk>> = Vec::new();
            for own in from_below {
                layers.insert(0, Arc::new(Fake { own, below: layers.first().cloned() }));
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
        fn its_extents_are_those_of_the_layers(from_below in prop::collection::vec(sectors(), FEW..8)) {
            let mut layers: Vec<Arc<dyn Disk>> = Vec::new();
            for own in from_below {
                layers.insert(0, Arc::new(Fake { own, below: layers.first().cloned() }));
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

        fn own_part(&self, _: ByteRange) -> Result<(bool, u64)> {
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
            layers.insert(0, Arc::new(Fake { own, below: layers.first().cloned() }));
        }
        let merged = merged(layers, SMALLEST).unwrap();
        let mut byte = [0];
        merged.read_at(&mut byte, 8 * SECTOR).unwrap();
        assert_eq!(byte, [1]);
        assert_eq!(merged.extent_at(8 * SECTOR, SECTOR).unwrap().depth, 0);
        assert!(merged.read_at(&mut byte, 0).is_err());
    }

    #[test]
    fn a_few_layers_are_walked() {
        let layer = || -> Arc<dyn Disk> { Arc::new(Fake { own: vec![Some(1)], below: None }) };
        assert!(merged(Vec::new(), SMALLEST).is_none());
        let one = layer();
        let same = merged(vec![Arc::clone(&one), layer()], SMALLEST).unwrap();
        assert!(Arc::ptr_eq(&one, &same));
    }
}
