//! What stands between a write and the disk below: QEMU's five cache modes.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::storage::{AlignedStorage, FileStorage, HostCache, Storage, UnsyncedStorage};

/// How an image's files are cached and synced. The backing files are opened in the same mode.
///
/// | mode | the host's cache | a write is durable |
/// |---|---|---|
/// | `WriteBack` | used | after the next flush |
/// | `WriteThrough` | used | when it returns |
/// | `None` | bypassed | after the next flush |
/// | `DirectSync` | bypassed | when it returns |
/// | `Unsafe` | used | when the host gets to it |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CacheMode {
    /// The default of everything but a conversion's target: what was flushed survives a power cut.
    #[default]
    WriteBack,
    /// Every write, and all metadata that it needs, is synced before it returns.
    WriteThrough,
    /// As `WriteBack`, past the host's cache: nothing that others want to have cached is pushed out of it. File systems
    /// may refuse this.
    None,
    /// As `WriteThrough`, past the host's cache.
    DirectSync,
    /// Nothing is ever synced. A power cut, or a crash of the host, may leave an image that is damaged beyond use; a
    /// crash of this program does not. For images that are thrown away then.
    Unsafe,
}

impl CacheMode {
    /// The name that QEMU's programs call it by.
    pub const fn as_str(self) -> &'static str {
        match self {
            CacheMode::WriteBack => "writeback",
            CacheMode::WriteThrough => "writethrough",
            CacheMode::None => "none",
            CacheMode::DirectSync => "directsync",
            CacheMode::Unsafe => "unsafe",
        }
    }

    /// Whether every write is synced before it returns.
    pub(super) fn writes_through(self) -> bool {
        matches!(self, CacheMode::WriteThrough | CacheMode::DirectSync)
    }

    pub(super) fn host_cache(self) -> HostCache {
        match self {
            CacheMode::None | CacheMode::DirectSync => HostCache::Bypassed,
            CacheMode::WriteBack | CacheMode::WriteThrough | CacheMode::Unsafe => HostCache::Used,
        }
    }

    /// What an engine reads and writes `file` through; the file was opened with this mode's host cache.
    pub(super) fn storage(self, file: &Arc<FileStorage>) -> Result<Arc<dyn Storage>> {
        let file = Arc::clone(file);
        Ok(match self {
            CacheMode::WriteBack | CacheMode::WriteThrough => file,
            CacheMode::Unsafe => Arc::new(UnsyncedStorage::new(file)),
            CacheMode::None | CacheMode::DirectSync => {
                let aligned = AlignedStorage::direct(file);
                Arc::new(aligned.map_err(|error| Error::io("open the image past the host's cache", error))?)
            }
        })
    }
}

impl fmt::Display for CacheMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name is none of those that QEMU's programs take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no cache mode of this name; there are writeback, writethrough, none, directsync and unsafe"
)]
pub struct UnknownCacheMode;

impl FromStr for CacheMode {
    type Err = UnknownCacheMode;

    /// The names that QEMU's programs take: those of [`CacheMode::as_str`], and `off` for `none`.
    fn from_str(name: &str) -> Result<CacheMode, UnknownCacheMode> {
        Ok(match name {
            "writeback" => CacheMode::WriteBack,
            "writethrough" => CacheMode::WriteThrough,
            "none" | "off" => CacheMode::None,
            "directsync" => CacheMode::DirectSync,
            "unsafe" => CacheMode::Unsafe,
            _ => return Err(UnknownCacheMode),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_qemu_takes() {
        use CacheMode::{DirectSync, None, Unsafe, WriteBack, WriteThrough};
        for mode in [WriteBack, WriteThrough, None, DirectSync, Unsafe] {
            assert_eq!(mode.as_str().parse(), Ok(mode));
            assert_eq!(mode.to_string(), mode.as_str());
        }
        assert_eq!("off".parse(), Ok(None));
        for other in ["", "on", "NONE", "default", "write-back", " none"] {
            assert_eq!(other.parse::<CacheMode>(), Err(UnknownCacheMode), "{other:?}");
        }
    }
}
