//! An image that is tried: its files, and how they are opened.

use std::path::Path;
use std::sync::Arc;

use cowimg::check::check_storage;
use cowimg::storage::{MemoryStorage, Storage};
use cowimg::{Access, Format, Image, OpenOptions};

use crate::lab::State;

/// An image to begin with.
#[derive(Clone)]
pub(crate) struct Subject {
    /// The image's own file first.
    pub(crate) files: Vec<MemoryStorage>,
    /// How the image is opened; it is told the other files.
    pub(crate) options: fn(&[Arc<dyn Storage>]) -> OpenOptions,
    /// What `qemu-img check` is asked with, if it can check the image.
    pub(crate) qemu: Option<&'static str>,
}

impl From<MemoryStorage> for Subject {
    /// An image that is one file.
    fn from(file: MemoryStorage) -> Subject {
        Subject { files: vec![file], options: |_| Image::options(), qemu: Some("check -f qcow2") }
    }
}

impl Subject {
    pub(crate) fn open(&self, files: &[Arc<dyn Storage>], access: Access) -> cowimg::Result<Image> {
        Subject::with(files, (self.options)(&files[1..]).access(access))
    }

    fn with(files: &[Arc<dyn Storage>], options: OpenOptions) -> cowimg::Result<Image> {
        options.format(Format::Qcow2).cache_size(8192).open_storage(files[0].clone())
    }

    pub(crate) fn state(&self, image: &Image, files: &[Arc<dyn Storage>]) -> State {
        State::seen(image, |selector| Subject::with(files, (self.options)(&files[1..]).snapshot(selector)))
    }

    /// Our own check finds leaks at most; so does QEMU's, which is asked about one state in many.
    pub(crate) fn check(&self, files: &[MemoryStorage], context: &str) {
        check_ours(&files[0], context);
        let (Some(words), true) = (self.qemu, is_in_sample(context)) else { return };
        check_by_qemu(&files[0], words, context);
    }
}

/// Finds leaks at most.
pub(crate) fn check_ours(file: &dyn Storage, context: &str) {
    let report = check_storage(file).unwrap_or_else(|error| panic!("{context}: check: {error}"));
    assert!(report.corruptions == 0 && report.check_errors == 0, "{context}: {:?}", report.issues);
}

/// One state in 256, by its description: the same ones in every run.
pub(crate) fn is_in_sample(context: &str) -> bool {
    let hash =
        context.bytes().fold(0xcbf29ce484222325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100000001b3));
    (hash >> 32).is_multiple_of(256)
}

fn check_by_qemu(file: &MemoryStorage, words: &str, context: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.qcow2");
    std::fs::write(&path, file.to_vec()).unwrap();
    let arguments: Vec<&Path> = words.split(' ').map(Path::new).chain([path.as_path()]).collect();
    let answer = crate::qemu_tools::answer_of("qemu-img", &arguments);
    // 3 is for leaks alone.
    assert!(matches!(answer.code, 0 | 3), "{context}: qemu-img check: {}", answer.text);
}
