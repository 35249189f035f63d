//! Several files that fail and lose power together: an image with its data file, an overlay with its base. Each
//! remembers its own changes; what is noted here is the order in which those of all of them happened.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cowimg::ByteRange;
use cowimg::storage::{
    CrashChoice, Fault, FaultyStorage, MemoryStorage, OperationKind, Storage, StorageExtent,
};

use crate::lab::Dice;

/// The most changes at once of which every subset is tried.
const MOST_EXHAUSTIVE: usize = 8;

/// The files of one run.
pub(crate) struct Files {
    files: Vec<Arc<InTurn>>,
    moments: Arc<Mutex<Vec<Moment>>>,
}

/// How many operations each file's log had.
type Moment = Vec<usize>;

/// Which of the states that a power cut could leave are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cuts {
    /// A few of each moment.
    Sampled,
    /// Every subset of whole changes, as far as these are few, and torn ones on top.
    Exhaustive,
}

impl Files {
    /// Files that hold this, durably.
    pub(crate) fn new(start: &[MemoryStorage]) -> Files {
        let moments = Arc::new(Mutex::new(vec![vec![0; start.len()]]));
        let file = |(which, bytes): (usize, &MemoryStorage)| {
            let (faulty, is_calm) = (FaultyStorage::new(bytes.clone()), AtomicBool::new(false));
            Arc::new(InTurn { faulty, which, is_calm, moments: Arc::clone(&moments) })
        };
        Files { files: start.iter().enumerate().map(file).collect(), moments }
    }

    /// To open images from.
    pub(crate) fn shared(&self) -> Vec<Arc<dyn Storage>> {
        self.files.iter().cloned().map(|file| file as Arc<dyn Storage>).collect()
    }

    /// Arms a fault of one of the files.
    pub(crate) fn inject(&self, which: usize, fault: Fault) {
        self.files[which].faulty.inject(fault);
    }

    /// How many operations of these kinds a file has been asked for.
    pub(crate) fn count(&self, which: usize, kinds: &[OperationKind]) -> u64 {
        kinds.iter().map(|kind| self.files[which].faulty.count(*kind)).sum()
    }

    pub(crate) fn clear_faults(&self) {
        self.files.iter().for_each(|file| file.faulty.clear_faults());
    }

    /// Runs something whose reads no fault sees.
    pub(crate) fn calmly<T>(&self, look: impl FnOnce() -> T) -> T {
        self.files.iter().for_each(|file| file.is_calm.store(true, Ordering::SeqCst));
        let seen = look();
        self.files.iter().for_each(|file| file.is_calm.store(false, Ordering::SeqCst));
        seen
    }

    /// The present moment; they count up from 0.
    pub(crate) fn now(&self) -> usize {
        lock(&self.moments).len() - 1
    }

    fn at(&self, moment: usize) -> Moment {
        lock(&self.moments)[moment].clone()
    }

    /// What a power cut at a moment may leave, a choice for each file.
    pub(crate) fn crash(&self, moment: usize, choices: &[CrashChoice]) -> Vec<MemoryStorage> {
        let at = self.at(moment);
        let files = self.files.iter().zip(at).zip(choices);
        files.map(|((file, at), choice)| file.faulty.crash_at(at, *choice)).collect()
    }

    /// What a power cut now leaves of every file in the same way.
    pub(crate) fn crash_now(&self, choice: CrashChoice) -> Vec<MemoryStorage> {
        self.crash(self.now(), &vec![choice; self.files.len()])
    }

    /// Changes that a power cut at a moment may lose, for each file.
    fn unsynced(&self, moment: usize) -> Vec<usize> {
        let at = self.at(moment);
        self.files.iter().zip(at).map(|(file, at)| file.faulty.unsynced_at(at)).collect()
    }

    /// Whether the last operation before a moment was a change of this file.
    fn is_newest(&self, moment: usize, which: usize) -> bool {
        moment > 0 && self.at(moment)[which] > self.at(moment - 1)[which]
    }

