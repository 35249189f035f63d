//! The one error type of the library: what went wrong, with which file, and where in it.
//!
//! Match on [`Error::kind`]; print the error itself. A message never repeats its source: `io::Error`s are
//! reached through [`std::error::Error::source`] and are part of the `Display` text once, at the end.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::corruption::Corruption;
use crate::range::ByteRange;

/// Result of the library's own calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error with its context: the kind, the file that it is about (where one is known), and the byte range.
#[derive(Debug)]
pub struct Error {
    inner: Box<Inner>,
}

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    path: Option<PathBuf>,
    range: Option<ByteRange>,
    of_below: bool,
}

/// What went wrong. Match on this; new kinds may come, so keep a `_` arm.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The operating system refused an operation.
    #[error("could not {action}: {}", OsMessage(source))]
    Io {
        /// What was being done, as a verb phrase: "open", "read", "write the L2 table".
        action: &'static str,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The file is not an image of the format that was asked for.
    #[error("not a {expected} image: {why}")]
    WrongFormat {
        /// The format that was asked for.
        expected: &'static str,
        /// What was found instead.
        why: String,
    },
    /// A file that looks like no image would be taken for a raw one, and that was not allowed.
    #[error("it has no image's header, and nobody states that it is a raw image")]
    RawNotStated,
    /// The image contradicts itself or its specification.
    #[error("the image is damaged: {0}")]
    Corrupt(Corruption),
    /// The image is valid and uses a feature that this version does not handle.
    #[error("{0}")]
    Unsupported(String),
    /// An argument makes no sense here.
    #[error("{0}")]
    InvalidArgument(String),
    /// A guest range that does not lie within the disk.
    #[error("the range ends past the disk, whose size is {size} bytes")]
    OutOfBounds {
        /// Size of the disk in bytes.
        size: u64,
    },
    /// A change was asked of an image that was opened for reading, or whose storage cannot be written.
    #[error("the image is open read-only")]
    ReadOnly,
    /// An earlier I/O error left memory and file possibly different (rule W8), so that the image refuses writes.
    #[error("an earlier write failed ({first}), so the image takes no more writes until it is opened anew")]
    Failed {
        /// The text of the error that caused this state.
        first: String,
    },
    /// The image is marked corrupt, or was found to be and is marked so now: it can be read, and is not changed before it
    /// is repaired.
    #[error("{}", Marked(met.as_ref()))]
    MarkedCorrupt {
        /// What was met since the image was opened; none where it was marked before.
        met: Option<Corruption>,
    },
    /// The policy for files that an image may name refused one.
    #[error("the image names {name:?} as its {role}, which the policy does not allow: {why}")]
    Refused {
        /// The name as it stands in the image.
        name: String,
        /// "backing file" or "data file".
        role: &'static str,
        /// Which rule refused it.
        why: &'static str,
    },
    /// A backing file that the image names could not be opened.
    #[error("could not open its backing file {name:?}: {source}")]
    Backing {
        /// The name as it stands in the image.
        name: String,
        /// Why not.
        source: Box<Error>,
    },
    /// The image stands alone, and what was asked needs a backing file.
    #[error("the image has no backing file")]
    NoBacking,
    /// No layer below the image has this name.
    #[error("there is no {name:?} in its backing chain")]
    NoSuchLayer {
        /// The name that was looked for.
        name: String,
    },
    /// The backing files form a loop.
    #[error("its backing chain comes back to this file")]
    BackingLoop,
    /// The backing chain has more layers than the limit.
    #[error(
        "its backing chain has more than {limit} layers, the limit chain_depth: commit layers into those below, or raise \
         the limit if its maker is trusted"
    )]
    ChainTooDeep {
        /// The limit in force, in layers.
        limit: usize,
    },
    /// A persistent bitmap is not what an operation needs.
    #[error("the bitmap {name:?} {problem}")]
    Bitmap {
        /// The bitmap's name.
        name: String,
        /// What is the matter with it.
        problem: BitmapProblem,
    },
    /// The image's structures exceed a limit on memory.
    #[error("{what} would take {bytes} bytes of memory; the limit is {limit}")]
    LimitExceeded {
        /// Which structure.
        what: &'static str,
        /// Its size in bytes.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The image asks for more than its opener allows: see [`Limits`](crate::Limits).
    #[error(
        "{what} takes {amount} {unit}, and the limit {name} is {limit}: raise it to open an image whose maker is trusted"
    )]
    OverLimit {
        /// Which structure.
        what: &'static str,
        /// What it would take.
        amount: u64,
        /// In what that is counted.
        unit: &'static str,
        /// The limit's name: the method of [`Limits`](crate::Limits) that sets it.
        name: &'static str,
        /// The limit in force, in the same unit.
        limit: u64,
    },
    /// The image's file is in use in a way that does not go together with how it was to be opened.
    #[error("in use: {}", InUse(*conflict, holder.as_ref()))]
    Locked {
        /// What its other user does with it.
        conflict: LockConflict,
        /// Who that is, where the host tells.
        holder: Option<LockHolder>,
    },
    /// No snapshot is what was asked for.
    #[error("the image has no snapshot with {wanted}")]
    SnapshotNotFound {
        /// What was asked for: `name "a"`, `id or name "a"`.
        wanted: String,
    },
    /// A snapshot was to be made under a name that another one has.
    #[error("the image has a snapshot with name {name:?} already")]
    SnapshotExists {
        /// The name.
        name: String,
    },
    /// The image is encrypted, and no passphrase was given.
    #[error("the image is encrypted, and no passphrase was given")]
    PassphraseNeeded,
    /// The passphrase opens none of the image's key slots.
    #[error("the passphrase does not open the image")]
    WrongPassphrase,
    /// The caller cancelled the job.
    #[error("cancelled")]
    Cancelled,
}

