//! What an image says of itself, read from its header alone: also for images that cannot be opened here.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::file_use::Purpose;
use super::options::OpenOptions;
use super::walk::{Found, Kind, walk};
use crate::error::{Error, Result};
use crate::format::luks::LuksHeader;
use crate::format::probe::Format;
use crate::format::qcow1;
use crate::format::qcow2::{
    Autoclear, Compatible, CompressionType, CryptMethod, Header, Incompatible, Snapshot, Version,
};
use crate::limits::Limits;
use crate::qcow2::{BitmapInfo, luks_place, read_bitmap_directory, read_snapshots};
use crate::storage::{Storage, extent_size_hint};

/// What one image file says of itself.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ImageInfo {
    /// The name by which it was opened; none for a storage that the caller brought.
    pub path: Option<PathBuf>,
    /// Its format.
    pub format: Format,
    /// Size of the disk, in bytes.
    pub virtual_size: u64,
    /// Length of the file in bytes, rounded up to whole sectors of 512 bytes.
    pub file_len: u64,
    /// Space that the host has given to the file, in bytes.
    pub disk_size: u64,
    /// Bytes of the steps in which the host gives space to the file, where it was told so (XFS).
    pub extent_size_hint: Option<u32>,
    /// The file is a device of the host.
    pub is_device: bool,
    /// Bytes in a cluster, for formats that have clusters.
    pub cluster_size: Option<u64>,
    /// The backing file, if the image has one.
    pub backing: Option<BackingInfo>,
    /// The image was not closed after it was written with lazy refcounts.
    pub dirty: bool,
    /// The guest's data is encrypted.
    pub encrypted: bool,
    /// Internal snapshots, in the order of the table.
    pub snapshots: Vec<Snapshot>,
    /// What only qcow2 images have.
    pub qcow2: Option<Qcow2Info>,
    /// The header of a LUKS image.
    pub luks: Option<LuksHeader>,
    /// The header of an image of qcow's first version.
    pub qcow1: Option<qcow1::Header>,
}

/// An image's reference to its backing file.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BackingInfo {
    /// The name as it stands in the image.
    pub name: OsString,
    /// The format that the image states.
    pub format: Option<String>,
    /// The file that the name means, seen from the image's folder; the name itself where it is no plain file name.
    pub full_name: OsString,
}

/// What the header of a qcow2 image says.
#[allow(clippy::struct_excessive_bools, reason = "each is one bit of the header")]
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Qcow2Info {
    /// Version of the format.
    pub version: Version,
    /// How compressed clusters are compressed.
    pub compression: CompressionType,
    /// Refcounts may be left behind while the image is in use.
    pub lazy_refcounts: bool,
    /// Width of a refcount.
    pub refcount_bits: u32,
    /// The image is marked corrupt.
    pub corrupt: bool,
    /// L2 entries have subclusters.
    pub extended_l2: bool,
    /// The external data file, if the image has one.
    pub data_file: Option<OsString>,
    /// The data file is a raw image of the disk.
    pub data_file_raw: bool,
    /// The bitmaps that the image stores, as far as it says that they are consistent.
    pub bitmaps: Vec<BitmapInfo>,
    /// How the guest's data is encrypted.
    pub crypt_method: CryptMethod,
    /// Features that a program must know to read the image and that this library does not; by name, or "bit 40".
    pub unknown_features: Vec<String>,
    /// The header of the LUKS volume, where the method is LUKS.
    pub luks: Option<LuksHeader>,
    /// The header as it is, with what stands above taken from it.
    pub header: Header,
}

/// What the image at `path` says of itself. Nothing that it names is opened.
pub fn inspect(path: impl AsRef<Path>, options: &OpenOptions) -> Result<ImageInfo> {
    let path = path.as_ref();
    let found = Found::open(path, options, Purpose::Inspect)?;
    ImageInfo::read(&found).map_err(|error| error.at_path(path))
}

