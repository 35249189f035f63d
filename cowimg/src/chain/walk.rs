//! From the image that was named to all its layers, without reading more than their headers.
//!
//! This is the only place that follows names from image to image, and so the place of every rule about it: relative
//! names, stated formats, loops, depth, policy.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::file_use::{Part, Purpose, file_use};
use super::image::Image;
use super::image_storage::ImageStorage;
use super::names;
use super::options::{Below as StandIn, LayerChoice, OpenOptions};
use crate::codec::crypt::Passphrase;
use crate::error::{Error, ErrorKind, Result};
use crate::format::luks::LuksHeader;
use crate::format::probe::{self, Format, Probed};
use crate::format::qcow2::Header;
use crate::limits::Limits;
use crate::luks::LuksPlace;
use crate::qcow1;
use crate::qcow2::Qcow2;
use crate::qcow2::check::read_damaged_header;
use crate::storage::{Access, FileOptions, FileStorage, Storage, StorageExt, WindowStorage};

/// A file that was found to be a layer.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// The name by which it was opened; none for a storage that the caller brought.
    pub(super) path: Option<PathBuf>,
    pub(super) storage: Arc<dyn Storage>,
    /// The file in `storage`, which holds the lock; none for a storage that the caller brought.
    pub(super) file: Option<Arc<FileStorage>>,
    pub(super) kind: Kind,
    /// How the storage was opened.
    pub(super) access: Access,
    /// Where the storage begins in its file, in bytes.
    pub(super) start: u64,
    /// What opens it, if it is encrypted.
    pub(super) passphrase: Option<Passphrase>,
    /// How much it may ask for.
    pub(super) limits: Limits,
}

/// What a layer is.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    Raw,
    Qcow2(Box<Header>),
    Qcow1(Box<qcow1::ImageHeader>),
    Luks(Box<LuksFound>),
}

/// What is known of a LUKS image without its key.
#[derive(Debug, Clone)]
pub(super) struct LuksFound {
    pub(super) header: LuksHeader,
    /// The file that the header is in, if it is not the image's own; locked.
    pub(super) apart: Option<Arc<FileStorage>>,
}

impl LuksFound {
    fn read(own: &dyn Storage, apart: Option<Arc<FileStorage>>) -> Result<LuksFound> {
        let place = match &apart {
            Some(apart) => LuksPlace::apart(&**apart),
            None => LuksPlace::new(own, 0),
        };
        Ok(LuksFound { header: place.read()?.header().clone(), apart })
    }
}

impl Kind {
    /// Size of the disk in bytes, for formats whose header tells it.
    pub(super) fn stated_size(&self) -> Option<u64> {
        match self {
            Kind::Raw | Kind::Luks(_) => None,
            Kind::Qcow2(header) => Some(header.size),
            Kind::Qcow1(header) => Some(header.fields.size),
        }
    }

    /// Size of the disk in bytes, where the image is in a storage of `len` bytes.
    pub(super) fn disk_size(&self, len: u64) -> u64 {
        let start = match self {
            Kind::Luks(luks) => luks.header.payload_start(),
            _ => 0,
        };
        self.stated_size().unwrap_or(len.saturating_sub(start).next_multiple_of(512))
    }

    /// Bytes in a cluster, for formats that have clusters.
    pub(super) fn cluster_size(&self) -> Option<u64> {
        match self {
            Kind::Raw | Kind::Luks(_) => None,
            Kind::Qcow2(header) => Some(header.geometry().cluster_size()),
            Kind::Qcow1(header) => Some(header.fields.cluster_size()),
        }
    }

    fn read(format: Format, storage: &dyn Storage) -> Result<Kind> {
        Ok(match format {
            Format::Raw => Kind::Raw,
            Format::Qcow2 => Kind::Qcow2(Box::new(Qcow2::read_header(storage)?)),
            Format::Qcow => Kind::Qcow1(Box::new(qcow1::read_header(storage)?)),
            Format::Luks => Kind::Luks(Box::new(LuksFound::read(storage, None)?)),
        })
    }

