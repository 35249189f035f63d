//! Changing what an image was created with: version, width of refcounts, lazy refcounts, the data file's name, size.
//!
//! Everything is judged before anything is changed. Then the steps follow each other in QEMU's order, and the image is
//! sound after each, so that an amendment that a crash ends is simply asked for again:
//!
//! 1. version 3, which the other options may need: snapshots state the size of their disk, then the header grows;
//! 2. the key slots of an encrypted image (`luks/key_slots.rs`);
//! 3. the width of refcounts (`refcount_width`);
//! 4. the header's other fields, in one write;
//! 5. the size (`resize`);
//! 6. version 2: no table has a zero cluster any more (`expand_zeroes`), then the header shrinks.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use super::Qcow2;
use crate::codec::crypt::Passphrase;
use crate::disk::{Disk, ResizeOptions, Shrink};
use crate::error::{Error, Result};
use crate::format::qcow2::layout::LazyRefcounts;
use crate::format::qcow2::{
    Autoclear, Compatible, CompressionType, Extension, Header, Incompatible, Snapshot, Version,
    name_table_extension,
};
use crate::luks::{KeyLoss, KeySlotChange};
use crate::progress::Control;

/// What is to become different; what is `None` stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AmendOptions {
    /// Version of the format. Version 2 has no zero clusters: they become clusters of zeroes where a backing file would
    /// show, which takes their space.
    pub version: Option<Version>,
    /// Whether refcounts may be written late by programs that do that.
    pub lazy_refcounts: Option<LazyRefcounts>,
    /// Width of a refcount in bits: 1, 2, 4, 8, 16, 32 or 64.
    pub refcount_bits: Option<u32>,
    /// The name of the external data file, for images that have one; an empty one takes the name out of the image.
    pub data_file: Option<OsString>,
    /// Whether the data file is kept a raw image of the disk; only `false` can be new.
    pub data_file_raw: Option<bool>,
    /// Size of the disk in bytes.
    pub size: Option<u64>,
    /// Whether the disk may become smaller.
    pub shrink: Shrink,
    /// Which passphrases open an image that is encrypted with LUKS.
    pub key_slots: Option<KeySlotChange>,
    /// Whether a passphrase may go that somebody may need.
    pub key_loss: KeyLoss,
}

/// How far an amendment of several steps is.
#[derive(Debug)]
pub(super) struct Steps<'a> {
    control: &'a Control<'a>,
    total: u64,
    done: u64,
}

/// Parts that a step of an amendment is counted in.
const STEP: u64 = 1 << 20;

impl Steps<'_> {
    /// `done` of `total` parts of the step that runs are done.
    pub(super) fn report(&self, done: u64, total: u64) -> Result<()> {
        let within = (u128::from(done) * u128::from(STEP) / u128::from(total.max(1))) as u64;
        self.control.report(self.done * STEP + within, self.total.max(1) * STEP);
        self.control.check()
    }

    fn next(&mut self) {
        self.done += 1;
    }
}

/// What an image is to be, with nothing left open.
#[derive(Debug)]
struct Target {
    version: Version,
    refcount_bits: u32,
    header: Header,
    size: u64,
}

impl Qcow2 {
    /// Makes the image, which `current` has opened, what `wanted` says. What is refused is refused before anything is
    /// changed.
    pub(crate) fn amend(
        &mut self,
        wanted: &AmendOptions,
        current: Option<&Passphrase>,
        control: &Control<'_>,
    ) -> Result<()> {
        self.check_writable()?;
        let target = self.target_of(wanted)?;
        self.check_target(&target, wanted)?;
        let keys =
            wanted.key_slots.as_ref().map(|change| self.judge_keys((change, wanted.key_loss), current));
        let keys = keys.transpose()?;
        let changes_width = target.refcount_bits != self.geometry.refcount_bits();
        let changes_version = target.version != self.version;
        let total = u64::from(changes_width) + u64::from(changes_version) + u64::from(keys.is_some());
        let mut steps = Steps { control, total, done: 0 };
        if target.version == Version::V3 && self.version == Version::V2 {
            steps.report(0, 2)?;
            self.upgrade(&mut || steps.report(1, 2))?;
            steps.report(2, 2)?;
            steps.next();
        }
        if let Some(keys) = keys {
            self.change_keys(keys)?;
            steps.next();
        }
        if changes_width {
            self.change_refcount_width(target.refcount_bits.trailing_zeros(), &steps)?;
            steps.next();
        }
        self.change_header(|header| {
            header.compatible = target.header.compatible;
            header.autoclear = target.header.autoclear;
            if wanted.data_file.is_some() {
                let name = target.header.data_file_name().unwrap_or_default();
                set_data_file_name(header, name);
            }
        })?;
        if target.size != self.size() {
            let options = ResizeOptions { shrink: wanted.shrink, ..ResizeOptions::default() };
            self.resize(target.size, options, control)?;
        }
        if target.version == Version::V2 && self.version == Version::V3 {
            self.expand_zeroes(&steps)?;
            self.change_header(downgrade)?;
            self.version = Version::V2;
            self.compression = CompressionType::Deflate;
        }
        Ok(())
    }

