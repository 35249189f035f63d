//! Images with names: opening them and their backing chains, creating them. The only place that opens files.
//!
//! Start at [`Image`].

mod backing;
mod bitmaps;
mod cache_mode;
mod cancellable;
mod check;
mod compressed_write;
mod create;
#[cfg(test)]
mod create_faults;
mod create_many;
mod data;
mod encrypt;
mod engine;
mod extents;
mod file_use;
mod image;
mod image_storage;
mod info;
mod look;
mod merged;
mod nameless;
mod names;
mod options;
mod policy;
mod publish;
mod staged;
mod staged_file;
mod walk;

pub(crate) use crate::qcow2::BitmapInfo;
pub use cache_mode::{CacheMode, UnknownCacheMode};
pub use check::{CheckedFile, check_file, repair_file};
pub use create::{
    BackingOptions, CreateOptions, CreatePlan, CreateReport, Overwrite, Qcow2CreateOptions, Verification,
    create, plan,
};
pub use create_many::{create_many, create_many_synced};
pub use encrypt::{Encryption, LuksOptions};
pub use extents::Extents;
pub use file_use::LockMode;
pub use image::{Image, Layer};
pub use info::{BackingInfo, ImageInfo, Qcow2Info, inspect, inspect_chain};
pub(crate) use look::Look;
pub use options::{DEFAULT_CACHE_SIZE, LayerChoice, OpenOptions};
pub use policy::FilePolicy;
pub use staged::StagedImage;
