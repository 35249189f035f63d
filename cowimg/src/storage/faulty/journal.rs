//! What was done to a storage, and what a power cut may leave of it.
//!
//! The model of the disk is described at [`FaultyStorage`](super::FaultyStorage), where users look for it.

use std::sync::Arc;

use super::Operation;
use crate::range::ByteRange;
use crate::storage::{MemoryStorage, Storage};

/// The smallest piece that a disk writes as a whole.
const SECTOR: u64 = 512;

/// How many entries pass at least between two checkpoints: a crash applies this many and the map of a storage's pages
/// is copied as often.
const CHECKPOINT_EVERY: usize = 8;

/// Which of the changes that no sync covers survive a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CrashChoice {
    /// None of them.
    Synced,
    /// All of them, as if power had lasted a little longer.
    All,
    /// The first so many of them, whole; none of the others.
    Prefix(usize),
    /// The first `whole` of them, and of the one after those its first `sectors` sectors (its whole, where it is not
    /// a write of bytes or zeroes and `sectors` is not 0).
    Torn {
        /// How many survive whole.
        whole: usize,
        /// How many sectors of the next survive.
        sectors: u64,
    },
    /// Those whose bit is set, whole: bit 0 stands for the first. None past the 64th.
    Chosen {
        /// The bits.
        mask: u64,
    },
    /// A random choice that the seed determines: each of them is whole, torn or lost.
    Random {
        /// Two crashes at the same moment with the same seed are equal.
        seed: u64,
    },
}

#[derive(Debug)]
struct Entry {
    operation: Operation,
    /// What was written, for a write.
    bytes: Arc<[u8]>,
}

/// Every change since a known state.
#[derive(Debug)]
pub(super) struct Journal {
    entries: Vec<Entry>,
    /// The durable state after so many entries, in order; the first is the known state. They share the pages that are
    /// equal.
    checkpoints: Vec<(usize, MemoryStorage)>,
}

/// How much of a change survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Survival {
    Whole,
    Lost,
    /// Its first sectors.
    Sectors(u64),
    /// Each sector by a coin, and so does the length that it gives the storage.
    Coins,
}

impl Journal {
    pub(super) fn new(base: MemoryStorage) -> Journal {
        Journal { entries: Vec::new(), checkpoints: vec![(0, base)] }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn operations(&self) -> impl Iterator<Item = Operation> {
        self.entries.iter().map(|entry| entry.operation)
    }

    pub(super) fn push_write(&mut self, offset: u64, bytes: &[u8]) {
        let range = ByteRange::between(offset, offset.saturating_add(bytes.len() as u64));
        self.entries.push(Entry { operation: Operation::Write(range), bytes: bytes.into() });
    }

    pub(super) fn push(&mut self, operation: Operation) {
        self.entries.push(Entry { operation, bytes: Arc::default() });
        let (since, _) = self.since_checkpoint(self.len());
        // A state is durable for good only where nothing before it is in doubt.
        if operation == Operation::Sync && since.len() >= CHECKPOINT_EVERY && self.unsynced(self.len()) == 0 {
            let durable = self.crash(self.len(), CrashChoice::Synced);
            self.checkpoints.push((self.len(), durable));
        }
    }

    /// How many changes of the first `operations` no sync among them covers.
    pub(super) fn unsynced(&self, operations: usize) -> usize {
        let (entries, _) = self.since_checkpoint(operations);
        covered(entries).into_iter().filter(|covered| !covered).count()
    }

    /// What a power cut after the first `operations` may leave.
    pub(super) fn crash(&self, operations: usize, choice: CrashChoice) -> MemoryStorage {
        let (entries, durable) = self.since_checkpoint(operations);
        let storage = durable.clone();
        let mut random = Random::new(choice);
        let changes = entries.iter().filter(|entry| is_change(entry.operation));
        let mut nth_unsynced = 0;
        for (entry, covered) in changes.zip(covered(entries)) {
            let survival = if covered {
                Survival::Whole
            } else {
                nth_unsynced += 1;
                survival(choice, nth_unsynced - 1, &mut random)
            };
            entry.apply(&storage, survival, &mut random);
        }
        storage
    }

    /// The last checkpoint at or before the moment, and what came between.
    fn since_checkpoint(&self, operations: usize) -> (&[Entry], &MemoryStorage) {
        let operations = operations.min(self.entries.len());
        let later = self.checkpoints.partition_point(|(at, _)| *at <= operations);
        // The first checkpoint is at 0, so that `later` is at least 1.
        let (at, durable) = &self.checkpoints[later - 1];
        (&self.entries[*at..operations], durable)
    }
}

fn is_change(operation: Operation) -> bool {
    !matches!(operation, Operation::Sync | Operation::FailedSync | Operation::Read(_))
}

/// For each change among the entries, whether a sync covers it: the first sync after it decides.
fn covered(entries: &[Entry]) -> Vec<bool> {
    let mut next_sync_succeeds = false;
    let mut covered = Vec::new();
    for entry in entries.iter().rev() {
        match entry.operation {
            Operation::Sync => next_sync_succeeds = true,
            Operation::FailedSync => next_sync_succeeds = false,
            operation if is_change(operation) => covered.push(next_sync_succeeds),
            _ => {}
        }
    }
    covered.reverse();
    covered
}

fn survival(choice: CrashChoice, nth: usize, random: &mut Random) -> Survival {
    match choice {
        CrashChoice::All => Survival::Whole,
        CrashChoice::Prefix(whole) | CrashChoice::Torn { whole, .. } if nth < whole => Survival::Whole,
        CrashChoice::Chosen { mask } if nth < 64 && mask >> nth & 1 == 1 => Survival::Whole,
        CrashChoice::Torn { whole, sectors } if nth == whole => Survival::Sectors(sectors),
        CrashChoice::Synced
        | CrashChoice::Prefix(_)
        | CrashChoice::Torn { .. }
        | CrashChoice::Chosen { .. } => Survival::Lost,
        CrashChoice::Random { .. } => match random.below(4) {
            0 => Survival::Lost,
            1 | 2 => Survival::Whole,
            _ => Survival::Coins,
        },
    }
}

impl Entry {
    fn apply(&self, storage: &MemoryStorage, survival: Survival, random: &mut Random) {
        match self.operation {
            Operation::Write(range) | Operation::WriteZeroes(range) | Operation::PunchHole(range) => {
                self.apply_to_sectors(storage, range, survival, random);
            }
            Operation::SetLen(_) | Operation::Allocate(_) => {
                let survives = match survival {
                    Survival::Whole => true,
                    Survival::Lost => false,
                    Survival::Sectors(n) => n > 0,
                    Survival::Coins => random.coin(),
                };
                if survives {
                    self.apply_piece(storage, self.operation.range().unwrap_or(ByteRange::between(0, 0)));
                }
            }
            Operation::Read(_) | Operation::Sync | Operation::FailedSync => {}
        }
    }