/// Why an image takes no more changes.
struct Marked<'a>(Option<&'a Corruption>);

impl fmt::Display for Marked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str(
                "the image is marked corrupt, so it is opened for reading only until it is repaired",
            ),
            Some(met) => write!(
                f,
                "the image was found to be damaged ({met}), so it takes no more writes until it is repaired"
            ),
        }
    }
}

/// What the other user of a file does, that does not go together with how it was to be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LockConflict {
    /// It has the file open for writing.
    Written,
    /// It may change the file's length.
    Resized,
    /// It reads the file.
    Read,
    /// It relies on nobody else writing the file.
    KeptUnwritten,
    /// It relies on the file's length.
    KeptUnresized,
    /// It is changing the file in a way that leaves no content to rely on meanwhile.
    Inconsistent,
    /// It has locked the file against everybody.
    Exclusive,
}

impl fmt::Display for LockConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LockConflict::Written => "has it open for writing",
            LockConflict::Resized => "may change its length",
            LockConflict::Read => "reads it",
            LockConflict::KeptUnwritten => "has it open and relies on nobody else writing it",
            LockConflict::KeptUnresized => "has it open and relies on its length",
            LockConflict::Inconsistent => "is changing it and lets nobody read it meanwhile",
            LockConflict::Exclusive => "has locked it against all others",
        })
    }
}

/// A process that holds a lock.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LockHolder {
    /// Its number.
    pub pid: u32,
    /// The name of its program, as the host has it (Linux: its first 15 bytes).
    pub command: Option<String>,
}

/// "another process has it open for writing (pid 123, qemu-system-x86)".
struct InUse<'a>(LockConflict, Option<&'a LockHolder>);

impl fmt::Display for InUse<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let InUse(conflict, holder) = self;
        match holder {
            Some(holder) if holder.pid == std::process::id() => write!(f, "this process {conflict}"),
            Some(LockHolder { pid, command: Some(command) }) => {
                write!(f, "another process {conflict} (pid {pid}, {command})")
            }
            Some(LockHolder { pid, command: None }) => write!(f, "another process {conflict} (pid {pid})"),
            None => write!(f, "another process {conflict}"),
        }
    }
}

/// Why an operation with a persistent bitmap was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BitmapProblem {
    /// The image has no bitmap of that name.
    #[error("was not found in the image")]
    NotFound,
    /// The image has a bitmap of that name already.
    #[error("already exists in the image")]
    Exists,
    /// It was in use when its writer stopped, so that it may have missed changes.
    #[error("is inconsistent: it was in use when its writer stopped, and cannot be used; it can be removed")]
    Inconsistent,
    /// It contradicts the specification, or has something that is not known here.
    #[error("cannot be used: {why}")]
    Unusable {
        /// What is wrong with it.
        why: &'static str,
    },
}

/// The operating system's message without Rust's "(os error N)".
struct OsMessage<'a>(&'a io::Error);

impl fmt::Display for OsMessage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        f.write_str(text.split(" (os error").next().unwrap_or(&text))
    }
}

impl Error {
    /// An error of `kind`, with no file and no range yet.
    pub fn new(kind: ErrorKind) -> Error {
        Error { inner: Box::new(Inner { kind, path: None, range: None, of_below: false }) }
    }

    /// An I/O error; `action` is a verb phrase ("read the header").
    pub fn io(action: &'static str, source: io::Error) -> Error {
        Error::new(ErrorKind::Io { action, source })
    }

    /// An argument that makes no sense; `what` is a whole sentence for a person, without a full stop.
    pub fn invalid(what: impl Into<String>) -> Error {
        Error::new(ErrorKind::InvalidArgument(what.into()))
    }

    /// A feature that this version does not handle; `what` names it.
    pub fn unsupported(what: impl Into<String>) -> Error {
        Error::new(ErrorKind::Unsupported(what.into()))
    }

    /// What went wrong.
    pub fn kind(&self) -> &ErrorKind {
        &self.inner.kind
    }

    /// The file that the error is about, where one is known.
    pub fn path(&self) -> Option<&Path> {
        self.inner.path.as_deref()
    }

    /// The guest or file range that the error is about, in bytes, where one is known.
    pub fn range(&self) -> Option<ByteRange> {
        self.inner.range
    }

    /// Names the file, unless a deeper layer has named one already.
    #[must_use]
    pub fn at_path(mut self, path: impl AsRef<Path>) -> Error {
        self.inner.path.get_or_insert_with(|| path.as_ref().to_path_buf());
        self
    }

    /// States the range in bytes, unless a deeper layer has stated one already.
    #[must_use]
    pub fn at_range(mut self, range: ByteRange) -> Error {
        self.inner.range.get_or_insert(range);
        self
    }

    /// Says that the error is about the image below the one that reports it.
    #[must_use]
    pub(crate) fn of_below(mut self) -> Error {
        self.inner.of_below = true;
        self
    }

    /// Whether the error is about an image below the one that reports it.
    pub(crate) fn is_of_below(&self) -> bool {
        self.inner.of_below
    }

    /// The operating system's error kind, where there is one.
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        match self.kind() {
            ErrorKind::Io { source, .. } => Some(source.kind()),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = self.path() {
            write!(f, "{}: ", path.display())?;
        }
        write!(f, "{}", self.kind())?;
        if let Some(range) = self.range() {
            write!(f, " (at byte {}, {} bytes)", range.start(), range.len())?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self.kind() {
            ErrorKind::Io { source, .. } => Some(source),
            ErrorKind::Corrupt(corruption) => Some(corruption),
            ErrorKind::Backing { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl From<Corruption> for Error {
    fn from(corruption: Corruption) -> Error {
        Error::new(ErrorKind::Corrupt(corruption))
    }
}
