//! An open image with its backing chain.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use super::create::{CreateOptions, create};
use super::engine::Engine;
use super::extents::Extents;
use super::file_use::{Purpose, lock_for_keys, lock_for_resizing};
use super::info::ImageInfo;
use super::merged::merged;
use super::options::OpenOptions;
use super::walk::{Found, Kind, walk};
use crate::codec::crypt::Passphrase;
use crate::disk::{Disk, ResizeOptions, ZeroMode};
use crate::error::{Error, ErrorKind, Result};
use crate::extent::Extent;
use crate::format::probe::Format;
use crate::format::qcow2::{CompressionType, Incompatible, Snapshot};
use crate::progress::Control;
use crate::qcow2::check::{CheckReport, check_storage_with};
use crate::qcow2::{AmendOptions, NewSnapshot, Qcow2, SnapshotSelector};
use crate::range::ByteRange;
use crate::storage::{Access, Storage};

/// An open disk image: what a guest sees, with the files behind it.
///
/// All I/O is positional and takes `&self`; share an `Image` between threads as it is. A write that has returned is seen
/// by every later read. It survives a power cut once a later [`Image::flush`] has returned; after a crash without one
/// a sector holds what it held before or what was written, nothing else.
///
/// [`Image::close`] says whether everything reached the file; dropping only tries.
#[derive(Debug)]
pub struct Image {
    pub(super) top: Engine,
    layers: Vec<Layer>,
    /// Whether every write is flushed before it returns.
    writes_through: bool,
    /// The layer below that is open for writing too, as the image that it is.
    lower: Option<Box<Image>>,
    /// What opened it, if it is encrypted: another key slot is filled with its help.
    passphrase: Option<Passphrase>,
}

/// One file of the chain.
#[derive(Debug, Clone)]
pub struct Layer {
    found: Arc<Found>,
}

/// The least size in bytes of a cluster among these layers; 64 KiB where none has clusters.
fn smallest_cluster(layers: &[Layer]) -> u64 {
    let sizes = layers.iter().filter_map(|layer| layer.found.kind.cluster_size());
    sizes.min().unwrap_or(64 << 10)
}

impl Layer {
    /// The file's name, as it was opened; none for a storage that the caller brought.
    pub fn path(&self) -> Option<&Path> {
        self.found.path.as_deref()
    }

    /// The name that the image states for its external data file, where the guest's data is then.
    pub fn data_path(&self) -> Option<&Path> {
        match &self.found.kind {
            Kind::Qcow2(header) => header.data_file_name().map(|name| Path::new(OsStr::from_bytes(name))),
            _ => None,
        }
    }

    /// The file's format.
    pub fn format(&self) -> Format {
        self.found.kind.format()
    }

    /// Where the image begins in its file, in bytes: 0, unless [`OpenOptions::raw_window`] says otherwise. Places that
    /// [`Image::extents`] tells count from there.
    pub fn start(&self) -> u64 {
        self.found.start
    }

    /// The file's bytes.
    pub(crate) fn storage(&self) -> &dyn Storage {
        &*self.found.storage
    }

    /// The file's bytes, if guest data is among them and not in a data file of its own.
    pub(crate) fn guest_storage(&self) -> Option<&dyn Storage> {
        match &self.found.kind {
            Kind::Qcow2(header) if header.incompatible.contains(Incompatible::DATA_FILE) => None,
            _ => Some(self.storage()),
        }
    }

    /// What the file is, with its header.
    pub(super) fn kind(&self) -> &Kind {
        &self.found.kind
    }

    pub(super) fn shared_storage(&self) -> &Arc<dyn Storage> {
        &self.found.storage
    }

    /// What the file said of itself when it was opened.
    pub fn info(&self) -> Result<ImageInfo> {
        ImageInfo::read(&self.found)
    }
}

impl Image {
    /// Opens the image at `path` for reading, with its backing chain; the format is found from its first bytes.
    pub fn open(path: impl AsRef<Path>) -> Result<Image> {
        OpenOptions::default().open(path)
    }

    /// Creates an image at `path`, which appears whole or not at all, and opens it for writing.
    pub fn create(path: impl AsRef<Path>, options: &CreateOptions) -> Result<Image> {
        let path = path.as_ref();
        create(path, options)?;
        Image::options().access(Access::ReadWrite).format(options.format).open(path)
    }

    /// How to open an image otherwise: for writing, with a stated format, with a policy for backing files.
    pub fn options() -> OpenOptions {
        OpenOptions::default()
    }

    pub(super) fn open_with(path: &Path, options: &OpenOptions) -> Result<Image> {
        Image::assemble(Found::open(path, options, Purpose::of(options.access))?, options)
    }

