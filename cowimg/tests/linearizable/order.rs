//! Whether the calls that one sector saw can have come one after the other, each at some point between its start and its end.
//!
//! Where no two writes have the same value a read tells which write it saw, and the question can be answered fast (Gibbons and
//! Korach, 1997): the write of a value and its reads span a zone of time. Zones in which a value must have been there do not
//! overlap, and no value can have come and gone within another's.
//!
//! A snapshot that is applied writes values again that were written before. Histories with such are searched for an order that
//! explains them (Wing and Gong, 1993): each thread makes one call after the other, so that where a search stands is told by
//! how far it is in each thread and by the value that is there.

use std::collections::{HashMap, HashSet};

use crate::seeded::Rng;

/// A call as one sector saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) value: u64,
    pub(crate) is_write: bool,
    /// Whose call it is: one thread makes one call after the other.
    pub(crate) thread: u64,
}

/// Says why a sector's history cannot have been one call after the other.
pub(crate) fn objection(events: &[Event]) -> Option<String> {
    let mut zones: HashMap<u64, Vec<Event>> = HashMap::new();
    for event in events {
        zones.entry(event.value).or_default().push(*event);
    }
    let (mut forward, mut backward) = (Vec::new(), Vec::new());
    for (value, events) in &zones {
        let Some(write) = events.iter().find(|event| event.is_write) else {
            return Some(format!("value {value} was read and never written"));
        };
        if let Some(early) = events.iter().find(|event| event.end < write.start) {
            return Some(format!("value {value} was read before it was written: {early:?}, {write:?}"));
        }
        let first_end = events.iter().map(|event| event.end).min().unwrap_or(0);
        let last_start = events.iter().map(|event| event.start).max().unwrap_or(0);
        if first_end < last_start {
            forward.push((first_end, last_start, *value));
        } else {
            backward.push((last_start, first_end, *value));
        }
    }
    forward.sort_unstable();
    for pair in forward.windows(2) {
        if pair[1].0 < pair[0].1 {
            return Some(format!("values {} and {} were there at once: {pair:?}", pair[0].2, pair[1].2));
        }
    }
    for (start, end, value) in backward {
        let within = forward.iter().find(|(from, to, _)| *from < start && end < *to);
        if let Some((.., around)) = within {
            return Some(format!("value {value} came and went while {around} was there"));
        }
    }
    None
}

/// Says why a sector's history cannot have been one call after the other, where values may be written more than once.
pub(crate) fn objection_by_search(events: &[Event]) -> Option<String> {
    let mut threads: HashMap<u64, Vec<Event>> = HashMap::new();
    for event in events {
        threads.entry(event.thread).or_default().push(*event);
    }
    let mut threads: Vec<Vec<Event>> = threads.into_values().collect();
    for calls in &mut threads {
        calls.sort_unstable_by_key(|event| event.start);
    }
    let mut seen = HashSet::new();
    let mut open = vec![(vec![0; threads.len()], None)];
    let mut furthest = 0;
    while let Some((mut at, value)) = open.pop() {
        // A read of what is there now may come now: no order becomes impossible by it.
        while let Some(thread) = next_calls(&threads, &at).into_iter().find(|&thread| {
            let event = threads[thread][at[thread]];
            !event.is_write && Some(event.value) == value
        }) {
            at[thread] += 1;
        }
        let done: usize = at.iter().sum();
        furthest = furthest.max(done);
        if done == events.len() {
            return None;
        }
        if !seen.insert((at.clone(), value)) {
            continue;
        }
        for thread in
            next_calls(&threads, &at).into_iter().filter(|&thread| threads[thread][at[thread]].is_write)
        {
            let mut next = at.clone();
            next[thread] += 1;
            open.push((next, Some(threads[thread][at[thread]].value)));
        }
    }
    Some(format!("no order explains it: the best ends after {furthest} of {} calls", events.len()))
}

