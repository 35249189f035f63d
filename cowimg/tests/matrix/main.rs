//! Every combination of what a qcow2 image can be: version, cluster size, width of refcounts, extended L2 entries, data
//! file, compression, encryption, base, bitmaps, snapshots. Those that `qemu-img` makes are changed by the library and by
//! `qemu-io` in turn, compared with a model and checked by both; those that it refuses ([`shape::Shape::refused`] has the
//! list) are refused by both.
//!
//! A run draws some of them. With `COWIMG_MATRIX=all` in the environment, as `make soak` sets it, it takes all 117,936,
//! which is an hour or two of work; `COWIMG_MATRIX=N` takes one in N, and `COWIMG_MATRIX=A..B` those from A to before B.
//! A combination that fails is printed with its number and the seed, and `COWIMG_MATRIX=#NUMBER` runs it alone. What was
//! worked on and what was refused is told at the end.

#[path = "../qemu_interop/model.rs"]
mod model;
#[path = "../qemu_tools/mod.rs"]
mod qemu_tools;
#[path = "../qemu_interop/script.rs"]
mod script;
#[path = "../seeded/mod.rs"]
mod seeded;
#[path = "../qemu_interop/subject.rs"]
mod subject;

mod bench;
mod shape;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use bench::Bench;
use seeded::Rng;
use shape::{COUNT, Encrypted, Refused, Shape};

/// Combinations that a quick run works on, and those of them that it only sees refused.
const DRAWN: usize = 20;
const DRAWN_REFUSED: usize = 30;

/// The numbers that this run takes.
fn chosen() -> Vec<u64> {
    match std::env::var("COWIMG_MATRIX").ok().as_deref() {
        None => drawn(),
        Some("all") => {
            let mut rng = Rng::new("matrix, in which order");
            let mut all: Vec<(bool, u64, u64)> =
                // Those that are refused come last: there is less to be found. A run that is cut short has seen some of all.
                (0..COUNT).map(|nth| (Shape::nth(nth).refused().is_some(), rng.below(u64::MAX), nth)).collect();
            all.sort_unstable();
            all.into_iter().map(|(.., number)| number).collect()
        }
        Some(text) if text.contains("..") => {
            let (from, to) = text.split_once("..").expect("COWIMG_MATRIX is A..B");
            let bound = |text: &str| text.parse::<u64>().expect("COWIMG_MATRIX is A..B").min(COUNT);
            (bound(from)..bound(to)).collect()
        }
        Some(text) if text.starts_with('#') => vec![text[1..].parse().expect("COWIMG_MATRIX is #NUMBER")],
        Some(text) => {
            let one_in: u64 = text.parse().expect("COWIMG_MATRIX is a number, #NUMBER or all");
            let mut rng = Rng::new("matrix");
            (0..COUNT).filter(|_| rng.below(one_in) == 0).collect()
        }
    }
}

fn drawn() -> Vec<u64> {
    let mut rng = Rng::new("matrix");
    let (mut worked, mut refused) = (Vec::new(), Vec::new());
    while worked.len() < DRAWN || refused.len() < DRAWN_REFUSED {
        let number = rng.below(COUNT);
        let shape = Shape::nth(number);
        let list = if shape.refused().is_none() { &mut worked } else { &mut refused };
        let room = if shape.refused().is_none() { DRAWN } else { DRAWN_REFUSED };
        // Keys take time to derive: a few of them show as much as many.
        let slow = shape.encrypted == Encrypted::Luks && rng.below(3) > 0;
        if list.len() < room && !slow {
            list.push(number);
        }
    }
    worked.extend(refused);
    worked
}

/// What has become of the combinations so far.
#[derive(Debug, Default)]
struct Counts {
    done: AtomicU64,
    worked_on: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
}

/// How many combinations pass between two words about them.
const TOLD_EVERY: u64 = 2000;

impl Counts {
    /// A combination is done: worked on, refused by both, or failed.
    fn add<E>(&self, result: Result<bool, &E>) {
        let count = match result {
            Ok(true) => &self.worked_on,
            Ok(false) => &self.refused,
            Err(_) => &self.failed,
        };
        count.fetch_add(1, Ordering::Relaxed);
        if (self.done.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(TOLD_EVERY) {
            self.tell();
        }
    }

    fn tell(&self) {
        let counts = [&self.done, &self.worked_on, &self.refused, &self.failed];
        let [done, worked_on, refused, failed] = counts.map(|count| count.load(Ordering::Relaxed));
        println!("{done} combinations: {worked_on} worked on, {refused} refused by both, {failed} failed");
    }
}

fn run(number: u64, counts: &Counts) -> Result<(), String> {
    let work = || match Bench::new(Shape::nth(number)) {
        Some(bench) => {
            bench.run();
            true
        }
        None => false,
    };
    let result = catch_unwind(AssertUnwindSafe(work))
        .map_err(|_| format!("COWIMG_MATRIX='#{number}': {:?}", Shape::nth(number)));
    if let Err(failure) = &result {
        println!("FAILED {failure}");
    }
    counts.add(result.as_ref().copied());
    result.map(drop)
}

#[test]
fn every_combination_holds_what_was_written_or_is_refused() {
    let numbers = chosen();
    let next = AtomicU64::new(0);
    let counts = Counts::default();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let failed: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut failed = Vec::new();
                    while let Some(&number) = numbers.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                        failed.extend(run(number, &counts).err());
                    }
                    failed
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker never panics")).collect()
    });
    counts.tell();
    assert!(
        failed.is_empty(),
        "{} of {} combinations fail:\n{}",
        failed.len(),
        numbers.len(),
        failed.join("\n")
    );
}

#[test]
fn the_list_of_refusals_leaves_what_it_should() {
    let count = |wanted| (0..COUNT).filter(|&number| Shape::nth(number).refused() == wanted).count();
    let refused = [Refused::Created, Refused::Bitmap, Refused::Snapshot, Refused::Compressed];
    let [created, bitmap, snapshot, compressed] = refused.map(|refused| count(Some(refused)));
    assert_eq!(count(None), 12_660);
    assert_eq!(created + bitmap + snapshot + compressed + 12_660, COUNT as usize);
}
