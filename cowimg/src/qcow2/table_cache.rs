//! The cache of L2 tables, in slices of at most 4 KiB, bounded in bytes.
//!
//! A slice is keyed by its place on the *guest's* disk, so that a table that is copied to another place in the file
//! stays cached. Entries are atomics: a reader that holds a slice needs no lock, and a writer publishes a mapping
//! with one store.
//!
//! Invariants:
//! * There is at most one copy of a slice in memory. A slice that anybody holds is never evicted; a slice that is
//!   dirty, or being written, is held by the metadata or by the commit.
//! * Loading happens under the shard's lock, so that no older content can come in over a newer one.
//! * What a thread looked at last it finds again without touching what other threads touch ([`Recent`]): that holds the
//!   slice, as anybody else would, until the shard wants it back. Locks are taken in the order shard, recent.

use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::sync::PoisonError;

use foldhash::HashMap;

use super::striped::Striped;
use super::sync::atomic::{AtomicU64, Ordering, fence};
use super::sync::{Arc, Mutex, spin_loop};
use crate::error::Result;
use crate::format::qcow2::{RawL2Entry, encode_words};

/// Bytes of a slice, for clusters that are not smaller.
pub(super) const MAX_SLICE_BYTES: u64 = 4096;

const SHARDS: u64 = 16;

/// Consecutive L2 entries, as the 64-bit words that the file holds: one an entry, or two where entries are extended.
#[derive(Debug)]
pub(super) struct Slice {
    words: Box<[AtomicU64]>,
    words_per_entry: usize,
    /// Odd while an entry of two words is being changed, so that nobody takes one old word and one new one.
    changes: AtomicU64,
}

impl Slice {
    /// A slice of these words.
    pub(super) fn new(words: impl Iterator<Item = u64>, words_per_entry: usize) -> Slice {
        Slice { words: words.map(AtomicU64::new).collect(), words_per_entry, changes: AtomicU64::new(0) }
    }

    /// The entry at `index`; everything that was written before it was published is seen.
    pub(super) fn get(&self, index: usize) -> RawL2Entry {
        if self.words_per_entry == 1 {
            return self.words[index].load(Ordering::Acquire).into();
        }
        loop {
            let before = self.changes.load(Ordering::Acquire);
            let entry = RawL2Entry {
                descriptor: self.words[2 * index].load(Ordering::Relaxed),
                subclusters: self.words[2 * index + 1].load(Ordering::Relaxed),
            };
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.changes.load(Ordering::Relaxed) == before {
                return entry;
            }
            spin_loop();
        }
    }

    /// Publishes an entry. Callers hold the metadata lock.
    pub(super) fn set(&self, index: usize, entry: RawL2Entry) {
        if self.words_per_entry == 1 {
            self.words[index].store(entry.descriptor, Ordering::Release);
            return;
        }
        let before = self.changes.load(Ordering::Relaxed);
        self.changes.store(before.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.words[2 * index].store(entry.descriptor, Ordering::Relaxed);
        self.words[2 * index + 1].store(entry.subclusters, Ordering::Relaxed);
        self.changes.store(before.wrapping_add(2), Ordering::Release);
    }

    /// The entries as they are in the file. Callers hold the metadata lock.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        encode_words(self.words.iter().map(|word| word.load(Ordering::Acquire)))
    }
}

#[derive(Debug)]
struct Slot {
    slice: Arc<Slice>,
    used: bool,
}

#[derive(Debug, Default)]
struct Shard {
    slots: HashMap<u64, Slot>,
    /// The clock: keys in the order in which they are looked at for eviction.
    order: VecDeque<u64>,
}

/// Slices that the threads of one stripe have looked at of late, each in the place that its key has.
#[derive(Debug, Default)]
struct Recent {
    /// None at all before the first look.
    places: Vec<Option<(u64, Arc<Slice>)>>,
}

/// Slices that a stripe holds: 2 GiB of a disk with clusters of 64 KiB.
const RECENT: usize = 64;

