//! The numbers that the program exits with. They are qemu-img's, so that scripts can read them.

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExitCode {
    /// Done; `check` found nothing.
    Success = 0,
    /// Not done. `check` could not look at everything.
    Failure = 1,
    /// `check` found contradictions that can cost data.
    Corruptions = 2,
    /// `check` found wasted space and nothing worse.
    Leaks = 3,
    /// `compare` could not read an image.
    Unreadable = 4,
    /// `check` has nothing to look at in this format.
    CheckUnsupported = 63,
}

/// What `compare` means by numbers that `check` uses too.
impl ExitCode {
    /// An image could not be opened.
    pub(crate) const NOT_OPENED: ExitCode = ExitCode::Corruptions;
    /// Where an image has its data could not be found out.
    pub(crate) const NOT_MAPPED: ExitCode = ExitCode::Leaks;
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> std::process::ExitCode {
        std::process::ExitCode::from(code as u8)
    }
}
