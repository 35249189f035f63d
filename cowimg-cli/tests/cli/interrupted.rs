//! Signals that come while an image is made: no half image has the name, and no file is left beside it.
#![allow(clippy::unwrap_used, reason = "what cannot fail here is part of what is tested")]

use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use crate::workbench::Workbench;

/// Starts the program, under a name, and waits until it has made a file more than are there, with a name or without.
pub(crate) fn started(bench: &Workbench, program: &str, line: &str) -> Child {
    let before = bench.names().len();
    let mut command = bench.command(env!("CARGO_BIN_EXE_cowimg"));
    command.arg0(program).args(line.split_whitespace()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let start = Instant::now();
    while bench.names().len() == before && !has_a_nameless_file(&child, bench) {
        assert!(child.try_wait().unwrap().is_none(), "`{line}` ended before it made a file");
        assert!(start.elapsed() < Duration::from_secs(60), "`{line}` makes no file");
        std::thread::sleep(Duration::from_millis(1));
    }
    child
}

/// Whether the program has a file of this folder open that has no name yet.
fn has_a_nameless_file(child: &Child, bench: &Workbench) -> bool {
    let folder = fs::canonicalize(bench.folder()).unwrap();
    let Ok(descriptors) = fs::read_dir(format!("/proc/{}/fd", child.id())) else { return false };
    let files = descriptors.flatten().filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
    let mut nameless = files.filter(|file| file.to_string_lossy().ends_with(" (deleted)"));
    nameless.any(|file| file.starts_with(&folder))
}

fn stopped_by(signal: i32, child: Child) -> Output {
    let name = if signal == 2 { "-INT" } else { "-TERM" };
    let killed = std::process::Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    child.wait_with_output().unwrap()
}

#[test]
fn a_creation_that_is_stopped_leaves_nothing() {
    let bench = Workbench::new();
    let lines = [
        ("cowimg", "create -o preallocation=full new.raw 64G"),
        ("cowimg", "create -o preallocation=full new.qcow2 64G"),
        ("cowimg", "create -o preallocation=full,data_file=data new.qcow2 64G"),
        ("cowimg", "convert -o preallocation=full -O raw empty.img new.raw"),
        ("cowimg", "convert -o preallocation=full empty.img new.qcow2"),
        ("qemu-img", "create -f qcow2 -o preallocation=full new.qcow2 64G"),
        ("qemu-img", "convert -o preallocation=full -O qcow2 empty.img new.qcow2"),
    ];
    // Larger than what can be written before the signal comes, and of no weight.
    fs::File::create(bench.path("empty.img")).unwrap().set_len(64 << 30).unwrap();
    for (nth, (program, line)) in lines.into_iter().enumerate() {
        let signal = if nth % 2 == 0 { 2 } else { 15 };
        let output = stopped_by(signal, started(&bench, program, line));
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(signal), "`{line}`: {said}");
        assert!(said.contains("stopped") && said.contains("new."), "`{line}`: {said}");
        assert_eq!(bench.names(), ["empty.img"], "`{line}`");
    }
}

/// The file whose name is taken over is as it was until the new one is complete.
#[test]
fn a_creation_that_is_stopped_leaves_what_it_was_to_replace() {
    let bench = Workbench::new();
    fs::write(bench.path("new.raw"), b"old").unwrap();
    let child = started(&bench, "cowimg", "create --force -o preallocation=full new.raw 64G");
    let output = stopped_by(2, child);
    assert_eq!(output.status.signal(), Some(2));
    assert_eq!(bench.names(), ["new.raw"]);
    assert_eq!(fs::read(bench.path("new.raw")).unwrap(), b"old");
}
