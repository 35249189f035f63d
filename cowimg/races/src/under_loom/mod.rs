//! The table cache in every order of steps, and with every value that memory may show.

#[path = "../../../src/qcow2/striped.rs"]
mod striped;
mod sync;
#[path = "../../../src/qcow2/table_cache.rs"]
mod table_cache;

use loom::model::Builder;
use loom::thread;
use sync::Arc;
use sync::atomic::{AtomicU64, Ordering};

use crate::format::qcow2::RawL2Entry;
use table_cache::{Slice, TableCache};

/// Tries every order with at most so many switches that no thread asked for; returns how many that were.
fn every_order(switches: usize, model: impl Fn() + Sync + Send + 'static) -> u64 {
    let tried = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let count = std::sync::Arc::clone(&tried);
    let mut builder = Builder::new();
    builder.preemption_bound = Some(switches);
    builder.check(move || {
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        model();
    });
    tried.load(std::sync::atomic::Ordering::Relaxed)
}

fn entry_of(value: u64) -> RawL2Entry {
    RawL2Entry { descriptor: value, subclusters: !value }
}

/// An entry of two words is seen as it was or as it is, by two readers beside a writer.
pub fn entries_of_two_words_are_seen_whole() -> u64 {
    every_order(3, || {
        let slice = Arc::new(Slice::new([0, !0, 0, !0].into_iter(), 2));
        let writer = Arc::clone(&slice);
        let writing = thread::spawn(move || {
            writer.set(1, entry_of(1));
            writer.set(1, entry_of(2));
        });
        let first = slice.get(1);
        let second = slice.get(1);
        for entry in [first, second] {
            assert_eq!(entry.subclusters, !entry.descriptor, "a half of one entry and a half of another");
        }
        assert!(second.descriptor >= first.descriptor, "an older entry after a newer one");
        writing.join().expect("the writer ends");
        assert_eq!(slice.get(1).descriptor, 2);
    })
}

/// Whoever sees an entry sees what was written before it was published, with one word an entry and with two.
pub fn what_was_written_before_an_entry_is_seen_with_it() -> u64 {
    let of_width = |width: usize| {
        every_order(3, move || {
            let slice = Arc::new(Slice::new(std::iter::repeat_n(0, 2 * width), width));
            let data = Arc::new(AtomicU64::new(0));
            let (publisher, written) = (Arc::clone(&slice), Arc::clone(&data));
            let publishing = thread::spawn(move || {
                written.store(7, Ordering::Relaxed);
                publisher.set(0, RawL2Entry { descriptor: 1, subclusters: 0 });
            });
            if slice.get(0).descriptor == 1 {
                assert_eq!(data.load(Ordering::Relaxed), 7, "the entry came before what it refers to");
            }
            publishing.join().expect("the publisher ends");
        })
    };
    of_width(1) + of_width(2)
}

/// Keys of one shard, as 0 is; two fit.
const KEYS: [u64; 3] = [16, 32, 48];

/// What the file has at each of them.
fn slice() -> cowimg::Result<Option<Slice>> {
    Ok(Some(Slice::new([0].into_iter(), 1)))
}

/// A slice that somebody holds is the only copy, whatever the other thread loads and evicts meanwhile.
pub fn a_slice_that_is_held_is_the_only_copy() -> u64 {
    every_order(3, move || {
        let cache = Arc::new(TableCache::new(0, 8));
        let other = Arc::clone(&cache);
        let evicting = thread::spawn(move || {
            for key in KEYS {
                other.get_or_load(key, slice).expect("it loads").expect("there is a table");
            }
            let again = other.get_or_load(0, slice).expect("it loads").expect("there is a table");
            again.get(0).descriptor
        });
        let held = cache.get_or_load(0, slice).expect("it loads").expect("there is a table");
        held.set(0, RawL2Entry { descriptor: 9, subclusters: 0 });
        let seen = evicting.join().expect("the other ends");
        assert!([0, 9].contains(&seen));
        let again = cache.get_or_load(0, slice).expect("it loads").expect("there is a table");
        assert_eq!(again.get(0).descriptor, 9, "a change is lost in a copy");
    })
}

/// A change is seen by every look from then on, whatever looks hold and whatever is evicted meanwhile.
pub fn what_a_look_holds_is_the_only_copy() -> u64 {
    every_order(2, move || {
        let cache = Arc::new(TableCache::new(0, 8));
        let other = Arc::clone(&cache);
        let changing = thread::spawn(move || {
            for key in KEYS {
                other.look(key, slice, |_| ()).expect("it loads").expect("there is a table");
            }
            let held = other.get_or_load(0, slice).expect("it loads").expect("there is a table");
            held.set(0, RawL2Entry { descriptor: 9, subclusters: 0 });
            held
        });
        let look = || cache.look(0, slice, |slice| slice.get(0).descriptor).expect("it loads");
        let (first, second) = (look(), look());
        let held = changing.join().expect("the other ends");
        assert!([(0, 0), (0, 9), (9, 9)].map(|(a, b)| (Some(a), Some(b))).contains(&(first, second)));
        assert_eq!(look(), Some(9), "a change is lost in a copy");
        drop(held);
    })
}

/// What was dropped is never looked at again, even if a look was on its way.
pub fn what_was_dropped_is_not_looked_at() -> u64 {
    every_order(3, move || {
        let cache = Arc::new(TableCache::new(0, 8));
        let file = Arc::new(AtomicU64::new(0));
        let (other, changed) = (Arc::clone(&cache), Arc::clone(&file));
        let dropping = thread::spawn(move || {
            changed.store(1, Ordering::Release);
            other.clear();
        });
        let load = || Ok(Some(Slice::new([file.load(Ordering::Acquire)].into_iter(), 1)));
        let look = || cache.look(0, load, |slice| slice.get(0).descriptor).expect("it loads");
        look();
        dropping.join().expect("the other ends");
        assert_eq!(look(), Some(1), "what was in the file before");
    })
}
