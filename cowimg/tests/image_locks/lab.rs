//! A folder with two chains: a qcow2 image over a qcow2 base, and one over a raw base.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cowimg::Format;
use tempfile::TempDir;

use crate::qemu_tools;
use crate::seeded::noise;

pub(crate) const SIZE: u64 = 1 << 20;

/// The files of the lab, by name.
pub(crate) const FILES: [&str; 4] = ["base.qcow2", "top.qcow2", "base.raw", "over-raw.qcow2"];

/// The folder; gone at the end.
pub(crate) struct Lab(TempDir);

impl Lab {
    pub(crate) fn new() -> Lab {
        let lab = Lab(tempfile::tempdir().expect("a temporary folder can be made"));
        std::fs::write(lab.path("base.raw"), noise(5, SIZE as usize)).expect("the base can be written");
        qemu_tools::img("convert -f raw -O qcow2", &[&lab.path("base.raw"), &lab.path("base.qcow2")]);
        let over = |base: &str, format, top: &str| {
            qemu_tools::img(&format!("create -q -f qcow2 -F {format} -b {base}"), &[&lab.path(top)]);
        };
        over("base.qcow2", "qcow2", "top.qcow2");
        over("base.raw", "raw", "over-raw.qcow2");
        lab
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// What every file holds.
    pub(crate) fn contents(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let entries = std::fs::read_dir(self.0.path()).expect("the folder can be listed");
        let paths = entries.map(|entry| entry.expect("an entry can be read").path());
        let files = paths.filter(|path| path.is_file());
        files.map(|path| (path.clone(), std::fs::read(&path).expect("a file can be read"))).collect()
    }
}

/// The format that a file of the lab has.
pub(crate) fn format_of(path: &Path) -> Format {
    if path.extension().is_some_and(|extension| extension == "raw") { Format::Raw } else { Format::Qcow2 }
}
