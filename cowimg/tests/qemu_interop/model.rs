//! The disk as it should be: a row of bytes in memory, and the operations that change it.
//!
//! The same operations are given to the library ([`crate::subject`]) and to QEMU ([`crate::script`]).
#![allow(dead_code, reason = "each test binary uses its own part")]

use cowimg::{ByteRange, ZeroMode};

use crate::seeded::{Rng, noise};

/// The bytes of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fill {
    /// One byte again and again.
    Byte(u8),
    /// Bytes that do not compress; the number tells which.
    Noise(u64),
}

impl Fill {
    /// The bytes, `len` of them.
    pub(crate) fn bytes(self, len: u64) -> Vec<u8> {
        match self {
            Fill::Byte(byte) => vec![byte; len as usize],
            Fill::Noise(salt) => noise(salt, len as usize),
        }
    }
}

/// What a guest may ask of its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Write(ByteRange, Fill),
    Zeroes(ByteRange, ZeroMode),
    Discard(ByteRange),
    Read(ByteRange),
    Flush,
}

/// What a disk should read as.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    bytes: Vec<u8>,
}

impl Model {
    /// A disk of zeroes.
    pub(crate) fn zeroed(size: u64) -> Model {
        Model { bytes: vec![0; size as usize] }
    }

    /// A disk that holds `bytes`.
    pub(crate) fn holding(bytes: Vec<u8>) -> Model {
        Model { bytes }
    }

    /// What an overlay of `size` bytes over this disk reads as before anything is written.
    pub(crate) fn overlay(&self, size: u64) -> Model {
        let mut bytes = self.bytes.clone();
        bytes.resize(size as usize, 0);
        Model { bytes }
    }

    /// The whole disk.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Size in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The bytes of a range.
    pub(crate) fn at(&self, range: ByteRange) -> &[u8] {
        &self.bytes[range.start() as usize..range.end() as usize]
    }

    /// The range holds `bytes` from now on.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.bytes[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
    }

    /// The range reads as zeroes from now on.
    pub(crate) fn zero(&mut self, range: ByteRange) {
        self.bytes[range.start() as usize..range.end() as usize].fill(0);
    }
}

/// Draws operations for a disk.
#[derive(Debug)]
pub(crate) struct Operations {
    rng: Rng,
    size: u64,
    cluster: u64,
}

impl Operations {
    /// Operations for a disk of `size` bytes in clusters of `cluster` bytes; `purpose` is part of the seed.
    pub(crate) fn new(purpose: impl Into<String>, size: u64, cluster: u64) -> Operations {
        Operations { rng: Rng::new(purpose), size, cluster }
    }

    /// The generator itself, for other choices of the same test.
    pub(crate) fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }

    /// The disk has another size from now on.
    pub(crate) fn set_size(&mut self, size: u64) {
        self.size = size;
    }

    /// The next operation.
    pub(crate) fn next(&mut self) -> Operation {
        let range = self.range();
        match self.rng.below(100) {
            0..45 => Operation::Write(range, self.fill()),
            45..60 => Operation::Zeroes(range, *self.rng.pick(&[ZeroMode::KeepSpace, ZeroMode::Unmap])),
            60..75 => Operation::Discard(range),
            75..95 => Operation::Read(range),
            _ => Operation::Flush,
        }
    }

    /// The next operation that may change the disk.
    pub(crate) fn next_change(&mut self) -> Operation {
        loop {
            match self.next() {
                Operation::Read(_) | Operation::Flush => {}
                change => return change,
            }
        }
    }

    /// The bytes of the next write.
    pub(crate) fn fill(&mut self) -> Fill {
        match self.rng.below(10) {
            0 => Fill::Byte(0),
            1..4 => Fill::Byte(self.rng.below(256) as u8),
            _ => Fill::Noise(self.rng.next()),
        }
    }

    /// A range of the disk: within a sector, whole sectors, whole clusters, across a cluster's border, up to the
    /// end of the disk, long.
    pub(crate) fn range(&mut self) -> ByteRange {
        let (size, cluster) = (self.size, self.cluster);
        let rng = &mut self.rng;
        let (start, len) = match rng.below(6) {
            0 => (rng.below(size), rng.between(1, 1000)),
            1 => (rng.below(size / 512) * 512, rng.between(1, 16) * 512),
            2 => (rng.below(size.div_ceil(cluster)) * cluster, rng.between(1, 3) * cluster),
            3 => {
                let border = rng.between(1, (size - 1).div_ceil(cluster)) * cluster;
                let before = rng.between(1, cluster.min(3000));
                (border.saturating_sub(before).min(size - 1), before + rng.between(1, cluster.min(3000)))
            }
            4 => {
                let len = rng.between(1, (2 * cluster).min(size));
                (size - len, len)
            }
            _ => (rng.below(size), rng.between(1, size / 8)),
        };
        ByteRange::between(start, (start + len).min(size))
    }
}
