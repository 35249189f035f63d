//! Small file systems of a test's own, in memory or in a file, mounted in a namespace that nobody else sees.
#![allow(clippy::unwrap_used, reason = "what cannot fail here is part of what is tested")]

use std::fs;
use std::process::Output;

use crate::workbench::Workbench;

/// A small file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disk {
    /// In memory, which every user may have in a namespace of his own.
    Memory,
    /// ext4 in a file, which root alone may mount: space that is promised before it is given, and a journal.
    Ext4,
    /// XFS in a file, for root alone, too.
    Xfs,
}

impl Disk {
    /// Mounts it at ./disk; the exit code 99 says that this cannot be done.
    fn mount(self) -> &'static str {
        match self {
            Disk::Memory => "mount -t tmpfs -o size=6000k none disk || exit 99",
            Disk::Ext4 => {
                "PATH=$PATH:/usr/sbin:/sbin; rm -f disk.ext4; truncate -s 12M disk.ext4 && \
                 mkfs.ext4 -q -b 4096 -m 0 -J size=4 -E lazy_itable_init=0,lazy_journal_init=0 disk.ext4 && \
                 mount -o loop disk.ext4 disk && rmdir disk/lost+found || exit 99"
            }
            Disk::Xfs => {
                "PATH=$PATH:/usr/sbin:/sbin; rm -f disk.xfs; truncate -s 512M disk.xfs && \
                 mkfs.xfs -q disk.xfs && mount -o loop disk.xfs disk || exit 99"
            }
        }
    }

    /// How a namespace is made in which it may be mounted.
    fn namespace(self) -> &'static [&'static str] {
        match self {
            Disk::Memory => &["--map-root-user", "--mount"],
            Disk::Ext4 | Disk::Xfs => &["--mount"],
        }
    }
}

/// Runs a shell script with a small file system at ./disk that nobody else sees; `None` where that is not allowed.
pub(crate) fn on_a_disk(bench: &Workbench, disk: Disk, script: &str) -> Option<Output> {
    fs::create_dir_all(bench.path("disk")).unwrap();
    let script = format!("{}\n{script}", disk.mount());
    let output = bench.command("unshare").args(disk.namespace()).args(["sh", "-c", &script]).output();
    let Ok(output) = output else {
        eprintln!("no unshare (package util-linux): not tried");
        return None;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(99) || said.starts_with("unshare: ") {
        eprintln!(
            "LEFT OUT: {disk:?} cannot be mounted here (ext4, XFS: as root, with e2fsprogs, xfsprogs): {said}"
        );
        return None;
    }
    Some(output)
}