/// Threads whose next call may come next: none of the others' has ended before it started.
fn next_calls(threads: &[Vec<Event>], at: &[usize]) -> Vec<usize> {
    let next = |thread: usize| threads[thread].get(at[thread]);
    let first_end = (0..threads.len()).filter_map(next).map(|event| event.end).min().unwrap_or(u64::MAX);
    let may_come = |thread: &usize| next(*thread).is_some_and(|event| event.start <= first_end);
    (0..threads.len()).filter(may_come).collect()
}

/// A few calls of three threads, each with values of its own, that may or may not have an order.
fn drawn(rng: &mut Rng) -> Vec<Event> {
    let mut clock = 0;
    let mut events = vec![Event { start: 0, end: 1, value: 1, is_write: true, thread: 9 }];
    let mut ends = [0_u64; 3];
    for value in 2..2 + rng.between(2, 6) {
        let thread = rng.below(3);
        clock += 1;
        // Starts are even and ends are odd: none are the same.
        let start = (clock * 20).max(ends[thread as usize] + 1);
        let end = start + 1 + 2 * rng.below(30);
        ends[thread as usize] = end;
        let is_write = rng.below(2) == 0;
        let value = if is_write { value } else { rng.between(1, value) };
        events.push(Event { start, end, value, is_write, thread });
    }
    events
}

/// Where both can judge they agree.
#[test]
fn the_search_and_the_zones_come_to_one_judgement() {
    let mut rng = Rng::new("histories for both");
    let (mut sound, mut bad) = (0, 0);
    for _ in 0..20_000 {
        let events = drawn(&mut rng);
        let zones = objection(&events);
        assert_eq!(zones.is_some(), objection_by_search(&events).is_some(), "{zones:?}: {events:?}");
        if zones.is_some() { bad += 1 } else { sound += 1 }
    }
    assert!(sound > 1000 && bad > 1000, "{sound} sound ones, {bad} others");
}

/// What only a search can judge: a value that comes back because a snapshot was applied.
#[test]
fn a_value_that_comes_back_needs_somebody_who_brings_it() {
    let write = |start, end, value, thread| Event { start, end, value, is_write: true, thread };
    let read = |start, end, value| Event { start, end, value, is_write: false, thread: 0 };
    let history = |restored: &[Event]| {
        let mut events = vec![write(1, 2, 7, 1), write(3, 4, 8, 1), read(5, 6, 8), read(9, 10, 7)];
        events.extend(restored);
        objection_by_search(&events)
    };
    assert_eq!(history(&[write(7, 8, 7, 2)]), None);
    assert_eq!(history(&[write(4, 9, 7, 2)]), None);
    assert!(history(&[]).is_some());
    // Too early, and too late.
    assert!(history(&[write(2, 3, 7, 2)]).is_some());
    assert!(history(&[write(11, 12, 7, 2)]).is_some());
}

#[test]
fn what_cannot_have_been_one_after_the_other_is_found() {
    let write = |start, end, value| Event { start, end, value, is_write: true, thread: value };
    let read = |start, end, value| Event { start, end, value, is_write: false, thread: 100 + start };
    assert_eq!(objection(&[write(1, 4, 7), read(2, 3, 7), read(5, 6, 7)]), None);
    assert_eq!(objection(&[write(1, 2, 7), write(3, 6, 8), read(4, 5, 7), read(7, 8, 8)]), None);
    let bad = [
        // Read before it was written, and never written at all.
        vec![read(1, 2, 7), write(3, 4, 7)],
        vec![write(1, 2, 7), read(3, 4, 8)],
        // An old value after a new one was written, and after it was read.
        vec![write(1, 2, 7), write(3, 4, 8), read(5, 6, 7)],
        vec![write(1, 2, 7), write(3, 10, 8), read(4, 5, 8), read(6, 7, 7)],
        // There, gone, and there again.
        vec![write(1, 2, 7), read(3, 4, 7), write(5, 6, 8), read(7, 8, 8), read(9, 10, 7)],
    ];
    for events in bad {
        assert!(objection(&events).is_some(), "{events:?}");
        assert!(objection_by_search(&events).is_some(), "{events:?}");
    }
}
