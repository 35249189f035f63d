//! LUKS volumes: their making, their unlocking, and the slots that hold their key.
//!
//! The volume key is random and never leaves the header: each slot in use holds it, spread over its material and
//! encrypted under one passphrase. (LUKS On-Disk Format Specification 1.2.3, section 4.)

use std::time::Duration;

use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use super::algorithm::{CipherAlgorithm, CipherMode, HashAlgorithm, IvGenerator, Scheme};
use super::stripes::{gather, spread};
use super::{CryptError, SectorCipher};
use crate::format::luks::{KEY_SLOTS, KeySlot, LuksHeader};

/// Fewest iterations of a passphrase's derivation and of the digest's, however slow the machine is.
const MIN_ITERATIONS: u64 = 1000;

/// The time that a passphrase's derivation is to take, unless a caller says otherwise.
pub(crate) const DEFAULT_ITERATION_TIME: Duration = Duration::from_secs(2);

/// The key that a volume's data is encrypted with. Wiped when it is dropped.
pub(crate) struct VolumeKey(Zeroizing<Vec<u8>>);

impl std::fmt::Debug for VolumeKey {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("VolumeKey")
    }
}

/// How a volume is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VolumeOptions {
    /// What its sectors are encrypted with.
    pub(crate) scheme: Scheme,
    /// The hash of all key derivation.
    pub(crate) hash: HashAlgorithm,
    /// How long deriving a key from a passphrase is to take.
    pub(crate) iteration_time: Duration,
}

impl Default for VolumeOptions {
    fn default() -> VolumeOptions {
        VolumeOptions {
            scheme: Scheme {
                cipher: CipherAlgorithm::Aes256,
                mode: CipherMode::Xts,
                iv: IvGenerator::Plain64,
                iv_hash: None,
            },
            hash: HashAlgorithm::Sha256,
            iteration_time: DEFAULT_ITERATION_TIME,
        }
    }
}

/// A volume as its header describes it: locked, until [`Volume::unlock`] gives its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Volume {
    header: LuksHeader,
    scheme: Scheme,
    hash: HashAlgorithm,
}

impl Volume {
    /// The volume of a header.
    pub(crate) fn new(header: LuksHeader) -> Result<Volume, CryptError> {
        let scheme = Scheme::of_header(&header)?;
        let hash = header.hash_spec.parse()?;
        Ok(Volume { header, scheme, hash })
    }

    /// A new volume with a key of its own and no slot in use.
    pub(crate) fn create(options: &VolumeOptions) -> Result<(Volume, VolumeKey), CryptError> {
        let scheme = options.scheme;
        scheme.validate()?;
        let mut key = Zeroizing::new(vec![0; scheme.key_len()]);
        random(&mut key)?;
        let mut salts = [0; LuksHeader::SALT_LEN];
        random(&mut salts)?;
        let iterations = options.hash.iterations_in(options.iteration_time, LuksHeader::DIGEST_LEN) / 8;
        let key_bytes = key.len() as u32;
        let mut header = LuksHeader {
            cipher_name: scheme.cipher.family().to_owned(),
            cipher_mode: scheme.mode_text(),
            hash_spec: options.hash.name().to_owned(),
            payload_offset: LuksHeader::fresh_place(key_bytes, KEY_SLOTS),
            key_bytes,
            digest: [0; LuksHeader::DIGEST_LEN],
            digest_salt: salts,
            digest_iterations: within_limits(iterations),
            uuid: new_uuid()?,
            slots: std::array::from_fn(|index| KeySlot::free(LuksHeader::fresh_place(key_bytes, index))),
        };
        header.digest = digest(options.hash, &header, &key);
        Ok((Volume { header, scheme, hash: options.hash }, VolumeKey(key)))
    }

    /// Its header as it stands now.
    pub(crate) fn header(&self) -> &LuksHeader {
        &self.header
    }

    /// The key, if `passphrase` opens a slot; `material` gives the bytes of a slot's material. Every slot in use is
    /// tried, whether an earlier one has opened or not, so that the time says nothing about which one did.
    pub(crate) fn unlock<E: From<CryptError>>(
        &self,
        passphrase: &[u8],
        mut material: impl FnMut(&KeySlot) -> Result<Vec<u8>, E>,
    ) -> Result<VolumeKey, E> {
        let mut found = None;
        for slot in self.header.slots.iter().filter(|slot| slot.active) {
            let key = self.try_slot(slot, passphrase, material(slot)?)?;
            found = found.or(key);
        }
        found.ok_or(E::from(CryptError::WrongPassphrase))
    }

