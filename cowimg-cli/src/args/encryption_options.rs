//! The options of `-o` that say how a new image is encrypted: `encrypt.*` and the old `encryption`.

use std::time::Duration;

use cowimg::encryption::{Encryption, LuksOptions, Passphrase};

use crate::args::key_values::KeyValues;
use crate::args::object;
use crate::args::size::parse_number;
use crate::failure::Failure;

/// Every key, in the order in which they are repeated when an image is made.
pub(crate) const KEYS: [&str; 9] = [
    "encryption",
    "encrypt.format",
    "encrypt.key-secret",
    "encrypt.cipher-alg",
    "encrypt.cipher-mode",
    "encrypt.ivgen-alg",
    "encrypt.ivgen-hash-alg",
    "encrypt.hash-alg",
    "encrypt.iter-time",
];

/// Keys that only LUKS has.
const LUKS_KEYS: [&str; 6] = [
    "encrypt.cipher-alg",
    "encrypt.cipher-mode",
    "encrypt.ivgen-alg",
    "encrypt.ivgen-hash-alg",
    "encrypt.hash-alg",
    "encrypt.iter-time",
];

/// What a command line says of encryption, as it says it.
#[derive(Debug, Clone, Default)]
pub(crate) struct EncryptionWords {
    given: Vec<(&'static str, String)>,
    /// Whether they are those of a LUKS image, whose keys have no prefix.
    is_luks: bool,
}

/// What is before the key of most options, save in a LUKS image.
const PREFIX: &str = "encrypt.";

impl EncryptionWords {
    /// Picks them from all options.
    pub(crate) fn of(given: &KeyValues) -> EncryptionWords {
        let pick = |key: &&'static str| given.get(key).map(|word| (*key, word.to_owned()));
        EncryptionWords { given: KEYS.iter().filter_map(pick).collect(), is_luks: false }
    }

    /// Picks those of a LUKS image from all options.
    pub(crate) fn of_luks(given: &KeyValues) -> EncryptionWords {
        let pick = |key: &'static str| given.get(key).map(|word| (key, word.to_owned()));
        EncryptionWords { given: luks_keys().filter_map(pick).collect(), is_luks: true }
    }

    /// The options as they were given, in their order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.given.iter().map(|(key, word)| (*key, word.as_str()))
    }

    /// Whether encryption is asked for.
    pub(crate) fn is_given(&self) -> bool {
        !self.given.is_empty()
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.iter().find(|(given, _)| *given == self.shown(key)).map(|(_, word)| word)
    }

