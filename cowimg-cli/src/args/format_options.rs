//! The options of `-o`: what a new image is like, per format.
//!
//! [`OPTIONS`] is the one list of them: it is what `-o help` prints, what is accepted, and what suggestions come
//! from.

use std::ffi::OsString;

use cowimg::encryption::LuksOptions;
use cowimg::storage::HostAttributes;
use cowimg::{CompressionType, Format, LazyRefcounts, Preallocation, Qcow2CreateOptions, Version};

use crate::args::encryption_options::EncryptionWords;
use crate::args::image::parse_format;
use crate::args::key_values::{KeyValues, nearest};
use crate::args::size::parse_size;
use crate::failure::Failure;

/// An option of `-o`.
#[derive(Debug)]
pub(crate) struct OptionHelp {
    /// Its key.
    pub(crate) key: &'static str,
    /// What kind of value it takes.
    pub(crate) value: &'static str,
    /// What it is for.
    pub(crate) purpose: &'static str,
    /// Whether raw images have it too.
    in_raw: bool,
}

/// All options, in the order in which help lists them.
const OPTIONS: [OptionHelp; 23] = [
    OptionHelp {
        key: "backing_file",
        value: "str",
        purpose: "the image that this one is stacked on (as -b)",
        in_raw: false,
    },
    OptionHelp {
        key: "backing_fmt",
        value: "str",
        purpose: "format of the backing file: raw or qcow2 (as -F)",
        in_raw: false,
    },
    OptionHelp {
        key: "cluster_size",
        value: "size",
        purpose: "unit of allocation: a power of two from 512 bytes to 2 MiB (default 64k)",
        in_raw: false,
    },
    OptionHelp {
        key: "compat",
        value: "str",
        purpose: "version of the format: 1.1 or v3 (default), 0.10 or v2",
        in_raw: false,
    },
    OptionHelp {
        key: "compression_type",
        value: "str",
        purpose: "how compressed clusters are compressed: zlib (default) or zstd",
        in_raw: false,
    },
    OptionHelp {
        key: "data_file",
        value: "str",
        purpose: "the file that the guest's data goes to, instead of the image",
        in_raw: false,
    },
    OptionHelp {
        key: "data_file_raw",
        value: "on/off",
        purpose: "keep the data file a raw image of the disk (default off)",
        in_raw: false,
    },
    OptionHelp {
        key: "encrypt.cipher-alg",
        value: "str",
        purpose: "LUKS: cipher (default aes-256)",
        in_raw: false,
    },
    OptionHelp {
        key: "encrypt.cipher-mode",
        value: "str",
        purpose: "LUKS: mode of the cipher (default xts)",
        in_raw: false,
    },
    OptionHelp {
        key: "encrypt.format",
        value: "str",
        purpose: "encrypt the data: luks, or the old and weak aes",
        in_raw: false,
    },
    OptionHelp {
        key: "encrypt.hash-alg",
        value: "str",
        purpose: "LUKS: hash of key derivation (default sha256)",
        in_raw: false,
    },
    OptionHelp {
        key: "encrypt.iter-time",
        value: "num",
        purpose: "LUKS: milliseconds that deriving a key takes (default 2000)",
        in_raw: false,
    },
    OptionHelp {
        key: "encrypt.ivgen-alg",
        value: "str",
        purpose: "LUKS: where initialisation vectors come from (default plain64)",
        in_raw: false,
    },
    OptionHelp {
        key: "encrypt.ivgen-hash-alg",
        value: "str",
        purpose: "LUKS: hash for ivgen-alg=essiv (default sha256)",
        in_raw: false,
    },
    OptionHelp {
        key: "encrypt.key-secret",
        value: "str",
        purpose: "id of the --object secret that opens the image",
        in_raw: false,
    },
    OptionHelp {
        key: "encryption",
        value: "on/off",
        purpose: "the old word for encrypt.format=aes",
        in_raw: false,
    },
    OptionHelp {
        key: "extended_l2",
        value: "on/off",
        purpose: "divide clusters into 32 subclusters, written one by one (default off)",
        in_raw: false,
    },
    OptionHelp {
        key: "extent_size_hint",
        value: "size",
        purpose: "steps that XFS gives the file space in (default 1M; 0 for none)",
        in_raw: true,
    },
    OptionHelp {
        key: "lazy_refcounts",
        value: "on/off",
        purpose: "mark the image so that refcounts may be written late (default off)",
        in_raw: false,
    },
    OptionHelp {
        key: "nocow",
        value: "on/off",
        purpose: "have Btrfs write over the file in place (default off)",
        in_raw: true,
    },
    OptionHelp {
        key: "preallocation",
        value: "str",
        purpose: "space taken now: off (default), metadata (qcow2), falloc or full",
        in_raw: true,
    },
    OptionHelp {
        key: "refcount_bits",
        value: "num",
        purpose: "width of a refcount in bits: 1, 2, 4, 8, 16 (default), 32 or 64",
        in_raw: false,
    },
    OptionHelp { key: "size", value: "size", purpose: "size of the disk", in_raw: true },
];

