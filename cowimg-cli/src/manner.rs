//! The two manners of the program: as `cowimg` it is careful, through a link named `qemu-img` it does what scripts
//! that were written for qemu-img expect.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::OnceLock;

/// Whose habits the program has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Our own: results appear whole or not at all, nothing is replaced unasked.
    Cowimg,
    /// qemu-img's: its defaults, its output byte for byte, targets written in place.
    QemuImg,
}

static MANNER: OnceLock<Manner> = OnceLock::new();

impl Manner {
    /// The manner of a program that was called by this name: `qemu-img`, also with something behind it
    /// (`qemu-img-10`), is strict.
    pub(crate) fn of_program(name: Option<&OsStr>) -> Manner {
        let name = name.map(Path::new).and_then(Path::file_name).and_then(OsStr::to_str).unwrap_or_default();
        if name.starts_with("qemu-img") { Manner::QemuImg } else { Manner::Cowimg }
    }

    /// Makes it the manner of this process, for the name in front of messages.
    pub(crate) fn adopt(self) {
        let _adopted_before = MANNER.set(self);
    }

    /// Whether all is done as qemu-img does it.
    pub(crate) fn is_strict(self) -> bool {
        self == Manner::QemuImg
    }

    /// What the program calls itself.
    pub(crate) fn program(self) -> &'static str {
        match self {
            Manner::Cowimg => "cowimg",
            Manner::QemuImg => "qemu-img",
        }
    }
}

/// The manner of this process.
pub(crate) fn manner() -> Manner {
    MANNER.get().copied().unwrap_or(Manner::Cowimg)
}

/// What this process calls itself.
pub(crate) fn program() -> &'static str {
    manner().program()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_program_decides() {
        let manner = |name: &str| Manner::of_program(Some(OsStr::new(name)));
        assert_eq!(manner("/usr/bin/qemu-img"), Manner::QemuImg);
        assert_eq!(manner("qemu-img-10.0"), Manner::QemuImg);
        assert_eq!(manner("/opt/qemu-img/cowimg"), Manner::Cowimg);
        assert_eq!(Manner::of_program(None), Manner::Cowimg);
    }
}
