//! The layers below an image as one disk, whose reads cost the same however many layers there are.
//!
//! A read that goes from layer to layer asks each of them in turn. Here the layers are asked once per *page* of the disk: the
//! page remembers for each of its granules which layer answers first, and a read goes there at once. What a granule
//! holds of several layers is left to the topmost of them, which asks those below it in the ordinary way; so a page is a
//! short cut, and never the only one to know something.
//!
//! Nobody writes to these layers while they are open, so that a page is good for as long as the chain.

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

    /// The page that holds a granule, unless there are too many.
    fn page(&self, number: u64) -> Result<Option<Arc<Page>>> {
        let known = self.pages.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(page) = known.get(&number) {
            return Ok(Some(Arc::clone(page)));
        }
        if known.len() >= MOST_PAGES {
            return Ok(None);
        }
        drop(known);
        let page = Arc::new(self.fold(number)?);
        self.pages.write().unwrap_or_else(PoisonError::into_inner).insert(number, Arc::clone(&page));
        Ok(Some(page))
    }

    /// Asks every layer who answers for the granules of a page.
    fn fold(&self, number: u64) -> Result<Page> {
        let start = number * PAGE * self.granule;
        let whole = ByteRange::between(start, self.size().min(start.saturating_add(PAGE * self.granule)));
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
        let page_size = PAGE * self.granule;
        while !buf.is_empty() {
            let Some(page) = self.page(offset / page_size)? else {
                return self.top().read_at(buf, offset);
            };
            let first = (offset % page_size / self.granule) as usize;
            let owner = page[first];
            let count = page[first..].iter().take_while(|&&other| other == owner).count() as u64;
            let end = (offset / self.granule + count) * self.granule;
            let len = (end - offset).min(buf.len() as u64);
            let (part, rest) = buf.split_at_mut(len as usize);
            self.layers[usize::from(owner)].read_at(part, offset)?;
            offset += len;
            buf = rest;
        }
        Ok(())
    }

    /// Asked of the layers in turn: extents may go far beyond a page.
    fn extent_at(&self, offset: u64, max_len: u64) -> Result<Extent> {
        self.top().extent_at(offset, max_len)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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

        fn extent_at(&self, _: u64, _: u64) -> Result<Extent> {
            unreachable!("nobody asks")
        }
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
        }
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