/// What only LUKS images have, in the order in which help lists it.
const LUKS_OPTIONS: [OptionHelp; 7] = [
    luks_option("cipher-alg", "str", "cipher (default aes-256)"),
    luks_option("cipher-mode", "str", "mode of the cipher (default xts)"),
    luks_option("hash-alg", "str", "hash of key derivation (default sha256)"),
    luks_option("iter-time", "num", "milliseconds that deriving a key takes (default 2000)"),
    luks_option("ivgen-alg", "str", "where initialisation vectors come from (default plain64)"),
    luks_option("ivgen-hash-alg", "str", "hash for ivgen-alg=essiv (default sha256)"),
    luks_option("key-secret", "str", "id of the --object secret that opens the image"),
];

const fn luks_option(key: &'static str, value: &'static str, purpose: &'static str) -> OptionHelp {
    OptionHelp { key, value, purpose, in_raw: false }
}

/// Options that qemu-img has for these formats and that this version does not handle.
const UNHANDLED: [&str; 1] = ["detached-header"];

/// The options that images of a format have.
pub(crate) fn options_of(format: Format) -> impl Iterator<Item = &'static OptionHelp> {
    let own: &[OptionHelp] = if format == Format::Luks { &LUKS_OPTIONS } else { &[] };
    own.iter().chain(OPTIONS.iter().filter(move |option| option.in_raw || format == Format::Qcow2))
}

/// What `-o` said, checked, with the words that a report repeats as they were given.
#[derive(Debug, Clone)]
pub(crate) struct FormatOptions {
    /// `size`.
    pub(crate) size: Option<u64>,
    /// `backing_file`.
    pub(crate) backing_file: Option<String>,
    /// `backing_fmt`.
    pub(crate) backing_format: Option<Format>,
    /// Everything else that a qcow2 image can be asked for.
    pub(crate) qcow2: Qcow2CreateOptions,
    /// What is said of encryption.
    pub(crate) encryption: EncryptionWords,
    /// `preallocation`.
    pub(crate) preallocation: Preallocation,
    /// `nocow` and `extent_size_hint`.
    pub(crate) host: HostAttributes,
    /// The words that these were given with, as a report repeats them.
    pub(crate) host_words: [Option<String>; 2],
    /// The word that `compat` was given with.
    pub(crate) compat_word: Option<String>,
    /// The word that `lazy_refcounts` was given with.
    pub(crate) lazy_refcounts_word: Option<String>,
    /// The word that `preallocation` was given with.
    pub(crate) preallocation_word: Option<String>,
    /// The word that `compression_type` was given with.
    pub(crate) compression_word: Option<String>,
    /// The word that `data_file_raw` was given with.
    pub(crate) data_file_raw_word: Option<String>,
}

