//! The command line itself: help, version, usage errors, and output that nobody reads.

use std::process::Stdio;

use crate::workbench::{self, Workbench};

const COMMANDS: [&str; 10] =
    ["create", "info", "check", "map", "convert", "resize", "read", "write", "zero", "discard"];

#[test]
fn the_version_is_in_qemu_imgs_form() {
    let bench = Workbench::new();
    let expected = format!("cowimg version {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(bench.cowimg("--version").ok().text(), expected);
    assert_eq!(bench.cowimg("-V").ok().text(), expected);
}

#[test]
fn every_command_has_help() {
    let bench = Workbench::new();
    let all = bench.cowimg("--help").ok().text();
    for command in COMMANDS {
        assert!(all.contains(&format!("\n  {command} ")), "{all}");
        let help = bench.cowimg(&format!("{command} --help")).ok().text();
        assert!(help.contains(&format!("Usage: cowimg {command}")), "{help}");
    }
}

#[test]
fn a_line_that_makes_no_sense_is_1_and_says_where_to_read_on() {
    let bench = Workbench::new();
    for (arguments, part) in [
        ("", "which command"),
        ("frobnicate", "unrecognized subcommand 'frobnicate'"),
        ("inof x", "'info'"),
        ("create", "<FILE>"),
        ("create --frobnicate x 1M", "unexpected argument '--frobnicate'"),
        ("info --output=yaml x", "[possible values: human, json]"),
        ("map --start-offset=x y", "'x' is not a size"),
        ("check -r some x", "there are leaks and all"),
    ] {
        let run = bench.cowimg(arguments);
        assert_eq!(run.code, Some(1), "{arguments}");
        assert!(run.stderr.contains(part), "{arguments}: {}", run.stderr);
        let command = arguments.split(' ').next().filter(|word| COMMANDS.contains(word));
        let hint = command.map_or("Try 'cowimg --help' for more info\n".to_owned(), |command| {
            format!("Try 'cowimg {command} --help' for more info\n")
        });
        assert!(run.stderr.ends_with(&hint), "{arguments}: {}", run.stderr);
        assert!(run.stdout.is_empty());
    }
}

#[test]
fn options_may_be_shortened_repeated_and_come_last() {
    if workbench::reference_is_older() {
        return;
    }
    let bench = Workbench::with_images();
    bench.same("info --out json base.img");
    bench.same("info base.img --output=human --output=json");
    bench.same("map -fqcow2 child.qcow2 --out=json");
}

#[test]
fn a_closed_output_is_no_failure_and_a_full_one_is() {
    let bench = Workbench::with_images();
    let closed = bench
        .command(env!("CARGO_BIN_EXE_cowimg"))
        .args(["read", "base.img", "0", "64M"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = closed.unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));

    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output =
        bench.command(env!("CARGO_BIN_EXE_cowimg")).args(["info", "base.img"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("standard output"));
}

#[test]
fn completions_and_manual_pages_name_every_command() {
    let bench = Workbench::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = bench.cowimg(&format!("completions {shell}")).ok().text();
        assert!(COMMANDS.iter().all(|command| script.contains(command)), "{shell}");
    }
    assert!(bench.cowimg("man").ok().text().contains(".TH cowimg 1"));
    std::fs::create_dir(bench.path("pages")).unwrap();
    bench.cowimg("man pages").ok();
    for command in COMMANDS {
        let page = std::fs::read_to_string(bench.path(format!("pages/cowimg-{command}.1"))).unwrap();
        assert!(page.contains(".SH OPTIONS") && page.contains(".SH SYNOPSIS"), "{command}");
    }
    assert!(bench.path("pages/cowimg.1").exists());
    assert_eq!(bench.cowimg("man missing").code, Some(1));
}
