//! Calls of the host that fail, one in each run of the program: an error and nothing left, or the whole image. The calls are
//! real and fail for real, by strace; where there is none these tests say so and pass. `COWIMG_FAILED_CALLS=all` fails each
//! call with each error, as `make soak` does; without it one error is drawn for each.
#![allow(clippy::unwrap_used, reason = "what cannot fail here is part of what is tested")]

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use crate::workbench::Workbench;

/// Calls by which files are made, filled, synced and named.
const CALLS: [&str; 12] = [
    "openat",
    "pwrite64",
    "ftruncate",
    "fallocate",
    "fsync",
    "linkat",
    "renameat2",
    "rename",
    "pread64",
    "lseek",
    "fcntl",
    "copy_file_range",
];

const ERRORS: [&str; 3] = ["EIO", "ENOSPC", "EINTR"];

/// Images to work with: base.qcow2 with data, old.qcow2 to be replaced.
fn template() -> Workbench {
    let bench = Workbench::new();
    for name in ["base.qcow2", "old.qcow2"] {
        bench.qemu_img(&format!("create -q -f qcow2 -o cluster_size=4k {name} 1M"));
    }
    bench.qemu_io("base.qcow2", &["write -q -P 1 0 64k", "write -q -P 2 512k 8k"]);
    bench
}

fn content(bench: &Workbench) -> Vec<(String, Vec<u8>)> {
    let names = bench.names().into_iter().filter(|name| name != "trace");
    names.map(|name| (name.clone(), fs::read(bench.path(&name)).unwrap())).collect()
}

/// Runs the program; with a call, an error and a number, that call of them fails so. Returns the exit code, what was said,
/// and whether the program has come so far.
fn run(bench: &Workbench, line: &str, fault: Option<(&str, &str, u32)>) -> (Option<i32>, String, bool) {
    let mut command = bench.command(if fault.is_some() { "strace" } else { env!("CARGO_BIN_EXE_cowimg") });
    if let Some((call, error, nth)) = fault {
        let inject = format!("inject={call}:error={error}:when={nth}");
        let trace = format!("trace={call}");
        command.args(["-f", "-q", "-o", "trace", "-e", &trace, "-e", &inject]);
        command.arg(env!("CARGO_BIN_EXE_cowimg"));
    }
    let output = command.args(line.split_whitespace()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.signal().is_none() && !said.contains("panicked"), "{line}, {fault:?}: {said}");
    let was_met = fs::read_to_string(bench.path("trace")).is_ok_and(|trace| trace.contains("(INJECTED)"));
    (output.status.code(), said, was_met)
}

/// Whether strace is there and may do what it does.
pub(crate) fn has_strace() -> bool {
    let tried = Command::new("strace")
        .args(["-q", "-o", "/dev/null", "-e", "trace=fsync", "-e", "inject=fsync:error=EIO", "true"])
        .status();
    let is_there = tried.is_ok_and(|status| status.success());
    if !is_there {
        eprintln!("no strace, or it may not be used here: not tried");
    }
    is_there
}

/// Fails each call of the verb in turn. An old image that is to be replaced stays or is the new one.
fn fail_each_call(line: &str) {
    if !has_strace() {
        return;
    }
    let bench = template();
    let before = content(&bench);
    let reset = || {
        for name in bench.names() {
            fs::remove_file(bench.path(&name)).unwrap();
        }
        for (name, bytes) in &before {
            fs::write(bench.path(name), bytes).unwrap();
        }
    };
    assert_eq!(run(&bench, line, None).0, Some(0));
    let after = content(&bench);
    let all = std::env::var("COWIMG_FAILED_CALLS").is_ok_and(|wanted| wanted == "all");
    let (mut faults, mut failures) = (0, 0);
    for call in CALLS {
        for nth in 1.. {
            let drawn = nth as usize % ERRORS.len();
            let mut is_over = false;
            for error in if all { &ERRORS[..] } else { &ERRORS[drawn..=drawn] } {
                reset();
                let (code, said, was_met) = run(&bench, line, Some((call, error, nth)));
                is_over |= !was_met;
                faults += u32::from(was_met);
                let now = content(&bench);
                let context = format!("`{line}`, {error} in {call} {nth}: exit code {code:?}: {said}");
                if code == Some(0) {
                    assert!(now == after, "{context}: it is not what it was to be");
                } else {
                    failures += 1;
                    // Another's name cannot be given back once it has been taken over.
                    let is_replaced = line.contains("--force") && now == after;
                    let names: Vec<_> = now.iter().map(|(name, _)| name).collect();
                    assert!(now == before || is_replaced, "{context}: something is left, or gone: {names:?}");
                }
            }
            if is_over {
                break;
            }
        }
    }
    println!("`{line}`: {faults} calls failed, and {failures} times the program; nothing half");
    assert!(failures > 5, "`{line}`: {failures} of {faults}");
}

#[test]
fn an_image_that_is_created() {
    fail_each_call("create -q new.qcow2 1M");
}

#[test]
fn an_image_whose_space_is_taken() {
    fail_each_call("create -q -o preallocation=falloc,cluster_size=4k new.qcow2 1M");
}

#[test]
fn an_image_that_is_written_whole() {
    fail_each_call("create -q -o preallocation=full new.raw 1M");
}

#[test]
fn an_image_with_a_data_file() {
    fail_each_call("create -q -o preallocation=metadata,data_file=data new.qcow2 1M");
}

#[test]
fn an_image_that_is_converted_with_a_data_file() {
    fail_each_call("convert -q -m 1 -t writeback -O qcow2 -o data_file=data base.qcow2 new.qcow2");
}

#[test]
fn an_image_that_takes_anothers_name() {
    fail_each_call("create -q --force -b base.qcow2 -F qcow2 old.qcow2");
}

#[test]
fn many_images_at_once() {
    fail_each_call("clone -q -F qcow2 base.qcow2 a.qcow2 b.qcow2 c.qcow2");
}

#[test]
fn an_image_that_is_converted() {
    fail_each_call("convert -q -m 1 -t writeback base.qcow2 new.qcow2");
}

#[test]
fn a_part_of_an_image_that_is_copied() {
    fail_each_call("dd if=base.qcow2 of=new.raw bs=64k");
}