impl FormatOptions {
    /// Checks the options for an image of `format`.
    pub(crate) fn new(format: Format, given: &KeyValues) -> Result<FormatOptions, Failure> {
        match FormatOptions::parse(format, given)? {
            (options, None) => Ok(options),
            (_, Some(objection)) => Err(objection),
        }
    }

    /// The options for an image of `format`, and what stands against making an image with them. Fails for what is no
    /// option, or no value of the option's kind: the rest is known only when the image is about to be made, and qemu-img
    /// announces the image before that.
    pub(crate) fn parse(
        format: Format,
        given: &KeyValues,
    ) -> Result<(FormatOptions, Option<Failure>), Failure> {
        for (key, value) in given.iter() {
            check_key(format, key, value)?;
        }
        let owned = |key: &str| given.get(key).map(str::to_owned);
        let backing_format = given.get("backing_fmt").map(parse_format).transpose();
        parse_switch(given, "encryption")?;
        let mut objection = None;
        let options = FormatOptions {
            size: parse_size_option(given, "size")?,
            backing_file: owned("backing_file"),
            backing_format: backing_format.map_err(|why| Failure::usage(format!("backing_fmt: {why}")))?,
            qcow2: qcow2_options(given, &mut objection)?,
            encryption: match format {
                Format::Luks => EncryptionWords::of_luks(given),
                _ => EncryptionWords::of(given),
            },
            preallocation: object(preallocation(given), &mut objection),
            host: host_attributes(given, &mut objection)?,
            host_words: [
                owned("nocow"),
                parse_size_option(given, "extent_size_hint")?.map(|size| size.to_string()),
            ],
            compat_word: owned("compat"),
            lazy_refcounts_word: owned("lazy_refcounts"),
            preallocation_word: owned("preallocation"),
            compression_word: owned("compression_type"),
            data_file_raw_word: owned("data_file_raw"),
        };
        if objection.is_none() {
            objection = options.check_together().err();
        }
        Ok((options, objection))
    }

    /// What a qcow2 image is asked for, with the passphrase of its encryption.
    pub(crate) fn qcow2_encrypted(&self) -> Result<Qcow2CreateOptions, Failure> {
        Ok(Qcow2CreateOptions { encryption: self.encryption.encryption()?, ..self.qcow2.clone() })
    }

    /// What a LUKS image is made with, with its passphrase; none for other images.
    pub(crate) fn luks_image(&self) -> Result<Option<LuksOptions>, Failure> {
        self.encryption.luks_image()
    }

    /// Options that are fine alone and not beside each other.
    fn check_together(&self) -> Result<(), Failure> {
        let qcow2 = &self.qcow2;
        if qcow2.version == Version::V3 {
            return Ok(());
        }
        let needs_version_3 = if qcow2.compression == CompressionType::Zstd {
            "compression_type=zstd".to_owned()
        } else if qcow2.lazy_refcounts == LazyRefcounts::On {
            "lazy_refcounts=on".to_owned()
        } else if qcow2.refcount_bits != 16 {
            format!("refcount_bits={}", qcow2.refcount_bits)
        } else {
            return Ok(());
        };
        Err(Failure::usage(format!("{needs_version_3} needs an image of version 3"))
            .hint("Leave compat away, or write compat=1.1"))
    }
}

/// Refuses keys that the format does not have, and says what was probably meant.
fn check_key(format: Format, key: &str, value: &str) -> Result<(), Failure> {
    if options_of(format).any(|option| option.key == key) {
        return Ok(());
    }
    if OPTIONS.iter().any(|option| option.key == key) {
        return Err(Failure::usage(format!("a {format} image has no option '{key}'"))
            .hint("Images of format qcow2 have it"));
    }
    let family = key.split_once('.').map_or(key, |(family, _)| family);
    if UNHANDLED.contains(&family) {
        return Err(Failure::usage(format!(
            "option '{key}={value}' is not handled by this version of cowimg"
        ))
        .hint("`-o help` lists the options that are"));
    }
    let failure = Failure::usage(format!("there is no option '{key}'"));
    Err(match nearest(key, options_of(format).map(|option| option.key)) {
        Some(known) => failure.hint(format!("Did you mean '{known}'? `-o help` lists all options")),
        None => failure.hint("`-o help` lists all options"),
    })
}

