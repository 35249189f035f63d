//! Reading records of unknown length one after the other, with few reads.

use std::io;

use super::ledger::Subject;

/// Bytes read at a time.
const LEN: u64 = 1 << 20;

/// A piece of the file in memory.
#[derive(Debug)]
pub(super) struct Window<'a> {
    subject: Subject<'a>,
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    pub(super) fn new(subject: Subject<'a>) -> Window<'a> {
        Window { subject, start: 0, bytes: Vec::new() }
    }

    /// The `len` bytes at `host`, zeroes past the end of the file. Reads ahead of them when they are not at hand.
    pub(super) fn at(&mut self, host: u64, len: u64) -> io::Result<&[u8]> {
        let at_hand = host >= self.start && host.saturating_add(len) <= self.start + self.bytes.len() as u64;
        if !at_hand {
            self.bytes.resize(len.max(LEN) as usize, 0);
            if let Err(error) = self.subject.read(&mut self.bytes, host) {
                self.bytes.clear();
                return Err(error);
            }
            self.start = host;
        }
        let offset = (host - self.start) as usize;
        Ok(&self.bytes[offset..offset + len as usize])
    }
}
