//! A folder to work in, and both programs to work with.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::SystemTime;

use tempfile::TempDir;

/// A folder that goes when the test ends.
pub(crate) struct Workbench {
    folder: TempDir,
}

/// What a program did.
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Run {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The same, when the program succeeded.
    pub(crate) fn ok(self) -> Run {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self
    }

    fn of(output: Output) -> Run {
        Run {
            code: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Whether the installed qemu-img is older than the one whose reports and options this program has. A test that compares
/// them cannot run then, and says so here.
pub(crate) fn reference_is_older() -> bool {
    let output = Command::new("qemu-img").arg("--version").output().expect("qemu-img is installed");
    let version = String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned();
    let major =
        version.trim_start_matches("qemu-img version ").split('.').next().and_then(|text| text.parse().ok());
    let is_older = major.is_none_or(|major: u32| major < 10);
    if is_older {
        eprintln!(
            "skipped: {version} prints and accepts other things than 10, which is what is compared here"
        );
    }
    is_older
}

impl Workbench {
    pub(crate) fn new() -> Workbench {
        Workbench { folder: tempfile::tempdir().expect("a folder to work in") }
    }

    /// A disk of 64 MiB, raw and in a chain of qcow2 images, with data, holes, zero clusters and compressed ones:
    /// base.img, base.qcow2 (empty), child.qcow2 over base.img, top.qcow2 over child.qcow2, comp.qcow2.
    pub(crate) fn with_images() -> Workbench {
        let bench = Workbench::new();
        bench.qemu_img("create -q -f raw base.img 64M");
        bench.qemu_io("base.img", &["write -P 1 0 2M", "write -P 3 8M 1M"]);
        bench.qemu_img("create -q -f qcow2 base.qcow2 64M");
        bench.qemu_img("create -q -f qcow2 -b base.img -F raw child.qcow2");
        bench.qemu_io("child.qcow2", &["write -P 4 1M 64k", "write -z 8M 64k"]);
        bench.qemu_img("create -q -f qcow2 -b child.qcow2 -F qcow2 top.qcow2");
        bench.qemu_io("top.qcow2", &["write -P 5 3M 128k"]);
        bench.qemu_img("convert -c -f raw -O qcow2 base.img comp.qcow2");
        bench
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder().join(name)
    }

    /// Runs the program; arguments are separated by blanks.
    pub(crate) fn cowimg(&self, arguments: &str) -> Run {
        self.cowimg_with(&words(arguments))
    }

    pub(crate) fn cowimg_with(&self, arguments: &[impl AsRef<OsStr>]) -> Run {
        Run::of(self.command(env!("CARGO_BIN_EXE_cowimg")).args(arguments).output().expect("cowimg starts"))
    }

    /// Runs the program under the name of qemu-img.
    pub(crate) fn as_qemu_img(&self, arguments: &[impl AsRef<OsStr>]) -> Run {
        let mut command = self.command(env!("CARGO_BIN_EXE_cowimg"));
        Run::of(command.arg0("qemu-img").args(arguments).output().expect("cowimg starts"))
    }

    /// Runs the program with bytes on standard input.
    pub(crate) fn cowimg_fed(&self, arguments: &str, input: &[u8]) -> Run {
        let mut command = self.command(env!("CARGO_BIN_EXE_cowimg"));
        command.args(words(arguments)).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("cowimg starts");
        // A program that has failed reads no further, which is not this test's question.
        let _ = child.stdin.take().expect("stdin is piped").write_all(input);
        Run::of(child.wait_with_output().expect("cowimg ends"))
    }

    /// Runs qemu-img, whatever it answers.
    pub(crate) fn try_qemu_img(&self, arguments: &[impl AsRef<OsStr>]) -> Run {
        Run::of(
            self.command("qemu-img")
                .args(arguments)
                .output()
                .expect("qemu-img is installed: package qemu-utils"),
        )
    }

    /// Runs qemu-img, which must succeed.
    pub(crate) fn qemu_img(&self, arguments: &str) -> Run {
        self.try_qemu_img(&words(arguments)).ok()
    }

    /// Runs commands of qemu-io on an image, which must succeed.
    pub(crate) fn qemu_io(&self, image: &str, commands: &[&str]) {
        let mut command = self.command("qemu-io");
        // Its images are made by the tests; a raw one that is not named as such would be written with restrictions.
        let format = if Path::new(image).extension() == Some(OsStr::new("img")) { "raw" } else { "qcow2" };
        command.args(["-f", format]);
        for line in commands {
            command.args(["-c", line]);
        }
        let run = Run::of(command.arg(image).output().expect("qemu-io is installed: package qemu-utils"));
        assert!(run.code == Some(0) && !run.text().contains("failed"), "{}{}", run.text(), run.stderr);
    }

    /// Runs both programs with the same arguments; standard output and exit code must be the same.
    pub(crate) fn same(&self, arguments: &str) -> Run {
        self.same_with(&words(arguments))
    }

    pub(crate) fn same_with(&self, arguments: &[impl AsRef<OsStr>]) -> Run {
        let shown: Vec<_> = arguments.iter().map(|word| word.as_ref().to_string_lossy()).collect();
        let theirs = self.try_qemu_img(arguments);
        let ours = self.cowimg_with(arguments);
        assert_eq!(ours.text(), theirs.text(), "report of {shown:?}; {}{}", ours.stderr, theirs.stderr);
        assert_eq!(ours.stdout, theirs.stdout, "bytes of the report of {shown:?}");
        assert_eq!(ours.code, theirs.code, "exit code of {shown:?}; {}{}", ours.stderr, theirs.stderr);
        ours
    }

    /// The two disks have the same content.
    pub(crate) fn assert_same_disk(&self, one: &str, other: &str) {
        let run = self.try_qemu_img(&["compare", one, other]);
        assert_eq!(run.code, Some(0), "{one} and {other}: {}{}", run.text(), run.stderr);
    }

    /// qemu-img finds nothing wrong with the image.
    pub(crate) fn assert_sound(&self, image: &str) {
        let run = self.try_qemu_img(&["check", image]);
        assert_eq!(run.code, Some(0), "{image}: {}{}", run.text(), run.stderr);
    }

    /// Every file of the folder: length, time of the last change, and of small ones the content.
    pub(crate) fn content(&self) -> BTreeMap<OsString, (u64, SystemTime, Vec<u8>)> {
        /// A file of more bytes is known by its time alone; reading it again and again would take the most time.
        const SMALL: u64 = 4 << 20;
        let entries = fs::read_dir(self.folder()).expect("the folder is there");
        let files = entries.map(|entry| {
            let entry = entry.expect("the folder can be read");
            let metadata = entry.metadata().expect("the file can be looked at");
            let is_small = metadata.is_file() && metadata.len() <= SMALL;
            let bytes = if is_small { fs::read(entry.path()) } else { Ok(Vec::new()) };
            let changed = metadata.modified().expect("the file has a time");
            (entry.file_name(), (metadata.len(), changed, bytes.expect("the file can be read")))
        });
        files.collect()
    }

    /// The names in the folder.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder()).expect("the folder is there");
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    /// A program, to be run in the folder.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.folder()).stdin(Stdio::null());
        command
    }
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}
