//! How an image is opened.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{CacheMode, FilePolicy, Image, LockMode};
use crate::codec::crypt::Passphrase;
use crate::error::Result;
use crate::format::probe::Format;
use crate::limits::Limits;
use crate::qcow2::{SnapshotSelector, SnapshotSize};
use crate::storage::{Access, Storage};

/// Memory for L2 tables and refcount blocks of each layer, unless a caller says otherwise: enough for the tables of
/// 200 GiB of data in clusters of 64 KiB.
pub const DEFAULT_CACHE_SIZE: u64 = 32 << 20;

/// A layer below an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayerChoice {
    /// The image's own backing file.
    Below,
    /// The layer whose file this is, from the top. A relative name starts at the folder of the image above it, as the
    /// names in images do.
    Named(OsString),
}

/// How to open an image; made by [`Image::options`].
#[derive(Debug, Clone)]
pub struct OpenOptions {
    pub(super) access: Access,
    pub(super) format: Option<Format>,
    pub(super) backing: FilePolicy,
    pub(super) refuses_probed_raw: bool,
    pub(super) cache_size: u64,
    pub(super) limits: Limits,
    pub(super) cache_mode: CacheMode,
    pub(super) lock: LockMode,
    pub(super) snapshot: Option<SnapshotSelector>,
    pub(super) snapshot_size: SnapshotSize,
    pub(super) passphrase: Option<Passphrase>,
    pub(super) data_file: Option<PathBuf>,
    /// Where `data_file` is as long as it has no name.
    pub(super) data_place: Option<PathBuf>,
    pub(super) data_storage: Option<Arc<dyn Storage>>,
    pub(super) writable_layer: Option<LayerChoice>,
    pub(super) below: Option<Below>,
    pub(super) raw_window: Option<RawWindow>,
    pub(super) over: Option<Arc<Image>>,
    pub(super) luks_header: Option<PathBuf>,
}

/// What stands in for the file that an image names as its backing file.
#[derive(Debug, Clone)]
pub(super) enum Below {
    /// No file at all.
    Nothing,
    /// The image in this storage.
    Storage(Arc<dyn Storage>, Box<OpenOptions>),
    /// The file of this name, or of the name in the image.
    File(Option<PathBuf>, Box<OpenOptions>),
}

/// The part of a file that a raw image is.
#[derive(Debug, Clone, Copy)]
pub(super) struct RawWindow {
    pub(super) offset: u64,
    pub(super) size: Option<u64>,
}

impl Default for OpenOptions {
    fn default() -> OpenOptions {
        OpenOptions {
            access: Access::ReadOnly,
            format: None,
            backing: FilePolicy::default(),
            refuses_probed_raw: false,
            cache_size: DEFAULT_CACHE_SIZE,
            limits: Limits::default(),
            cache_mode: CacheMode::WriteBack,
            lock: LockMode::Auto,
            snapshot: None,
            snapshot_size: SnapshotSize::Own,
            passphrase: None,
            data_file: None,
            data_place: None,
            data_storage: None,
            writable_layer: None,
            below: None,
            raw_window: None,
            over: None,
            luks_header: None,
        }
    }
}

impl OpenOptions {
    /// Whether the image is to be written; reading is the default. Its backing files are not, save
    /// the one that [`OpenOptions::writable_layer`] names.
    #[must_use]
    pub fn access(mut self, access: Access) -> OpenOptions {
        self.access = access;
        self
    }

    /// The image's format. Without it the first bytes decide, which is unsafe for a raw image that a guest has
    /// written: a guest can make its disk look like any format.
    #[must_use]
    pub fn format(mut self, format: Format) -> OpenOptions {
        self.format = Some(format);
        self
    }

    /// Which files the image, and those below it, may name as backing files. All is the default.
    #[must_use]
    pub fn backing(mut self, policy: FilePolicy) -> OpenOptions {
        self.backing = policy;
        self
    }

    /// The image is not in the file itself but in the disk that `image`, which was opened from there, shows: a format over a
    /// format, such as a part of a qcow2 image's disk as a raw image. It is only read. The path that is opened then is
    /// where names in the image start, and what errors say.
    #[must_use]
    pub fn over(mut self, image: Arc<Image>) -> OpenOptions {
        self.over = Some(image);
        self
    }

    /// Refuses a file that would be taken for a raw image only because it looks like nothing else, the image itself or one
    /// below it: the format must be stated. A raw disk whose guest may write what it likes looks like any format that the
    /// guest chooses, so that finding the format by looking is for files whose maker is trusted.
    #[must_use]
    pub fn refuse_probed_raw(mut self) -> OpenOptions {
        self.refuses_probed_raw = true;
        self
    }

