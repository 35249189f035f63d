//! What reached a disk and when: the log of dm-log-writes, read and replayed. A write that is no flush comes into the log
//! with the first flush after it, so that all before a flush was durable when the flush had ended, and what lies
//! between two flushes was on its way.
//!
//! ```text
//! sector 0    magic u64, version u64 (1), number of entries u64, bytes of a sector u32
//! from 1 on   for each entry: a sector that starts with
//!               sector u64, number of sectors u64, flags u64, bytes of the mark u64, the mark
//!             then its data, unless it discards
//! ```
//! All numbers are little-endian.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1 << 0;
const FUA: u64 = 1 << 1;
const DISCARD: u64 = 1 << 2;
const MARK: u64 = 1 << 3;
/// What the log ends with.
const END: &str = "dm-log-writes-end";

/// One entry of the log.
struct Entry {
    /// Where on the disk, and how many bytes.
    at: u64,
    len: u64,
    flags: u64,
    mark: Option<String>,
    /// Where its data is in the log.
    data: u64,
}

impl Entry {
    /// Whether it is durable when it has ended, or makes others so.
    fn is_barrier(&self) -> bool {
        self.flags & (FLUSH | FUA) != 0
    }
}

/// The log of a disk that held nothing at first, from beginning to end.
pub(crate) struct Replay {
    log: File,
    entries: Vec<Entry>,
    next: usize,
    disk: Vec<u8>,
    mark: Option<String>,
}

/// The disk as a power cut may have left it.
pub(crate) struct Moment<'a> {
    /// All that was durable.
    pub(crate) disk: &'a [u8],
    /// The last mark that had been left.
    pub(crate) mark: Option<&'a str>,
    /// What was on its way: some of it on the disk, too.
    pub(crate) torn: Option<Vec<u8>>,
}

impl Replay {
    pub(crate) fn of(path: &Path, disk_bytes: u64) -> Replay {
        let log = File::open(path).expect("the log is there");
        let word = |at: u64| {
            let mut bytes = [0; 8];
            log.read_exact_at(&mut bytes, at).expect("the log can be read");
            u64::from_le_bytes(bytes)
        };
        assert_eq!((word(0), word(8)), (MAGIC, 1), "this is no log of dm-log-writes");
        let (count, sector) = (word(16), word(24) & 0xffff_ffff);
        let mut at = sector;
        let mut entries = Vec::new();
        for _ in 0..count {
            let [start, sectors, flags, mark_len] = [0, 8, 16, 24].map(|field| word(at + field));
            let mark = (flags & MARK != 0).then(|| {
                let mut text = vec![0; mark_len as usize];
                log.read_exact_at(&mut text, at + 32).expect("the log can be read");
                String::from_utf8_lossy(&text).trim_end_matches('\0').to_owned()
            });
            if mark.as_deref() == Some(END) {
                break;
            }
            let (start, len) = (start * sector, sectors * sector);
            entries.push(Entry { at: start, len, flags, mark, data: at + sector });
            let has_data = flags & (DISCARD | MARK) == 0;
            at += sector + if has_data { len } else { 0 };
        }
        Replay { log, entries, next: 0, disk: vec![0; disk_bytes as usize], mark: None }
    }

    /// Goes on to the next flush. `roll` draws a number below another: with it writes are chosen that reached the disk
    /// though the flush after them did not.
    pub(crate) fn next_flush(&mut self, mut roll: impl FnMut(u64) -> u64) -> Option<Moment<'_>> {
        let barrier = self.entries[self.next..].iter().position(Entry::is_barrier)? + self.next;
        for nth in self.next..=barrier {
            self.pass(nth);
        }
        self.next = barrier + 1;
        let rest = &self.entries[self.next..];
        let on_their_way = rest.iter().position(Entry::is_barrier).map_or(rest, |flush| &rest[..=flush]);
        // What was left before the next flush ended.
        if let Some(mark) = on_their_way.iter().rev().find_map(|entry| entry.mark.clone()) {
            self.mark = Some(mark);
        }
        let writes: Vec<&Entry> =
            on_their_way.iter().filter(|entry| entry.mark.is_none() && entry.len > 0).collect();
        let torn = (!writes.is_empty()).then(|| {
            let mut disk = self.disk.clone();
            for entry in writes.into_iter().filter(|_| roll(2) == 0) {
                apply(&self.log, entry, &mut disk);
            }
            disk
        });
        Some(Moment { disk: &self.disk, mark: self.mark.as_deref(), torn })
    }

    fn pass(&mut self, nth: usize) {
        let entry = &self.entries[nth];
        match &entry.mark {
            Some(mark) => self.mark = Some(mark.clone()),
            None => apply(&self.log, entry, &mut self.disk),
        }
    }
}

fn apply(log: &File, entry: &Entry, disk: &mut [u8]) {
    let place = &mut disk[entry.at as usize..(entry.at + entry.len) as usize];
    if entry.flags & DISCARD == 0 {
        log.read_exact_at(place, entry.data).expect("the log can be read");
    } else {
        place.fill(0);
    }
}