    pub(super) fn open_nameless(path: &Path, place: &Path, options: &OpenOptions) -> Result<Image> {
        Image::assemble(Found::open_nameless((path, place), options, Purpose::of(options.access))?, options)
    }

    pub(super) fn open_storage_with(storage: Arc<dyn Storage>, options: &OpenOptions) -> Result<Image> {
        Image::assemble(Found::of_storage(storage, options, options.access)?, options)
    }

    /// Opens the engines from the bottom of the chain up: each receives the disk below it.
    fn assemble(top: Found, options: &OpenOptions) -> Result<Image> {
        let found = walk(at_snapshot(top, options)?, options, Purpose::of(options.access))?;
        let layers: Vec<Layer> = found.into_iter().map(|found| Layer { found: Arc::new(found) }).collect();
        let mut top: Option<Engine> = None;
        let mut lower = None;
        // From the bottom up.
        let mut disks: Vec<Arc<dyn Disk>> = Vec::new();
        for (depth, Layer { found }) in layers.iter().enumerate().rev() {
            let access = if depth == 0 { options.access } else { found.access };
            let passphrase = found.passphrase.clone();
            let of_layer = OpenOptions {
                data_file: None,
                data_place: None,
                data_storage: None,
                passphrase,
                ..options.clone()
            };
            let options = if depth == 0 { options } else { &of_layer };
            let below = match depth {
                // A layer that is written answers for other parts from one moment to the next.
                0 if options.writable_layer.is_none() => {
                    merged(disks.iter().rev().cloned().collect(), smallest_cluster(&layers[1..]))
                }
                _ => disks.last().cloned(),
            };
            let engine = Engine::open(found, below, access, options).map_err(|error| match &found.path {
                Some(path) => error.at_path(path),
                None => error,
            })?;
            if depth > 0 && access == Access::ReadWrite {
                let layers = layers[depth..].to_vec();
                // Whoever writes to it flushes it.
                let (top, passphrase) = (engine.clone(), options.passphrase.clone());
                let lower_image = Image { top, layers, writes_through: false, lower: None, passphrase };
                lower = Some(Box::new(lower_image));
            }
            disks.push(engine.clone().shared());
            top = Some(engine);
        }
        match top {
            Some(top) => Ok(Image {
                top,
                layers,
                writes_through: options.cache_mode.writes_through(),
                lower,
                passphrase: options.passphrase.clone(),
            }),
            None => Err(Error::invalid("an image has at least one layer")),
        }
    }