/// A value, or the default and one more objection.
fn object<T: Default>(value: Result<T, Failure>, objection: &mut Option<Failure>) -> T {
    value.unwrap_or_else(|failure| {
        objection.get_or_insert(failure);
        T::default()
    })
}

/// The part of the options that goes into the library's structure.
fn qcow2_options(given: &KeyValues, objection: &mut Option<Failure>) -> Result<Qcow2CreateOptions, Failure> {
    let mut options = Qcow2CreateOptions::default();
    if let Some(cluster_size) = parse_size_option(given, "cluster_size")? {
        if !cluster_size.is_power_of_two() || !(512..=2 << 20).contains(&cluster_size) {
            objection.get_or_insert(Failure::usage(format!(
                "cluster_size is {cluster_size} bytes; it must be a power of two from 512 bytes to 2 MiB"
            )));
        }
        options.cluster_size = cluster_size;
    }
    if let Some(word) = given.get("compat") {
        let version = match word {
            "1.1" | "v3" => Ok(Version::V3),
            "0.10" | "v2" => Ok(Version::V2),
            _ => Err(not_a_choice("compat", word, "1.1 (or v3), 0.10 (or v2)")),
        };
        options.version = version.unwrap_or_else(|failure| {
            objection.get_or_insert(failure);
            Version::V3
        });
    }
    if let Some(word) = given.get("refcount_bits") {
        let refusal = || not_a_choice("refcount_bits", word, "1, 2, 4, 8, 16, 32 or 64");
        options.refcount_bits = word.parse().map_err(|_| refusal())?;
        if !matches!(options.refcount_bits, 1 | 2 | 4 | 8 | 16 | 32 | 64) {
            objection.get_or_insert(refusal());
        }
    }
    if let Some(word) = given.get("compression_type") {
        options.compression = match word {
            "zlib" => CompressionType::Deflate,
            "zstd" => CompressionType::Zstd,
            _ => {
                objection.get_or_insert(not_a_choice("compression_type", word, "zlib or zstd"));
                CompressionType::Deflate
            }
        };
    }
    if parse_switch(given, "lazy_refcounts")? {
        options.lazy_refcounts = LazyRefcounts::On;
    }
    options.extended_l2 = parse_switch(given, "extended_l2")?;
    options.data_file = given.get("data_file").map(OsString::from);
    options.data_file_raw = parse_switch(given, "data_file_raw")?;
    Ok(options)
}

/// What the file system is told.
fn host_attributes(given: &KeyValues, objection: &mut Option<Failure>) -> Result<HostAttributes, Failure> {
    let hint = parse_size_option(given, "extent_size_hint")?.map(|size| {
        u32::try_from(size).map_err(|_| Failure::usage("extent_size_hint is larger than any step can be"))
    });
    Ok(HostAttributes {
        no_cow: parse_switch(given, "nocow")?,
        extent_size_hint: hint.map(|hint| object(hint, objection)),
    })
}

/// How much space is taken at once.
fn preallocation(given: &KeyValues) -> Result<Preallocation, Failure> {
    match given.get("preallocation") {
        None | Some("off") => Ok(Preallocation::Off),
        Some("metadata") => Ok(Preallocation::Metadata),
        Some("falloc") => Ok(Preallocation::Falloc),
        Some("full") => Ok(Preallocation::Full),
        Some(word) => Err(not_a_choice("preallocation", word, "off, metadata, falloc or full")),
    }
}