    fn target_of(&self, wanted: &AmendOptions) -> Result<Target> {
        let mut header = self.header();
        let has_data_file = header.incompatible.contains(Incompatible::DATA_FILE);
        if let Some(lazy) = wanted.lazy_refcounts {
            header.compatible = match lazy {
                LazyRefcounts::On => header.compatible.with(Compatible::LAZY_REFCOUNTS),
                LazyRefcounts::Off => header.compatible.without(Compatible::LAZY_REFCOUNTS),
            };
        }
        if let Some(name) = &wanted.data_file {
            if !has_data_file {
                return Err(Error::invalid(
                    "the image has no external data file whose name could be changed",
                ));
            }
            set_data_file_name(&mut header, name.as_bytes());
        }
        match wanted.data_file_raw {
            Some(true) if !header.autoclear.contains(Autoclear::DATA_FILE_RAW) => {
                return Err(Error::invalid(
                    "data_file_raw can be switched on only for a new image: the data file may hold what is no part of \
                     the disk",
                ));
            }
            Some(false) => header.autoclear = header.autoclear.without(Autoclear::DATA_FILE_RAW),
            Some(true) | None => {}
        }
        Ok(Target {
            version: wanted.version.unwrap_or(self.version),
            refcount_bits: wanted.refcount_bits.unwrap_or(self.geometry.refcount_bits()),
            size: wanted.size.unwrap_or(self.size()),
            header,
        })
    }

    fn check_target(&self, target: &Target, wanted: &AmendOptions) -> Result<()> {
        let bits = target.refcount_bits;
        if !bits.is_power_of_two() || bits > 64 {
            return Err(Error::invalid(format!(
                "refcounts of {bits} bits: the width is a power of two, at most 64"
            )));
        }
        if target.size != self.size() {
            let shrink = ResizeOptions { shrink: wanted.shrink, ..ResizeOptions::default() };
            let resized_as = if self.version == Version::V3 { Version::V3 } else { target.version };
            self.check_resize((self.size(), target.size), shrink, resized_as)?;
        }
        if target.version == Version::V2 {
            self.check_version_2(target, wanted)?;
        }
        if bits != self.geometry.refcount_bits() {
            self.check_refcount_width(bits.trailing_zeros())?;
        }
        let mut header = Header { refcount_order: bits.trailing_zeros(), ..target.header.clone() };
        match target.version {
            Version::V2 => downgrade(&mut header),
            Version::V3 => upgrade(&mut header),
        }
        header.encode().map(drop).map_err(|error| Error::invalid(error.to_string()))
    }

    /// Refuses what version 2 cannot hold.
    fn check_version_2(&self, target: &Target, wanted: &AmendOptions) -> Result<()> {
        let refused = |what: &str| Err(Error::unsupported(format!("a version 2 image cannot have {what}")));
        if target.refcount_bits != 16 {
            return refused(&format!(
                "refcounts of {} bits: refcount_bits=16 goes with it",
                target.refcount_bits
            ));
        }
        // Those that are there go with version 3.
        let had_lazy = self.header().compatible.contains(Compatible::LAZY_REFCOUNTS);
        if wanted.lazy_refcounts == Some(LazyRefcounts::On) && !had_lazy {
            return refused("lazy refcounts");
        }
        if self.version == Version::V2 {
            return Ok(());
        }
        if target.header.incompatible.contains(Incompatible::DATA_FILE) {
            return refused("an external data file");
        }
        if target.header.incompatible.without(Incompatible::COMPRESSION).0 != 0 {
            return refused("the features that this one uses (extended L2 entries)");
        }
        if target.header.compression != CompressionType::Deflate && self.has_compressed_clusters()? {
            return refused("clusters that are compressed with zstd");
        }
        if self.has_bitmaps() {
            return refused("bitmaps: remove them first");
        }
        let fits = |snapshot: &Snapshot| {
            snapshot.vm_state_size() == 0 && snapshot.extra.disk_size.is_none_or(|size| size == target.size)
        };
        if !self.snapshots()?.iter().all(fits) {
            return refused("a snapshot of a disk of another size, or with the state of a machine");
        }
        Ok(())
    }

    /// Makes a version 2 image one of version 3.
    fn upgrade(&mut self, halfway: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.state_snapshot_sizes()?;
        halfway()?;
        self.change_header(|header| {
            upgrade(header);
            let mut named = header.clone();
            named.extensions.retain(|extension| extension.kind != Extension::FEATURE_NAMES);
            named.insert_extension(name_table_extension());
            // Nobody needs the names: a header without room for them goes without.
            if named.encode().is_ok() {
                *header = named;
            }
        })?;
        self.version = Version::V3;
        Ok(())
    }

    /// Changes the header after everything that was written is durable.
    fn change_header(&self, change: impl FnOnce(&mut Header)) -> Result<()> {
        let mut new = self.header();
        change(&mut new);
        if new == self.header() {
            return Ok(());
        }
        self.begin_change()?;
        self.commit()?;
        let _one_at_a_time = self.lock_commit();
        // What the first change has taken from the header stays taken.
        new.autoclear = Autoclear(new.autoclear.0 & self.header().autoclear.0);
        self.rewrite_header(new)
    }
}

/// Gives a header the fields of version 3.
fn upgrade(header: &mut Header) {
    header.version = Version::V3;
    header.header_length = header.header_length.max(Header::default_length(Version::V3));
}

/// Takes from a header what version 2 does not have.
fn downgrade(header: &mut Header) {
    header.version = Version::V2;
    header.header_length = Header::default_length(Version::V2);
    header.incompatible = header.incompatible.without(Incompatible::COMPRESSION);
    header.compression = CompressionType::Deflate;
    header.compatible = Compatible(0);
    header.autoclear = Autoclear(0);
    header.unknown_fields.clear();
    header.extensions.retain(|extension| extension.kind != Extension::FEATURE_NAMES);
}

fn set_data_file_name(header: &mut Header, name: &[u8]) {
    header.extensions.retain(|extension| extension.kind != Extension::DATA_FILE);
    if !name.is_empty() {
        header.insert_extension(Extension { kind: Extension::DATA_FILE, data: name.to_vec() });
    }
}