    /// Size of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.disk().size()
    }

    /// The image's own format.
    pub fn format(&self) -> Format {
        self.top.format()
    }

    /// Bytes in a cluster, the unit of allocation; none for a raw image.
    pub fn cluster_size(&self) -> Option<u64> {
        self.top.cluster_size()
    }

    /// Bytes in the smallest part of the disk that the image can hold alone: a cluster, or a subcluster where clusters are
    /// divided; none for a raw image.
    pub(crate) fn subcluster_size(&self) -> Option<u64> {
        self.top.subcluster_size()
    }

    /// The files of the chain, this image first.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Fills `buf` with the bytes at `offset`. A range that passes the end of the disk is refused whole.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.named(self.disk().read_at(buf, offset))
    }

    /// Writes `buf` at `offset`. A range that passes the end of the disk is refused whole. When it fails on the way,
    /// each sector of the range holds its old or its new bytes.
    pub fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.named(self.disk().write_at(buf, offset))?;
        self.written()
    }

    /// Makes the range read as zeroes.
    pub fn write_zeroes(&self, range: ByteRange, mode: ZeroMode) -> Result<()> {
        self.named(self.disk().write_zeroes(range, mode))?;
        self.written()
    }

    /// Says that the guest no longer needs the range. Whole clusters of it read as zeroes afterwards and give their space
    /// back after the next flush; in a version 2 image they stay as they are where the backing file would show. Parts of
    /// clusters stay as they are.
    pub fn discard(&self, range: ByteRange) -> Result<()> {
        self.named(self.disk().discard(range))
    }

    /// Returns when everything acknowledged before the call survives a power cut.
    pub fn flush(&self) -> Result<()> {
        self.named(self.disk().flush())
    }

    /// What stands behind `range`, in order; the part past the end of the disk is left out.
    pub fn extents(&self, range: ByteRange) -> Extents<'_> {
        Extents::new(self.disk(), self.layers.first().and_then(Layer::path), range)
    }

    /// The extent at `offset`, as far as one look tells and at most `max_len` (above 0) long.
    pub fn extent_at(&self, offset: u64, max_len: u64) -> Result<Extent> {
        self.named(self.disk().extent_at(offset, max_len))
    }

    /// Changes the size of the disk to `new_size` bytes, which for qcow2 images is a multiple of 512. A part that is new
    /// reads as zeroes (in a LUKS image as noise), whatever a larger backing file has there; what lies past a smaller end
    /// is lost, and its space goes back to the host.
    ///
    /// The new size is durable when the call returns. A crash before leaves the old size or the new one; where the disk
    /// was to become smaller, parts beyond the new end may read as zeroes already. Calls that change the disk wait.
    ///
    /// Refused are a smaller size where [`ResizeOptions::shrink`] does not allow it, preallocation of what is not new or
    /// by a raw image's metadata, another size for a device, and a version 2 image with snapshots.
    pub fn resize(&self, new_size: u64, options: &ResizeOptions) -> Result<()> {
        self.resize_with(new_size, options, &Control::default())
    }

    /// The same; `control` hears how much of the new part has been preallocated, and may stop that. The size is the old one
    /// then.
    pub fn resize_with(&self, new_size: u64, options: &ResizeOptions, control: &Control<'_>) -> Result<()> {
        if let Some(file) = self.layers.first().and_then(|layer| layer.found.file.as_ref()) {
            self.named(lock_for_resizing(file))?;
        }
        self.named(self.top.resize(new_size, *options, control))
    }

    /// Changes what the image was created with. Everything is judged first: what is refused changes nothing. Each step is
    /// whole or not at all after a crash and leaves the image sound, so that the call may simply be repeated.
    ///
    /// Of a LUKS image the key slots can be changed, and nothing else. Refused are raw images, widths that a refcount of the image does not fit, and a version 2 for an image that has
    /// bitmaps, a data file, features of version 3, or snapshots that version 2 cannot describe.
    pub fn amend(&mut self, wanted: &AmendOptions, control: &Control<'_>) -> Result<()> {
        if let (Some(_), Some(file)) =
            (wanted.size, self.layers.first().and_then(|layer| layer.found.file.as_ref()))
        {
            self.named(lock_for_resizing(file))?;
        }
        if let (Engine::Luks(_), Some(layer)) = (&self.top, self.layers.first()) {
            let header = match layer.kind() {
                Kind::Luks(luks) if luks.apart.is_some() => luks.apart.as_ref(),
                _ => layer.found.file.as_ref(),
            };
            self.named(header.map_or(Ok(()), |header| lock_for_keys(header)))?;
        }
        let amended = self.top.amend(wanted, self.passphrase.as_ref(), control);
        self.named(amended)
    }

    /// The internal snapshots, in the order of the image's table; a raw image has none.
    pub fn snapshots(&self) -> Result<Vec<Snapshot>> {
        self.top.qcow2().map_or(Ok(Vec::new()), |qcow2| self.named(qcow2.snapshots()))
    }

    /// Takes an internal snapshot of the disk as it is, and says how it stands in the table. It is durable when the call
    /// returns, and there whole or not at all after a crash.
    ///
    /// Threads may write meanwhile: the snapshot waits for calls that run and holds back those that come, so that it
    /// holds every write that has returned and no part of a later one. No guest data is read or written for it.
    pub fn create_snapshot(&self, new: &NewSnapshot) -> Result<Snapshot> {
        let qcow2 = self.snapshotted()?;
        self.named(qcow2.judged(|| qcow2.create_snapshot(new)))
    }

    /// Makes the disk what it was when a snapshot was taken, its size included; whole or not at all, and durable when
    /// the call returns. What the disk holds now is gone, unless a snapshot has it. An image with bitmaps is refused:
    /// they would say that nothing had changed.
    pub fn apply_snapshot(&self, selector: &SnapshotSelector) -> Result<()> {
        let qcow2 = self.snapshotted()?;
        self.named(qcow2.judged(|| qcow2.apply_snapshot(selector)))
    }

    /// Deletes a snapshot, whole or not at all, durably, and gives the space that only it held back to the host.
    pub fn delete_snapshot(&self, selector: &SnapshotSelector) -> Result<()> {
        let qcow2 = self.snapshotted()?;
        self.named(qcow2.judged(|| qcow2.delete_snapshot(selector)))
    }

    fn snapshotted(&self) -> Result<&Qcow2> {
        self.named(self.top.qcow2_or("cannot hold snapshots: qcow2 images can").map(|qcow2| &**qcow2))
    }

    /// Writes to `range` what `source` has from `from` on. The host copies where it can, and may let both files share the
    /// space; what lies past the end of `source` is zeroes.
    pub(crate) fn copy_from(&self, source: &dyn Storage, from: u64, range: ByteRange) -> Result<()> {
        self.named(self.top.copy_from(source, from, range))
    }

    /// Stores `packed`, the compressed bytes of the whole cluster at `offset`, which must be fewer than a cluster's. Only
    /// for qcow2 images; see [`crate::job::convert`] for the usual way.
    pub(crate) fn write_compressed(&self, packed: &[u8], offset: u64) -> Result<()> {
        let engine = self.top.qcow2_or("cannot hold compressed clusters");
        self.named(engine.and_then(|qcow2| qcow2.judged(|| qcow2.write_compressed(packed, offset))))?;
        self.written()
    }

    /// How the image compresses, if its format can.
    pub(crate) fn compression(&self) -> Option<CompressionType> {
        self.top.qcow2().map(|qcow2| qcow2.compression())
    }

    /// What the image says of itself now.
    pub fn info(&self) -> Result<ImageInfo> {
        let Some(layer) = self.layers.first() else { return Err(Error::invalid("an image has a layer")) };
        let kind = match &self.top {
            Engine::Qcow2(qcow2) => Kind::Qcow2(Box::new(qcow2.header())),
            _ => layer.found.kind.clone(),
        };
        let found = &layer.found;
        let (storage, file) = (Arc::clone(&found.storage), found.file.clone());
        let (access, start) = (found.access, found.start);
        let (path, passphrase, limits) = (found.path.clone(), None, found.limits.clone());
        let now = Found { path, storage, file, kind, access, start, passphrase, limits };
        self.named(ImageInfo::read(&now))
    }

    /// Checks the image's metadata after a flush. Only for qcow2 images: a raw one has none.
    pub fn check(&self) -> Result<CheckReport> {
        let Some(layer) = self.layers.first() else { return Err(Error::invalid("an image has a layer")) };
        self.named(self.top.qcow2_or("has nothing to check"))?;
        self.flush()?;
        let limits = &layer.found.limits;
        self.named(check_storage_with(&*layer.found.storage, limits, &Control::default()))
    }

    /// Writes everything out and says whether that succeeded. Afterwards the image's file is complete and holds no
    /// cluster that nothing refers to.
    pub fn close(self) -> Result<()> {
        let lower = self.lower.as_ref().map_or(Ok(()), |lower| lower.finish());
        lower.and(self.finish())
    }

    fn finish(&self) -> Result<()> {
        self.named(self.top.close())
    }

    /// The layer below that [`OpenOptions::writable_layer`] chose, as the image that it is with the layers below it.
    pub fn writable_layer(&self) -> Option<&Image> {
        self.lower.as_deref()
    }

    /// Takes everything out of an image with a backing file, so that all of its disk shows what is below: what
    /// [`crate::job::commit`] ends with. The rest of the image, snapshots and bitmaps too, stays. Metadata alone is
    /// written; a crash leaves each cluster as it was or taken out.
    pub fn make_empty(&self) -> Result<()> {
        self.named(match &self.top {
            Engine::Qcow2(qcow2) if self.layers.len() > 1 => qcow2.judged(|| qcow2.make_empty()),
            _ => Err(Error::new(ErrorKind::NoBacking)),
        })
    }

    /// Makes the range read as zeroes also over another backing file than the one that is open.
    pub(crate) fn mask(&self, range: ByteRange) -> Result<()> {
        self.named(self.top.mask(range))
    }

    /// After each write.
    fn written(&self) -> Result<()> {
        if self.writes_through { self.flush() } else { Ok(()) }
    }

    fn disk(&self) -> &dyn Disk {
        self.top.disk()
    }

    /// An error with the image's name, unless it names a file already.
    pub(super) fn named<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| match self.layers.first().and_then(Layer::path) {
            Some(path) => error.at_path(path),
            None => error,
        })
    }
}

/// The image as it is, or as the snapshot that was asked for has it.
fn at_snapshot(top: Found, options: &OpenOptions) -> Result<Found> {
    let Some(selector) = &options.snapshot else { return Ok(top) };
    let named = |error: Error| match &top.path {
        Some(path) => error.at_path(path),
        None => error,
    };
    if options.access == Access::ReadWrite {
        return Err(named(Error::invalid(
            "a snapshot can be read, not written: apply it to write on from it",
        )));
    }
    let kind = match &top.kind {
        Kind::Raw | Kind::Qcow1(_) | Kind::Luks(_) => {
            let wanted = selector.to_string();
            return Err(named(Error::new(ErrorKind::SnapshotNotFound { wanted })));
        }
        Kind::Qcow2(header) => {
            let which = (selector, options.snapshot_size, &options.limits);
            let header = Qcow2::header_at_snapshot(&*top.storage, header, which).map_err(named)?;
            Kind::Qcow2(Box::new(header))
        }
    };
    Ok(Found { kind, ..top })
}