impl Recent {
    fn get(&self, key: u64) -> Option<&Slice> {
        let (of, slice) = self.places.get(Recent::place(key))?.as_ref()?;
        (*of == key).then_some(slice)
    }

    fn put(&mut self, key: u64, slice: Arc<Slice>) {
        self.places.resize(RECENT, None);
        self.places[Recent::place(key)] = Some((key, slice));
    }

    fn forget(&mut self, key: u64) {
        if let Some(place) = self.places.get_mut(Recent::place(key))
            && place.as_ref().is_some_and(|(of, _)| *of == key)
        {
            *place = None;
        }
    }

    fn place(key: u64) -> usize {
        key as usize % RECENT
    }
}

/// The slices that are in memory.
#[derive(Debug)]
pub(super) struct TableCache {
    shards: Vec<Mutex<Shard>>,
    slices_per_shard: usize,
    recent: Striped<Mutex<Recent>>,
    /// How often all was dropped.
    generation: AtomicU64,
}

impl TableCache {
    /// A cache of at most `bytes`, which holds slices of `slice_bytes`.
    pub(super) fn new(bytes: u64, slice_bytes: u64) -> TableCache {
        let slices = (bytes / slice_bytes / SHARDS).max(2);
        TableCache {
            shards: (0..SHARDS).map(|_| Mutex::new(Shard::default())).collect(),
            slices_per_shard: usize::try_from(slices).unwrap_or(usize::MAX),
            recent: Striped::default(),
            generation: AtomicU64::new(0),
        }
    }

    /// Drops every slice: the tables have changed beneath. No slice is dirty and nobody holds one.
    pub(super) fn clear(&self) {
        for shard in &self.shards {
            *shard.lock().unwrap_or_else(PoisonError::into_inner) = Shard::default();
        }
        // In this order: who has got a slice from a shard before, and comes to hold it after, sees that it is none any more.
        self.generation.fetch_add(1, Ordering::AcqRel);
        for recent in self.recent.all() {
            *recent.lock().unwrap_or_else(PoisonError::into_inner) = Recent::default();
        }
    }

    /// What `look` sees in the slice of `key`, which comes from memory or from `load`; `None` when there is no table to load it
    /// from. It is a look and no more: `look` asks for no other slice.
    pub(super) fn look<T>(
        &self,
        key: u64,
        load: impl FnOnce() -> Result<Option<Slice>>,
        look: impl FnOnce(&Slice) -> T,
    ) -> Result<Option<T>> {
        let recent = || self.recent.own().lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slice) = recent().get(key) {
            return Ok(Some(look(slice)));
        }
        let generation = self.generation.load(Ordering::Acquire);
        let Some(slice) = self.get_or_load(key, load)? else { return Ok(None) };
        let seen = look(&slice);
        let mut recent = recent();
        if self.generation.load(Ordering::Acquire) == generation {
            recent.put(key, slice);
        }
        Ok(Some(seen))
    }

    /// Slices that fit.
    pub(super) fn capacity(&self) -> usize {
        self.slices_per_shard.saturating_mul(self.shards.len())
    }

    /// The slice of `key`, from memory or from `load`; `None` when there is no table to load it from.
    pub(super) fn get_or_load(
        &self,
        key: u64,
        load: impl FnOnce() -> Result<Option<Slice>>,
    ) -> Result<Option<Arc<Slice>>> {
        let mut shard = self.shards[(key % SHARDS) as usize].lock().unwrap_or_else(PoisonError::into_inner);
        let shard = &mut *shard;
        match shard.slots.entry(key) {
            Entry::Occupied(mut slot) => {
                slot.get_mut().used = true;
                Ok(Some(Arc::clone(&slot.get().slice)))
            }
            Entry::Vacant(vacant) => {
                let Some(slice) = load()? else { return Ok(None) };
                let slice = Arc::new(slice);
                vacant.insert(Slot { slice: Arc::clone(&slice), used: false });
                shard.order.push_back(key);
                shard.evict(self.slices_per_shard, &self.recent);
                Ok(Some(slice))
            }
        }
    }
}