    /// The key, if `passphrase` opens this slot.
    pub(crate) fn try_slot(
        &self,
        slot: &KeySlot,
        passphrase: &[u8],
        mut material: Vec<u8>,
    ) -> Result<Option<VolumeKey>, CryptError> {
        self.slot_cipher(slot, passphrase)?.decrypt(&mut material, 0);
        let key =
            gather(self.hash, &material[..self.header.material_len().min(material.len())], self.key_len());
        material.zeroize();
        let digest = digest(self.hash, &self.header, &key);
        Ok(bool::from(digest.ct_eq(&self.header.digest)).then_some(VolumeKey(key)))
    }

    /// Puts the key into slot `index` (below [`KEY_SLOTS`]) under `passphrase`. Returns the slot's material, which must be
    /// durable before the changed header is written.
    pub(crate) fn fill_slot(
        &mut self,
        index: usize,
        key: &VolumeKey,
        passphrase: &[u8],
        iteration_time: Duration,
    ) -> Result<Vec<u8>, CryptError> {
        let iterations = within_limits(self.hash.iterations_in(iteration_time, self.key_len()));
        let mut salt = [0; LuksHeader::SALT_LEN];
        random(&mut salt)?;
        let slot = KeySlot { active: true, iterations, salt, ..self.header.slots[index] };
        let mut material = vec![0; self.header.material_len().next_multiple_of(512)];
        let used = self.header.material_len();
        spread(self.hash, &key.0, &mut material[..used], random)?;
        self.slot_cipher(&slot, passphrase)?.encrypt(&mut material, 0);
        self.header.slots[index] = slot;
        Ok(material)
    }

    /// Makes slot `index` (below [`KEY_SLOTS`]) free. Its material is the caller's to overwrite.
    pub(crate) fn clear_slot(&mut self, index: usize) {
        self.header.slots[index] = KeySlot::free(self.header.slots[index].material);
    }

    /// What the data is encrypted with.
    pub(crate) fn cipher(&self, key: &VolumeKey) -> Result<SectorCipher, CryptError> {
        SectorCipher::new(self.scheme, &key.0)
    }

    fn slot_cipher(&self, slot: &KeySlot, passphrase: &[u8]) -> Result<SectorCipher, CryptError> {
        let mut key = Zeroizing::new(vec![0; self.key_len()]);
        self.hash.pbkdf2(passphrase, &slot.salt, slot.iterations, &mut key);
        SectorCipher::new(self.scheme, &key)
    }

    fn key_len(&self) -> usize {
        self.header.key_bytes as usize
    }
}

/// What tells the right key from a wrong one.
fn digest(hash: HashAlgorithm, header: &LuksHeader, key: &[u8]) -> [u8; LuksHeader::DIGEST_LEN] {
    let mut digest = [0; LuksHeader::DIGEST_LEN];
    hash.pbkdf2(key, &header.digest_salt, header.digest_iterations, &mut digest);
    digest
}

fn within_limits(iterations: u64) -> u32 {
    u32::try_from(iterations.max(MIN_ITERATIONS)).unwrap_or(u32::MAX)
}

fn random(bytes: &mut [u8]) -> Result<(), CryptError> {
    getrandom::fill(bytes).map_err(|_| CryptError::NoRandomness)
}

/// A random UUID (RFC 9562, version 4), as text.
fn new_uuid() -> Result<String, CryptError> {
    let mut bytes = [0_u8; 16];
    random(&mut bytes)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = String::with_capacity(36);
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.extend(
            [byte >> 4, byte & 15].map(|digit| char::from_digit(u32::from(digit), 16).unwrap_or('0')),
        );
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Duration = Duration::from_millis(1);

    #[test]
    fn each_passphrase_opens_its_slot_and_no_other_opens_any() {
        let options = VolumeOptions { iteration_time: QUICK, ..VolumeOptions::default() };
        let (mut volume, key) = Volume::create(&options).expect("a volume");
        let first = volume.fill_slot(0, &key, b"one", QUICK).expect("a slot");
        let third = volume.fill_slot(2, &key, b"two", QUICK).expect("a slot");
        let decoded = LuksHeader::decode(&volume.header().encode()).expect("a sound header");
        let volume = Volume::new(decoded).expect("a known scheme");
        let places = volume.header().slots.map(|slot| slot.material);
        let read = |slot: &KeySlot| {
            let material = if slot.material == places[0] { &first } else { &third };
            Ok::<_, CryptError>(material.clone())
        };
        for passphrase in [b"one", b"two"] {
            let opened = volume.unlock(passphrase, read).expect("a right passphrase");
            assert_eq!(*opened.0, *key.0);
        }
        assert_eq!(volume.unlock(b"three", read).err(), Some(CryptError::WrongPassphrase));
    }
}
