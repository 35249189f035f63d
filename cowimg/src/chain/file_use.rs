//! What the files of a chain are locked for: the same permissions that QEMU takes for the same access.
//!
//! | file | opened for | takes | others may not |
//! |---|---|---|---|
//! | qcow2, qcow | its header alone | | write, resize |
//! | qcow2, qcow | reading | read | write, resize |
//! | qcow2, qcow | reading, between the top and a layer that is written | read | read, write, resize |
//! | qcow2 | writing | read, write, resize | write, resize |
//! | raw, luks | its size alone | | |
//! | raw, luks | reading | read | |
//! | raw, luks | writing | read, write | |
//! | luks | changing its keys | read, write | write, resize |
//! | raw, luks | resizing | read, write, resize | |
//! | a part of a file as a raw image | | as raw | resize |
//! | an image's data file | reading | read | resize |
//! | an image's data file | writing | read, write, resize | resize |
//! | any | creation in place | write, resize | resize |
//!
//! A raw image has no structures that a second writer could break, so that the locks leave it to its users to share
//! one; a guest's disk controller does not share. With [`LockMode::Share`] all is borne. A backing file is a file that
//! is read: its readers share it, and nobody writes it meanwhile.

use super::options::RawWindow;
use crate::error::{Error, Result};
use crate::format::probe::Format;
use crate::storage::{Access, FileStorage, FileUse, Permissions};

/// How an image's files are locked against other users. The locks are QEMU's: this library and QEMU's programs refuse
/// each other as two of the latter do. Storages that the caller brings are never locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum LockMode {
    /// As QEMU does for the same access: a qcow2 image has one writer or any number of readers, a backing file is not
    /// written while it is one.
    #[default]
    Auto,
    /// For reading a file that somebody writes: what is read may be old, new or no sense at all, and may not pass for
    /// an image. What `qemu-img` calls `-U`.
    Share,
    /// No lock is taken and none is looked for.
    Off,
}

/// What a file of a chain is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To look at it in passing, as at the backing file of an image that is about to be made. Not locked.
    Peek,
    /// For what the file says of itself.
    Inspect,
    /// For the disk in it.
    Read,
    /// For the disk in it while a layer further down is written, which makes this one's disk nonsense for others.
    ReadAlone,
    /// To change the disk in it.
    Write,
}

impl Purpose {
    /// The purpose of an image that is opened for `access`.
    pub(super) fn of(access: Access) -> Purpose {
        match access {
            Access::ReadOnly => Purpose::Read,
            Access::ReadWrite => Purpose::Write,
        }
    }

    pub(super) fn access(self) -> Access {
        match self {
            Purpose::Write => Access::ReadWrite,
            Purpose::Peek | Purpose::Inspect | Purpose::Read | Purpose::ReadAlone => Access::ReadOnly,
        }
    }

    /// What the layers below are opened for.
    pub(super) fn below(self) -> Purpose {
        match self {
            Purpose::Write | Purpose::ReadAlone => Purpose::Read,
            other => other,
        }
    }
}

/// What a file is to the image that it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// The whole of a raw image.
    Raw,
    /// A file whose middle is a raw image.
    RawWindow,
    /// An image with tables of its own, which may keep the guest's data elsewhere.
    Mapped,
    /// The guest's data of a qcow2 image.
    DataFile,
}

impl Part {
    /// The file of an image of this format, which may be a part of it.
    pub(super) fn of(format: Format, window: Option<RawWindow>) -> Part {
        match (format, window) {
            // The header changes only when keys do; who does that takes more.
            (Format::Raw, None) | (Format::Luks, _) => Part::Raw,
            (Format::Raw, Some(_)) => Part::RawWindow,
            (Format::Qcow2 | Format::Qcow, _) => Part::Mapped,
        }
    }
}

/// The use of a file that is opened for `purpose`.
pub(super) fn file_use(part: Part, purpose: Purpose, mode: LockMode) -> Result<FileUse> {
    use Permissions as P;
    if mode == LockMode::Share && purpose == Purpose::Write {
        return Err(Error::invalid(
            "an image that is opened for writing cannot be shared with other writers",
        ));
    }
    if mode == LockMode::Off || purpose == Purpose::Peek {
        return Ok(FileUse::NONE);
    }
    let takes = match (purpose, part) {
        (Purpose::Peek | Purpose::Inspect, _) => P::NONE,
        (Purpose::Read | Purpose::ReadAlone, _) => P::READ,
        (Purpose::Write, Part::Raw | Part::RawWindow) => P::READ.with(P::WRITE),
        (Purpose::Write, Part::Mapped | Part::DataFile) => P::READ.with(P::WRITE).with(P::RESIZE),
    };
    let unborne = match (mode, part) {
        (LockMode::Share, _) | (_, Part::Raw) => P::NONE,
        (_, Part::RawWindow | Part::DataFile) => P::RESIZE,
        (_, Part::Mapped) => P::WRITE.with(P::RESIZE),
    };
    let unborne = if purpose == Purpose::ReadAlone { unborne.with(P::READ) } else { unborne };
    Ok(FileUse { takes, bears: P::ALL.without(unborne) })
}

/// The use of a file that is emptied, or taken the name of, to become a new image.
pub(super) const CREATION: FileUse = FileUse {
    takes: Permissions::WRITE.with(Permissions::RESIZE),
    bears: Permissions::ALL.without(Permissions::RESIZE),
};

/// Keeps others from writing `file`, if it is locked at all, while its header changes.
pub(super) fn lock_for_keys(file: &FileStorage) -> Result<()> {
    let held = file.locked_for();
    if held == FileUse::NONE {
        return Ok(());
    }
    let unborne = Permissions::WRITE.with(Permissions::RESIZE);
    file.lock(FileUse { bears: Permissions::ALL.without(unborne), ..held })
}

/// Takes the resizing of `file` on top of what it is locked for, if it is locked at all.
pub(super) fn lock_for_resizing(file: &FileStorage) -> Result<()> {
    let held = file.locked_for();
    if held == FileUse::NONE {
        return Ok(());
    }
    file.lock(FileUse { takes: held.takes.with(Permissions::RESIZE), bears: held.bears })
}
