//! Work between images, tried as the calls of a guest are: a run over several files is cut off at every moment, or meets
//! a failing file at every operation. What must hold of the files then, the work itself says.

use std::io::ErrorKind::{Interrupted, Other, StorageFull};
use std::sync::Arc;

use cowimg::storage::{CrashChoice, Fault, MemoryStorage, Storage};

use crate::faults::Trouble;
use crate::files::{Cuts, Files};
use crate::lab::Dice;

/// Whether a run had returned, and well, when the files were left as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Met {
    Midway,
    Done,
}

type Run = Box<dyn Fn(&[Arc<dyn Storage>]) -> cowimg::Result<()> + Sync>;
type Judge = Box<dyn Fn(&[MemoryStorage], Met, &str) + Sync>;

/// One piece of work.
pub(crate) struct Job {
    pub(crate) name: String,
    /// What the files hold at first.
    pub(crate) files: Vec<MemoryStorage>,
    pub(crate) run: Run,
    /// Panics where files break the promise, whose description it is given.
    pub(crate) judge: Judge,
}

/// Files as they are opened.
pub(crate) fn shared(files: &[MemoryStorage]) -> Vec<Arc<dyn Storage>> {
    files.iter().map(|file| -> Arc<dyn Storage> { Arc::new(file.clone()) }).collect()
}

impl Job {
    /// Cuts the power at every moment; returns how many states that were.
    pub(crate) fn try_cuts(&self, seed: u64, cuts: Cuts) -> usize {
        let mut dice = Dice(seed);
        let files = Files::new(&self.files);
        (self.run)(&files.shared()).unwrap_or_else(|error| panic!("{}: {error}", self.name));
        let mut states = 0;
        for moment in 0..=files.now() {
            let met = if moment == files.now() { Met::Done } else { Met::Midway };
            for choice in files.choices(cuts, moment, &mut dice, met == Met::Done) {
                let context = format!("{}, seed {seed}, moment {moment}, {choice:?}", self.name);
                (self.judge)(&files.crash(moment, &choice), met, &context);
                states += 1;
            }
        }
        states
    }

    /// Fails every operation of every file; returns how many failures that were.
    pub(crate) fn try_faults(&self) -> usize {
        let troubles = [
            Trouble::Once(Other),
            Trouble::Once(Interrupted),
            Trouble::ForGood(StorageFull),
            Trouble::FullFor(2),
        ];
        let tries = (0..self.files.len()).flat_map(|which| troubles.map(|trouble| (which, trouble)));
        tries.map(|(which, trouble)| self.try_fault(which, trouble)).sum()
    }

    /// Lets no read or write do more than so many bytes at once: no failure, and the same result.
    pub(crate) fn try_short(&self, bytes: usize) {
        let files = Files::new(&self.files);
        (0..self.files.len()).for_each(|which| files.inject(which, Fault::short(bytes).forever()));
        let context = format!("{}, {bytes} bytes at once", self.name);
        (self.run)(&files.shared()).unwrap_or_else(|error| panic!("{context}: {error}"));
        files.clear_faults();
        (self.judge)(&files.crash_now(CrashChoice::Synced), Met::Done, &context);
    }

    fn try_fault(&self, which: usize, trouble: Trouble) -> usize {
        for nth in 0.. {
            let context = format!("{}, {trouble:?}, operation {nth} of file {which}", self.name);
            let files = Files::new(&self.files);
            trouble.arm(&files, which, nth);
            let done = (self.run)(&files.shared());
            if !trouble.was_met(&files, which, nth) {
                return nth as usize;
            }
            files.clear_faults();
            let met = if done.is_ok() { Met::Done } else { Met::Midway };
            for choice in [CrashChoice::Synced, CrashChoice::All] {
                (self.judge)(&files.crash_now(choice), met, &format!("{context}, {choice:?}"));
            }
        }
        0
    }
}
