//! From an encrypted image and a passphrase to what its data is encrypted with. (Specification, section "Data encryption";
//! LUKS header: extension "Full disk encryption header pointer".)

use super::guest_data::{DataCipher, Numbering};
use crate::codec::crypt::volume::Volume;
use crate::codec::crypt::{CipherAlgorithm, CipherMode, CryptError, IvGenerator, Scheme, SectorCipher};
use crate::corruption::Corruption;
use crate::error::{Error, ErrorKind, Result};
use crate::format::luks::{KeySlot, LuksHeader, SECTOR_SIZE};
use crate::format::qcow2::{CryptMethod, Header};
use crate::storage::{Storage, StorageExt};
use zeroize::Zeroizing;

/// What the legacy method encrypts with: AES with 128 bits, chained within a sector, by the guest's sectors.
const LEGACY: Scheme = Scheme {
    cipher: CipherAlgorithm::Aes128,
    mode: CipherMode::Cbc,
    iv: IvGenerator::Plain64,
    iv_hash: None,
};

/// What the data of the image in `storage` is encrypted with, if it is.
pub(crate) fn unlock(
    storage: &dyn Storage,
    header: &Header,
    passphrase: Option<&[u8]>,
) -> Result<Option<DataCipher>> {
    if header.crypt_method == CryptMethod::None {
        return Ok(None);
    }
    let passphrase = passphrase.ok_or_else(|| Error::new(ErrorKind::PassphraseNeeded))?;
    match header.crypt_method {
        CryptMethod::Luks => {
            let start = header.crypto_header().ok_or_else(|| damaged("it has no place".to_owned()))?.0;
            let cipher = unlock_luks(storage, start, passphrase)?.1;
            Ok(Some(DataCipher { cipher, numbering: Numbering::Host }))
        }
        CryptMethod::Aes => {
            let cipher = SectorCipher::new(LEGACY, &*legacy_key(passphrase)).map_err(crypt_error)?;
            Ok(Some(DataCipher { cipher, numbering: Numbering::Guest }))
        }
        // Refused by name when the image is opened.
        CryptMethod::None | CryptMethod::Other(_) => Ok(None),
    }
}

/// The LUKS volume whose header starts at `start`, and what its sectors are encrypted with.
pub(crate) fn unlock_luks(
    storage: &dyn Storage,
    start: u64,
    passphrase: &[u8],
) -> Result<(Volume, SectorCipher)> {
    let volume = read_luks(storage, start)?;
    let len = volume.header().material_len();
    let material = |slot: &KeySlot| {
        let mut bytes = vec![0; len.next_multiple_of(SECTOR_SIZE as usize)];
        let at = start.saturating_add(u64::from(slot.material) * SECTOR_SIZE);
        storage.read_padded_at(&mut bytes, at).map_err(|error| Error::io("read the key material", error))?;
        Ok::<_, Error>(bytes)
    };
    let key = volume.unlock(passphrase, material)?;
    let cipher = volume.cipher(&key)?;
    Ok((volume, cipher))
}

/// The LUKS volume whose header starts at `start`, locked.
pub(crate) fn read_luks(storage: &dyn Storage, start: u64) -> Result<Volume> {
    let mut bytes = vec![0; LuksHeader::LEN];
    storage.read_padded_at(&mut bytes, start).map_err(|error| Error::io("read the LUKS header", error))?;
    let header = LuksHeader::decode(&bytes).map_err(|error| damaged(error.to_string()))?;
    Ok(Volume::new(header)?)
}

fn damaged(why: String) -> Error {
    Corruption::LuksHeader(why).into()
}

/// The legacy method's key: the first 16 bytes of the passphrase, filled up with zeroes.
fn legacy_key(passphrase: &[u8]) -> Zeroizing<[u8; 16]> {
    let mut key = Zeroizing::new([0; 16]);
    for (to, from) in key.iter_mut().zip(passphrase) {
        *to = *from;
    }
    key
}

fn crypt_error(error: CryptError) -> Error {
    match error {
        CryptError::WrongPassphrase => Error::new(ErrorKind::WrongPassphrase),
        error => Error::unsupported(error.to_string()),
    }
}

impl From<CryptError> for Error {
    fn from(error: CryptError) -> Error {
        crypt_error(error)
    }
}
