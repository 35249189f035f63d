//! The engine behind an image: one for each format. What a format cannot do is refused here, by the format's name.

use std::sync::Arc;

use super::data::data_options;
use super::options::OpenOptions;
use super::walk::{Found, Kind};
use crate::codec::crypt::Passphrase;
use crate::disk::{Disk, ResizeOptions, ZeroMode};
use crate::error::{Error, Result};
use crate::format::probe::Format;
use crate::format::qcow2::Header;
use crate::luks::{Luks, LuksStorages};
use crate::progress::Control;
use crate::qcow1::{Qcow1, Qcow1Options};
use crate::qcow2::{AmendOptions, Qcow2, Qcow2Options};
use crate::range::ByteRange;
use crate::raw::Raw;
use crate::storage::{Access, Storage};

/// An image's engine. Only qcow2's has more to it than a disk.
#[derive(Debug, Clone)]
pub(super) enum Engine {
    Raw(Arc<Raw>),
    Qcow2(Arc<Qcow2>),
    Qcow1(Arc<Qcow1>),
    Luks(Arc<Luks>),
}

impl Engine {
    /// Opens the engine of a layer over the disk of the layer below.
    pub(super) fn open(
        layer: &Found,
        below: Option<Arc<dyn Disk>>,
        access: Access,
        options: &OpenOptions,
    ) -> Result<Engine> {
        let writable = access == Access::ReadWrite;
        let storage = Arc::clone(&layer.storage);
        let cache_bytes = options.cache_size;
        Ok(match &layer.kind {
            Kind::Raw => Engine::Raw(Arc::new(Raw::open(storage, writable)?)),
            Kind::Qcow2(header) => {
                let data = data_options(layer, header, access, options)?;
                let limits = options.limits.clone();
                let options = Qcow2Options { writable, cache_bytes, limits, data };
                let header = Header::clone(header);
                Engine::Qcow2(Arc::new(Qcow2::open(storage, header, below, options)?))
            }
            Kind::Luks(found) => {
                let header = found.apart.clone().map(|apart| apart as Arc<dyn Storage>);
                let storages = LuksStorages { own: storage, header };
                Engine::Luks(Arc::new(Luks::open(
                    storages,
                    (options.passphrase.as_ref(), &options.limits),
                    writable,
                )?))
            }
            Kind::Qcow1(header) => {
                let passphrase = options.passphrase.as_ref();
                let options = Qcow1Options { writable, cache_bytes, passphrase };
                Engine::Qcow1(Arc::new(Qcow1::open(storage, header, below, &options)?))
            }
        })
    }

    /// Changes what the image was created with; `passphrase` has opened it.
    pub(super) fn amend(
        &mut self,
        wanted: &AmendOptions,
        passphrase: Option<&Passphrase>,
        control: &Control<'_>,
    ) -> Result<()> {
        match self {
            Engine::Qcow2(qcow2) => match Arc::get_mut(qcow2) {
                Some(qcow2) => qcow2.amend(wanted, passphrase, control),
                None => Err(Error::unsupported("the image is in use as the backing file of another")),
            },
            Engine::Luks(luks) => {
                let Some(change) = &wanted.key_slots else { return Ok(()) };
                let keys_alone = AmendOptions {
                    key_slots: wanted.key_slots.clone(),
                    key_loss: wanted.key_loss,
                    shrink: wanted.shrink,
                    ..AmendOptions::default()
                };
                if *wanted != keys_alone {
                    return Err(Error::unsupported("of a luks image only the key slots can be changed"));
                }
                luks.change_keys(change, wanted.key_loss)
            }
            Engine::Raw(_) | Engine::Qcow1(_) => Err(self.refusal("has no options that could be changed")),
        }
    }

    /// The disk.
    pub(super) fn disk(&self) -> &dyn Disk {
        match self {
            Engine::Raw(raw) => &**raw,
            Engine::Qcow2(qcow2) => &**qcow2,
            Engine::Qcow1(qcow1) => &**qcow1,
            Engine::Luks(luks) => &**luks,
        }
    }

    /// The disk, for the engine above.
    pub(super) fn shared(self) -> Arc<dyn Disk> {
        match self {
            Engine::Raw(raw) => raw,
            Engine::Qcow2(qcow2) => qcow2,
            Engine::Qcow1(qcow1) => qcow1,
            Engine::Luks(luks) => luks,
        }
    }

    pub(super) fn format(&self) -> Format {
        match self {
            Engine::Raw(_) => Format::Raw,
            Engine::Qcow2(_) => Format::Qcow2,
            Engine::Qcow1(_) => Format::Qcow,
            Engine::Luks(_) => Format::Luks,
        }
    }

    /// The engine of a qcow2 image.
    pub(super) fn qcow2(&self) -> Option<&Arc<Qcow2>> {
        match self {
            Engine::Qcow2(qcow2) => Some(qcow2),
            _ => None,
        }
    }

    /// The engine of a qcow2 image; others are refused with what they `lack`, a phrase that follows their name.
    pub(super) fn qcow2_or(&self, lack: &str) -> Result<&Arc<Qcow2>> {
        self.qcow2().ok_or_else(|| self.refusal(lack))
    }

    /// What this format is refused with: "a raw image cannot ...".
    pub(super) fn refusal(&self, lack: &str) -> Error {
        Error::unsupported(format!("a {} image {lack}", self.format()))
    }

    /// Bytes in a cluster, for formats that have clusters.
    pub(super) fn cluster_size(&self) -> Option<u64> {
        match self {
            Engine::Raw(_) | Engine::Luks(_) => None,
            Engine::Qcow2(qcow2) => Some(qcow2.cluster_size()),
            Engine::Qcow1(qcow1) => Some(qcow1.cluster_size()),
        }
    }

    /// Bytes in the smallest part of the disk that the image can hold alone, for formats that have such parts.
    pub(super) fn subcluster_size(&self) -> Option<u64> {
        match self {
            Engine::Qcow2(qcow2) => Some(qcow2.subcluster_size()),
            _ => self.cluster_size(),
        }
    }

    pub(super) fn resize(&self, new_size: u64, options: ResizeOptions, control: &Control<'_>) -> Result<()> {
        match self {
            Engine::Raw(raw) => raw.resize(new_size, options, control),
            Engine::Luks(luks) => luks.resize(new_size, options, control),
            Engine::Qcow2(qcow2) => qcow2.judged(|| qcow2.resize(new_size, options, control)),
            Engine::Qcow1(_) => Err(self.refusal("cannot be resized")),
        }
    }

    /// Writes to `range` what `source` has from `from` on.
    pub(super) fn copy_from(&self, source: &dyn Storage, from: u64, range: ByteRange) -> Result<()> {
        match self {
            Engine::Raw(raw) => raw.copy_from(source, from, range),
            Engine::Luks(luks) => luks.copy_from(source, from, range),
            Engine::Qcow2(qcow2) => qcow2.judged(|| qcow2.copy_from(source, from, range)),
            Engine::Qcow1(_) => Err(self.refusal("cannot be written")),
        }
    }

    /// Makes the range read as zeroes also over another backing file.
    pub(super) fn mask(&self, range: ByteRange) -> Result<()> {
        match self {
            Engine::Qcow2(qcow2) => qcow2.judged(|| qcow2.mask(range)),
            _ => self.disk().write_zeroes(range, ZeroMode::Unmap),
        }
    }

    /// Writes everything out, for the last time.
    pub(super) fn close(&self) -> Result<()> {
        match self {
            Engine::Qcow2(qcow2) => qcow2.close(),
            _ => self.disk().flush(),
        }
    }
}
