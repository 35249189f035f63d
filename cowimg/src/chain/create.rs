//! Creating an image: options are judged, the backing file is looked at, and the result appears whole or not at all.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::cancellable::CancellableStorage;
use super::data::data_file_path;
use super::encrypt::{Encryption, LuksOptions};
use super::file_use::Purpose;
use super::names;
use super::options::OpenOptions;
use super::staged::{Between, StagedImage};
use super::staged_file::{Role, StagedFile};
use super::walk::{Found, walk};
use crate::error::{Error, ErrorKind, Result};
use crate::format::probe::Format;
use crate::format::qcow2::layout::{BackingName, DataFileName, FreshParams, LazyRefcounts, Preallocation};
use crate::format::qcow2::{CompressionType, Geometry, MAX_CLUSTER_BITS, MIN_CLUSTER_BITS, Version};
use crate::progress::Control;
use crate::qcow2;
use crate::range::ByteRange;
use crate::storage::{HostAttributes, Storage, StorageExt};

/// What to do when the name is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Overwrite {
    /// Fail and change nothing.
    #[default]
    Refuse,
    /// Take the name over once the new image is complete; until then the old file stays as it is.
    Replace,
    /// Empty the file that is there, or make one, and write the image in it: links to it, its owner and its mode stay,
    /// and a failure on the way leaves a part of an image. What `qemu-img` does.
    InPlace,
}

/// Whether the backing file is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Verification {
    /// It must exist and be an image; its size is the default size.
    #[default]
    Verify,
    /// The same, and all that is below it must be there, too. Nothing is locked.
    VerifyChain,
    /// It is not opened; a size must be given.
    Trust,
}

/// A new image's backing file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackingOptions {
    /// Its name as it is to stand in the image: relative to the new image's folder, or absolute.
    pub name: OsString,
    /// Its format; found from its first bytes, and recorded, when it is not given.
    pub format: Option<Format>,
    /// Whether it is looked at.
    pub verification: Verification,
}

impl BackingOptions {
    /// A backing file of this name, to be looked at for its format and size.
    pub fn new(name: impl Into<OsString>) -> BackingOptions {
        BackingOptions { name: name.into(), format: None, verification: Verification::Verify }
    }
}

/// What only qcow2 images have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qcow2CreateOptions {
    /// Version of the format.
    pub version: Version,
    /// Bytes in a cluster: a power of two from 512 to 2 MiB.
    pub cluster_size: u64,
    /// Width of a refcount: 1, 2, 4 ... 64; only 16 in version 2.
    pub refcount_bits: u32,
    /// Whether writers may leave refcounts behind (version 3).
    pub lazy_refcounts: LazyRefcounts,
    /// How compressed clusters are compressed.
    pub compression: CompressionType,
    /// Whether clusters are divided into 32 subclusters, each of which is written and zeroed by itself (version 3,
    /// clusters of at least 16 KiB).
    pub extended_l2: bool,
    /// The file that the guest's data goes to; the image then has tables only (version 3). A name that is not absolute
    /// starts at the process's folder, when it is created and whenever it is opened.
    pub data_file: Option<OsString>,
    /// Whether the data file is a raw image of the disk at all times.
    pub data_file_raw: bool,
    /// How the guest's data is encrypted.
    pub encryption: Option<Encryption>,
}

impl Default for Qcow2CreateOptions {
    fn default() -> Qcow2CreateOptions {
        Qcow2CreateOptions {
            version: Version::V3,
            cluster_size: 65536,
            refcount_bits: 16,
            lazy_refcounts: LazyRefcounts::Off,
            compression: CompressionType::Deflate,
            extended_l2: false,
            data_file: None,
            data_file_raw: false,
            encryption: None,
        }
    }
}

/// What image to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateOptions {
    /// Its format.
    pub format: Format,
    /// Size of the disk in bytes, rounded up to a multiple of 512; the backing file's when it is not given.
    pub size: Option<u64>,
    /// The backing file, for formats that can have one.
    pub backing: Option<BackingOptions>,
    /// How much of the space is taken at once.
    pub preallocation: Preallocation,
    /// What to do when the name is taken.
    pub overwrite: Overwrite,
    /// What only qcow2 images have.
    pub qcow2: Qcow2CreateOptions,
    /// How a LUKS image is encrypted, which needs it.
    pub luks: Option<LuksOptions>,
    /// What the file system is told of the image's file, and of its data file.
    pub host: HostAttributes,
}

