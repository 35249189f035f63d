//! Names: of ciphers, modes, generators of initialisation vectors and hashes, as headers and options have them.

use std::fmt;

use super::CryptError;
use crate::format::luks::LuksHeader;

/// Declares an enum whose values have names.
macro_rules! named {
    ($(#[$meta:meta])* $name:ident, $what:literal, { $($value:ident = $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $name {
            $(
                #[doc = concat!("`", $text, "`.")]
                $value,
            )+
        }

        impl $name {
            /// All of them, in the order in which help lists them.
            pub const ALL: &[$name] = &[$($name::$value,)+];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self { $($name::$value => $text,)+ }
            }

        }

        impl std::str::FromStr for $name {
            type Err = CryptError;

            fn from_str(name: &str) -> Result<$name, CryptError> {
                let found = $name::ALL.iter().find(|value| value.name() == name);
                found.copied().ok_or_else(|| CryptError::Unknown { what: $what, name: name.to_owned() })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

named!(
    /// A block cipher with the length of its key in bits.
    CipherAlgorithm, "the cipher", {
        Aes128 = "aes-128",
        Aes192 = "aes-192",
        Aes256 = "aes-256",
        Cast5128 = "cast5-128",
        Serpent128 = "serpent-128",
        Serpent192 = "serpent-192",
        Serpent256 = "serpent-256",
        Twofish128 = "twofish-128",
        Twofish192 = "twofish-192",
        Twofish256 = "twofish-256",
    }
);

named!(
    /// How the blocks of a sector hang together.
    CipherMode, "the cipher mode", {
        Ecb = "ecb",
        Cbc = "cbc",
        Xts = "xts",
        Ctr = "ctr",
    }
);

named!(
    /// How a sector's number becomes its initialisation vector.
    IvGenerator, "the generator of initialisation vectors", {
        Plain = "plain",
        Plain64 = "plain64",
        Essiv = "essiv",
    }
);

named!(
    /// A hash function.
    HashAlgorithm, "the hash", {
        Md5 = "md5",
        Sha1 = "sha1",
        Sha224 = "sha224",
        Sha256 = "sha256",
        Sha384 = "sha384",
        Sha512 = "sha512",
        Ripemd160 = "ripemd160",
        Sm3 = "sm3",
    }
);

impl CipherAlgorithm {
    /// The name without the length of the key, as LUKS headers have it.
    pub(crate) fn family(self) -> &'static str {
        self.name().split('-').next().unwrap_or_default()
    }

    /// Bytes of its key.
    pub(crate) fn key_len(self) -> usize {
        let bits = self.name().split('-').nth(1).and_then(|bits| bits.parse().ok());
        bits.unwrap_or(0_usize) / 8
    }

    /// Bytes of its block.
    pub(crate) fn block_len(self) -> usize {
        if self == CipherAlgorithm::Cast5128 { 8 } else { 16 }
    }

    fn of_family(family: &str, key_len: usize) -> Option<CipherAlgorithm> {
        let fits = |cipher: &&CipherAlgorithm| cipher.family() == family && cipher.key_len() == key_len;
        CipherAlgorithm::ALL.iter().find(fits).copied()
    }
}

/// All that says how sectors are encrypted, save the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scheme {
    /// The block cipher of the data.
    pub(crate) cipher: CipherAlgorithm,
    /// Its mode.
    pub(crate) mode: CipherMode,
    /// Where initialisation vectors come from.
    pub(crate) iv: IvGenerator,
    /// The hash that makes the key of [`IvGenerator::Essiv`]; kept, and without effect, with the others.
    pub(crate) iv_hash: Option<HashAlgorithm>,
}

impl Scheme {
    /// What a LUKS header says.
    pub(crate) fn of_header(header: &LuksHeader) -> Result<Scheme, CryptError> {
        let unknown = || CryptError::Unknown { what: "the cipher mode", name: header.cipher_mode.clone() };
        let (mode, generator) = header.cipher_mode.split_once('-').ok_or_else(unknown)?;
        let (generator, iv_hash) = match generator.split_once(':') {
            Some((generator, hash)) => (generator, Some(hash.parse::<HashAlgorithm>()?)),
            None => (generator, None),
        };
        let mode = mode.parse::<CipherMode>()?;
        let keys = if mode == CipherMode::Xts { 2 } else { 1 };
        let cipher = CipherAlgorithm::of_family(&header.cipher_name, header.key_bytes as usize / keys)
            .filter(|cipher| cipher.key_len() * keys == header.key_bytes as usize)
            .ok_or_else(|| {
                let name = &header.cipher_name;
                CryptError::Mismatch(format!(
                    "there is no cipher {name} with a key of {} bytes",
                    header.key_bytes
                ))
            })?;
        let scheme = Scheme { cipher, mode, iv: generator.parse::<IvGenerator>()?, iv_hash };
        scheme.validate()?;
        Ok(scheme)
    }

    /// The mode as LUKS headers have it: `mode-generator[:hash]`.
    pub(crate) fn mode_text(self) -> String {
        match self.iv_hash {
            Some(hash) => format!("{}-{}:{hash}", self.mode, self.iv),
            None => format!("{}-{}", self.mode, self.iv),
        }
    }

    /// Bytes of the key of the data: one key, or two for XTS.
    pub(crate) fn key_len(self) -> usize {
        self.cipher.key_len() * if self.mode == CipherMode::Xts { 2 } else { 1 }
    }

    /// Refuses parts that do not fit together.
    pub(crate) fn validate(self) -> Result<(), CryptError> {
        if self.mode == CipherMode::Xts && self.cipher.block_len() != 16 {
            return Err(CryptError::Mismatch(format!("the mode xts does not exist for {}", self.cipher)));
        }
        self.essiv_cipher().map(drop)
    }

    /// The cipher that makes initialisation vectors of a hash's length, where there are such.
    pub(crate) fn essiv_cipher(self) -> Result<Option<(HashAlgorithm, CipherAlgorithm)>, CryptError> {
        if self.iv != IvGenerator::Essiv {
            return Ok(None);
        }
        let Some(hash) = self.iv_hash else {
            return Err(CryptError::Mismatch(String::from("essiv needs a hash, and none is named")));
        };
        let family = self.cipher.family();
        match CipherAlgorithm::of_family(family, hash.len()) {
            Some(cipher) => Ok(Some((hash, cipher))),
            None => Err(CryptError::Mismatch(format!(
                "essiv with {hash} needs a cipher {family} whose key has {} bytes, and there is none",
                hash.len()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_lengths() {
        assert_eq!("serpent-192".parse(), Ok(CipherAlgorithm::Serpent192));
        assert_eq!(CipherAlgorithm::Serpent192.key_len(), 24);
        assert_eq!(CipherAlgorithm::Cast5128.family(), "cast5");
        assert_eq!(
            "sha3".parse::<HashAlgorithm>().unwrap_err().to_string(),
            "the hash \"sha3\" is not known here"
        );
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let scheme = |cipher, mode, iv, iv_hash| Scheme { cipher, mode, iv, iv_hash };
        let xts = scheme(CipherAlgorithm::Cast5128, CipherMode::Xts, IvGenerator::Plain64, None);
        assert!(xts.validate().is_err());
        let essiv = |hash| scheme(CipherAlgorithm::Aes256, CipherMode::Cbc, IvGenerator::Essiv, hash);
        assert!(essiv(None).validate().is_err());
        assert!(essiv(Some(HashAlgorithm::Sha1)).validate().is_err());
        assert_eq!(essiv(Some(HashAlgorithm::Sha256)).mode_text(), "cbc-essiv:sha256");
        let cipher = CipherAlgorithm::Aes256;
        let expected = Ok(Some((HashAlgorithm::Sha256, cipher)));
        assert_eq!(essiv(Some(HashAlgorithm::Sha256)).essiv_cipher(), expected);
    }
}
