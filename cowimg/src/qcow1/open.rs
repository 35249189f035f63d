//! From a storage to an engine.

use std::sync::{Arc, Mutex};

use super::Qcow1;
use super::read::DecompressedCluster;
use crate::codec::crypt::{Passphrase, SectorCipher};
use crate::corruption::Corruption;
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::format::qcow1::{CryptMethod, Header, HeaderError};
use crate::storage::{EncryptedStorage, Pages, Storage, StorageExt};

/// The header with the one thing that it points at and that is not a table.
#[derive(Debug, Clone)]
pub(crate) struct ImageHeader {
    /// The header itself.
    pub(crate) fields: Header,
    /// The name of the backing file, if there is one. Its format is stated nowhere.
    pub(crate) backing_file: Option<Vec<u8>>,
}

/// How an image is opened.
#[derive(Debug)]
pub(crate) struct Qcow1Options<'a> {
    /// Whether its data is asked to be written, which is refused.
    pub(crate) writable: bool,
    /// Bytes of tables that are kept in memory.
    pub(crate) cache_bytes: u64,
    /// What opens it, if it is encrypted.
    pub(crate) passphrase: Option<&'a Passphrase>,
}

/// Reads and validates the header at the start of `storage`.
pub(crate) fn read_header(storage: &dyn Storage) -> Result<ImageHeader> {
    let io = |error| Error::io("read the header", error);
    let mut start = [0; Header::LEN];
    let len = storage.len().map_err(io)?.min(Header::LEN as u64) as usize;
    let start = &mut start[..len];
    storage.read_exact_at(start, 0).map_err(io)?;
    let fields = Header::decode(start).map_err(|error| match error {
        HeaderError::Magic => {
            let why = String::from("it does not start with the bytes \"QFI\\xfb\"");
            Error::new(ErrorKind::WrongFormat { expected: "qcow", why })
        }
        HeaderError::Version(version) => {
            let why = format!("it is of version {version}, which the format qcow2 has");
            Error::new(ErrorKind::WrongFormat { expected: "qcow", why })
        }
        error => Corruption::Qcow1Header(error.to_string()).into(),
    })?;
    let backing_file = match &fields.backing_name {
        None => None,
        Some(place) => {
            let mut name = vec![0; (place.end - place.start) as usize];
            storage.read_padded_at(&mut name, place.start).map_err(io)?;
            let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
            name.truncate(end);
            Some(name).filter(|name| !name.is_empty())
        }
    };
    Ok(ImageHeader { fields, backing_file })
}

impl Qcow1 {
    /// Opens the image whose header has been read from `storage`, over `backing`.
    pub(crate) fn open(
        storage: Arc<dyn Storage>,
        header: &ImageHeader,
        backing: Option<Arc<dyn Disk>>,
        options: &Qcow1Options<'_>,
    ) -> Result<Qcow1> {
        if options.writable {
            return Err(Error::unsupported(
                "a qcow image of version 1 can be read and not written: convert it to qcow2 and write that",
            ));
        }
        let header = header.fields.clone();
        let file_len = storage.len().map_err(|error| Error::io("read the length of the file", error))?;
        let decrypted = match header.crypt_method {
            CryptMethod::None => None,
            CryptMethod::Aes => {
                let passphrase = options.passphrase.ok_or_else(|| Error::new(ErrorKind::PassphraseNeeded))?;
                let cipher = SectorCipher::legacy(passphrase)?;
                Some(EncryptedStorage::new(Arc::clone(&storage), cipher, 0))
            }
        };
        Ok(Qcow1 {
            tables: Pages::new(Arc::clone(&storage), options.cache_bytes),
            decompressed: Mutex::new(DecompressedCluster::default()),
            storage,
            header,
            file_len,
            decrypted,
            backing,
        })
    }
}
