//! Conveniences over [`Storage`] that engines call; nothing here is for an implementation to override.

use std::io::{self, IoSlice};

use super::{PageBuffer, Storage};
use crate::range::ByteRange;

/// Whole-buffer reads and writes for every [`Storage`].
pub trait StorageExt: Storage {
    /// Fills `buf` from `offset`; [`io::ErrorKind::UnexpectedEof`] when the storage ends before.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if read_until_end(self, buf, offset)? < buf.len() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the storage ends inside the range"));
        }
        Ok(())
    }

    /// Fills `buf` from `offset`; what lies past the end of the storage reads as zeroes.
    fn read_padded_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let done = read_until_end(self, buf, offset)?;
        buf[done..].fill(0);
        Ok(())
    }

    /// Writes the whole of `buf` at `offset`.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buf.len() {
            done += progress(self.write_at(&buf[done..], offset.saturating_add(done as u64))?)?;
        }
        Ok(())
    }

    /// Writes zeroes to the whole range, so that every byte of it has been written and none is merely promised.
    fn write_every_byte(&self, range: ByteRange) -> io::Result<()> {
        write_zero_bytes(self, range)
    }

    /// Writes all the buffers in order at `offset`. `bufs` is used up: its slices are advanced past what was written.
    fn write_all_vectored_at(&self, bufs: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut rest = bufs;
        let mut at = offset;
        // Drops leading empty buffers, which no write would ever use up.
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            let n = progress(self.write_vectored_at(rest, at)?)?;
            at = at.saturating_add(n as u64);
            IoSlice::advance_slices(&mut rest, n);
        }
        Ok(())
    }
}

impl<S: Storage + ?Sized> StorageExt for S {}

/// Reads until `buf` is full or the storage ends. A short read alone is not taken for the end, so that a storage of a
/// user's own that breaks that promise costs a call and not a wrong zero.
fn read_until_end<S: Storage + ?Sized>(storage: &S, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match storage.read_at(&mut buf[done..], offset.saturating_add(done as u64))? {
            0 => break,
            n => done += n,
        }
    }
    Ok(done)
}

/// A write that writes nothing would be repeated for ever.
fn progress(n: usize) -> io::Result<usize> {
    if n == 0 {
        return Err(io::Error::new(io::ErrorKind::WriteZero, "the storage took no byte of a write"));
    }
    Ok(n)
}

/// Writes zeroes over `range`, growing the storage to cover it.
pub(super) fn write_zero_bytes<S: Storage + ?Sized>(storage: &S, range: ByteRange) -> io::Result<()> {
    /// As files that bypass the host's cache want their buffers.
    #[repr(align(4096))]
    struct Aligned([u8; 64 << 10]);
    static ZEROES: Aligned = Aligned([0; 64 << 10]);
    let mut at = range.start();
    while at < range.end() {
        let n = (range.end() - at).min(ZEROES.0.len() as u64) as usize;
        at += progress(storage.write_at(&ZEROES.0[..n], at)?)? as u64;
    }
    Ok(())
}

/// Copies bytes through memory.
pub(super) fn copy_bytes<S: Storage + ?Sized>(
    target: &S,
    source: &dyn Storage,
    from: u64,
    to: ByteRange,
) -> io::Result<()> {
    let mut buf = PageBuffer::new(to.len().min(1 << 20) as usize);
    let mut done = 0;
    while done < to.len() {
        let n = (to.len() - done).min(buf.len() as u64) as usize;
        source.read_padded_at(&mut buf[..n], from.saturating_add(done))?;
        target.write_all_at(&buf[..n], to.start() + done)?;
        done += n as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Fault, FaultyStorage, MemoryStorage, OperationKind, conformance};

    /// Only what must be there, so that every emulation of the trait is used.
    #[derive(Debug)]
    struct Bare(MemoryStorage);

    impl Storage for Bare {
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }

        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            self.0.read_at(buf, offset)
        }

        fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
            self.0.write_at(buf, offset)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.0.set_len(len)
        }

        fn sync(&self) -> io::Result<()> {
            self.0.sync()
        }

        fn is_read_only(&self) -> bool {
            false
        }
    }

    #[test]
    fn the_emulations_conform() {
        conformance::run(&mut || Box::new(Bare(MemoryStorage::new())));
    }

    #[test]
    fn short_reads_and_writes_are_gone_on_with() {
        let storage = FaultyStorage::new(MemoryStorage::new());
        storage.inject(Fault::short(3).forever());
        storage.write_all_at(b"0123456789", 5).unwrap();
        let (first, second) = (b"abcd".to_vec(), b"efghij".to_vec());
        let mut slices = [IoSlice::new(&first), IoSlice::new(&[]), IoSlice::new(&second)];
        storage.write_all_vectored_at(&mut slices, 15).unwrap();
        storage.write_zeroes(ByteRange::between(0, 6)).unwrap();
        let mut buf = [0xee; 25];
        storage.read_exact_at(&mut buf, 0).unwrap();
        assert_eq!(&buf, b"\0\0\0\0\0\x00123456789abcdefghij");
        let mut padded = [0xee; 8];
        storage.read_padded_at(&mut padded, 20).unwrap();
        assert_eq!(&padded, b"fghij\0\0\0");
    }

    #[test]
    fn a_read_that_meets_the_end_says_so() {
        let storage = MemoryStorage::with_bytes(b"abc");
        let error = storage.read_exact_at(&mut [0; 4], 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn an_error_ends_a_write() {
        let storage = FaultyStorage::new(MemoryStorage::new());
        storage.inject(Fault::short(2));
        storage.inject(Fault::errno(28).on(&[OperationKind::Write]).after(1));
        let error = storage.write_all_at(b"abcdef", 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(storage.inner().to_vec(), b"ab");
    }

    #[test]
    fn storage_that_takes_nothing_is_an_error_and_not_a_loop() {
        #[derive(Debug)]
        struct Stuck;
        impl Storage for Stuck {
            fn len(&self) -> io::Result<u64> {
                Ok(0)
            }
            fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
                Ok(0)
            }
            fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
                Ok(0)
            }
            fn set_len(&self, _: u64) -> io::Result<()> {
                Ok(())
            }
            fn sync(&self) -> io::Result<()> {
                Ok(())
            }
            fn is_read_only(&self) -> bool {
                false
            }
        }
        for result in [
            Stuck.write_all_at(b"a", 0),
            Stuck.write_all_vectored_at(&mut [IoSlice::new(b"a")], 0),
            Stuck.write_zeroes(ByteRange::between(0, 1)),
        ] {
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::WriteZero);
        }
    }
}