    /// The key as the image's format has it.
    fn shown<'a>(&self, key: &'a str) -> &'a str {
        key.strip_prefix(PREFIX).filter(|_| self.is_luks).unwrap_or(key)
    }

    /// What a LUKS image is made with, with the passphrase from its secret; none for other images.
    pub(crate) fn luks_image(&self) -> Result<Option<LuksOptions>, Failure> {
        self.is_luks.then(|| self.luks()).transpose()
    }

    /// The encryption that they ask for, with the passphrase from its secret.
    pub(crate) fn encryption(&self) -> Result<Option<Encryption>, Failure> {
        if self.is_luks {
            return Ok(None);
        }
        let old = match self.get("encryption") {
            None | Some("off" | "no" | "false" | "n") => false,
            Some("on" | "yes" | "true" | "y") => true,
            Some(word) => {
                return Err(Failure::usage(format!("encryption is '{word}'; it must be on or off")));
            }
        };
        let format = match (self.get("encrypt.format"), old) {
            (Some(_), true) => {
                return Err(Failure::usage("encryption=on and encrypt.format= cannot both be given"));
            }
            (Some(format), false) => format,
            (None, true) => "aes",
            (None, false) => return self.without_format(),
        };
        match format {
            "luks" => Ok(Some(Encryption::Luks(self.luks()?))),
            "aes" => {
                if let Some((key, _)) = self.iter().find(|(key, _)| LUKS_KEYS.contains(key)) {
                    return Err(Failure::usage(format!("option '{key}' is one of encrypt.format=luks")));
                }
                Ok(Some(Encryption::Aes(self.passphrase()?)))
            }
            word => Err(Failure::usage(format!("encrypt.format is '{word}'; it must be luks or aes"))),
        }
    }

    /// Options of encryption alone ask for nothing.
    fn without_format(&self) -> Result<Option<Encryption>, Failure> {
        match self.iter().find(|(key, _)| key.starts_with("encrypt.")) {
            None => Ok(None),
            Some((key, _)) => Err(Failure::usage(format!("option '{key}' needs encrypt.format"))
                .hint("Add encrypt.format=luks")),
        }
    }

    fn luks(&self) -> Result<LuksOptions, Failure> {
        let mut luks = LuksOptions::new(self.passphrase()?);
        self.parse("encrypt.cipher-alg", &mut luks.cipher)?;
        self.parse("encrypt.cipher-mode", &mut luks.mode)?;
        self.parse("encrypt.ivgen-alg", &mut luks.iv)?;
        self.parse("encrypt.hash-alg", &mut luks.hash)?;
        if let Some(word) = self.get("encrypt.ivgen-hash-alg") {
            let parsed = word.parse().map_err(|why| refused(self.shown("encrypt.ivgen-hash-alg"), &why))?;
            luks.iv_hash = Some(parsed);
        }
        if let Some(word) = self.get("encrypt.iter-time") {
            let millis = parse_number(word).ok().and_then(|millis| u64::try_from(millis).ok());
            let millis = millis.ok_or_else(|| {
                let key = self.shown("encrypt.iter-time");
                Failure::usage(format!("{key} is '{word}'; it must be a number of milliseconds"))
            })?;
            luks.iteration_time = Duration::from_millis(millis);
        }
        Ok(luks)
    }

    /// Puts a value in its place, if the option is given.
    fn parse<T>(&self, key: &str, place: &mut T) -> Result<(), Failure>
    where
        T: std::str::FromStr,
        T::Err: std::fmt::Display,
    {
        if let Some(word) = self.get(key) {
            *place = word.parse().map_err(|why| refused(self.shown(key), &why))?;
        }
        Ok(())
    }

    fn passphrase(&self) -> Result<Passphrase, Failure> {
        match self.get("encrypt.key-secret") {
            Some(id) => object::passphrase(id),
            None => Err(Failure::usage(format!(
                "an encrypted image needs a secret: {}=ID",
                self.shown("encrypt.key-secret")
            ))
            .hint("Define it with --object secret,id=ID,file=PATH")),
        }
    }
}

/// The keys of a LUKS image, in the order of [`KEYS`].
pub(crate) fn luks_keys() -> impl Iterator<Item = &'static str> {
    KEYS.iter().filter_map(|key| key.strip_prefix(PREFIX)).filter(|key| *key != "format")
}

fn refused(key: &str, why: &impl std::fmt::Display) -> Failure {
    Failure::usage(format!("option '{key}': {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encryption(list: &str) -> Result<Option<Encryption>, String> {
        let given = KeyValues::parse(&[list]).expect("a list");
        EncryptionWords::of(&given).encryption().map_err(|failure| failure.to_string())
    }

    #[test]
    fn nothing_is_asked_for_without_a_format() {
        assert_eq!(encryption("size=1M"), Ok(None));
        assert_eq!(encryption("encryption=off"), Ok(None));
        assert!(encryption("encrypt.key-secret=s").unwrap_err().contains("needs encrypt.format"));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (list, why) in [
            ("encrypt.format=rot13", "luks or aes"),
            ("encrypt.format=luks", "needs a secret"),
            ("encrypt.format=luks,encrypt.key-secret=nobody", "no secret"),
            ("encryption=on,encrypt.format=luks", "both"),
            ("encryption=perhaps", "on or off"),
            ("encrypt.format=aes,encrypt.iter-time=5", "encrypt.format=luks"),
        ] {
            assert!(encryption(list).unwrap_err().contains(why), "{list}");
        }
    }
}
