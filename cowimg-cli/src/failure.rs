//! Why a command did not do what it was asked: one text for a person, what to do next, and the exit code.
//!
//! Everything that goes to standard error goes through [`Failure::print`], [`warn`] and [`note`]. None of them
//! fails or panics when nobody listens there.

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use cowimg::error::{Error, ErrorKind, LockConflict};

use crate::args::key_values::KeyValuesError;
use crate::colour::{Meaning, painted};
use crate::exit_code::ExitCode;
use crate::manner::program;

/// A command's failure.
#[derive(Debug)]
pub(crate) struct Failure {
    cause: Cause,
    hint: Option<String>,
    code: ExitCode,
}

#[derive(Debug)]
enum Cause {
    /// A sentence.
    Message(String),
    /// The reader of standard output has gone; there is nothing left to say.
    OutputClosed,
    /// No failure: an option asked for this text, and for nothing else to be done.
    Answered(String),
    /// The user stopped the command with this signal.
    Stopped { signal: i32, message: String },
}

impl Failure {
    /// A failure with its sentence, without a full stop.
    pub(crate) fn new(message: impl Into<String>) -> Failure {
        Failure { cause: Cause::Message(message.into()), hint: None, code: ExitCode::Failure }
    }

    /// A command line that makes no sense. The same as [`Failure::new`] to the caller: qemu-img exits with 1 for both.
    pub(crate) fn usage(message: impl Into<String>) -> Failure {
        Failure::new(message)
    }

    /// The user stopped the command; `message` says what has become of its result.
    pub(crate) fn stopped(signal: i32, message: impl Into<String>) -> Failure {
        let cause = Cause::Stopped { signal, message: message.into() };
        Failure { cause, hint: None, code: ExitCode::Failure }
    }

    /// The end of a command of which an option only asked for `text`.
    pub(crate) fn answered(text: impl Into<String>) -> Failure {
        Failure { cause: Cause::Answered(text.into()), hint: None, code: ExitCode::Success }
    }

    /// Adds what to do next.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }

    /// Says what was being done when it happened; `what` is a clause.
    #[must_use]
    pub(crate) fn within(mut self, what: impl fmt::Display) -> Failure {
        if let Cause::Message(message) = &mut self.cause {
            *message = format!("{what}: {message}");
        }
        self
    }

    /// Sets another exit code than 1. What is no failure stays none.
    #[must_use]
    pub(crate) fn code(mut self, code: ExitCode) -> Failure {
        if !matches!(self.cause, Cause::Answered(_)) {
            self.code = code;
        }
        self
    }

    /// Says on standard error what went wrong, and ends the process as the failure demands: with an exit code, or
    /// with the signal that stopped the command, so that a shell's loop stops too.
    pub(crate) fn report(&self) -> std::process::ExitCode {
        match &self.cause {
            Cause::OutputClosed => return ExitCode::Success.into(),
            Cause::Message(_) => self.print(),
            Cause::Answered(text) => {
                let _ = write!(io::stdout(), "{text}");
            }
            Cause::Stopped { signal, .. } => {
                self.print();
                // It returns only for signals that do not end a process.
                let _ = signal_hook::low_level::emulate_default_handler(*signal);
            }
        }
        self.code.into()
    }

    fn print(&self) {
        let prefix = painted(&format!("{}:", program()), Meaning::Failure);
        let _ = writeln!(io::stderr(), "{prefix} {self}");
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Cause::Message(message) | Cause::Stopped { message, .. } => f.write_str(message)?,
            Cause::OutputClosed => f.write_str("nobody reads the output")?,
            Cause::Answered(text) => f.write_str(text)?,
        }
        match &self.hint {
            Some(hint) => write!(f, "\n{hint}"),
            None => Ok(()),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        if let ErrorKind::Backing { name, source } = error.kind()
            && source.io_kind() == Some(io::ErrorKind::NotFound)
        {
            return backing_not_found(error.path(), name, source.path());
        }
        let failure = Failure::new(error.to_string());
        match hint_for(&error) {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

/// The failure that follows from moved files more often than any other.
fn backing_not_found(image: Option<&Path>, name: &str, looked: Option<&Path>) -> Failure {
    let shown = image.map_or(String::new(), |image| format!("{}: ", image.display()));
    let failure = Failure::new(format!("{shown}backing file not found: {name}"));
    let Some(looked) = looked else { return failure };
    let image = image.unwrap_or(Path::new("IMAGE")).display();
    failure.hint(format!(
        "Looked for {}. If you moved it, write its new name to the image: {} rebase -u -b NEW -F FORMAT {image}",
        absolute(looked).display(),
        program()
    ))
}

/// A path as it is seen from the root.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

/// An error of a report's writer. Files that are images are the library's, so this is always standard output.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Failure { cause: Cause::OutputClosed, hint: None, code: ExitCode::Success };
        }
        Failure::new(format!("could not write to standard output: {}", os_message(&error)))
    }
}