/// The same for the image at `path` and every layer below it, as far as the policy of `options` allows.
pub fn inspect_chain(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Vec<ImageInfo>> {
    let found = Found::open(path.as_ref(), options, Purpose::Inspect)?;
    walk(found, options, Purpose::Inspect)?.iter().map(ImageInfo::read).collect()
}

impl ImageInfo {
    pub(super) fn read(found: &Found) -> Result<ImageInfo> {
        let header = match &found.kind {
            Kind::Raw | Kind::Luks(_) | Kind::Qcow1(_) => None,
            Kind::Qcow2(header) => Some(&**header),
        };
        ImageInfo::of(found.path.as_deref(), &*found.storage, header, found)
    }

    fn of(
        path: Option<&Path>,
        storage: &dyn Storage,
        header: Option<&Header>,
        found: &Found,
    ) -> Result<ImageInfo> {
        let io = |error| Error::io("read the size of the file", error);
        let disk_len = storage.len().map_err(io)?.next_multiple_of(512);
        // The image may be a part of its file.
        let file: &dyn Storage = found.file.as_deref().map_or(storage, |file| file);
        let file_len = file.len().map_err(io)?.next_multiple_of(512);
        Ok(ImageInfo {
            path: path.map(Path::to_path_buf),
            format: found.kind.format(),
            virtual_size: found.kind.disk_size(disk_len),
            file_len,
            disk_size: storage.allocated_bytes().map_err(io)?,
            extent_size_hint: file.host_file().and_then(extent_size_hint),
            is_device: path.is_some_and(is_device),
            cluster_size: found.kind.cluster_size(),
            backing: backing_info(found),
            dirty: header.is_some_and(|header| header.incompatible.contains(Incompatible::DIRTY)),
            encrypted: is_encrypted(&found.kind),
            snapshots: match header {
                Some(header) => read_snapshots(storage, header, &found.limits)?.0,
                None => Vec::new(),
            },
            qcow2: header.map(|header| Qcow2Info::of(storage, header, &found.limits)).transpose()?,
            luks: match &found.kind {
                Kind::Luks(luks) => Some(luks.header.clone()),
                _ => None,
            },
            qcow1: match &found.kind {
                Kind::Qcow1(header) => Some(header.fields.clone()),
                _ => None,
            },
        })
    }
}

impl Qcow2Info {
    fn of(storage: &dyn Storage, header: &Header, limits: &Limits) -> Result<Qcow2Info> {
        Ok(Qcow2Info {
            version: header.version,
            compression: header.compression,
            lazy_refcounts: header.compatible.contains(Compatible::LAZY_REFCOUNTS),
            refcount_bits: header.geometry().refcount_bits(),
            corrupt: header.incompatible.contains(Incompatible::CORRUPT),
            extended_l2: header.incompatible.contains(Incompatible::EXTENDED_L2),
            data_file: header.data_file_name().map(|name| OsStr::from_bytes(name).to_os_string()),
            data_file_raw: header.autoclear.contains(Autoclear::DATA_FILE_RAW),
            bitmaps: read_bitmap_directory(storage, header, limits)?.iter().map(BitmapInfo::of).collect(),
            crypt_method: header.crypt_method,
            unknown_features: header.unknown_incompatible(),
            luks: read_luks_header(storage, header)?,
            header: header.clone(),
        })
    }
}

/// What the image says of its encryption; no passphrase is needed for it.
fn read_luks_header(storage: &dyn Storage, header: &Header) -> Result<Option<LuksHeader>> {
    if header.crypt_method != CryptMethod::Luks {
        return Ok(None);
    }
    Ok(Some(luks_place(storage, header)?.read()?.header().clone()))
}

fn is_encrypted(kind: &Kind) -> bool {
    match kind {
        Kind::Raw => false,
        Kind::Luks(_) => true,
        Kind::Qcow2(header) => header.crypt_method != CryptMethod::None,
        Kind::Qcow1(header) => header.fields.crypt_method != qcow1::CryptMethod::None,
    }
}

fn is_device(path: &Path) -> bool {
    let kind = std::fs::metadata(path).map(|metadata| metadata.file_type());
    kind.is_ok_and(|kind| kind.is_block_device() || kind.is_char_device())
}

fn backing_info(found: &Found) -> Option<BackingInfo> {
    let (name, format) = found.backing()?;
    let name = OsStr::from_bytes(name).to_os_string();
    let full_name = match found.backing_path() {
        Some(Ok(path)) => path.into_os_string(),
        _ => name.clone(),
    };
    let format = format.map(|format| String::from_utf8_lossy(format).into_owned());
    Some(BackingInfo { name, format, full_name })
}
