//! The options of `amend -o`: what an image can be given anew.

use std::ffi::OsString;

use cowimg::{AmendOptions, Format, LazyRefcounts, Version};

use crate::args::encryption_options;
use crate::args::format_options::not_a_choice;
use crate::args::key_slot_options::{KEY_SLOT_OPTIONS, KeySlotWords};
use crate::args::key_values::{KeyValues, nearest};
use crate::args::size::{parse_number, parse_size};
use crate::failure::Failure;

/// Key, kind of value and purpose of each option of qcow2 images that has nothing to do with encryption.
const AMENDABLE: [(&str, &str, &str); 8] = [
    ("backing_file", "str", "the image that this one is stacked on: only as it is, `rebase` changes it"),
    ("backing_fmt", "str", "format of the backing file: only as it is"),
    ("compat", "str", "version of the format: 1.1 or v3, 0.10 or v2"),
    ("data_file", "str", "name of the external data file, which the image must have"),
    ("data_file_raw", "on/off", "the data file stays a raw image of the disk: can be switched off"),
    ("lazy_refcounts", "on/off", "refcounts may be written late"),
    ("refcount_bits", "num", "width of a refcount in bits: 1, 2, 4, 8, 16, 32 or 64"),
    ("size", "size", "size of the disk"),
];

/// What help says of each option of an image of this format.
pub(crate) fn help(format: Format) -> Vec<(String, &'static str, &'static str)> {
    let prefix = if format == Format::Luks { "" } else { SLOT_PREFIX };
    let slots =
        KEY_SLOT_OPTIONS.iter().map(|&(key, value, purpose)| (format!("{prefix}{key}"), value, purpose));
    let own = AMENDABLE.iter().filter(|_| format != Format::Luks);
    let mut options: Vec<_> =
        own.map(|&(key, value, purpose)| (key.to_owned(), value, purpose)).chain(slots).collect();
    options.sort();
    options
}

/// What is before the options of key slots in a qcow2 image.
const SLOT_PREFIX: &str = "encrypt.";

/// Options that only a new image takes.
const CREATION_ONLY: [&str; 6] =
    ["cluster_size", "compression_type", "extended_l2", "preallocation", "extent_size_hint", "nocow"];

/// What `-o` asks for.
#[derive(Debug)]
pub(crate) struct Amendment {
    /// What the library is told.
    pub(crate) options: AmendOptions,
    /// What `backing_file` and `backing_fmt` say, which must be what the image says.
    pub(crate) backing: Option<(Option<String>, Option<String>)>,
}

impl Amendment {
    /// Checks the options, for an image of this format, and says what stands against amending it so. Fails for what is no option, or
    /// no value of the option's kind: qemu-img finds out about the rest when it has begun to show progress.
    pub(crate) fn parse(format: Format, given: &KeyValues) -> Result<(Amendment, Option<Failure>), Failure> {
        let mut objection = None;
        let slot_prefix = if format == Format::Luks { "" } else { SLOT_PREFIX };
        for (key, _) in given.iter() {
            check_key(format, key)?;
        }
        let owned = |key: &str| given.get(key).map(str::to_owned);
        let (file, format) = (owned("backing_file"), owned("backing_fmt"));
        let size = given.get("size").map(parse_size).transpose();
        let size = size.map_err(|why| Failure::usage(format!("size: {why}")))?;
        let lazy = switch(given, "lazy_refcounts")?;
        let keys = KeySlotWords::of(given, slot_prefix)?;
        let version = given.get("compat").and_then(|word| known(version(word), &mut objection));
        let bits = given.get("refcount_bits").map(parse_number).transpose();
        let bits = bits.map_err(|why| Failure::usage(format!("refcount_bits: {why}")))?;
        let amendment = Amendment {
            options: AmendOptions {
                version,
                lazy_refcounts: lazy.map(|on| if on { LazyRefcounts::On } else { LazyRefcounts::Off }),
                refcount_bits: bits.and_then(|bits| known(refcount_bits(bits), &mut objection)),
                data_file: given.get("data_file").map(OsString::from),
                data_file_raw: switch(given, "data_file_raw")?,
                // A size of 0 asks for nothing, as qemu-img has it.
                size: size.filter(|&size| size > 0),
                key_slots: keys.and_then(|words| known(words.change(), &mut objection)),
                ..AmendOptions::default()
            },
            backing: (file.is_some() || format.is_some()).then_some((file, format)),
        };
        Ok((amendment, objection))
    }
}

