//! The method: a workload runs once over storages that remember every change and sync. Then, for every moment of it,
//! the states that a power cut could leave are made: nothing unsynced, everything, prefixes, torn writes, random
//! subsets; where there are few changes at once, every subset. Each must open, pass the check without corruption, read
//! back everything that a finished flush covered, hold in every other sector something that was there since that
//! flush, and be good to write on. Of snapshots there must be those that were there before or after the call that the
//! power cut met, each with its content to the byte.

use std::sync::Arc;

use cowimg::check::check_storage;
use cowimg::storage::{MemoryStorage, Storage};
use cowimg::{Access, Image};

use crate::files::{Cuts, Files};
use crate::lab::{Call, Dice, SECTOR, State, carry_out};
use crate::subject::Subject;

/// A call that has returned.
pub(crate) struct Done {
    /// The moment when it did.
    pub(crate) end: usize,
    pub(crate) durable: bool,
    /// What the image may hold when the call was met halfway and done; the last is what it held afterwards.
    pub(crate) states: Vec<State>,
}

/// What may be there at a moment: what was there at the last durable call that had returned, and all that was put
/// there since.
pub(crate) struct History {
    pub(crate) done: Vec<Done>,
    initial: State,
}

impl History {
    pub(crate) fn new(initial: State) -> History {
        History { done: Vec::new(), initial }
    }

    pub(crate) fn last(&self) -> &State {
        self.done.last().and_then(|done| done.states.last()).unwrap_or(&self.initial)
    }

    fn possible(&self, moment: usize) -> Vec<&State> {
        let durable = self.done.iter().rposition(|done| done.durable && done.end <= moment);
        let running =
            self.done.iter().position(|done| done.end > moment).unwrap_or(self.done.len().max(1) - 1);
        let first = durable.map_or(Some(&self.initial), |at| self.done[at].states.last());
        let since = durable.map_or(0, |at| at + 1);
        let later = self.done.get(since..=running).unwrap_or_default().iter().flat_map(|done| &done.states);
        first.into_iter().chain(later).collect()
    }
}

/// Runs the calls, and notes what there is after each.
pub(crate) fn run(subject: &Subject, files: &Files, calls: &[Call]) -> History {
    let shared = files.shared();
    let image = subject.open(&shared, Access::ReadWrite).unwrap();
    let mut history = History::new(subject.state(&image, &shared));
    for call in calls {
        let expected = history.last().after(*call);
        carry_out(&image, *call).unwrap_or_else(|error| panic!("{call:?}: {error}"));
        let state = subject.state(&image, &shared);
        assert_eq!(state.snapshots, expected.snapshots, "{call:?}");
        if matches!(call, Call::Apply(_) | Call::Resize(_) | Call::Preallocate(_)) {
            assert_eq!(state.sectors, expected.sectors, "{call:?}");
        }
        let states = history.last().during(*call).into_iter().chain([state]).collect();
        history.done.push(Done { end: files.now(), durable: call.is_durable(), states });
    }
    image.close().unwrap();
    history
}

/// Holds one state after a crash against the promise.
pub(crate) fn judge(
    subject: &Subject,
    state: Vec<MemoryStorage>,
    history: &History,
    (moment, context): (usize, &str),
) {
    subject.check(&state, context);
    let files: Vec<Arc<dyn Storage>> =
        state.into_iter().map(|file| -> Arc<dyn Storage> { Arc::new(file) }).collect();
    let image = subject.open(&files, Access::ReadWrite).unwrap_or_else(|error| panic!("{context}: {error}"));
    let found = subject.state(&image, &files);
    assert_possible(&found, &history.possible(moment), context);
    write_on(subject, image, (&files, &found), context);
}

fn assert_possible(found: &State, possible: &[&State], context: &str) {
    assert!(
        possible.iter().any(|state| state.snapshots == found.snapshots),
        "{context}: the snapshots are neither those before nor those after"
    );
    assert!(
        possible.iter().any(|state| state.sectors.len() == found.sectors.len()),
        "{context}: the disk has {} sectors",
        found.sectors.len()
    );
    for (sector, value) in found.sectors.iter().enumerate() {
        assert!(
            possible.iter().any(|state| state.sectors.get(sector) == Some(value)),
            "{context}: sector {sector} holds {value}, which was not there since the last flush"
        );
    }
}

/// What is left must be good to work on: writes everywhere land, and damage nothing.
fn write_on(subject: &Subject, image: Image, (files, found): (&[Arc<dyn Storage>], &State), context: &str) {
    for sector in (0..found.sectors.len() as u64).step_by(3) {
        image.write_at(&[251; SECTOR as usize], sector * SECTOR).unwrap();
    }
    image.close().unwrap();
    let report = check_storage(&*files[0]).unwrap();
    assert!(report.corruptions == 0, "{context}: after writing on: {:?}", report.issues);
    let now = subject.state(&subject.open(files, Access::ReadOnly).unwrap(), files);
    assert_eq!(now.snapshots, found.snapshots, "{context}: snapshots after writing on");
    for (sector, value) in now.sectors.into_iter().enumerate() {
        let expected = if sector % 3 == 0 { 251 } else { found.sectors[sector] };
        assert_eq!(value, expected, "{context}: sector {sector} after writing on");
    }
}

/// Tries every moment of a workload; returns how many states that were.
pub(crate) fn try_every_moment(name: &str, start: impl Into<Subject>, seed: u64, calls: &[Call]) -> usize {
    try_cuts(name, &start.into(), (seed, Cuts::Sampled), calls)
}

/// The same, with a choice of what is tried.
pub(crate) fn try_cuts(name: &str, subject: &Subject, (seed, cuts): (u64, Cuts), calls: &[Call]) -> usize {
    let mut dice = Dice(seed);
    let files = Files::new(&subject.files);
    let history = run(subject, &files, calls);
    let mut states = 0;
    for moment in 0..=files.now() {
        let a_call_ends = history.done.iter().any(|done| done.end == moment);
        for choice in files.choices(cuts, moment, &mut dice, a_call_ends) {
            let context = format!("{name}, seed {seed}, moment {moment}, {choice:?}");
            judge(subject, files.crash(moment, &choice), &history, (moment, &context));
            states += 1;
        }
    }
    states
}