    /// The choices to try at a moment. `all` asks for every subset; else those without the newest change are left out,
    /// which were tried at the moment before.
    pub(crate) fn choices(
        &self,
        cuts: Cuts,
        moment: usize,
        dice: &mut Dice,
        all: bool,
    ) -> Vec<Vec<CrashChoice>> {
        let unsynced = self.unsynced(moment);
        match cuts {
            Cuts::Exhaustive if unsynced.iter().sum::<usize>() <= MOST_EXHAUSTIVE => {
                let newest = (0..unsynced.len()).find(|&which| self.is_newest(moment, which));
                let mut choices = subsets(&unsynced, newest.filter(|_| !all));
                if unsynced.iter().any(|&unsynced| unsynced > 0) {
                    choices.extend((0..4).map(|_| random(dice, unsynced.len())));
                }
                choices
            }
            _ => sample(dice, &unsynced),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn random(dice: &mut Dice, files: usize) -> Vec<CrashChoice> {
    (0..files).map(|_| CrashChoice::Random { seed: dice.roll(u64::MAX) }).collect()
}

/// Every subset of the changes; where the last operation changed this file, only those that have that change. Bit `n` of
/// a subset's number is a change, those of the first file first.
fn subsets(unsynced: &[usize], newest: Option<usize>) -> Vec<Vec<CrashChoice>> {
    let total: usize = unsynced.iter().sum();
    let starts: Vec<usize> = unsynced
        .iter()
        .scan(0, |sum, count| {
            *sum += count;
            Some(*sum - count)
        })
        .collect();
    let newest = newest.filter(|&which| unsynced[which] > 0).map(|which| starts[which] + unsynced[which] - 1);
    (0..1_u64 << total)
        .filter(|number| newest.is_none_or(|bit| number >> bit & 1 == 1))
        .map(|number| {
            let of_file = |(start, count): (&usize, &usize)| CrashChoice::Chosen {
                mask: number >> start & ((1 << count) - 1),
            };
            starts.iter().zip(unsynced).map(of_file).collect()
        })
        .collect()
}

/// Nothing, everything, all of one file and nothing of the others, prefixes, torn writes, random subsets.
fn sample(dice: &mut Dice, unsynced: &[usize]) -> Vec<Vec<CrashChoice>> {
    let files = unsynced.len();
    let mut choices = vec![vec![CrashChoice::Synced; files]];
    if unsynced.iter().all(|&unsynced| unsynced == 0) {
        return choices;
    }
    choices.push(vec![CrashChoice::All; files]);
    if files > 1 {
        choices.extend((0..files).map(|survivor| {
            let of_file = |which| if which == survivor { CrashChoice::All } else { CrashChoice::Synced };
            (0..files).map(of_file).collect()
        }));
    }
    let mut whole = |unsynced: &usize| dice.roll(*unsynced as u64 + 1) as usize;
    choices.push(unsynced.iter().map(|unsynced| CrashChoice::Prefix(whole(unsynced))).collect());
    let whole: Vec<usize> = unsynced.iter().map(whole).collect();
    let torn = |whole: usize| CrashChoice::Torn { whole, sectors: dice.roll(4) };
    choices.push(whole.into_iter().map(torn).collect());
    choices.extend((0..3).map(|_| random(dice, files)));
    choices
}

/// One of the files.
#[derive(Debug)]
struct InTurn {
    faulty: FaultyStorage,
    which: usize,
    /// Whether faults are to see no reads.
    is_calm: AtomicBool,
    moments: Arc<Mutex<Vec<Moment>>>,
}

impl InTurn {
    fn change<T>(&self, change: impl FnOnce(&FaultyStorage) -> io::Result<T>) -> io::Result<T> {
        let mut moments = lock(&self.moments);
        let done = change(&self.faulty);
        let mut next = moments.last().cloned().unwrap_or_default();
        let len = self.faulty.log_len();
        if next[self.which] != len {
            next[self.which] = len;
            moments.push(next);
        }
        done
    }
}

impl Storage for InTurn {
    fn len(&self) -> io::Result<u64> {
        self.faulty.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        if self.is_calm.load(Ordering::SeqCst) {
            self.faulty.inner().read_at(buf, offset)
        } else {
            self.faulty.read_at(buf, offset)
        }
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        self.change(|faulty| faulty.write_at(buf, offset))
    }

    fn write_vectored_at(&self, bufs: &[io::IoSlice<'_>], offset: u64) -> io::Result<usize> {
        self.change(|faulty| faulty.write_vectored_at(bufs, offset))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(|faulty| faulty.set_len(len))
    }

    fn sync(&self) -> io::Result<()> {
        self.change(FaultyStorage::sync)
    }

    fn is_read_only(&self) -> bool {
        self.faulty.is_read_only()
    }

    fn write_zeroes(&self, range: ByteRange) -> io::Result<()> {
        self.change(|faulty| faulty.write_zeroes(range))
    }

    fn punch_hole(&self, range: ByteRange) -> io::Result<bool> {
        self.change(|faulty| faulty.punch_hole(range))
    }

    fn allocate(&self, range: ByteRange) -> io::Result<()> {
        self.change(|faulty| faulty.allocate(range))
    }

    fn extent_at(&self, offset: u64) -> io::Result<Option<StorageExtent>> {
        self.faulty.extent_at(offset)
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.faulty.allocated_bytes()
    }
}