/// A size among the options.
fn parse_size_option(given: &KeyValues, key: &str) -> Result<Option<u64>, Failure> {
    given
        .get(key)
        .map(|text| parse_size(text).map_err(|why| Failure::usage(format!("{key}: {why}"))))
        .transpose()
}

/// A switch among the options; off when it is not there.
fn parse_switch(given: &KeyValues, key: &str) -> Result<bool, Failure> {
    match given.get(key) {
        Some("on" | "yes" | "true" | "y") => Ok(true),
        None | Some("off" | "no" | "false" | "n") => Ok(false),
        Some(word) => Err(not_a_choice(key, word, "on or off")),
    }
}

/// The failure for a word that is none of the choices.
pub(crate) fn not_a_choice(key: &str, word: &str, choices: &str) -> Failure {
    Failure::usage(format!("{key} is '{word}'; it must be {choices}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(format: Format, list: &str) -> Result<FormatOptions, Failure> {
        FormatOptions::new(format, &KeyValues::parse(&[list]).unwrap())
    }

    fn refusal(format: Format, list: &str) -> String {
        parse(format, list).unwrap_err().to_string()
    }

    #[test]
    fn every_option_reaches_its_field() {
        let list = "size=1G,cluster_size=4k,compat=v3,refcount_bits=1,lazy_refcounts=yes,compression_type=zstd,\
                    preallocation=falloc,backing_file=a,,b,backing_fmt=raw,extended_l2=on";
        let options = parse(Format::Qcow2, list).unwrap();
        assert_eq!(options.size, Some(1 << 30));
        assert_eq!(options.backing_file.as_deref(), Some("a,b"));
        assert_eq!(options.backing_format, Some(Format::Raw));
        assert_eq!(options.qcow2.cluster_size, 4096);
        assert_eq!(options.qcow2.version, Version::V3);
        assert_eq!(options.qcow2.refcount_bits, 1);
        assert_eq!(options.qcow2.lazy_refcounts, LazyRefcounts::On);
        assert_eq!(options.qcow2.compression, CompressionType::Zstd);
        assert!(options.qcow2.extended_l2);
        assert_eq!(options.preallocation, Preallocation::Falloc);
        assert_eq!(options.lazy_refcounts_word.as_deref(), Some("yes"));
    }

    #[test]
    fn a_value_out_of_bounds_is_refused_with_the_bounds() {
        assert_eq!(
            refusal(Format::Qcow2, "cluster_size=3"),
            "cluster_size is 3 bytes; it must be a power of two from 512 bytes to 2 MiB"
        );
        for list in [
            "cluster_size=0",
            "cluster_size=256",
            "cluster_size=4M",
            "cluster_size=3000",
            "cluster_size=x",
            "compat=1.2",
            "compat=",
            "refcount_bits=0",
            "refcount_bits=7",
            "refcount_bits=128",
            "refcount_bits=x",
            "compression_type=lzma",
            "preallocation=some",
            "lazy_refcounts=maybe",
            "extended_l2=maybe",
            "backing_fmt=vmdk",
            "data_file_raw=maybe",
        ] {
            assert!(parse(Format::Qcow2, list).is_err(), "{list}");
        }
    }

    #[test]
    fn version_2_refuses_what_it_cannot_store() {
        for list in ["compression_type=zstd", "lazy_refcounts=on", "refcount_bits=8"] {
            let text = refusal(Format::Qcow2, &format!("compat=0.10,{list}"));
            assert!(text.starts_with(&format!("{list} needs an image of version 3")), "{text}");
        }
        assert!(parse(Format::Qcow2, "compat=v2,lazy_refcounts=off,refcount_bits=16").is_ok());
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_known_one() {
        assert!(refusal(Format::Qcow2, "cluster_sise=64k").contains("Did you mean 'cluster_size'?"));
        assert!(refusal(Format::Raw, "cluster_size=64k").contains("a raw image has no option"));
        assert!(parse(Format::Raw, "size=64k").is_ok());
    }
}