impl From<KeyValuesError> for Failure {
    fn from(error: KeyValuesError) -> Failure {
        Failure::usage(error.to_string()).hint("`-o help` lists the options")
    }
}

/// What a user can do about an error of the library.
fn hint_for(error: &Error) -> Option<String> {
    match error.kind() {
        ErrorKind::Io { action: "lock the image", .. } => Some(
            "Its file system may have no locks. Where nobody else uses the file, --image-opts with file.locking=off opens \
             it without"
                .to_owned(),
        ),
        ErrorKind::Io { source, .. } => io_hint(source.kind(), error.path()?),
        ErrorKind::WrongFormat { .. } => {
            Some("Leave -f away to have the format found, or ask `cowimg info` what the file is".to_owned())
        }
        ErrorKind::Refused { .. } => Some(
            "--follow all opens every file that an image names: give it if you trust who made this one"
                .to_owned(),
        ),
        ErrorKind::RawNotStated => {
            Some("If it is the raw disk that it should be, say so: -f raw (for a backing file -F raw)".to_owned())
        }
        ErrorKind::OverLimit { name: "key_iterations", .. } => {
            Some("Leave --untrusted away to open it, however long that takes".to_owned())
        }
        ErrorKind::MarkedCorrupt { .. } => Some(
            "`cowimg check` lists what is wrong with an image, `cowimg check -r all` repairs what can be, on a copy best"
                .to_owned(),
        ),
        ErrorKind::Corrupt(_) => Some("`cowimg check` lists what is wrong with an image".to_owned()),
        ErrorKind::Backing { source, .. } => hint_for(source),
        ErrorKind::Locked { conflict, .. } => Some(lock_hint(*conflict).to_owned()),
        ErrorKind::NoSuchLayer { .. } => {
            Some("`cowimg info --backing-chain` lists the files that the image is stacked on".to_owned())
        }
        ErrorKind::BackingLoop => {
            Some("`cowimg info` shows the backing file of each image; one of them must be another".to_owned())
        }
        _ => None,
    }
}

/// What a user can do about a file that somebody else uses.
fn lock_hint(conflict: LockConflict) -> &'static str {
    match conflict {
        LockConflict::Written | LockConflict::Resized => {
            "Stop that process, or wait until it has ended. A command that only reads has -U to do so all the same: what \
             it reads may then be old, new or neither, so do not rely on it"
        }
        LockConflict::Inconsistent => {
            "Wait until that process has ended: what the file holds now means nothing"
        }
        _ => "Stop that process, or wait until it has ended: to write beside it would spoil what it reads",
    }
}

fn io_hint(kind: io::ErrorKind, path: &Path) -> Option<String> {
    match kind {
        io::ErrorKind::NotFound if path.is_relative() => {
            Some(format!("Looked for {}", absolute(path).display()))
        }
        io::ErrorKind::AlreadyExists => Some("--force replaces it".to_owned()),
        io::ErrorKind::PermissionDenied => {
            Some("The file's owner or mode does not allow it to this user".to_owned())
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Some("Make room on that file system, or choose another place".to_owned())
        }
        _ => None,
    }
}

/// The operating system's message without Rust's "(os error N)".
pub(crate) fn os_message(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

/// Says something on standard error that does not stop the command.
pub(crate) fn warn(message: &str) {
    let prefix = painted(&format!("{}: warning:", program()), Meaning::Warning);
    let _ = writeln!(io::stderr(), "{prefix} {message}");
}

/// Says on standard error what was done without being asked for in words.
pub(crate) fn note(message: &str) {
    let _ = writeln!(io::stderr(), "{}: {message}", program());
}

/// Writes a line of a report to standard error, as it is.
pub(crate) fn note_plain(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Warns that a file is taken as raw only because it looks like nothing else.
pub(crate) fn warn_probed_raw(path: &Path) {
    let name = path.display();
    warn(&format!(
        "{name}: no format was given and the file looks like none, so it is written as raw. A guest that writes to \
         a raw disk can make it look like another format: give -f raw"
    ));
}