    /// The same, also where the header says impossible things about a table that the image can do without.
    fn read_damaged(format: Format, storage: &dyn Storage) -> Result<Kind> {
        Ok(match format {
            Format::Qcow2 => Kind::Qcow2(Box::new(read_damaged_header(storage)?)),
            other => Kind::read(other, storage)?,
        })
    }

    pub(super) fn format(&self) -> Format {
        match self {
            Kind::Raw => Format::Raw,
            Kind::Qcow2(_) => Format::Qcow2,
            Kind::Qcow1(_) => Format::Qcow,
            Kind::Luks(_) => Format::Luks,
        }
    }
}

impl Found {
    /// Opens the file at `path`, locks it for `purpose`, and reads what it is.
    pub(super) fn open(path: &Path, options: &OpenOptions, purpose: Purpose) -> Result<Found> {
        Found::of_path(path, (options, purpose), Kind::read)
    }

    /// The same for a file that has no name yet and is opened at `place`; `path` is what it will be called.
    pub(super) fn open_nameless(
        (path, place): (&Path, &Path),
        options: &OpenOptions,
        purpose: Purpose,
    ) -> Result<Found> {
        open_file(place, options, purpose)
            .and_then(|file| Found::of_file(path, file, (options, purpose), Kind::read))
            .map_err(|error| error.at_path(path))
    }

    fn of_path(
        path: &Path,
        (options, purpose): (&OpenOptions, Purpose),
        read: fn(Format, &dyn Storage) -> Result<Kind>,
    ) -> Result<Found> {
        if let Some(image) = &options.over {
            return Found::of_image(path, image, (options, purpose), read)
                .map_err(|error| error.at_path(path));
        }
        let file = open_file(path, options, purpose)?;
        Found::of_file(path, file, (options, purpose), read).map_err(|error| error.at_path(path))
    }

    /// The same for an image that is to be checked, and may have a damaged header.
    pub(super) fn open_damaged(path: &Path, options: &OpenOptions, purpose: Purpose) -> Result<Found> {
        Found::of_path(path, (options, purpose), Kind::read_damaged)
    }

    /// Reads what is in the disk of `image`, whose own files are locked already.
    fn of_image(
        path: &Path,
        image: &Arc<Image>,
        (options, purpose): (&OpenOptions, Purpose),
        read: fn(Format, &dyn Storage) -> Result<Kind>,
    ) -> Result<Found> {
        let storage: Arc<dyn Storage> = Arc::new(ImageStorage::new(Arc::clone(image)));
        let format = stated_or_probed(&*storage, options)?;
        let storage = windowed(storage, format, options)?;
        Ok(Found {
            path: Some(path.to_path_buf()),
            kind: read(format, &*storage)?,
            storage,
            file: None,
            access: purpose.access(),
            start: options.raw_window.map_or(0, |window| window.offset),
            passphrase: options.passphrase.clone(),
            limits: options.limits.clone(),
        })
    }

    /// Locks `file` for a purpose, and reads what it is.
    fn of_file(
        path: &Path,
        file: FileStorage,
        (options, purpose): (&OpenOptions, Purpose),
        read: fn(Format, &dyn Storage) -> Result<Kind>,
    ) -> Result<Found> {
        let file = Arc::new(file);
        let storage = options.cache_mode.storage(&file)?;
        let format = match (&options.luks_header, options.format) {
            (None, _) => stated_or_probed(&*storage, options)?,
            (Some(_), None | Some(Format::Luks)) => Format::Luks,
            (Some(_), Some(other)) => {
                return Err(Error::invalid(format!("a {other} image has no header in a file of its own")));
            }
        };
        // Nothing but the bytes that tell the format has been read before this.
        file.lock(file_use(Part::of(format, options.raw_window), purpose, options.lock)?)?;
        let storage = windowed(storage, format, options)?;
        let kind = match &options.luks_header {
            None => read(format, &*storage)?,
            Some(header) => {
                let apart = open_header(header, options, purpose).map_err(|error| error.at_path(header))?;
                Kind::Luks(Box::new(LuksFound::read(&*storage, Some(apart))?))
            }
        };
        Ok(Found {
            path: Some(path.to_path_buf()),
            storage,
            file: Some(file),
            kind,
            access: purpose.access(),
            start: options.raw_window.map_or(0, |window| window.offset),
            passphrase: options.passphrase.clone(),
            limits: options.limits.clone(),
        })
    }