impl CreateOptions {
    /// An image of `format` without a size yet.
    pub fn new(format: Format) -> CreateOptions {
        CreateOptions {
            format,
            size: None,
            backing: None,
            preallocation: Preallocation::Off,
            overwrite: Overwrite::Refuse,
            qcow2: Qcow2CreateOptions::default(),
            luks: None,
            host: HostAttributes::default(),
        }
    }

    /// A LUKS image of `size` bytes. What was never written reads as noise.
    pub fn luks(size: u64, luks: LuksOptions) -> CreateOptions {
        CreateOptions { size: Some(size), luks: Some(luks), ..CreateOptions::new(Format::Luks) }
    }

    /// A qcow2 image of `size` bytes.
    pub fn qcow2(size: u64) -> CreateOptions {
        CreateOptions { size: Some(size), ..CreateOptions::new(Format::Qcow2) }
    }

    /// A qcow2 image over the backing file of this name, with its size.
    pub fn overlay(backing: impl Into<OsString>) -> CreateOptions {
        CreateOptions { backing: Some(BackingOptions::new(backing)), ..CreateOptions::new(Format::Qcow2) }
    }
}

/// What was created.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CreateReport {
    /// Size of the disk in bytes.
    pub size: u64,
    /// The backing file's format, when it was not given but found.
    pub found_backing_format: Option<Format>,
}

/// Creates an image at `path`. It appears whole, or not at all; nothing is synced, so that a power cut soon after it may leave
/// a part. [`StagedImage::publish_synced`] leaves none.
pub fn create(path: impl AsRef<Path>, options: &CreateOptions) -> Result<CreateReport> {
    let path = path.as_ref();
    let plan = plan(path, options).map_err(|error| error.at_path(path))?;
    let report = plan.report.clone();
    StagedImage::write(path, options.overwrite, &plan)?.publish()?;
    Ok(report)
}

/// A creation that has been judged: nothing about the options can fail any more.
#[derive(Debug, Clone)]
pub struct CreatePlan {
    content: Content,
    encryption: Option<Encryption>,
    data_file: Option<DataFile>,
    preallocation: Preallocation,
    pub(super) host: HostAttributes,
    report: CreateReport,
}

#[derive(Debug, Clone)]
enum Content {
    Raw { size: u64 },
    Luks { luks: LuksOptions, size: u64 },
    Qcow2(Box<qcow2::Fresh>),
}

impl CreatePlan {
    /// What will have been created.
    pub fn report(&self) -> &CreateReport {
        &self.report
    }

    /// Writes the new image to `storage`, which is empty.
    pub(super) fn write_to(&self, storage: &dyn Storage) -> Result<()> {
        match &self.content {
            Content::Qcow2(fresh) => {
                fresh.write_to(storage)?;
                match &self.encryption {
                    Some(Encryption::Luks(options)) => options.write_header(storage),
                    _ => Ok(()),
                }
            }
            Content::Raw { size } => write_raw(storage, *size, self.preallocation),
            Content::Luks { luks, size } => {
                let start = luks.header_len();
                luks.write_header_at_start(storage)?;
                write_raw_from(storage, ByteRange::between(start, start + size), self.preallocation)
            }
        }
    }
}

/// The data file of an image that is to be created.
#[derive(Debug, Clone)]
struct DataFile {
    path: PathBuf,
    size: u64,
}

impl CreatePlan {
    /// Makes the image's data file, if it is to have one, without its name.
    pub(super) fn make_data_file(
        &self,
        overwrite: Overwrite,
        (control, between): (&Control<'_>, Between<'_>),
    ) -> Result<Option<StagedFile>> {
        let Some(file) = &self.data_file else { return Ok(None) };
        let made = StagedFile::reserve(&file.path, overwrite, Role::DataFile).and_then(|staged| {
            let storage = CancellableStorage::new(between(staged.storage(self.host)?), control, file.size);
            storage.outcome(write_raw(&storage, file.size, self.preallocation))?;
            Ok(Some(staged))
        });
        made.map_err(|error| error.at_path(&file.path))
    }
}

