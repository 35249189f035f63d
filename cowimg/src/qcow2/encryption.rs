//! From an encrypted image and a passphrase to what its data is encrypted with. (Specification, section "Data encryption";
//! LUKS header: extension "Full disk encryption header pointer".)

use super::Qcow2;
use super::guest_data::{DataCipher, Numbering};
use crate::codec::crypt::{Passphrase, SectorCipher};
use crate::corruption::Corruption;
use crate::error::{Error, ErrorKind, Result};
use crate::format::qcow2::{CryptMethod, Header};
use crate::limits::Limits;
use crate::luks::{KeyLoss, KeySlotChange, LuksPlace, PlannedKeys};
use crate::storage::Storage;

/// What the data of the image in `storage` is encrypted with, if it is.
pub(crate) fn unlock(
    storage: &dyn Storage,
    header: &Header,
    (passphrase, limits): (Option<&Passphrase>, &Limits),
) -> Result<Option<DataCipher>> {
    if header.crypt_method == CryptMethod::None {
        return Ok(None);
    }
    let passphrase = passphrase.ok_or_else(|| Error::new(ErrorKind::PassphraseNeeded))?;
    match header.crypt_method {
        CryptMethod::Luks => {
            let (volume, key) = luks_place(storage, header)?.unlock_within(passphrase, limits)?;
            Ok(Some(DataCipher { cipher: volume.cipher(&key)?, numbering: Numbering::Host }))
        }
        CryptMethod::Aes => {
            let cipher = SectorCipher::legacy(passphrase)?;
            Ok(Some(DataCipher { cipher, numbering: Numbering::Guest }))
        }
        // Refused by name when the image is opened.
        CryptMethod::None | CryptMethod::Other(_) => Ok(None),
    }
}

/// Where the LUKS volume's header is in an image that is encrypted so.
pub(crate) fn luks_place<'a>(storage: &'a dyn Storage, header: &Header) -> Result<LuksPlace<'a>> {
    match header.crypto_header() {
        Some((start, _)) => Ok(LuksPlace::new(storage, start)),
        None => Err(Corruption::LuksHeader("it has no place".to_owned()).into()),
    }
}

impl Qcow2 {
    /// Judges a change of the key slots, and changes nothing.
    pub(super) fn judge_keys<'a>(
        &self,
        change: (&'a KeySlotChange, KeyLoss),
        current: Option<&Passphrase>,
    ) -> Result<PlannedKeys<'a>> {
        let header = self.header();
        match header.crypt_method {
            CryptMethod::Luks => PlannedKeys::judge(luks_place(&*self.storage, &header)?, change, current),
            CryptMethod::None => Err(Error::invalid("the image is not encrypted: it has no key slots")),
            CryptMethod::Aes | CryptMethod::Other(_) => {
                Err(Error::unsupported("only images that are encrypted with LUKS have key slots"))
            }
        }
    }

    /// Changes the key slots, durably.
    pub(super) fn change_keys(&self, planned: PlannedKeys<'_>) -> Result<()> {
        self.begin_change()?;
        planned.carry_out(luks_place(&*self.storage, &self.header())?)
    }
}