impl Shard {
    /// Drops slices that nobody holds and nobody has used of late until `limit` are left, or none can go. Those that threads
    /// hold because they looked at them are wanted back, and can go next time.
    fn evict(&mut self, limit: usize, recent: &Striped<Mutex<Recent>>) {
        let mut looks = self.order.len() * 2;
        while self.slots.len() > limit && looks > 0 {
            looks -= 1;
            let Some(key) = self.order.pop_front() else { return };
            let Some(slot) = self.slots.get_mut(&key) else { continue };
            let is_held = Arc::strong_count(&slot.slice) > 1;
            if is_held {
                for one in recent.all() {
                    one.lock().unwrap_or_else(PoisonError::into_inner).forget(key);
                }
            }
            if slot.used || is_held {
                slot.used = false;
                self.order.push_back(key);
            } else {
                self.slots.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice_of(value: u64) -> Slice {
        Slice::new(std::iter::repeat_n(value, 4), 1)
    }

    fn resident(cache: &TableCache) -> usize {
        cache.shards.iter().map(|shard| shard.lock().unwrap().slots.len()).sum()
    }

    #[test]
    fn the_cache_stays_within_its_bound() {
        let cache = TableCache::new(64 * 32, 32);
        for key in 0..if cfg!(miri) { 300 } else { 10_000 } {
            cache.get_or_load(key, || Ok(Some(slice_of(key)))).unwrap();
        }
        assert!(resident(&cache) <= cache.capacity());
    }

    #[test]
    fn a_slice_that_somebody_holds_is_never_loaded_twice() {
        let cache = TableCache::new(0, 32);
        let held = cache.get_or_load(0, || Ok(Some(slice_of(7)))).unwrap().unwrap();
        held.set(1, 99.into());
        for key in 1..if cfg!(miri) { 100 } else { 1000 } {
            cache.get_or_load(key, || Ok(Some(slice_of(key)))).unwrap();
        }
        let again = cache.get_or_load(0, || Ok(Some(slice_of(7)))).unwrap().unwrap();
        assert_eq!(again.get(1), 99.into());
    }

    #[test]
    fn looks_hold_no_more_than_the_cache_may() {
        let cache = TableCache::new(64 * 32, 32);
        for key in 0..if cfg!(miri) { 300 } else { 10_000 } {
            for _ in 0..2 {
                assert_eq!(
                    cache.look(key, || Ok(Some(slice_of(key))), |slice| slice.get(1)).unwrap(),
                    Some(key.into())
                );
            }
        }
        assert!(resident(&cache) <= cache.capacity());
    }

    #[test]
    fn a_look_sees_what_was_set_and_nothing_that_was_dropped() {
        let cache = TableCache::new(1 << 20, 32);
        let look = |value| cache.look(3, || Ok(Some(slice_of(value))), |slice| slice.get(0)).unwrap();
        assert_eq!(look(1), Some(1.into()));
        cache.get_or_load(3, || Ok(None)).unwrap().unwrap().set(0, 2.into());
        assert_eq!(look(1), Some(2.into()));
        cache.clear();
        assert_eq!(look(4), Some(4.into()));
    }

    #[test]
    fn two_words_are_never_seen_half_changed() {
        const TURNS: u64 = if cfg!(miri) { 200 } else { 200_000 };
        let slice = Slice::new(std::iter::repeat_n(0, 8), 2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for value in 1..TURNS {
                    slice.set(1, RawL2Entry { descriptor: value, subclusters: !value });
                }
            });
            for _ in 0..TURNS {
                let entry = slice.get(1);
                assert!(entry == RawL2Entry::default() || entry.subclusters == !entry.descriptor);
            }
        });
        assert_eq!(slice.get(0), RawL2Entry::default());
    }

    #[test]
    fn a_missing_table_is_not_remembered() {
        let cache = TableCache::new(1 << 20, 32);
        assert!(cache.get_or_load(3, || Ok(None)).unwrap().is_none());
        assert!(cache.get_or_load(3, || Ok(Some(slice_of(1)))).unwrap().is_some());
    }
}
