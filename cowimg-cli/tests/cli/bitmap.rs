//! `bitmap`: the same command lines by both programs on equal images leave equal bitmaps.

use std::fs;

use crate::workbench::Workbench;

/// A disk of 10 MiB by each program's name.
fn pair() -> Workbench {
    let bench = Workbench::new();
    for name in ["ours.qcow2", "theirs.qcow2"] {
        bench.qemu_img(&format!("create -q -f qcow2 {name} 10M"));
    }
    bench
}

/// The part of qemu-img's report that is about bitmaps.
fn bitmaps(bench: &Workbench, name: &str) -> String {
    let text = bench.qemu_img(&format!("info {name}")).text();
    let lines = text.lines().skip_while(|line| line.trim() != "bitmaps:");
    lines.take_while(|line| !line.contains("refcount bits")).collect::<Vec<_>>().join("\n")
}

#[test]
fn command_lines_do_what_they_do_in_qemu_img() {
    let bench = pair();
    let lines = [
        "--add FILE b0",
        "--add --disable FILE b1",
        "--add -g 512 FILE b2",
        "--add -g 0 FILE b3",
        "--add -g 128k FILE b4",
        "--add -g 2G FILE b5",
        "--add FILE b6",
        "--add -g 1000 FILE b7",
        "--add -g 256 FILE b7",
        "--add -g 4G FILE b7",
        "--add -g 9x FILE b7",
        "--add FILE b0",
        "--merge b0 --merge b2 FILE b1",
        "--merge nosuch FILE b1",
        "--merge b1 FILE b1",
        "--clear --enable FILE b1",
        "--disable --clear --merge b0 --enable FILE b2",
        "--add --remove FILE b7",
        "--remove --add FILE b3",
        "--remove FILE nosuch",
        "-g 4k --clear FILE b1",
        "-b FILE --clear FILE b1",
        "-F qcow2 --merge b0 FILE b1",
        "-b FILE --merge b0 FILE b1",
        "-f raw --clear FILE b1",
        "--clear FILE",
        "--clear FILE b1 extra",
        "FILE b1",
        "--bogus FILE b1",
        "--clear nofile b1",
        "--remove FILE b0",
        "--remove FILE b1",
    ];
    for line in lines {
        let ours = bench.cowimg(&format!("bitmap {}", line.replace("FILE", "ours.qcow2")));
        let words = format!("bitmap {}", line.replace("FILE", "theirs.qcow2"));
        let words: Vec<&str> = words.split_whitespace().collect();
        let theirs = bench.try_qemu_img(&words);
        assert_eq!(ours.code, theirs.code, "{line}: {}{}", ours.stderr, theirs.stderr);
        assert_eq!(ours.text(), theirs.text(), "{line}");
        assert_eq!(bitmaps(&bench, "ours.qcow2"), bitmaps(&bench, "theirs.qcow2"), "{line}");
        for name in ["ours.qcow2", "theirs.qcow2"] {
            bench.qemu_io(name, &["write -q 1M 100k"]);
        }
        bench.assert_sound("ours.qcow2");
    }
}

#[test]
fn a_refused_command_changes_nothing() {
    let bench = pair();
    bench.qemu_img("bitmap --add ours.qcow2 b0");
    bench.qemu_img("create -q -f qcow2 -o compat=0.10 old.qcow2 1M");
    bench.qemu_img("create -q -f raw disk.img 1M");
    let content =
        || ["ours.qcow2", "old.qcow2", "disk.img"].map(|name| fs::read(bench.path(name)).expect("a file"));
    let before = content();
    for line in [
        "--add ours.qcow2 b0",
        "--add -g 1000 ours.qcow2 b1",
        "--remove ours.qcow2 nosuch",
        "--merge nosuch ours.qcow2 b0",
        "--add --merge nosuch ours.qcow2 b1",
        "--clear --merge nosuch ours.qcow2 b0",
        "--add --add ours.qcow2 b1",
        "--remove --enable ours.qcow2 b0",
        "--add --remove --enable ours.qcow2 b1",
        "--clear --merge b0 -b old.qcow2 -F qcow2 ours.qcow2 b0",
        "--add old.qcow2 b0",
        "--clear old.qcow2 b0",
        "--add -f raw disk.img b0",
        "--clear ours.qcow2",
        "-g 4k ours.qcow2 b0",
    ] {
        let run = bench.cowimg(&format!("bitmap {line}"));
        assert_eq!((run.code, run.text().as_str()), (Some(1), ""), "{line}");
        assert!(run.stderr.starts_with("cowimg: ") && !run.stderr.is_empty(), "{line}: {}", run.stderr);
        assert!(content() == before, "{line}");
    }
}

#[test]
fn bitmaps_are_listed_with_what_they_call_dirty() {
    let bench = pair();
    assert_eq!(bench.cowimg("bitmap ours.qcow2").ok().text(), "The image has no bitmaps.\n");
    bench.cowimg("bitmap --add ours.qcow2 daily").ok();
    bench.cowimg("bitmap --add --disable -g 1M ours.qcow2 idle").ok();
    bench.qemu_io("ours.qcow2", &["write -q 3M 65k"]);
    let human = bench.cowimg("bitmap ours.qcow2").ok().text();
    let rows: Vec<Vec<&str>> = human.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[1], ["64", "KiB", "128", "KiB", "records", "daily"]);
    assert_eq!(rows[2], ["1", "MiB", "0", "B", "disabled", "idle"]);
    let json = bench.cowimg("bitmap --json ours.qcow2").ok().text();
    assert!(json.contains("\"name\": \"daily\"") && json.contains("\"dirty-bytes\": 131072"), "{json}");
}

#[test]
fn a_bitmap_of_another_image_is_merged() {
    let bench = pair();
    bench.cowimg("bitmap --add -g 4k theirs.qcow2 from").ok();
    bench.qemu_io("theirs.qcow2", &["write -q 5M 4k"]);
    bench.cowimg("bitmap --add --merge from -b theirs.qcow2 -F qcow2 ours.qcow2 into").ok();
    let json = bench.cowimg("bitmap --json ours.qcow2").ok().text();
    assert!(json.contains("\"dirty-bytes\": 65536"), "{json}");
}
