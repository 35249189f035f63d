//! A file system whose files can share space, made and mounted for a run: an XFS in a file.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Room for the images and for the copies that both programs make, in bytes; what is not used takes no space.
const SIZE: u64 = 16 << 30;

/// The mounted file system, gone when dropped.
#[derive(Debug)]
pub(crate) struct Sharing {
    folder: PathBuf,
}

impl Sharing {
    /// Mounts one on `xfs` in `folder`, or says why that is not done.
    pub(crate) fn mount(folder: &Path) -> Result<Sharing, String> {
        let (disk, mounted) = (folder.join("xfs.img"), folder.join("xfs"));
        let file = File::create(&disk).and_then(|file| file.set_len(SIZE));
        file.and_then(|()| fs::create_dir(&mounted)).map_err(|error| error.to_string())?;
        done("mkfs.xfs", &[Path::new("-q"), &disk])?;
        done("mount", &[Path::new("-o"), Path::new("loop"), &disk, &mounted])?;
        Ok(Sharing { folder: mounted })
    }
}

impl Drop for Sharing {
    fn drop(&mut self) {
        let _left_behind = done("umount", &[&self.folder]);
    }
}

/// Runs a program of an administrator; the error is the first line that it says.
fn done(program: &str, args: &[&Path]) -> Result<(), String> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program).args(args).env("PATH", path).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program}: {}", said.lines().next().unwrap_or("failed")))
}