fn write_raw(storage: &dyn Storage, size: u64, preallocation: Preallocation) -> Result<()> {
    write_raw_from(storage, ByteRange::between(0, size), preallocation)
}

/// Makes the rest of a file, from where it ends now.
fn write_raw_from(storage: &dyn Storage, whole: ByteRange, preallocation: Preallocation) -> Result<()> {
    match preallocation {
        Preallocation::Off | Preallocation::Metadata => storage.set_len(whole.end()),
        Preallocation::Falloc => storage.allocate(whole),
        Preallocation::Full => storage.write_every_byte(whole),
    }
    .map_err(|error| Error::io("write the image", error))
}

/// Judges the options for an image at `path`, and looks at its backing file. Writes nothing.
pub fn plan(path: &Path, options: &CreateOptions) -> Result<CreatePlan> {
    let looked_at = match &options.backing {
        Some(backing) => Some(look_at_backing(path, backing)?),
        None => None,
    };
    let size = match (options.size, looked_at.as_ref().and_then(|found| found.size)) {
        (Some(size), _) | (None, Some(size)) => round_size(size)?,
        (None, None) => {
            return Err(Error::invalid("the new image needs a size (or a backing file to take it from)"));
        }
    };
    let found_backing_format = looked_at.as_ref().and_then(|found| found.found_format);
    let report = CreateReport { size, found_backing_format };
    let content = match options.format {
        Format::Raw => raw_content(size, options)?,
        Format::Qcow2 => {
            let params = qcow2_params(size, options, found_backing_format)?;
            Content::Qcow2(Box::new(qcow2::Fresh::plan(&params)?))
        }
        Format::Luks => luks_content(size, options)?,
        Format::Qcow => return Err(read_only_format(options.format)),
    };
    let data_file = match &options.qcow2.data_file {
        Some(name) if options.format == Format::Qcow2 => {
            Some(DataFile { path: data_file_path(name.as_bytes())?, size })
        }
        _ => None,
    };
    let encryption = options.qcow2.encryption.clone();
    let (preallocation, host) = (options.preallocation, options.host);
    Ok(CreatePlan { content, encryption, data_file, preallocation, host, report })
}

fn luks_content(size: u64, options: &CreateOptions) -> Result<Content> {
    if options.backing.is_some() {
        return Err(Error::invalid("a luks image cannot have a backing file; use the format qcow2"));
    }
    let Some(luks) = &options.luks else {
        return Err(Error::invalid("a luks image needs a passphrase"));
    };
    luks.check()?;
    Ok(Content::Luks { luks: luks.clone(), size })
}

/// The refusal of a new image of a format that is only read.
fn read_only_format(format: Format) -> Error {
    Error::unsupported(format!("{format} images can be read and not made: make a qcow2 image"))
}

fn round_size(size: u64) -> Result<u64> {
    size.checked_next_multiple_of(512)
        .filter(|&rounded| rounded <= ByteRange::MAX_END)
        .ok_or_else(|| Error::invalid(format!("the size {size} is larger than any disk can be")))
}

fn raw_content(size: u64, options: &CreateOptions) -> Result<Content> {
    if options.backing.is_some() {
        return Err(Error::invalid("a raw image cannot have a backing file; use the format qcow2"));
    }
    if options.preallocation == Preallocation::Metadata {
        return Err(Error::invalid("a raw image has no metadata to preallocate; use off, falloc or full"));
    }
    Ok(Content::Raw { size })
}

