//! Encryption of disks: what a sector is encrypted with, and how a passphrase gives the key.
//!
//! | file | what it is for |
//! |---|---|
//! | `algorithm` | the names of ciphers, modes, initialisation vectors and hashes |
//! | `sector` | sectors in, sectors out: [`SectorCipher`] |
//! | `passphrase` | what a user knows |
//! | `kdf` | from passphrase to key, and how long that takes |
//! | `stripes` | the volume key spread over a slot's material |
//! | `volume` | LUKS: making a volume, unlocking it, its key slots |
//!
//! Every primitive is from the `RustCrypto` project. Keys are wiped when they are dropped. Start at [`volume`].

mod algorithm;
mod kdf;
mod passphrase;
mod sector;
mod stripes;
pub(crate) mod volume;

pub(crate) use algorithm::Scheme;
pub use algorithm::{CipherAlgorithm, CipherMode, HashAlgorithm, IvGenerator};
pub use passphrase::Passphrase;
pub(crate) use sector::SectorCipher;

/// Why something could not be encrypted, decrypted or unlocked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CryptError {
    /// A name that is not known, or a combination that does not exist.
    #[error("{what} \"{name}\" is not known here")]
    Unknown {
        /// "the cipher", "the hash" ...
        what: &'static str,
        /// As it stands in the header or the option.
        name: String,
    },
    /// Parts that do not fit together.
    #[error("{0}")]
    Mismatch(String),
    /// No slot opens with the passphrase.
    #[error("the passphrase opens none of its key slots")]
    WrongPassphrase,
    /// The system has no randomness to give.
    #[error("the system gives no random bytes")]
    NoRandomness,
}