/// A value, or one more objection.
fn known<T>(value: Result<T, Failure>, objection: &mut Option<Failure>) -> Option<T> {
    match value {
        Ok(value) => Some(value),
        Err(failure) => {
            objection.get_or_insert(failure);
            None
        }
    }
}

fn check_key(format: Format, key: &str) -> Result<(), Failure> {
    let options = help(format);
    if options.iter().any(|(known, ..)| known == key) {
        return Ok(());
    }
    if CREATION_ONLY.contains(&key)
        || encryption_options::KEYS.contains(&key)
        || encryption_options::luks_keys().any(|known| known == key)
    {
        return Err(Failure::usage(format!("'{key}' is an option of new images only"))
            .hint("Convert the image to give it another value: cowimg convert -O qcow2 -o ..."));
    }
    let failure = Failure::usage(format!("there is no option '{key}'"));
    Err(match nearest(key, options.iter().map(|(known, ..)| known.as_str())) {
        Some(known) => failure.hint(format!("Did you mean '{known}'? `-o help` lists all options")),
        None => failure.hint("`-o help` lists all options"),
    })
}

fn version(word: &str) -> Result<Version, Failure> {
    match word {
        "1.1" | "v3" => Ok(Version::V3),
        "0.10" | "v2" => Ok(Version::V2),
        _ => Err(not_a_choice("compat", word, "1.1 (or v3), 0.10 (or v2)")),
    }
}

fn refcount_bits(bits: i128) -> Result<u32, Failure> {
    match u32::try_from(bits) {
        Ok(bits @ (1 | 2 | 4 | 8 | 16 | 32 | 64)) => Ok(bits),
        _ => Err(not_a_choice("refcount_bits", &bits.to_string(), "1, 2, 4, 8, 16, 32 or 64")),
    }
}

fn switch(given: &KeyValues, key: &str) -> Result<Option<bool>, Failure> {
    match given.get(key) {
        None => Ok(None),
        Some("on" | "yes" | "true" | "y") => Ok(Some(true)),
        Some("off" | "no" | "false" | "n") => Ok(Some(false)),
        Some(word) => Err(not_a_choice(key, word, "on or off")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(list: &str) -> Result<Amendment, Failure> {
        match Amendment::parse(Format::Qcow2, &KeyValues::parse(&[list]).unwrap())? {
            (amendment, None) => Ok(amendment),
            (_, Some(objection)) => Err(objection),
        }
    }

    #[test]
    fn every_option_reaches_its_field() {
        let list = "compat=v2,lazy_refcounts=off,refcount_bits=8,data_file=a,data_file_raw=no,size=1M,backing_fmt=raw";
        let Amendment { options, backing } = parse(list).unwrap();
        assert_eq!(options.version, Some(Version::V2));
        assert_eq!(options.lazy_refcounts, Some(LazyRefcounts::Off));
        assert_eq!(options.refcount_bits, Some(8));
        assert_eq!(options.data_file, Some("a".into()));
        assert_eq!(options.data_file_raw, Some(false));
        assert_eq!(options.size, Some(1 << 20));
        assert_eq!(backing, Some((None, Some("raw".to_owned()))));
        assert_eq!(parse("refcount_bits=0x10").unwrap().options.refcount_bits, Some(16));
        assert_eq!(parse("refcount_bits=020").unwrap().options.refcount_bits, Some(16));
        assert_eq!(parse("size=0").unwrap().options, AmendOptions::default());
    }

    #[test]
    fn what_cannot_be_amended_is_refused_by_name() {
        let refusal = |list: &str| parse(list).unwrap_err().to_string();
        assert!(refusal("cluster_size=4k").starts_with("'cluster_size' is an option of new images only"));
        assert!(refusal("encrypt.cipher-alg=aes-128").contains("new images only"));
        assert!(refusal("encrypt.keyslot=1").contains("is not said"));
        assert!(refusal("refcount_bit=1").contains("Did you mean 'refcount_bits'?"));
        for list in [
            "compat=3",
            "refcount_bits=0",
            "refcount_bits=7",
            "refcount_bits=-8",
            "lazy_refcounts=x",
            "size=x",
        ] {
            assert!(parse(list).is_err(), "{list}");
        }
    }
}
