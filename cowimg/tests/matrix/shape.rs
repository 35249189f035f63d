//! What an image can be: every dimension of the matrix, which combinations there are, and which of them `qemu-img` makes.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use cowimg::encryption::{Encryption, LuksOptions, Passphrase};
use cowimg::{BackingOptions, CompressionType, CreateOptions, Format, Qcow2CreateOptions, Version};

/// The passphrase of every encrypted image here.
pub(crate) const PASSPHRASE: &str = "open-sesame";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Data {
    /// In the image's own file.
    Within,
    /// In a data file.
    Beside,
    /// In a data file that is a raw image at all times.
    Raw,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compressed {
    /// No cluster is.
    Never,
    Zlib,
    Zstd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encrypted {
    Not,
    Luks,
    Aes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Base {
    None,
    Raw,
    Qcow2,
}

/// One combination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) version: Version,
    pub(crate) cluster_bits: u32,
    pub(crate) refcount_order: u32,
    pub(crate) extended_l2: bool,
    pub(crate) data: Data,
    pub(crate) compressed: Compressed,
    pub(crate) encrypted: Encrypted,
    pub(crate) base: Base,
    pub(crate) bitmaps: bool,
    pub(crate) snapshots: bool,
}

/// How many choices each dimension has, in the order of the fields.
const CHOICES: [u64; 10] = [2, 13, 7, 2, 3, 3, 3, 3, 2, 2];

/// All combinations, those that are refused among them.
pub(crate) const COUNT: u64 = 2 * 13 * 7 * 2 * 3 * 3 * 3 * 3 * 2 * 2;

/// Where an image is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It cannot be created.
    Created,
    /// It cannot have a bitmap.
    Bitmap,
    /// It cannot have a snapshot.
    Snapshot,
    /// It cannot hold compressed clusters.
    Compressed,
}

impl Shape {
    /// The combination with this number, below [`COUNT`].
    pub(crate) fn nth(number: u64) -> Shape {
        let mut rest = number;
        let mut digits = [0; CHOICES.len()];
        for (digit, choices) in digits.iter_mut().zip(CHOICES) {
            *digit = (rest % choices) as usize;
            rest /= choices;
        }
        let [version, bits, order, extended, data, compressed, encrypted, base, bitmaps, snapshots] = digits;
        Shape {
            version: [Version::V2, Version::V3][version],
            cluster_bits: 9 + bits as u32,
            refcount_order: order as u32,
            extended_l2: extended == 1,
            data: [Data::Within, Data::Beside, Data::Raw][data],
            compressed: [Compressed::Never, Compressed::Zlib, Compressed::Zstd][compressed],
            encrypted: [Encrypted::Not, Encrypted::Luks, Encrypted::Aes][encrypted],
            base: [Base::None, Base::Raw, Base::Qcow2][base],
            bitmaps: bitmaps == 1,
            snapshots: snapshots == 1,
        }
    }

    pub(crate) fn cluster_size(self) -> u64 {
        1 << self.cluster_bits
    }

    pub(crate) fn refcount_bits(self) -> u32 {
        1 << self.refcount_order
    }

    /// Why `qemu-img` refuses the combination: what version 2 cannot say, and what does not go together.
    pub(crate) fn refused(self) -> Option<Refused> {
        let is_2 = self.version == Version::V2;
        let needs_3 = self.refcount_order != 4
            || self.extended_l2
            || self.data != Data::Within
            || self.compressed == Compressed::Zstd;
        let small = self.extended_l2 && self.cluster_bits < 14;
        let raw_over_base = self.data == Data::Raw && self.base != Base::None;
        let plain_within = self.data == Data::Within && self.encrypted == Encrypted::Not;
        if (is_2 && needs_3) || small || raw_over_base {
            Some(Refused::Created)
        } else if self.bitmaps && is_2 {
            Some(Refused::Bitmap)
        } else if self.snapshots && self.data != Data::Within {
            Some(Refused::Snapshot)
        } else if self.compressed != Compressed::Never && !plain_within {
            Some(Refused::Compressed)
        } else {
            None
        }
    }

    /// The size of the disk in bytes: some tables of mappings where they are small, a few clusters where these are
    /// large.
    pub(crate) fn size(self) -> u64 {
        let clusters = match self.cluster_bits {
            9..13 => 200,
            13..17 => 40,
            17..19 => 16,
            _ => 5,
        };
        clusters * self.cluster_size()
    }

    /// The options of `qemu-img create`, for an image in `folder`.
    pub(crate) fn qemu_options(self, folder: &Path) -> String {
        let compat = if self.version == Version::V2 { "0.10" } else { "1.1" };
        let mut options = format!(
            "compat={compat},cluster_size={},refcount_bits={},extended_l2={},compression_type={}",
            self.cluster_size(),
            self.refcount_bits(),
            if self.extended_l2 { "on" } else { "off" },
            if self.compressed == Compressed::Zstd { "zstd" } else { "zlib" },
        );
        if self.data != Data::Within {
            let _infallible = write!(options, ",data_file={}/data.raw", folder.display());
        }
        if self.data == Data::Raw {
            options += ",data_file_raw=on";
        }
        options += match self.encrypted {
            Encrypted::Not => "",
            Encrypted::Luks => ",encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
            Encrypted::Aes => ",encrypt.format=aes,encrypt.key-secret=s",
        };
        if let Some((name, format)) = self.base_name() {
            let _infallible = write!(options, ",backing_file={name},backing_fmt={format}");
        }
        options
    }

    /// The same options for the library.
    pub(crate) fn our_options(self, folder: &Path, size: u64) -> CreateOptions {
        let passphrase = || Passphrase::new(PASSPHRASE);
        let luks =
            LuksOptions { iteration_time: Duration::from_millis(10), ..LuksOptions::new(passphrase()) };
        let qcow2 = Qcow2CreateOptions {
            version: self.version,
            cluster_size: self.cluster_size(),
            refcount_bits: self.refcount_bits(),
            extended_l2: self.extended_l2,
            compression: match self.compressed {
                Compressed::Zstd => CompressionType::Zstd,
                Compressed::Never | Compressed::Zlib => CompressionType::Deflate,
            },
            data_file: (self.data != Data::Within).then(|| folder.join("data.raw").into()),
            data_file_raw: self.data == Data::Raw,
            encryption: match self.encrypted {
                Encrypted::Not => None,
                Encrypted::Luks => Some(Encryption::Luks(luks)),
                Encrypted::Aes => Some(Encryption::Aes(passphrase())),
            },
            ..Default::default()
        };
        let backing = self.base_name().map(|(name, format)| {
            let format = if format == "raw" { Format::Raw } else { Format::Qcow2 };
            BackingOptions { format: Some(format), ..BackingOptions::new(name) }
        });
        CreateOptions { qcow2, backing, ..CreateOptions::qcow2(size) }
    }

    /// Name and format of the base.
    pub(crate) fn base_name(self) -> Option<(&'static str, &'static str)> {
        match self.base {
            Base::None => None,
            Base::Raw => Some(("base.raw", "raw")),
            Base::Qcow2 => Some(("base.qcow2", "qcow2")),
        }
    }
}
