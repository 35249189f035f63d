//! As many states as there is time for: every workload with seeds that no other run has drawn, on all processors.
//! `COWIMG_CRASH_STATES` says how many states, `COWIMG_TEST_SEED` where seeds begin.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crate::files::Cuts;
use crate::job::Job;
use crate::kinds::KINDS;
use crate::{amend, bitmaps, chain, convert, resize, snapshots};

/// States, unless the environment says otherwise; `make soak` asks for ten thousand times as many.
const STATES: usize = 200;

/// One workload of all; the seed decides which, and what happens in it.
fn try_seed(seed: u64) -> (&'static str, usize) {
    let jobs = |jobs: Vec<Job>| jobs.iter().map(|job| job.try_cuts(seed, Cuts::Exhaustive)).sum();
    let rest = seed / 8 + 1;
    match seed % 8 {
        0 => ("guests", crate::try_seed(rest)),
        1 => ("snapshots", snapshots::try_seed(rest)),
        2 => ("resizing", resize::try_seed(rest)),
        3 => ("amending", amend::try_seed(rest)),
        4 => ("bitmaps", bitmaps::try_seed(rest)),
        5 => ("chains", jobs(chain::jobs(rest))),
        6 => ("converting", jobs(convert::jobs(rest))),
        _ => {
            let kind = &KINDS[rest as usize % KINDS.len()];
            ("other kinds of images", kind.try_seed(rest, kind.calls()))
        }
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable}: {text}")))
}

/// Says which seed it was when a workload panics, and stops the other threads.
struct Watch<'a> {
    seed: u64,
    stop: &'a AtomicBool,
    done: &'a AtomicUsize,
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let done = self.done.load(Ordering::Relaxed);
            eprintln!("seed {}: COWIMG_TEST_SEED={0} COWIMG_CRASH_STATES=1 tries it alone", self.seed);
            eprintln!("{done} states were good before it");
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

#[test]
fn nothing_is_lost_in_as_many_states_as_are_asked_for() {
    let wanted = number("COWIMG_CRASH_STATES", STATES as u64) as usize;
    let first = number("COWIMG_TEST_SEED", 1);
    let (next, done, stop) = (AtomicU64::new(first), AtomicUsize::new(0), AtomicBool::new(false));
    let parts = Mutex::new(std::collections::BTreeMap::new());
    let threads = if wanted == 1 { 1 } else { std::thread::available_parallelism().map_or(1, usize::from) };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while done.load(Ordering::Relaxed) < wanted && !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let _watch = Watch { seed, stop: &stop, done: &done };
                    let (part, states) = try_seed(seed);
                    *parts.lock().unwrap().entry(part).or_insert(0) += states;
                    done.fetch_add(states, Ordering::Relaxed);
                }
            });
        }
    });
    let states = done.into_inner();
    println!("seeds {first} to {}: {:?}", next.into_inner() - 1, parts.into_inner().unwrap());
    println!("{states} states after a crash, none lost, none corrupt");
    assert!(states >= wanted, "only {states} states were tried");
}
