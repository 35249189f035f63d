//! What a bitmap says: its stored bits and those recorded since, a cluster of bits at a time.

use super::bits;
use super::load::read_table;
use super::{Bitmap, problem};
use crate::disk::Disk;
use crate::error::{BitmapProblem, Error, Result};
use crate::format::qcow2::BitmapTableEntry;
use crate::qcow2::Qcow2;
use crate::range::ByteRange;
use crate::storage::StorageExt;

impl Qcow2 {
    /// Fills `bytes`, one cluster, with the bits of a bitmap's cluster `index`. Bits past the disk's end are zero. Whether
    /// any may be set.
    pub(super) fn read_bitmap_cluster(&self, bitmap: &Bitmap, index: u64, bytes: &mut [u8]) -> Result<bool> {
        let first_byte = index * self.cluster_size();
        let first_bit = first_byte * 8;
        let stored = match bitmap.table.as_ref().and_then(|table| table.get(index as usize)) {
            Some(stored) if first_bit < bitmap.stored_bits => *stored,
            _ => BitmapTableEntry::Zeroes,
        };
        let recorded = bitmap.recorded.touches(first_byte..first_byte + bytes.len() as u64);
        match stored {
            BitmapTableEntry::Zeroes => bytes.fill(0),
            BitmapTableEntry::Ones => bytes.fill(0xff),
            BitmapTableEntry::Cluster(host) => self
                .storage
                .read_padded_at(bytes, host.get())
                .map_err(|error| Error::io("read a bitmap", error))?,
        }
        bits::clear_from(bytes, bitmap.stored_bits.saturating_sub(first_bit));
        if recorded {
            bitmap.recorded.add_to(bytes, first_byte);
        }
        bits::clear_from(bytes, bitmap.bits_for(self.size()).saturating_sub(first_bit));
        Ok(recorded || stored != BitmapTableEntry::Zeroes)
    }

    /// The parts of the disk that a bitmap calls dirty.
    pub(crate) fn bitmap_ranges(&self, name: &[u8]) -> Result<BitmapRanges<'_>> {
        let mut state = self.loaded_bitmaps()?;
        let bitmap = state.find(name)?;
        bitmap.check_usable()?;
        if bitmap.table.is_none() {
            bitmap.table = Some(read_table(&*self.storage, &bitmap.entry, &self.geometry)?);
        }
        Ok(BitmapRanges {
            image: self,
            name: name.to_vec(),
            shift: bitmap.entry.granularity_bits,
            at: 0,
            end: bitmap.bits_for(self.size()),
            cluster: None,
            bytes: vec![0; self.cluster_size() as usize],
        })
    }

    /// Adds what the bitmap `source_name` of `source` (which may be this image) calls dirty to a bitmap.
    pub(crate) fn merge_bitmap(&self, name: &[u8], source: &Qcow2, source_name: &[u8]) -> Result<()> {
        let ranges = source.bitmap_ranges(source_name)?;
        let (size, source_size) = (self.size(), source.size());
        if size != source_size {
            return Err(Error::invalid(format!(
                "bitmaps of disks of different size cannot be merged: the target's has {size} bytes, the source's \
                 {source_size}"
            )));
        }
        self.change_bitmap(name, |_, _| ())?;
        for range in ranges {
            let range = range?;
            let mut state = self.lock_bitmaps();
            let super::State { list, budget, .. } = &mut *state;
            let target = list.iter_mut().find(|bitmap| bitmap.entry.name == name);
            target.ok_or_else(|| problem(name, BitmapProblem::NotFound))?.record(range, budget);
        }
        Ok(())
    }
}

/// The dirty parts of the disk, in order and as long as they can be; made by [`Image::bitmap_ranges`].
///
/// Bits are read as the iterator comes to them, a cluster of bits at a time: what is written meanwhile may be seen or not.
///
/// [`Image::bitmap_ranges`]: crate::Image::bitmap_ranges
#[derive(Debug)]
pub struct BitmapRanges<'a> {
    image: &'a Qcow2,
    name: Vec<u8>,
    shift: u8,
    /// The next bit to look at, and the one after the last.
    at: u64,
    end: u64,
    /// Which cluster of bits is in `bytes`, and whether any of them may be set.
    cluster: Option<(u64, bool)>,
    bytes: Vec<u8>,
}

impl BitmapRanges<'_> {
    /// The first bit from `from` on that is set (or not, as `wanted` says), or the end.
    fn find(&mut self, from: u64, wanted: bool) -> Result<u64> {
        let per_cluster = self.bytes.len() as u64 * 8;
        let mut at = from;
        while at < self.end {
            let index = at / per_cluster;
            let any = self.load(index)?;
            let found = match (any, wanted) {
                (false, true) => None,
                (false, false) => Some(at % per_cluster),
                (true, _) => bits::find(&self.bytes, at % per_cluster, wanted),
            };
            if let Some(found) = found {
                return Ok((index * per_cluster + found).min(self.end));
            }
            at = (index + 1) * per_cluster;
        }
        Ok(self.end)
    }

    /// Brings a cluster of bits into memory; whether any may be set.
    fn load(&mut self, index: u64) -> Result<bool> {
        if let Some((_, any)) = self.cluster.filter(|(loaded, _)| *loaded == index) {
            return Ok(any);
        }
        self.cluster = None;
        let mut state = self.image.lock_bitmaps();
        let bitmap = state.find(&self.name)?;
        bitmap.check_usable()?;
        let any = self.image.read_bitmap_cluster(bitmap, index, &mut self.bytes)?;
        self.cluster = Some((index, any));
        Ok(any)
    }

    fn next_range(&mut self) -> Result<Option<ByteRange>> {
        let start = self.find(self.at, true)?;
        if start >= self.end {
            self.at = self.end;
            return Ok(None);
        }
        self.at = self.find(start, false)?;
        let end = (self.at << self.shift).min(self.image.size());
        Ok(Some(ByteRange::between((start << self.shift).min(end), end)))
    }
}

impl Iterator for BitmapRanges<'_> {
    type Item = Result<ByteRange>;

    /// The next range; after an error there is none.
    fn next(&mut self) -> Option<Result<ByteRange>> {
        let next = self.next_range();
        if next.is_err() {
            self.at = self.end;
        }
        next.transpose()
    }
}