    /// Reads what `storage` is: the stated format, or what its first bytes look like.
    pub(super) fn of_storage(
        storage: Arc<dyn Storage>,
        options: &OpenOptions,
        access: Access,
    ) -> Result<Found> {
        let kind = Kind::read(stated_or_probed(&*storage, options)?, &*storage)?;
        let passphrase = options.passphrase.clone();
        let limits = options.limits.clone();
        Ok(Found { path: None, storage, file: None, kind, access, start: 0, passphrase, limits })
    }

    /// Name and stated format of the backing file, if there is one.
    pub(super) fn backing(&self) -> Option<(&[u8], Option<&[u8]>)> {
        match &self.kind {
            Kind::Raw | Kind::Luks(_) => None,
            Kind::Qcow2(header) => {
                let name = header.backing_file.as_deref()?;
                Some((name, header.backing_format()))
            }
            Kind::Qcow1(header) => Some((header.backing_file.as_deref()?, None)),
        }
    }

    /// Where the backing file is.
    pub(super) fn backing_path(&self) -> Option<Result<PathBuf>> {
        let (name, _) = self.backing()?;
        Some(names::resolve(name, self.path.as_deref()))
    }
}

fn open_file(path: &Path, options: &OpenOptions, purpose: Purpose) -> Result<FileStorage> {
    let file = match purpose.access() {
        Access::ReadOnly => FileOptions::read_only(),
        Access::ReadWrite => FileOptions::read_write(),
    };
    FileStorage::open(path, &file.host_cache(options.cache_mode.host_cache()))
        .map_err(|error| Error::io("open the image", error).at_path(path))
}

/// Opens and locks the file that the header of a LUKS image is in.
fn open_header(path: &Path, options: &OpenOptions, purpose: Purpose) -> Result<Arc<FileStorage>> {
    let file = open_file(path, options, purpose)?;
    file.lock(file_use(Part::Raw, purpose, options.lock)?)?;
    Ok(Arc::new(file))
}

/// The part of the file that is the image.
fn windowed(storage: Arc<dyn Storage>, format: Format, options: &OpenOptions) -> Result<Arc<dyn Storage>> {
    let Some(window) = options.raw_window else { return Ok(storage) };
    if format != Format::Raw {
        return Err(Error::invalid(format!(
            "only a raw image can be a part of its file, and this is {format}"
        )));
    }
    if window.size.is_some_and(|size| size % 512 != 0) {
        return Err(Error::invalid("the size of the part of the file is not a multiple of 512 bytes"));
    }
    let part = WindowStorage::new(storage, window.offset, window.size)
        .map_err(|error| Error::invalid(error.to_string()))?;
    Ok(Arc::new(part))
}

fn stated_or_probed(storage: &dyn Storage, options: &OpenOptions) -> Result<Format> {
    match options.format {
        Some(stated) => Ok(stated),
        None => match probe_format(storage)? {
            Format::Raw if options.refuses_probed_raw => Err(Error::new(ErrorKind::RawNotStated)),
            probed => Ok(probed),
        },
    }
}

/// The format that a file's first bytes look like; one that is known by name only is refused by name.
fn probe_format(storage: &dyn Storage) -> Result<Format> {
    let io = |error| Error::io("read the start of the file", error);
    let mut start = vec![0; storage.len().map_err(io)?.min(probe::PROBE_LEN as u64) as usize];
    storage.read_exact_at(&mut start, 0).map_err(io)?;
    match probe::probe(&start) {
        Probed::Raw => Ok(Format::Raw),
        Probed::Qcow2 => Ok(Format::Qcow2),
        Probed::Qcow => Ok(Format::Qcow),
        Probed::Luks => Ok(Format::Luks),
        Probed::Other(name) => Err(Error::unsupported(format!(
            "the file looks like a {name} image, a format that is not supported; if it is a raw disk, say so \
             (format raw)"
        ))),
    }
}

