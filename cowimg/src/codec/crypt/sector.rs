//! Sectors of 512 bytes, encrypted and decrypted where they lie.

use std::fmt;
use std::marker::PhantomData;

use aes::{Aes128, Aes192, Aes256};
use cast5::Cast5;
use cipher::array::Array;
use cipher::consts::U16;
use cipher::{
    Block, BlockCipherDecrypt, BlockCipherEncrypt, BlockModeDecrypt, BlockModeEncrypt, BlockSizeUser,
    InnerIvInit, KeyInit, StreamCipherCore,
};
use ctr::flavors::{Ctr64BE, Ctr128BE};
use ctr::{CtrCore, CtrFlavor};
use serpent::Serpent;
use twofish::Twofish;
use xts_mode::Xts128;
use zeroize::Zeroizing;

use super::algorithm::{CipherAlgorithm, CipherMode, IvGenerator, Scheme};
use super::{CryptError, Passphrase};
use crate::format::luks::SECTOR_SIZE;

const LEGACY: Scheme = Scheme {
    cipher: CipherAlgorithm::Aes128,
    mode: CipherMode::Cbc,
    iv: IvGenerator::Plain64,
    iv_hash: None,
};

/// Encrypts and decrypts whole sectors, each by its number.
pub(crate) struct SectorCipher {
    sectors: Box<dyn Sectors>,
    iv: Iv,
}

impl fmt::Debug for SectorCipher {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SectorCipher").finish_non_exhaustive()
    }
}

/// Where a sector's initialisation vector comes from.
enum Iv {
    /// The low 32 bits of its number.
    Plain,
    /// All bits of its number.
    Plain64,
    /// Its number, encrypted.
    Essiv(Box<dyn Sectors>),
}

/// One sector with its initialisation vector, of which the first block's length is used.
trait Sectors: Send + Sync {
    fn encrypt(&self, iv: [u8; 16], sector: &mut [u8]);
    fn decrypt(&self, iv: [u8; 16], sector: &mut [u8]);
}

impl SectorCipher {
    /// The cipher of `scheme` under `key`, whose length is [`Scheme::key_len`].
    pub(crate) fn new(scheme: Scheme, key: &[u8]) -> Result<SectorCipher, CryptError> {
        scheme.validate()?;
        let iv = match (scheme.essiv_cipher()?, scheme.iv) {
            (Some((hash, cipher)), _) => {
                let key = Zeroizing::new(hash.digest(&[key]));
                Iv::Essiv(sectors(cipher, CipherMode::Ecb, &key)?)
            }
            (None, IvGenerator::Plain) => Iv::Plain,
            (None, _) => Iv::Plain64,
        };
        Ok(SectorCipher { sectors: sectors(scheme.cipher, scheme.mode, key)?, iv })
    }

    /// What the method of qcow's first version encrypts with, which qcow2 calls its legacy one: AES with 128 bits, chained
    /// within a sector. The key is the passphrase itself, cut or filled up with zeroes to 16 bytes.
    pub(crate) fn legacy(passphrase: &Passphrase) -> Result<SectorCipher, CryptError> {
        let mut key = Zeroizing::new([0; 16]);
        for (to, from) in key.iter_mut().zip(passphrase.bytes()) {
            *to = *from;
        }
        SectorCipher::new(LEGACY, &*key)
    }

    /// Encrypts `sectors`, a whole number of them, of which the first has the number `first`.
    pub(crate) fn encrypt(&self, sectors: &mut [u8], first: u64) {
        for (sector, number) in sectors.chunks_exact_mut(SECTOR_SIZE as usize).zip(first..) {
            self.sectors.encrypt(self.iv(number), sector);
        }
    }

    /// Decrypts them.
    pub(crate) fn decrypt(&self, sectors: &mut [u8], first: u64) {
        for (sector, number) in sectors.chunks_exact_mut(SECTOR_SIZE as usize).zip(first..) {
            self.sectors.decrypt(self.iv(number), sector);
        }
    }

    fn iv(&self, sector: u64) -> [u8; 16] {
        let mut iv = [0; 16];
        match &self.iv {
            Iv::Plain => iv[..4].copy_from_slice(&(sector as u32).to_le_bytes()),
            Iv::Plain64 => iv[..8].copy_from_slice(&sector.to_le_bytes()),
            Iv::Essiv(cipher) => {
                iv[..8].copy_from_slice(&sector.to_le_bytes());
                cipher.encrypt([0; 16], &mut iv);
            }
        }
        iv
    }
}

