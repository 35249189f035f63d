//! `resize`: growing, and refusing to shrink.

use crate::workbench::Workbench;

fn size(bench: &Workbench, file: &str) -> String {
    let info = bench.qemu_img(&format!("info {file}")).text();
    info.lines().find_map(|line| line.strip_prefix("virtual size: ")).expect("info tells the size").to_owned()
}

#[test]
fn a_disk_grows_to_a_size_or_by_one() {
    let bench = Workbench::with_images();
    let before = bench.cowimg("read child.qcow2 0 64M").ok().stdout;
    for (arguments, expected) in [
        ("resize child.qcow2 65M", "65 MiB (68157440 bytes)"),
        ("resize child.qcow2 +512", "65 MiB (68157952 bytes)"),
        ("resize child.qcow2 +0", "65 MiB (68157952 bytes)"),
        ("resize --preallocation=off child.qcow2 +1G", "1.06 GiB (1141899776 bytes)"),
        ("resize -f raw base.img 100M", "100 MiB (104857600 bytes)"),
    ] {
        let run = bench.cowimg(arguments).ok();
        assert_eq!((run.text().as_str(), run.stderr.as_str()), ("Image resized.\n", ""), "{arguments}");
        assert_eq!(size(&bench, words_file(arguments)), expected);
    }
    assert!(bench.cowimg("resize -q child.qcow2 2G").ok().text().is_empty());
    bench.assert_sound("child.qcow2");
    assert!(bench.cowimg("read child.qcow2 0 64M").ok().stdout == before);
    let grown = bench.cowimg("read child.qcow2 64M 1M").ok().stdout;
    assert!(grown.iter().all(|&byte| byte == 0));
}

/// The file that a command line names: the last word but one.
fn words_file(arguments: &str) -> &str {
    arguments.split_whitespace().rev().nth(1).expect("a file is named")
}

#[test]
fn an_overlay_that_grows_does_not_show_more_of_a_larger_base() {
    let bench = Workbench::with_images();
    bench.cowimg("create -q -b base.img small.qcow2 1M").ok();
    bench.cowimg("resize small.qcow2 3M").ok();
    let grown = bench.cowimg("read small.qcow2 1M 2M").ok().stdout;
    assert!(grown.iter().all(|&byte| byte == 0));
    bench.assert_sound("small.qcow2");
}

#[test]
fn a_raw_file_without_a_stated_format_is_resized_with_a_warning() {
    let bench = Workbench::with_images();
    let run = bench.cowimg("resize base.img 65M").ok();
    assert!(run.stderr.contains("warning: base.img: no format was given"), "{}", run.stderr);
    assert_eq!(run.text(), "Image resized.\n");
}

#[test]
fn no_disk_becomes_smaller_and_no_size_is_guessed() {
    let bench = Workbench::with_images();
    let before = bench.content();
    for (arguments, part) in [
        ("resize child.qcow2 32M", "makes no disk smaller"),
        ("resize child.qcow2 -32M", "makes no disk smaller"),
        ("resize child.qcow2 -- -1", "makes no disk smaller"),
        ("resize child.qcow2 +100", "must be a multiple of 512"),
        ("resize child.qcow2 banana", "is not a size"),
        ("resize child.qcow2 +", "is not a size"),
        ("resize child.qcow2 7E", "too large"),
        ("resize child.qcow2 +7E", "too large"),
        ("resize child.qcow2 8E", "too large"),
        ("resize --preallocation=full child.qcow2 65M", "possible values: off"),
        ("resize --shrink child.qcow2 32M", "unexpected argument '--shrink'"),
        ("resize not-there 32M", "not-there"),
        ("resize child.qcow2", "[+]SIZE"),
    ] {
        let run = bench.cowimg(arguments);
        assert_eq!(run.code, Some(1), "{arguments}");
        assert!(run.stderr.contains(part), "{arguments}: {}", run.stderr);
        assert_eq!(bench.content(), before, "{arguments}");
    }
}