/// All layers from `top`, which was opened for `purpose`, down. Backing files are opened for reading only, save the one
/// that is chosen to be written.
pub(super) fn walk(top: Found, options: &OpenOptions, purpose: Purpose) -> Result<Vec<Found>> {
    let mut seen = Vec::new();
    if let Some(file) = &top.file {
        remember(file, &mut seen).map_err(|error| with_path(error, Some(&top)))?;
    }
    let mut layers = vec![top];
    let choice = options.writable_layer.as_ref();
    let mut descent = Descent { options, stand_in: Some(options), purpose: purpose.below(), choice };
    while let Some(above) = layers.last() {
        let Some(next) = descent.open_below(above)? else { break };
        if layers.len() >= options.limits.layers() {
            let deep = Error::new(ErrorKind::ChainTooDeep { limit: options.limits.layers() });
            return Err(with_path(deep, layers.first()));
        }
        if let Place::File { file, .. } = &next.place {
            // Before the lock, which would be refused to a layer that is met again.
            remember(file, &mut seen).map_err(|error| with_path(error, Some(above)))?;
        }
        let next = next.found().map_err(|error| as_backing_of(above, error))?;
        layers.push(next);
    }
    let missing = match descent.choice {
        None => return Ok(layers),
        Some(LayerChoice::Below) => ErrorKind::NoBacking,
        Some(LayerChoice::Named(name)) => {
            ErrorKind::NoSuchLayer { name: name.to_string_lossy().into_owned() }
        }
    };
    Err(with_path(Error::new(missing), layers.first()))
}

/// A backing file that is open, and that nothing has been read from.
struct Below {
    place: Place,
    options: OpenOptions,
    purpose: Purpose,
}

enum Place {
    File { path: PathBuf, file: FileStorage },
    Storage(Arc<dyn Storage>),
}

impl Below {
    /// Locks it, and reads what it is.
    fn found(self) -> Result<Found> {
        match self.place {
            Place::File { path, file } => {
                Found::of_file(&path, file, (&self.options, self.purpose), Kind::read)
                    .map_err(|error| error.at_path(&path))
            }
            Place::Storage(storage) => Found::of_storage(storage, &self.options, self.purpose.access()),
        }
    }
}

/// The way down a chain.
struct Descent<'a> {
    options: &'a OpenOptions,
    /// The options that may name a storage for the next layer.
    stand_in: Option<&'a OpenOptions>,
    /// What layers are opened for.
    purpose: Purpose,
    /// The layer that is to be opened for writing, until it is met.
    choice: Option<&'a LayerChoice>,
}

