//! A storage that holds another's bytes encrypted, sector by sector.

use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use zeroize::Zeroizing;

use super::{Storage, StorageExt, check_len, write_range};
use crate::codec::crypt::SectorCipher;
use crate::format::luks::SECTOR_SIZE;
use crate::range::ByteRange;

/// Bytes that are encrypted at a time, so that memory stays bounded.
const PIECE: usize = 256 << 10;

/// Decorator: what is written through it lies encrypted in `inner`, from `start` on. A sector's number is its offset here
/// divided by 512.
///
/// Space that nobody has written, holes and what [`Storage::set_len`] adds included, reads as noise, not as zeroes: zeroes
/// have to be written.
#[derive(Debug)]
pub(crate) struct EncryptedStorage {
    inner: Arc<dyn Storage>,
    cipher: SectorCipher,
    start: u64,
    /// Shared by writes of whole sectors; held alone by one that has to read, change and write a sector.
    parts: RwLock<()>,
}

impl EncryptedStorage {
    /// The bytes of `inner` from `start`, a multiple of 512, through `cipher`.
    pub(crate) fn new(inner: Arc<dyn Storage>, cipher: SectorCipher, start: u64) -> EncryptedStorage {
        EncryptedStorage { inner, cipher, start, parts: RwLock::new(()) }
    }