    fn apply_to_sectors(
        &self,
        storage: &MemoryStorage,
        range: ByteRange,
        survival: Survival,
        random: &mut Random,
    ) {
        match survival {
            Survival::Whole => self.apply_piece(storage, range),
            Survival::Lost => {}
            Survival::Sectors(n) => {
                let first = range.start() / SECTOR;
                let end = first.saturating_add(n).saturating_mul(SECTOR).min(range.end());
                self.apply_piece(storage, ByteRange::between(range.start(), end));
            }
            Survival::Coins => {
                // A file system may store the new length before the bytes, which then read as zeroes.
                if !matches!(self.operation, Operation::PunchHole(_)) && random.coin() {
                    expect_memory(storage.allocate(range));
                }
                let mut at = range.start();
                while at < range.end() {
                    let end = ((at / SECTOR + 1) * SECTOR).min(range.end());
                    if random.coin() {
                        self.apply_piece(storage, ByteRange::between(at, end));
                    }
                    at = end;
                }
            }
        }
    }

    /// Applies the part of the change that lies in `piece`.
    fn apply_piece(&self, storage: &MemoryStorage, piece: ByteRange) {
        if let Operation::SetLen(len) = self.operation {
            return expect_memory(storage.set_len(len));
        }
        if piece.is_empty() {
            return;
        }
        match self.operation {
            Operation::Write(range) => {
                let at = (piece.start() - range.start()) as usize;
                let bytes = &self.bytes[at..at + piece.len() as usize];
                expect_memory(storage.write_at(bytes, piece.start()).map(drop));
            }
            Operation::WriteZeroes(_) => expect_memory(storage.write_zeroes(piece)),
            Operation::PunchHole(_) => expect_memory(storage.punch_hole(piece).map(drop)),
            Operation::Allocate(_) => expect_memory(storage.allocate(piece)),
            Operation::Read(_) | Operation::SetLen(_) | Operation::Sync | Operation::FailedSync => {}
        }
    }
}

/// Only offsets that passed the same checks before come here.
fn expect_memory(result: std::io::Result<()>) {
    result.expect("memory takes every change that the storage took");
}

/// `SplitMix64`: small, and the same everywhere for ever, so that a seed in a bug report stays good.
struct Random(u64);

impl Random {
    fn new(choice: CrashChoice) -> Random {
        match choice {
            CrashChoice::Random { seed } => Random(seed),
            _ => Random(0),
        }
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e3779b97f4a7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58476d1ce4e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d049bb133111eb);
        z ^ (z >> 31)
    }

    /// A number below a small bound.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn coin(&mut self) -> bool {
        self.below(2) == 0
    }
}