fn sectors(algorithm: CipherAlgorithm, mode: CipherMode, key: &[u8]) -> Result<Box<dyn Sectors>, CryptError> {
    match algorithm {
        CipherAlgorithm::Aes128 => of_wide::<Aes128>(mode, key),
        CipherAlgorithm::Aes192 => of_wide::<Aes192>(mode, key),
        CipherAlgorithm::Aes256 => of_wide::<Aes256>(mode, key),
        CipherAlgorithm::Cast5128 => of_any::<Cast5, Ctr64BE>(mode, key),
        CipherAlgorithm::Serpent128 | CipherAlgorithm::Serpent192 | CipherAlgorithm::Serpent256 => {
            of_wide::<Serpent>(mode, key)
        }
        CipherAlgorithm::Twofish128 | CipherAlgorithm::Twofish192 | CipherAlgorithm::Twofish256 => {
            of_wide::<Twofish>(mode, key)
        }
    }
}

/// How a block is counted up in the mode CTR.
trait Counter<C: BlockSizeUser>: CtrFlavor<C::BlockSize> + Send + Sync + 'static {}
impl<C: BlockSizeUser, F: CtrFlavor<C::BlockSize> + Send + Sync + 'static> Counter<C> for F {}

/// What all ciphers here can do.
trait Cipher: BlockCipherEncrypt + BlockCipherDecrypt + KeyInit + Send + Sync + 'static {}
impl<C: BlockCipherEncrypt + BlockCipherDecrypt + KeyInit + Send + Sync + 'static> Cipher for C {}

fn keyed<C: Cipher>(key: &[u8]) -> Result<C, CryptError> {
    C::new_from_slice(key)
        .map_err(|_| CryptError::Mismatch(format!("a key of {} bytes does not fit the cipher", key.len())))
}

/// Ciphers with blocks of 16 bytes, which have the mode XTS too.
fn of_wide<C: Cipher + BlockSizeUser<BlockSize = U16>>(
    mode: CipherMode,
    key: &[u8],
) -> Result<Box<dyn Sectors>, CryptError> {
    if mode != CipherMode::Xts {
        return of_any::<C, Ctr128BE>(mode, key);
    }
    let (data, tweak) = key.split_at(key.len() / 2);
    Ok(Box::new(Xts(Xts128::new(keyed::<C>(data)?, keyed::<C>(tweak)?))))
}

fn of_any<C: Cipher, F: Counter<C>>(mode: CipherMode, key: &[u8]) -> Result<Box<dyn Sectors>, CryptError> {
    let cipher = keyed::<C>(key)?;
    match mode {
        CipherMode::Ecb => Ok(Box::new(Ecb(cipher))),
        CipherMode::Cbc => Ok(Box::new(Cbc(cipher))),
        CipherMode::Ctr => Ok(Box::new(Ctr::<C, F>(cipher, PhantomData))),
        CipherMode::Xts => Err(CryptError::Mismatch(String::from("the mode xts needs blocks of 16 bytes"))),
    }
}

struct Ecb<C>(C);
struct Cbc<C>(C);
struct Ctr<C, F>(C, PhantomData<F>);
struct Xts<C: BlockSizeUser<BlockSize = U16>>(Xts128<C>);

/// A sector as blocks.
fn blocks<C: BlockSizeUser>(sector: &mut [u8]) -> &mut [Block<C>] {
    Array::slice_as_chunks_mut(sector).0
}

fn start<C: BlockSizeUser>(iv: &[u8; 16]) -> Block<C> {
    Block::<C>::from_fn(|at| iv.get(at).copied().unwrap_or(0))
}

impl<C: Cipher> Sectors for Ecb<C> {
    fn encrypt(&self, _: [u8; 16], sector: &mut [u8]) {
        self.0.encrypt_blocks(blocks::<C>(sector));
    }

    fn decrypt(&self, _: [u8; 16], sector: &mut [u8]) {
        self.0.decrypt_blocks(blocks::<C>(sector));
    }
}

