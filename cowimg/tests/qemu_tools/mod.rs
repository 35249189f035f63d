//! Running the real tools: `qemu-img`, `qemu-io`, and those of e2fsprogs.
//!
//! A tool that is not installed fails the test with a sentence that says what to install: a test that is silently
//! left out proves nothing.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub(crate) mod damage;

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What a tool said.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Its exit code.
    pub(crate) code: i32,
    /// Standard output and standard error, in this order.
    pub(crate) text: String,
}

/// Where the package puts tools that are not in every user's `PATH`.
const SYSTEM_FOLDERS: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

fn package_of(tool: &str) -> &'static str {
    match tool {
        "qemu-img" | "qemu-io" => "qemu-utils (Debian, Ubuntu) or qemu-img (Fedora)",
        _ => "e2fsprogs",
    }
}

fn find(tool: &str) -> PathBuf {
    let inherited = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&inherited)
        .chain(SYSTEM_FOLDERS.iter().map(PathBuf::from))
        .map(|folder| folder.join(tool))
        .find(|path| path.is_file())
        .unwrap_or_else(|| PathBuf::from(tool))
}

/// Whether `tool` is there.
pub(crate) fn is_installed(tool: &str) -> bool {
    find(tool).is_file()
}

/// `tool`, to be given arguments and started.
pub(crate) fn command(tool: &str) -> Command {
    let mut command = Command::new(find(tool));
    command.env("LC_ALL", "C");
    command
}

/// Runs `tool` and gives its answer, whatever the exit code is.
pub(crate) fn answer_of<A: AsRef<OsStr>>(tool: &str, arguments: &[A]) -> Answer {
    let Output { status, stdout, stderr } =
        command(tool).args(arguments).output().unwrap_or_else(|error| match error.kind() {
            ErrorKind::NotFound => {
                panic!(
                    "`{tool}` is not installed, and this test compares with it: install {}",
                    package_of(tool)
                )
            }
            _ => panic!("`{tool}` could not be run: {error}"),
        });
    let text = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    Answer { code: status.code().unwrap_or(-1), text }
}

/// Runs `tool`, which must succeed, and gives what it said.
pub(crate) fn run<A: AsRef<OsStr>>(tool: &str, arguments: &[A]) -> String {
    let answer = answer_of(tool, arguments);
    let shown: Vec<_> = arguments.iter().map(|a| a.as_ref().to_string_lossy()).collect();
    assert_eq!(answer.code, 0, "`{tool} {}` failed:\n{}", shown.join(" "), answer.text);
    answer.text
}

/// `qemu-img` with words separated by spaces, then `paths`.
pub(crate) fn img(words: &str, paths: &[&Path]) -> String {
    run("qemu-img", &arguments(words, paths))
}

/// As [`img`], whatever the exit code is.
pub(crate) fn img_answer(words: &str, paths: &[&Path]) -> Answer {
    answer_of("qemu-img", &arguments(words, paths))
}

fn arguments<'a>(words: &'a str, paths: &[&'a Path]) -> Vec<&'a OsStr> {
    words.split_whitespace().map(OsStr::new).chain(paths.iter().map(|path| path.as_os_str())).collect()
}

/// Runs `commands` in one `qemu-io` on a qcow2 image; all must succeed. Discards release space.
pub(crate) fn io(image: &Path, commands: &[String]) {
    let mut arguments: Vec<&OsStr> =
        ["-f", "qcow2", "-d", "unmap", "-t", "unsafe"].iter().map(OsStr::new).collect();
    for command in commands {
        arguments.push(OsStr::new("-c"));
        arguments.push(OsStr::new(command));
    }
    arguments.push(image.as_os_str());
    let text = run("qemu-io", &arguments);
    assert!(!text.contains("failed"), "qemu-io on {}: {text}", image.display());
}

/// `qemu-img check` must find neither an error nor a leak.
pub(crate) fn assert_check_clean(image: &Path) {
    let answer = img_answer("check -f qcow2", &[image]);
    assert_eq!(answer.code, 0, "qemu-img check {}:\n{}", image.display(), answer.text);
    assert!(answer.text.contains("No errors were found"), "qemu-img check: {}", answer.text);
}

/// `qemu-img check` must find no error; leaks are allowed. Somebody may have the image open for writing.
pub(crate) fn assert_check_finds_at_most_leaks(image: &Path) {
    let answer = img_answer("check -U -f qcow2", &[image]);
    assert!(matches!(answer.code, 0 | 3), "qemu-img check {}:\n{}", image.display(), answer.text);
}

/// The disk as QEMU reads it.
pub(crate) fn content(image: &Path) -> Vec<u8> {
    converted_content("convert -f qcow2 -O raw", image)
}

/// The disk as QEMU reads it while somebody has the image open for writing.
pub(crate) fn content_while_written(image: &Path) -> Vec<u8> {
    converted_content("convert -U -f qcow2 -O raw", image)
}

/// The disk of the internal snapshot `name` as QEMU reads it.
pub(crate) fn snapshot_content(image: &Path, name: &str) -> Vec<u8> {
    converted_content(&format!("convert -f qcow2 -l snapshot.name={name} -O raw"), image)
}

fn converted_content(words: &str, image: &Path) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let raw = folder.path().join("content.raw");
    img(words, &[image, &raw]);
    std::fs::read(&raw).expect("qemu-img wrote the file")
}

/// Panics with the first difference, and never with a dump of both.
pub(crate) fn assert_same_bytes(found: &[u8], expected: &[u8], what: &str) {
    // In one piece first: byte by byte takes many times as long.
    if found == expected {
        return;
    }
    if let Some(offset) = found.iter().zip(expected).position(|(a, b)| a != b) {
        let (found, expected) = (found[offset], expected[offset]);
        panic!("{what}: byte {offset:#x} is {found:#04x}, should be {expected:#04x}");
    }
    panic!("{what}: {} bytes, should be {}", found.len(), expected.len());
}
