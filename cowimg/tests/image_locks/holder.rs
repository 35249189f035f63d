//! Programs, and the library, that have a file open while others try to.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
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
        // It asks for a command when everything is open, and waits for one until its input ends.
        let mut holder = Holder::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        holder.wait_for_prompt();
        holder
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
        let mut holder = Holder::start(command.stdout(Stdio::null()));
        // It writes the file when everything is set up.
        holder.wait_until(|_| std::fs::read_to_string(&ready).is_ok_and(|pid| pid.ends_with('\n')));
        Some(holder)
    }

    /// A `qemu-img commit` of the image at `path` into `base`, which will not end before it is stopped.
    pub(crate) fn commit(path: &Path, base: &Path) -> Holder {
        let mut command = qemu_tools::command("qemu-img");
        command.args(["commit", "-q", "-d", "-r", "1024", "-b"]).arg(base).arg(path);
        let mut holder = Holder::start(command.stdout(Stdio::null()));
        // The job bears no reader of the image between, which nobody does who just opens images.
        holder.wait_until(|pid| locks_of(pid, |_| true).iter().any(|line| has_byte(line, 200)));
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

    /// The locks that it has on a file, without the number of a line, in order.
    pub(crate) fn locks_on(&self, path: &Path) -> Vec<String> {
        let identity = |path: &Path| std::fs::metadata(path).map(|file| (file.dev(), file.ino()));
        let wanted = identity(path).expect("the file is there");
        let mut locks = locks_of(self.pid(), |open| identity(open).is_ok_and(|found| found == wanted));
        locks.sort();
        locks
    }

    fn start(command: &mut Command) -> Holder {
        Holder::Process(Process(command.stderr(Stdio::null()).spawn().expect("the holder starts")))
    }

    /// Waits for a program that says when it is ready.
    fn wait_for_prompt(&mut self) {
        let Process(child) = self.process();
        let mut prompt = [0; 9];
        let read = child.stdout.as_mut().expect("its output is a pipe").read_exact(&mut prompt);
        assert!(
            read.is_ok() && &prompt == b"qemu-io> ",
            "the holder could not open its file: {read:?}, {prompt:?}"
        );
    }

    /// Waits for a program that shows it otherwise; `is_ready` gets its number.
    fn wait_until(&mut self, is_ready: impl Fn(u32) -> bool) {
        let Process(child) = self.process();
        let started = Instant::now();
        while !is_ready(child.id()) {
            let ended = child.try_wait().expect("the holder can be asked");
            assert!(ended.is_none(), "the holder could not open its file: {ended:?}");
            assert!(started.elapsed() < Duration::from_secs(60), "the holder is not ready after a minute");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn process(&mut self) -> &mut Process {
        match self {
            Holder::Process(process) => process,
            Holder::Image(_) | Holder::Guest(_) => unreachable!("no program"),
        }
    }
}

fn options_of(manner: Manner) -> OpenOptions {
    match manner {
        Manner::Writing => Image::options().access(Access::ReadWrite),
        Manner::Reading => Image::options(),
        Manner::Sharing => Image::options().lock(LockMode::Share),
    }
}

/// The locks of a process on the files that are wanted, as the host lists them with each open file: its list of all
/// locks is read piece by piece, so that lines are missed or come twice while others lock and unlock.
fn locks_of(pid: u32, is_wanted: impl Fn(&Path) -> bool) -> Vec<String> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let Ok(entries) = std::fs::read_dir(process.join("fdinfo")) else { return Vec::new() };
    let numbers = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
    let wanted = numbers.filter(|number| is_wanted(&process.join("fd").join(number)));
    let texts = wanted.filter_map(|number| std::fs::read_to_string(process.join("fdinfo").join(number)).ok());
    let lock = |line: &str| {
        let words = line.strip_prefix("lock:")?.split_whitespace();
        Some(words.skip(1).collect::<Vec<_>>().join(" "))
    };
    texts.flat_map(|text| text.lines().filter_map(lock).collect::<Vec<_>>()).collect()
}

/// Whether a line of [`locks_of`] has a byte of the file: it ends with the first and the last one.
fn has_byte(line: &str, byte: u64) -> bool {
    let mut ends = line.rsplit(' ').map(|word| word.parse().ok());
    let (last, first) = (ends.next().flatten(), ends.next().flatten());
    first.zip(last).is_some_and(|(first, last): (u64, u64)| (first..=last).contains(&byte))
}