impl<C: Cipher> Sectors for Cbc<C> {
    fn encrypt(&self, iv: [u8; 16], sector: &mut [u8]) {
        cbc::Encryptor::inner_iv_init(&self.0, &start::<C>(&iv)).encrypt_blocks(blocks::<C>(sector));
    }

    fn decrypt(&self, iv: [u8; 16], sector: &mut [u8]) {
        cbc::Decryptor::inner_iv_init(&self.0, &start::<C>(&iv)).decrypt_blocks(blocks::<C>(sector));
    }
}

impl<C: Cipher, F: Counter<C>> Sectors for Ctr<C, F> {
    fn encrypt(&self, iv: [u8; 16], sector: &mut [u8]) {
        let mut stream = CtrCore::<_, F>::inner_iv_init(&self.0, &start::<C>(&iv));
        stream.apply_keystream_blocks(blocks::<C>(sector));
    }

    fn decrypt(&self, iv: [u8; 16], sector: &mut [u8]) {
        self.encrypt(iv, sector);
    }
}

impl<C: Cipher + BlockSizeUser<BlockSize = U16>> Sectors for Xts<C> {
    fn encrypt(&self, iv: [u8; 16], sector: &mut [u8]) {
        self.0.encrypt_sector(sector, iv.into());
    }

    fn decrypt(&self, iv: [u8; 16], sector: &mut [u8]) {
        self.0.decrypt_sector(sector, iv.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::crypt::HashAlgorithm;

    fn every_scheme() -> impl Iterator<Item = Scheme> {
        let modes = |cipher| CipherMode::ALL.iter().map(move |&mode| (cipher, mode));
        let all = CipherAlgorithm::ALL.iter().flat_map(move |&cipher| modes(cipher));
        let all = all.flat_map(|(cipher, mode)| {
            IvGenerator::ALL.iter().map(move |&iv| Scheme {
                cipher,
                mode,
                iv,
                iv_hash: Some(HashAlgorithm::Sha256),
            })
        });
        all.filter(|scheme| scheme.validate().is_ok())
    }

    #[test]
    fn every_scheme_gives_back_what_it_was_given_and_only_by_the_same_number() {
        let mut count = 0;
        for scheme in every_scheme() {
            let key: Vec<u8> = (0..scheme.key_len() as u8).collect();
            let cipher = SectorCipher::new(scheme, &key).expect("a scheme that fits");
            let plain: Vec<u8> = (0..2048_u32).map(|at| (at % 253) as u8).collect();
            let mut bytes = plain.clone();
            cipher.encrypt(&mut bytes, 7);
            assert_ne!(bytes, plain, "{scheme:?}");
            let mut elsewhere = bytes.clone();
            cipher.decrypt(&mut elsewhere, 8);
            assert_eq!(elsewhere == plain, scheme.mode == CipherMode::Ecb, "{scheme:?}");
            // Any part of it decrypts by itself.
            cipher.decrypt(&mut bytes[512..1024], 8);
            assert_eq!(bytes[512..1024], plain[512..1024], "{scheme:?}");
            count += 1;
        }
        assert!(count > 80, "{count} schemes");
    }

    #[test]
    fn a_key_of_another_length_is_refused() {
        let scheme = every_scheme().next().expect("a scheme");
        assert!(SectorCipher::new(scheme, &[0; 15]).is_err());
    }

    #[test]
    fn xts_has_the_answer_of_the_standard() {
        // IEEE 1619-2007, vector 10: the first bytes of a unit of 512 with two keys of 32 bytes, number 0xff.
        let key = hex("2718281828459045235360287471352662497757247093699959574966967627\
                       3141592653589793238462643383279502884197169399375105820974944592");
        let cipher = CipherAlgorithm::Aes256;
        let scheme = Scheme { cipher, mode: CipherMode::Xts, iv: IvGenerator::Plain64, iv_hash: None };
        let mut unit: Vec<u8> = (0..512_u32).map(|at| at as u8).collect();
        SectorCipher::new(scheme, &key).expect("it fits").encrypt(&mut unit, 0xff);
        assert_eq!(unit[..16], hex("1c3b3a102f770386e4836c99e370cf9b")[..]);
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("digits"), 16);
        digits.chunks(2).map(|pair| byte(pair).expect("digits")).collect()
    }
}
