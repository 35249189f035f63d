//! `snapshot`: the list, taking, applying and deleting, in both manners.

use crate::workbench::{self, Workbench};

fn bench_with_snapshots() -> Workbench {
    let bench = Workbench::new();
    bench.qemu_img("create -q -f qcow2 a 8M");
    bench.qemu_io("a", &["write -P 1 0 2M"]);
    bench.qemu_img("snapshot -c first a");
    bench.qemu_io("a", &["write -P 2 1M 2M"]);
    bench.qemu_img("snapshot -c second a");
    bench.qemu_io("a", &["write -P 3 2M 2M"]);
    bench.qemu_img("create -q -f raw b 8M");
    bench
}

/// The list without the dates.
fn names(bench: &Workbench) -> Vec<String> {
    let list = bench.qemu_img("snapshot -l a").text();
    list.lines().skip(2).map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn the_list_is_qemu_imgs_to_the_byte() {
    if workbench::reference_is_older() {
        return;
    }
    let bench = bench_with_snapshots();
    let theirs = bench.qemu_img("snapshot -l a").text();
    for arguments in ["snapshot a", "snapshot -l a", "snapshot --list -q -U -f qcow2 a"] {
        assert_eq!(bench.cowimg(arguments).ok().text(), theirs, "{arguments}");
    }
    assert_eq!(bench.cowimg("snapshot -l b").ok().text(), "");
    let json = bench.cowimg("snapshot --json a").ok().text();
    assert_eq!(json, bench.cowimg("snapshot -l --output=json a").ok().text());
    let info = bench.qemu_img("info --output=json a").text();
    for line in json.lines().map(str::trim).filter(|line| line.contains(':')) {
        assert!(info.contains(line), "{line}");
    }
}

#[test]
fn snapshots_are_taken_applied_and_deleted() {
    let bench = bench_with_snapshots();
    bench.cowimg("snapshot -c third a").ok();
    bench.cowimg("snapshot -c 1 a").ok();
    assert_eq!(names(&bench), ["1 first", "2 second", "3 third", "4 1"]);
    bench.cowimg("snapshot -a first a").ok();
    assert!(bench.cowimg("read a 0 2M").ok().stdout.iter().all(|&byte| byte == 1));
    bench.cowimg("snapshot -a 2 a").ok();
    assert!(bench.cowimg("read a 1M 2M").ok().stdout.iter().all(|&byte| byte == 2));
    let refused = bench.cowimg("snapshot -d 1 a");
    assert!(refused.stderr.contains("snapshot.name=1"), "{}", refused.stderr);
    bench.cowimg("snapshot -d snapshot.name=1 a").ok();
    bench.cowimg("snapshot -d 3 a").ok();
    bench.cowimg("snapshot -d first a").ok();
    assert_eq!(names(&bench), ["2 second"]);
    bench.assert_sound("a");
}

#[test]
fn what_cannot_be_done_changes_nothing() {
    let bench = bench_with_snapshots();
    bench.qemu_img("create -q -f qcow2 -o refcount_bits=1 narrow 1M");
    bench.qemu_io("narrow", &["write -P 1 0 64k"]);
    bench.qemu_img("create -q -f qcow2 marked 1M");
    bench.qemu_img("snapshot -c s marked");
    bench.qemu_img("bitmap --add marked m");
    let before = bench.content();
    let long = format!("snapshot -c {} a", "n".repeat(256));
    for (arguments, part) in [
        ("snapshot -c first a", "has a snapshot with name"),
        (long.as_str(), "longer than 255"),
        ("snapshot -a nosuch a", "no snapshot with id or name"),
        ("snapshot -d nosuch a", "no snapshot with id or name"),
        ("snapshot -d snapshot.id=9 a", "no snapshot with id"),
        ("snapshot -d snapshot.nam=first a", "did you mean"),
        ("snapshot -c x b", "a raw image cannot hold snapshots"),
        ("snapshot -a x b", "a raw image cannot hold snapshots"),
        ("snapshot -d x b", "a raw image cannot hold snapshots"),
        ("snapshot -c x narrow", "refcount_bits=1"),
        ("snapshot -a s marked", "bitmaps"),
        ("snapshot -l -c x a", "one thing at a time"),
        ("snapshot -c x -c y a", "one thing at a time"),
        ("snapshot -l -l a", "one thing at a time"),
        ("snapshot -U -c x a", ""),
        ("snapshot -c x none", "none"),
        ("snapshot -l a b", "'b'"),
        ("snapshot", "FILE"),
    ] {
        let run = bench.cowimg(arguments);
        assert_eq!(run.code, Some(1), "{arguments}: {}", run.stderr);
        assert!(run.stderr.contains(part), "{arguments}: {}", run.stderr);
        assert_eq!(bench.content(), before, "{arguments}");
    }
}

/// The same lines to both programs on equal images: what they print, what they answer, what they leave.
#[test]
fn called_as_qemu_img_it_does_what_qemu_img_does() {
    if workbench::reference_is_older() {
        return;
    }
    let long = format!("snapshot -c {} a", "n".repeat(300));
    for arguments in [
        "snapshot -c third a",
        "snapshot -c first a",
        "snapshot -c 1 a",
        long.as_str(),
        "snapshot -q -a first a",
        "snapshot -a 2 a",
        "snapshot -a nosuch a",
        "snapshot -d second a",
        "snapshot -d 1 a",
        "snapshot -d nosuch a",
        "snapshot -l b",
        "snapshot -f raw -c x b",
        "snapshot -f raw -a x b",
        "snapshot -f raw -d x b",
        "snapshot -f raw -l a",
        "snapshot -c x -l a",
        "snapshot -d first -d second a",
        "snapshot -U -c x a",
        "snapshot --json a",
        "snapshot --output=json a",
        "snapshot",
        "snapshot a b",
        "snapshot none",
    ] {
        let words: Vec<&str> = arguments.split_whitespace().collect();
        let [ours, theirs] = [bench_with_snapshots(), bench_with_snapshots()];
        let (run, expected) = (ours.as_qemu_img(&words), theirs.try_qemu_img(&words));
        assert_eq!((run.text(), run.code), (expected.text(), expected.code), "{arguments}: {}", run.stderr);
        assert_eq!(run.stderr.is_empty(), expected.stderr.is_empty(), "{arguments}: {}", run.stderr);
        assert_eq!(names(&ours), names(&theirs), "{arguments}");
        ours.try_qemu_img(&["compare", "-q", "a", theirs.path("a").to_str().expect("it is text")]).ok();
        ours.assert_sound("a");
    }
}