fn qcow2_params(size: u64, options: &CreateOptions, found: Option<Format>) -> Result<FreshParams> {
    let wanted = &options.qcow2;
    let cluster_bits = wanted.cluster_size.checked_ilog2().unwrap_or(0);
    let in_bounds = (MIN_CLUSTER_BITS..=MAX_CLUSTER_BITS).contains(&cluster_bits);
    if !wanted.cluster_size.is_power_of_two() || !in_bounds {
        return Err(Error::invalid(format!(
            "cluster_size is {} bytes; it must be a power of two from 512 bytes to 2 MiB",
            wanted.cluster_size
        )));
    }
    if !wanted.refcount_bits.is_power_of_two() || wanted.refcount_bits > 64 {
        return Err(Error::invalid(format!(
            "refcount_bits is {}; it must be a power of two from 1 to 64",
            wanted.refcount_bits
        )));
    }
    refuse_in_version_2(wanted)?;
    if options.backing.is_some() && options.preallocation != Preallocation::Off && !wanted.extended_l2 {
        return Err(Error::invalid(
            "an image with a backing file can be preallocated only with extended_l2=on",
        ));
    }
    if wanted.extended_l2 && cluster_bits < 14 {
        return Err(Error::invalid("extended_l2=on needs clusters of at least 16 KiB"));
    }
    refuse_data_file(options)?;
    let geometry = Geometry::new(cluster_bits, wanted.refcount_bits.ilog2())
        .map_err(|error| Error::invalid(error.to_string()))?
        .with_extended_l2(wanted.extended_l2);
    let backing = options.backing.as_ref().map(|backing| BackingName {
        name: backing.name.as_bytes().to_vec(),
        format: backing.format.or(found).map(|format| format.as_str().as_bytes().to_vec()),
    });
    Ok(FreshParams {
        version: wanted.version,
        geometry,
        size,
        lazy_refcounts: wanted.lazy_refcounts,
        compression: wanted.compression,
        preallocation: options.preallocation,
        backing,
        data_file: wanted
            .data_file
            .as_ref()
            .map(|name| DataFileName { name: name.as_bytes().to_vec(), raw: wanted.data_file_raw }),
        encryption: Encryption::fresh(wanted.encryption.as_ref())?,
    })
}

fn refuse_data_file(options: &CreateOptions) -> Result<()> {
    let wanted = &options.qcow2;
    if wanted.data_file_raw && wanted.data_file.is_none() {
        return Err(Error::invalid("data_file_raw=on needs a data file (data_file=FILE)"));
    }
    if wanted.data_file_raw && options.backing.is_some() {
        return Err(Error::invalid("an image with a backing file cannot have a raw data file"));
    }
    if wanted.data_file.as_ref().is_some_and(|name| name.is_empty()) {
        return Err(Error::invalid("the data file's name is empty"));
    }
    Ok(())
}

fn refuse_in_version_2(wanted: &Qcow2CreateOptions) -> Result<()> {
    if wanted.version != Version::V2 {
        return Ok(());
    }
    let needs_version_3 = [
        (wanted.refcount_bits != 16, "refcounts of another width than 16 bits"),
        (wanted.lazy_refcounts == LazyRefcounts::On, "lazy refcounts"),
        (wanted.compression != CompressionType::Deflate, "a compression type other than zlib"),
        (wanted.extended_l2, "extended L2 entries"),
        (wanted.data_file.is_some(), "an external data file"),
    ];
    match needs_version_3.iter().find(|(is_wanted, _)| *is_wanted) {
        Some((_, what)) => Err(Error::invalid(format!("{what} need compat=1.1 (version 3) or later"))),
        None => Ok(()),
    }
}

/// What a look at the backing file told.
struct LookedAt {
    size: Option<u64>,
    found_format: Option<Format>,
}

/// Opens the backing file for its size, and for its format if that is not given. What it names itself is not opened.
fn look_at_backing(path: &Path, backing: &BackingOptions) -> Result<LookedAt> {
    if backing.name.is_empty() {
        return Err(Error::invalid("the backing file's name is empty"));
    }
    if backing.name.len() > 1023 {
        return Err(Error::invalid("the backing file's name is longer than 1023 bytes"));
    }
    if backing.verification == Verification::Trust {
        return Ok(LookedAt { size: None, found_format: None });
    }
    let context = |error: Error| {
        let name = backing.name.to_string_lossy().into_owned();
        Error::new(ErrorKind::Backing { name, source: Box::new(error) })
    };
    let resolved = names::resolve(backing.name.as_bytes(), Some(path)).map_err(context)?;
    let options = OpenOptions { format: backing.format, ..OpenOptions::default() };
    let found = Found::open(&resolved, &options, Purpose::Peek).map_err(context)?;
    let len = found.storage.len().map_err(|error| context(Error::io("read its length", error)))?;
    let size = found.kind.disk_size(len);
    let found_format = backing.format.is_none().then(|| found.kind.format());
    if backing.verification == Verification::VerifyChain {
        walk(found, &options, Purpose::Peek).map_err(context)?;
    }
    Ok(LookedAt { size: Some(size), found_format })
}