    /// Fills `buf` from `offset`; what lies past the end of the storage is zeroes. `shift`, a multiple of 512, is added to
    /// offsets (modulo 2^64) to get what sectors are numbered by.
    pub(crate) fn read_shifted(&self, buf: &mut [u8], offset: u64, shift: u64) -> io::Result<()> {
        let available = self.len()?.saturating_sub(offset).min(buf.len() as u64) as usize;
        let (there, past_end) = buf.split_at_mut(available);
        past_end.fill(0);
        let mut at = offset;
        for part in there.chunks_mut(PIECE) {
            self.read_part(part, at, shift)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Writes the whole of `buf` at `offset`, with the numbers of [`EncryptedStorage::read_shifted`].
    pub(crate) fn write_shifted(&self, buf: &[u8], offset: u64, shift: u64) -> io::Result<()> {
        write_range(self.start.saturating_add(offset), buf.len())?;
        if offset.is_multiple_of(SECTOR_SIZE) && buf.len().is_multiple_of(SECTOR_SIZE as usize) {
            let _shared = self.parts.read().unwrap_or_else(PoisonError::into_inner);
            return self.write_sectors(buf, offset, shift);
        }
        let mut at = offset;
        for part in buf.chunks(PIECE) {
            self.write_part(part, at, shift)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Reads any range within the storage.
    fn read_part(&self, buf: &mut [u8], offset: u64, shift: u64) -> io::Result<()> {
        let skipped = (offset % SECTOR_SIZE) as usize;
        if skipped == 0 && buf.len().is_multiple_of(SECTOR_SIZE as usize) {
            return self.read_sectors(buf, offset, shift);
        }
        let len = (skipped + buf.len()).next_multiple_of(SECTOR_SIZE as usize);
        let mut sectors = Zeroizing::new(vec![0; len]);
        self.read_sectors(&mut sectors, offset - skipped as u64, shift)?;
        buf.copy_from_slice(&sectors[skipped..skipped + buf.len()]);
        Ok(())
    }

    /// Reads and decrypts whole sectors; one that is cut off by the end of the storage has zeroes behind it.
    fn read_sectors(&self, buf: &mut [u8], offset: u64, shift: u64) -> io::Result<()> {
        self.inner.read_padded_at(buf, self.start.saturating_add(offset))?;
        self.cipher.decrypt(buf, number(offset, shift));
        Ok(())
    }

    fn write_sectors(&self, plain: &[u8], offset: u64, shift: u64) -> io::Result<()> {
        let mut piece = vec![0; plain.len().min(PIECE)];
        let mut at = offset;
        for plain in plain.chunks(PIECE) {
            let piece = &mut piece[..plain.len()];
            piece.copy_from_slice(plain);
            self.cipher.encrypt(piece, number(at, shift));
            self.inner.write_all_at(piece, self.start.saturating_add(at))?;
            at += plain.len() as u64;
        }
        Ok(())
    }

    /// Writes a range that does not fill its first or last sector: these are read, changed and written.
    fn write_part(&self, buf: &[u8], offset: u64, shift: u64) -> io::Result<()> {
        let _alone = self.parts.write().unwrap_or_else(PoisonError::into_inner);
        let first = offset / SECTOR_SIZE * SECTOR_SIZE;
        let skipped = (offset - first) as usize;
        let end = (offset + buf.len() as u64).next_multiple_of(SECTOR_SIZE);
        let mut sectors = Zeroizing::new(vec![0; (end - first) as usize]);
        let last = sectors.len() - SECTOR_SIZE as usize;
        self.read_sectors(&mut sectors[..SECTOR_SIZE as usize], first, shift)?;
        if last > 0 {
            self.read_sectors(&mut sectors[last..], first + last as u64, shift)?;
        }
        sectors[skipped..skipped + buf.len()].copy_from_slice(buf);
        self.write_sectors(&sectors, first, shift)
    }
}

/// What the sector at an offset is numbered by.
fn number(offset: u64, shift: u64) -> u64 {
    offset.wrapping_add(shift) / SECTOR_SIZE
}

impl Storage for EncryptedStorage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.inner.len()?.saturating_sub(self.start))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let available = self.len()?.saturating_sub(offset);
        let wanted = (buf.len() as u64).min(available) as usize;
        self.read_shifted(&mut buf[..wanted], offset, 0)?;
        Ok(wanted)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        self.write_shifted(buf, offset, 0)?;
        Ok(buf.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        check_len(self.start.saturating_add(len))?;
        self.inner.set_len(self.start + len)
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    fn is_read_only(&self) -> bool {
        self.inner.is_read_only()
    }

    fn allocate(&self, range: ByteRange) -> io::Result<()> {
        let shifted = |at: u64| self.start.saturating_add(at);
        self.inner.allocate(ByteRange::between(shifted(range.start()), shifted(range.end())))
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.inner.allocated_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::crypt::{CipherAlgorithm, CipherMode, IvGenerator, Scheme};
    use crate::storage::MemoryStorage;

    fn storage(inner: &Arc<MemoryStorage>) -> EncryptedStorage {
        let (cipher, mode) = (CipherAlgorithm::Aes128, CipherMode::Xts);
        let scheme = Scheme { cipher, mode, iv: IvGenerator::Plain64, iv_hash: None };
        let cipher = SectorCipher::new(scheme, &[9; 32]).expect("a scheme that fits");
        EncryptedStorage::new(Arc::clone(inner) as Arc<dyn Storage>, cipher, 1024)
    }

    #[test]
    fn any_range_reads_back_and_nothing_lies_open() {
        let inner = Arc::new(MemoryStorage::new());
        let encrypted = storage(&inner);
        let mut model = vec![0; 4 << 20];
        encrypted.write_all_at(&model, 0).expect("written");
        let mut at: usize = 1;
        for round in 0..200 {
            at = (at * 7919 + 13) % (model.len() - 700_000);
            let len =
                if round % 3 == 0 { 512 * (1 + round % 9) } else { 1 + at % 3000 + round % 7 * 100_000 };
            let at = if round % 5 == 0 { at / 512 * 512 } else { at };
            let bytes = vec![round as u8 | 1; len];
            encrypted.write_all_at(&bytes, at as u64).expect("written");
            model[at..at + len].copy_from_slice(&bytes);
        }
        let mut whole = vec![0; model.len()];
        encrypted.read_exact_at(&mut whole, 0).expect("read");
        assert!(whole == model);
        let mut odd = vec![0; 1_000_001];
        encrypted.read_exact_at(&mut odd, 333).expect("read");
        assert!(odd[..] == model[333..333 + odd.len()]);
        let mut stored = vec![0; 512];
        inner.read_exact_at(&mut stored, 1024).expect("read");
        assert_ne!(stored, model[..512]);
        assert_eq!(encrypted.read_at(&mut odd, model.len() as u64).expect("the end"), 0);
    }

    #[test]
    fn neighbours_in_one_sector_do_not_lose_each_other() {
        let encrypted = storage(&Arc::new(MemoryStorage::new()));
        encrypted.write_all_at(&[0; 4096], 0).expect("written");
        std::thread::scope(|scope| {
            for part in 0..8_u64 {
                let encrypted = &encrypted;
                scope.spawn(move || {
                    for _ in 0..200 {
                        encrypted.write_all_at(&[part as u8 + 1; 64], 512 + part * 64).expect("written");
                        encrypted.write_all_at(&[7; 512], 1024).expect("written");
                    }
                });
            }
        });
        let mut sector = [0; 512];
        encrypted.read_exact_at(&mut sector, 512).expect("read");
        assert!(sector.chunks(64).zip(1..).all(|(part, number)| part.iter().all(|&byte| byte == number)));
    }
}