    /// What opens encrypted images: this one, and those below it that are encrypted.
    #[must_use]
    pub fn passphrase(mut self, passphrase: Passphrase) -> OpenOptions {
        self.passphrase = Some(passphrase);
        self
    }

    /// The image's external data file, in place of the one that the image names. The policy for files that an image names
    /// says nothing about it.
    #[must_use]
    pub fn data_file(mut self, path: impl Into<PathBuf>) -> OpenOptions {
        self.data_file = Some(path.into());
        self
    }

    /// The image's external data file is what `storage` holds, whatever file the image names. It is not locked.
    #[must_use]
    pub fn data_storage(mut self, storage: Arc<dyn Storage>) -> OpenOptions {
        self.data_storage = Some(storage);
        self
    }

    /// Bytes of metadata that each layer keeps in memory; [`DEFAULT_CACHE_SIZE`] is the default. The L1 table (8
    /// bytes for each 512 MiB of disk, with clusters of 64 KiB) and the refcount table come on top.
    #[must_use]
    pub fn cache_size(mut self, bytes: u64) -> OpenOptions {
        self.cache_size = bytes;
        self
    }

    /// How much the image, and each of those below it, may ask for.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> OpenOptions {
        self.limits = limits;
        self
    }

    /// The most layers that the chain may have, the image itself included: [`Limits::chain_depth`] alone.
    #[must_use]
    pub fn max_depth(mut self, layers: usize) -> OpenOptions {
        self.limits = self.limits.chain_depth(layers);
        self
    }

    /// Opens the disk as an internal snapshot of it has it, for reading only; what lies below is the backing chain as it is
    /// now. Only the image itself is seen so, not what is below it.
    #[must_use]
    pub fn snapshot(mut self, selector: SnapshotSelector) -> OpenOptions {
        self.snapshot = Some(selector);
        self
    }

    /// How large the disk of the snapshot is said to be; its own size is the default.
    #[must_use]
    pub fn snapshot_size(mut self, size: SnapshotSize) -> OpenOptions {
        self.snapshot_size = size;
        self
    }

    /// How the image's file and its backing files are cached, and when writes are synced; [`CacheMode::WriteBack`] is
    /// the default.
    #[must_use]
    pub fn cache_mode(mut self, mode: CacheMode) -> OpenOptions {
        self.cache_mode = mode;
        self
    }

    /// How the image's file and its backing files are locked against other users; as QEMU does is the default. Sharing
    /// goes with reading only.
    #[must_use]
    pub fn lock(mut self, mode: LockMode) -> OpenOptions {
        self.lock = mode;
        self
    }

    /// Opens this layer for writing, too, so that [`crate::job::commit`] can write what is above into it. Opening fails with
    /// [`ErrorKind::NoBacking`](crate::ErrorKind::NoBacking) or [`ErrorKind::NoSuchLayer`](crate::ErrorKind::NoSuchLayer)
    /// when there is no such layer.
    #[must_use]
    pub fn writable_layer(mut self, choice: LayerChoice) -> OpenOptions {
        self.writable_layer = Some(choice);
        self
    }

    /// What the image's backing file is, whatever name the image has for it: the image in `storage`, of the format in
    /// `options`. What is below that one follows from `options` in the same way. An image without a backing file has
    /// none all the same.
    #[must_use]
    pub fn backing_storage(mut self, storage: Arc<dyn Storage>, options: OpenOptions) -> OpenOptions {
        self.below = Some(Below::Storage(storage, Box::new(options)));
        self
    }

    /// Opens the image by itself, without the file that it names as its backing file: what it does not have reads as
    /// zeroes.
    #[must_use]
    pub fn no_backing(mut self) -> OpenOptions {
        self.below = Some(Below::Nothing);
        self
    }

    /// What the image's backing file is, whatever the image says: the file at `path` (seen from the process's folder), or
    /// without one the file that the image names, opened with the format, the window and the layers below that `options`
    /// state. Locks, cache and limits are this image's.
    #[must_use]
    pub fn backing_override(mut self, path: Option<PathBuf>, options: OpenOptions) -> OpenOptions {
        self.below = Some(Below::File(path, Box::new(options)));
        self
    }

    /// The raw image is a part of its file: `size` bytes from `offset`, or all from there, both in bytes. Another format
    /// than raw, and a part that the file does not have, are refused.
    #[must_use]
    pub fn raw_window(mut self, offset: u64, size: Option<u64>) -> OpenOptions {
        self.raw_window = Some(RawWindow { offset, size });
        self
    }

    /// The file that the header of a LUKS image is in, where that is apart from the data; the image's format is LUKS then.
    #[must_use]
    pub fn luks_header(mut self, path: impl Into<PathBuf>) -> OpenOptions {
        self.luks_header = Some(path.into());
        self
    }

    /// Opens the image at `path` and its whole backing chain. Where one of the files is in use in a way that does not
    /// go together with this, the error is [`ErrorKind::Locked`](crate::ErrorKind::Locked), for a backing file within
    /// [`ErrorKind::Backing`](crate::ErrorKind::Backing).
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Image> {
        Image::open_with(path.as_ref(), self)
    }

    /// Opens the image in `storage`. Its backing file's name, if it has one, is relative to the process's folder.
    pub fn open_storage(&self, storage: Arc<dyn Storage>) -> Result<Image> {
        Image::open_storage_with(storage, self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BackingOptions, CreateOptions};

    /// A folder with a raw base of 4 KiB of 1, another of 2, and an empty overlay on the first.
    fn chain() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        for (name, byte) in [("one.raw", 1), ("two.raw", 2)] {
            std::fs::write(folder.path().join(name), [byte; 4096]).unwrap();
        }
        let top = folder.path().join("top.qcow2");
        let backing = BackingOptions { format: Some(Format::Raw), ..BackingOptions::new("one.raw") };
        Image::create(&top, &CreateOptions { backing: Some(backing), ..CreateOptions::overlay("one.raw") })
            .unwrap()
            .close()
            .unwrap();
        (folder, top)
    }

    fn first_byte(options: &OpenOptions, path: &Path) -> u8 {
        let mut byte = [0xff];
        options.open(path).unwrap().read_at(&mut byte, 0).unwrap();
        byte[0]
    }

    #[test]
    fn an_image_may_be_in_the_disk_of_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.qcow2");
        let outer = Image::create(&path, &CreateOptions::qcow2(1 << 20)).unwrap();
        outer.write_at(&[7; 512], 512 << 10).unwrap();
        outer.close().unwrap();
        let below = Arc::new(Image::open(&path).unwrap());
        let part = Image::options().format(Format::Raw).raw_window(512 << 10, Some(64 << 10)).over(below);
        let image = part.open(&path).unwrap();
        assert_eq!(image.size(), 64 << 10);
        let mut bytes = [0; 1024];
        image.read_at(&mut bytes, 0).unwrap();
        assert_eq!((bytes[511], bytes[512]), (7, 0));
        assert!(part.access(Access::ReadWrite).open(&path).is_err());
    }

    #[test]
    fn an_image_alone_reads_as_zeroes_where_it_has_nothing() {
        let (_folder, top) = chain();
        assert_eq!(first_byte(&Image::options(), &top), 1);
        let alone = Image::options().no_backing();
        assert_eq!(first_byte(&alone, &top), 0);
        assert_eq!(alone.open(&top).unwrap().layers().len(), 1);
    }

    #[test]
    fn another_backing_file_stands_in_for_the_one_that_is_named() {
        let (folder, top) = chain();
        let raw = Image::options().format(Format::Raw);
        let other = folder.path().join("two.raw");
        assert_eq!(first_byte(&Image::options().backing_override(Some(other.clone()), raw.clone()), &top), 2);
        assert_eq!(first_byte(&Image::options().backing_override(None, raw.clone()), &top), 1);
        // A raw image takes no backing file, and a stated format is not second-guessed.
        assert!(Image::options().backing_override(Some(top.clone()), raw).open(&other).is_err());
        let qcow2 = Image::options().format(Format::Qcow2);
        let wrong = Image::options().backing_override(Some(other), qcow2).open(&top).unwrap_err();
        assert!(matches!(wrong.kind(), crate::ErrorKind::Backing { .. }), "{wrong}");
    }

    #[test]
    fn a_raw_image_can_be_a_part_of_its_file() {
        let (folder, top) = chain();
        let path = folder.path().join("parts.raw");
        let mut bytes = vec![3; 1024];
        bytes.extend([4; 1024]);
        std::fs::write(&path, bytes).unwrap();
        let part = Image::options().format(Format::Raw).raw_window(1024, Some(512));
        assert_eq!(first_byte(&part, &path), 4);
        assert_eq!(part.open(&path).unwrap().size(), 512);
        let info = crate::inspect(&path, &part).unwrap();
        assert_eq!((info.virtual_size, info.file_len), (512, 2048));
        let below = Image::options().backing_override(Some(path.clone()), part);
        assert_eq!(first_byte(&below, &top), 4);
        for (offset, size) in [(2049, None), (1024, Some(1536)), (0, Some(100))] {
            let options = Image::options().format(Format::Raw).raw_window(offset, size);
            assert!(options.open(&path).is_err(), "{offset} {size:?}");
        }
        assert!(Image::options().raw_window(0, None).open(&top).is_err());
    }
}
