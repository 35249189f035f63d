//! Memory to read into and write from, whose first byte is aligned.
//!
//! Files that bypass the host's cache take aligned memory without a copy in between. For all others it matters, too:
//! some processors copy to memory that starts shortly after a page boundary, which is where large blocks from the heap
//! start, at half the speed.

use std::ops::{Deref, DerefMut};

/// What every host that we know of is content with, in bytes.
const PAGE: usize = 4096;

/// A row of bytes that starts at a multiple of 4,096, for large reads and writes.
#[derive(Debug, Default)]
pub struct PageBuffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl PageBuffer {
    /// `len` zeroes.
    pub fn new(len: usize) -> PageBuffer {
        PageBuffer::aligned(len, PAGE)
    }

    /// `len` zeroes that start at a multiple of `alignment`, a power of two.
    pub(super) fn aligned(len: usize, alignment: usize) -> PageBuffer {
        let memory = vec![0; len + alignment];
        let past = memory.as_ptr().addr() % alignment;
        PageBuffer { memory, start: (alignment - past) % alignment, len }
    }

    /// Makes it `len` bytes long, of any content.
    pub fn resize(&mut self, len: usize) {
        if len <= self.capacity() {
            self.len = len;
        } else {
            *self = PageBuffer::new(len);
        }
    }

    /// The length up to which it grows without taking memory.
    pub(super) fn capacity(&self) -> usize {
        self.memory.len() - self.start
    }
}

impl Deref for PageBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for PageBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_starts_at_a_page_whatever_its_length() {
        let mut buffer = PageBuffer::default();
        assert!(buffer.is_empty());
        for len in [1, 4096, 5000, 1 << 20, 17, 0, (1 << 20) + 1] {
            buffer.resize(len);
            assert_eq!(buffer.len(), len);
            if len > 0 {
                assert_eq!(buffer.as_ptr().addr() % PAGE, 0);
                buffer[len - 1] = 1;
            }
        }
        let large = PageBuffer::aligned(10, 1 << 16);
        assert_eq!(large.as_ptr().addr() % (1 << 16), 0);
        assert_eq!(*large, [0; 10]);
    }
}
