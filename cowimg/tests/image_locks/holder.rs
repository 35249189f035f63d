//! Programs, and the library, that have a file open while others try to.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cowimg::storage::{FileOptions, FileStorage, FileUse, Permissions};
use cowimg::{Access, Format, Image, LockMode, OpenOptions};

use crate::lab::format_of;
use crate::qemu_tools;

/// How a file is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Open for writing, in `qemu-io` or the library.
    Writing,
    /// Open for reading.
    Reading,
    /// Open for reading beside writers (`-U`).
    Sharing,
}

/// Who holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    QemuIo,
    Library,
}

/// Somebody who has a file open until this is dropped.
pub(crate) enum Holder {
    Process(Process),
    Image(#[allow(dead_code, reason = "held, not used")] Image),
    Guest(#[allow(dead_code, reason = "held, not used")] FileStorage),
}

/// A program that is stopped in the end.
pub(crate) struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Holder {
    /// Opens the image at `path`, with what it is stacked on.
    pub(crate) fn of(who: Who, manner: Manner, path: &Path) -> Holder {
        match who {
            Who::QemuIo => Holder::qemu_io(manner, path),
            Who::Library => {
                let options = options_of(manner).format(format_of(path));
                Holder::Image(options.open(path).expect("the holder opens the image"))
            }
        }
    }

    /// Opens the bytes of the raw file at `path` from the second sector on.
    pub(crate) fn of_part(who: Who, manner: Manner, path: &Path) -> Holder {
        match who {
            Who::QemuIo => {
                let part = format!("driver=raw,offset=512,file.driver=file,file.filename={}", path.display());
                Holder::qemu_io_with(manner, &["--image-opts".as_ref(), part.as_ref()])
            }
            Who::Library => {
                let options = options_of(manner).format(Format::Raw).raw_window(512, None);
                Holder::Image(options.open(path).expect("the holder opens the image"))
            }
        }
    }

    fn qemu_io(manner: Manner, path: &Path) -> Holder {
        Holder::qemu_io_with(manner, &["-f".as_ref(), format_of(path).as_str().as_ref(), path.as_os_str()])
    }

    fn qemu_io_with(manner: Manner, arguments: &[&OsStr]) -> Holder {
        let mut command = qemu_tools::command("qemu-io");
        command.args(match manner {
            Manner::Writing => &[][..],
            Manner::Reading => &["-r"],
            Manner::Sharing => &["-r", "-U"],
        });
        command.args(arguments);
        // It waits for commands until its input ends.
        Holder::start(command.stdin(Stdio::piped()))
    }

    /// `qemu-storage-daemon` that exports the image; `None` where it is not installed.
    pub(crate) fn export(path: &Path, access: Access) -> Option<Holder> {
        if !qemu_tools::is_installed("qemu-storage-daemon") {
            return None;
        }
        let (read_only, writable) = match access {
            Access::ReadOnly => ("on", "off"),
            Access::ReadWrite => ("off", "on"),
        };
        let socket = path.with_extension("socket");
        let ready = path.with_extension("pid");
        let mut command = qemu_tools::command("qemu-storage-daemon");
        command
            .arg("--blockdev")
            .arg(format!("driver=file,node-name=file,filename={},read-only={read_only}", path.display()))
            .arg("--blockdev")
            .arg(format!("driver={},node-name=disk,file=file,read-only={read_only}", format_of(path)))
            .arg("--nbd-server")
            .arg(format!("addr.type=unix,addr.path={}", socket.display()))
            .arg("--export")
            .arg(format!("type=nbd,id=export,node-name=disk,writable={writable}"))
            .arg("--pidfile")
            .arg(&ready);
        let holder = Holder::start(&mut command);
        // It writes the file when everything is set up.
        wait_for("qemu-storage-daemon", || ready.exists());
        let _ = std::fs::remove_file(ready);
        Some(holder)
    }

    /// A `qemu-img commit` of the image at `path` into `base`, which will not end before it is stopped.
    pub(crate) fn commit(path: &Path, base: &Path) -> Holder {
        let mut command = qemu_tools::command("qemu-img");
        command.args(["commit", "-q", "-d", "-r", "1024", "-b"]).arg(base).arg(path);
        let holder = Holder::start(&mut command);
        let pid = holder.pid();
        wait_for("the commit", || locks_of(pid).iter().any(|line| line.contains(" 200 ")));
        holder
    }

    /// A guest's disk on a raw file, as `qemu-system-*` has it: written, and by nobody else.
    pub(crate) fn guest(path: &Path) -> Holder {
        let file = FileStorage::open(path, &FileOptions::read_write()).expect("the file opens");
        file.lock(FileUse {
            takes: Permissions::READ.with(Permissions::WRITE),
            bears: Permissions::READ.with(Permissions::WRITE_UNCHANGED),
        })
        .expect("nobody else uses the file");
        Holder::Guest(file)
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        match self {
            Holder::Process(Process(child)) => child.id(),
            Holder::Image(_) | Holder::Guest(_) => std::process::id(),
        }
    }

    fn start(command: &mut Command) -> Holder {
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the holder starts");
        let mut process = Process(child);
        let pid = process.0.id();
        wait_for("the holder", || {
            let ended = process.0.try_wait().expect("the holder can be asked");
            assert!(ended.is_none(), "the holder could not open its file: {ended:?}");
            has_locks(pid)
        });
        Holder::Process(process)
    }
}

fn options_of(manner: Manner) -> OpenOptions {
    match manner {
        Manner::Writing => Image::options().access(Access::ReadWrite),
        Manner::Reading => Image::options(),
        Manner::Sharing => Image::options().lock(LockMode::Share),
    }
}

/// Whether a process has all the locks that it takes: they are taken at once, before it waits for anything.
fn has_locks(pid: u32) -> bool {
    let before = locks_of(pid);
    std::thread::sleep(Duration::from_millis(30));
    !before.is_empty() && before.len() == locks_of(pid).len()
}

/// The locks of a process, as the host lists them.
fn locks_of(pid: u32) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return Vec::new() };
    let texts = entries.filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok());
    let lines = texts.flat_map(|text| text.lines().map(|line| format!("{line} ")).collect::<Vec<_>>());
    lines.filter(|line| line.starts_with("lock:")).collect()
}

fn wait_for(what: &str, mut is_ready: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_ready() {
        assert!(started.elapsed() < Duration::from_secs(20), "{what} is not ready after 20 seconds");
        std::thread::sleep(Duration::from_millis(5));
    }
}