impl Descent<'_> {
    /// Opens the file below `above`, if it names one.
    fn open_below(&mut self, above: &Found) -> Result<Option<Below>> {
        match self.stand_in.take().and_then(|options| options.below.as_ref()) {
            Some(StandIn::Nothing) => return Ok(None),
            Some(StandIn::File(path, options)) => {
                self.stand_in = Some(options);
                return self.open_stated(path.as_deref(), options, above).map(Some);
            }
            Some(StandIn::Storage(storage, options)) if above.backing().is_some() => {
                self.stand_in = Some(options);
                let place = Place::Storage(Arc::clone(storage));
                let options = OpenOptions::clone(options);
                return Ok(Some(Below { place, options, purpose: self.purpose_of(None, above) }));
            }
            Some(StandIn::Storage(..)) | None => {}
        }
        let Some((name, format)) = above.backing() else { return Ok(None) };
        let refused = |why| {
            let name = String::from_utf8_lossy(name).into_owned();
            with_path(Error::new(ErrorKind::Refused { name, role: "backing file", why }), Some(above))
        };
        if self.options.backing == super::FilePolicy::DenyAll {
            return Err(refused("no other file may be named"));
        }
        let context = |error| as_backing_of(above, error);
        let path = names::resolve(name, above.path.as_deref()).map_err(context)?;
        let format = stated_format(format).map_err(context)?;
        let options = OpenOptions { format, raw_window: None, luks_header: None, ..self.options.clone() };
        let purpose = self.purpose_of(Some(&path), above);
        options.backing.check(&path, above.path.as_deref()).map_err(refused)?;
        let file = open_file(&path, &options, purpose).map_err(context)?;
        // Nothing has been read from it before this.
        options.backing.check_opened(&file, &path, above.path.as_deref()).map_err(refused)?;
        Ok(Some(Below { place: Place::File { path, file }, options, purpose }))
    }

    /// Opens the file that the caller has stated in place of the one that `above` names.
    fn open_stated(&mut self, path: Option<&Path>, stated: &OpenOptions, above: &Found) -> Result<Below> {
        if above.kind.format() == Format::Raw {
            return Err(with_path(Error::unsupported("a raw image cannot have a backing file"), Some(above)));
        }
        let named = above.backing().filter(|_| path.is_none());
        let path = match (path, above.backing_path()) {
            (Some(path), _) => path.to_path_buf(),
            (None, Some(named)) => named.map_err(|error| as_backing_of(above, error))?,
            (None, None) => return Err(with_path(Error::new(ErrorKind::NoBacking), Some(above))),
        };
        let context = |error: Error| as_backing_of(above, error.at_path(&path));
        let format = match (stated.format, named) {
            (None, Some((_, format))) => stated_format(format).map_err(context)?,
            (format, _) => format,
        };
        let options = OpenOptions { format, raw_window: stated.raw_window, ..self.options.clone() };
        let options = OpenOptions {
            luks_header: stated.luks_header.clone(),
            passphrase: stated.passphrase.clone().or(options.passphrase),
            ..options
        };
        let purpose = self.purpose_of(Some(&path), above);
        let file = open_file(&path, &options, purpose).map_err(context)?;
        Ok(Below { place: Place::File { path, file }, options, purpose })
    }

    /// What the layer at `path` is opened for: to be written, if it is the one that is meant.
    fn purpose_of(&mut self, path: Option<&Path>, above: &Found) -> Purpose {
        let is_meant = match self.choice {
            None => false,
            Some(LayerChoice::Below) => true,
            Some(LayerChoice::Named(name)) => {
                let meant = names::resolve(name.as_bytes(), above.path.as_deref()).ok();
                let meant = meant.and_then(|meant| meant.canonicalize().ok());
                meant.is_some() && path.and_then(|path| path.canonicalize().ok()) == meant
            }
        };
        if !is_meant {
            // The layer that is written is still to come.
            return if self.choice.is_some() { Purpose::ReadAlone } else { self.purpose };
        }
        self.choice = None;
        Purpose::Write
    }
}

/// What `error` of a backing file is to the image above it, which names it.
fn as_backing_of(above: &Found, error: Error) -> Error {
    if matches!(error.kind(), ErrorKind::Refused { .. }) {
        return with_path(error, Some(above));
    }
    let named = above.backing().map(|(name, _)| String::from_utf8_lossy(name).into_owned());
    let opened = || error.path().map(|path| path.display().to_string());
    let name = named.or_else(opened).unwrap_or_default();
    with_path(Error::new(ErrorKind::Backing { name, source: Box::new(error) }), Some(above))
}

/// The format that an image states for its backing file. A stated format is never second-guessed.
fn stated_format(stated: Option<&[u8]>) -> Result<Option<Format>> {
    let Some(stated) = stated.filter(|name| !name.is_empty()) else { return Ok(None) };
    let name = String::from_utf8_lossy(stated);
    match &*name {
        // QEMU's names for a file and a device that are used as they are.
        "file" | "host_device" => Ok(Some(Format::Raw)),
        name => name.parse().map(Some).map_err(|_| {
            Error::unsupported(format!("its format is said to be {name:?}, which is not supported"))
        }),
    }
}

/// Refuses a file that has been met before in the chain.
fn remember(file: &FileStorage, seen: &mut Vec<(u64, u64)>) -> Result<()> {
    let metadata = file.file().metadata().map_err(|error| Error::io("look at the image", error))?;
    let identity = (metadata.dev(), metadata.ino());
    if seen.contains(&identity) {
        return Err(Error::new(ErrorKind::BackingLoop));
    }
    seen.push(identity);
    Ok(())
}

fn with_path(error: Error, found: Option<&Found>) -> Error {
    match found.and_then(|found| found.path.as_ref()) {
        Some(path) => error.at_path(path),
        None => error,
    }
}
