//! `resize`: growing, and refusing to shrink.

use crate::workbench::{self, Workbench};

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
fn no_disk_becomes_smaller_unasked_and_no_size_is_guessed() {
    let bench = Workbench::with_images();
    let before = bench.content();
    for (arguments, part) in [
        ("resize child.qcow2 32M", "wants --shrink"),
        ("resize child.qcow2 -32M", "wants --shrink"),
        ("resize child.qcow2 -- -1", "wants --shrink"),
        ("resize child.qcow2 -100G", "zero or less"),
        ("resize --shrink child.qcow2 0", "zero or less"),
        ("resize --shrink child.qcow2 -1", "must be a multiple of 512"),
        ("resize child.qcow2 +100", "must be a multiple of 512"),
        ("resize child.qcow2 banana", "is not a size"),
        ("resize child.qcow2 +", "is not a size"),
        ("resize child.qcow2 7E", "too large"),
        ("resize child.qcow2 +7E", "too large"),
        ("resize child.qcow2 8E", "too large"),
        ("resize --preallocation=some child.qcow2 65M", "there are off, metadata, falloc and full"),
        ("resize --shrink --preallocation=full child.qcow2 32M", "only an image that grows"),
        ("resize --preallocation=full child.qcow2 64M", "only an image that grows"),
        ("resize -f raw --preallocation=metadata base.img 65M", "no metadata"),
        ("resize -U child.qcow2 65M", "no -U"),
        ("resize not-there 32M", "not-there"),
        ("resize child.qcow2", "[+-]SIZE"),
        ("resize child.qcow2 65M 66M", "66M"),
    ] {
        let run = bench.cowimg(arguments);
        assert_eq!(run.code, Some(1), "{arguments}");
        assert!(run.stderr.contains(part), "{arguments}: {}", run.stderr);
        assert_eq!(bench.content(), before, "{arguments}");
    }
}

#[test]
fn a_disk_shrinks_when_that_is_asked_for() {
    let bench = Workbench::with_images();
    let before = bench.cowimg("read child.qcow2 0 2M").ok().stdout;
    for (arguments, expected) in [
        ("resize --shrink child.qcow2 -32M", "32 MiB (33554432 bytes)"),
        ("resize child.qcow2 -q 32M", "32 MiB (33554432 bytes)"),
        ("resize child.qcow2 2M --shrink", "2 MiB (2097152 bytes)"),
        ("resize --preallocation=full child.qcow2 3M", "3 MiB (3145728 bytes)"),
        ("resize -f raw --shrink base.img 3M", "3 MiB (3145728 bytes)"),
        ("resize -f raw --preallocation=falloc base.img +1M", "4 MiB (4194304 bytes)"),
    ] {
        bench.cowimg(arguments).ok();
        let file = if arguments.contains("base.img") { "base.img" } else { "child.qcow2" };
        assert_eq!(size(&bench, file), expected, "{arguments}");
    }
    assert!(bench.cowimg("read child.qcow2 0 2M").ok().stdout == before);
    assert!(bench.cowimg("read child.qcow2 2M 1M").ok().stdout.iter().all(|&byte| byte == 0));
    bench.assert_sound("child.qcow2");
}

/// The same lines to both programs on equal images: what they print, what they answer, what they leave.
#[test]
fn called_as_qemu_img_it_resizes_as_qemu_img_does() {
    if workbench::reference_is_older() {
        return;
    }
    for arguments in [
        "resize a 65M",
        "resize a +1M",
        "resize a -1M",
        "resize --shrink a -1M",
        "resize a --shrink -q 5M",
        "resize a 63M -q --shrink",
        "resize a +0",
        "resize a -0",
        "resize a 0",
        "resize a -64M",
        "resize a +100",
        "resize a 8E",
        "resize a 16E",
        "resize a 1.5G",
        "resize a",
        "resize",
        "resize a 1M 2M",
        "resize --preallocation=metadata a 65M",
        "resize --preallocation=falloc a 65M",
        "resize --preallocation=full a 65M",
        "resize --preallocation=off a 65M",
        "resize --preallocation=metadata a 64M",
        "resize --preallocation=none a 65M",
        "resize -f qcow2 a 65M",
        "resize -f raw b.img 65M",
        "resize -f raw b.img 67108865",
        "resize -f raw --shrink b.img 1000",
        "resize -f raw --preallocation=full b.img 65M",
        "resize -f raw --preallocation=metadata b.img 65M",
        "resize b.img 65M",
        "resize -U a 65M",
        "resize --bogus a 65M",
        "resize none 65M",
    ] {
        let words: Vec<&str> = arguments.split_whitespace().collect();
        let [ours, theirs] = [Workbench::new(), Workbench::new()].map(|bench| {
            bench.qemu_img("create -q -f qcow2 a 64M");
            bench.qemu_io("a", &["write -P 1 0 2M", "write -P 3 62M 1M"]);
            bench.qemu_img("create -q -f raw b.img 64M");
            bench.qemu_io("b.img", &["write -P 1 0 2M"]);
            bench
        });
        let (run, expected) = (ours.as_qemu_img(&words), theirs.try_qemu_img(&words));
        assert_eq!((run.text(), run.code), (expected.text(), expected.code), "{arguments}: {}", run.stderr);
        assert_eq!(run.stderr.is_empty(), expected.stderr.is_empty(), "{arguments}: {}", run.stderr);
        for file in ["a", "b.img"] {
            assert_eq!(size(&ours, file), size(&theirs, file), "{arguments}");
            ours.try_qemu_img(&["compare", "-q", file, theirs.path(file).to_str().expect("it is text")]).ok();
        }
        ours.assert_sound("a");
    }
}
