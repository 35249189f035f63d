//! `create`: the line and the file are qemu-img's, byte for byte.

use std::fs;

use crate::workbench::{self, Workbench};

/// Runs both programs, and compares what they say and what they make (the file `z`).
fn assert_same_creation(bench: &Workbench, arguments: &str) {
    let (ours, theirs) = (bench.path("z"), bench.path("theirs"));
    let said_by_them = bench.qemu_img(&format!("create {arguments}")).text();
    fs::rename(&ours, &theirs).expect("qemu-img has made the file");
    let run = bench.cowimg(&format!("create {arguments}")).ok();
    assert_eq!(run.text(), said_by_them, "{arguments}");
    let read = |path| fs::read(path).expect("the file can be read");
    assert!(read(&ours) == read(&theirs), "the files differ: create {arguments}");
    fs::remove_file(ours).expect("the file can be removed");
}

#[test]
fn every_cluster_size_and_refcount_width_makes_qemus_file() {
    let bench = Workbench::with_images();
    for cluster_size in ["512", "1k", "4k", "64k", "2M"] {
        for refcount_bits in [1, 2, 4, 8, 16, 32, 64] {
            let options = format!("cluster_size={cluster_size},refcount_bits={refcount_bits}");
            assert_same_creation(&bench, &format!("-f qcow2 -o {options} z 1G"));
        }
        assert_same_creation(&bench, &format!("-f qcow2 -o cluster_size={cluster_size},compat=0.10 z 100M"));
        assert_same_creation(
            &bench,
            &format!("-f qcow2 -b base.img -F raw -o cluster_size={cluster_size} z"),
        );
    }
}

#[test]
fn every_preallocation_makes_qemus_file() {
    let bench = Workbench::new();
    for mode in ["off", "metadata", "falloc", "full"] {
        for cluster_size in ["512", "64k", "2M"] {
            let options = format!("preallocation={mode},cluster_size={cluster_size}");
            assert_same_creation(&bench, &format!("-f qcow2 -o {options} z 3M"));
        }
        if mode != "metadata" {
            assert_same_creation(&bench, &format!("-f raw -o preallocation={mode} z 1000"));
        }
    }
}

#[test]
fn every_option_makes_qemus_file_and_line() {
    if workbench::reference_is_older() {
        return;
    }
    let bench = Workbench::with_images();
    for arguments in [
        "-f raw z 1000",
        "-f raw z 0",
        "-f raw -o size=3M z",
        "-f qcow2 z 0",
        "-f qcow2 z 1",
        "-f qcow2 z 1000",
        "-f qcow2 z 1.5G",
        "-f qcow2 z 7T",
        "-f qcow2 -q z 1M",
        "-f qcow2 -o cluster_size=2M z 1E",
        "-f qcow2 -o compression_type=zstd z 1M",
        "-f qcow2 -o lazy_refcounts z 1M",
        "-f qcow2 -o lazy_refcounts=yes z 1M",
        "-f qcow2 -o compat=v2,lazy_refcounts=off z 1M",
        "-f qcow2 -o compat=v3 -o size=5M z",
        "-f qcow2 -o size=5k -o size=7k z",
        "-f qcow2 -o extended_l2=off z 1M",
        "-f qcow2 -o extended_l2=on z 1M",
        "-f qcow2 -o extended_l2=on,cluster_size=16k,preallocation=metadata -b child.qcow2 -F qcow2 z",
        "-f qcow2 -b child.qcow2 -F qcow2 z",
        "-f qcow2 -b child.qcow2 -F qcow2 z 100M",
        "-f qcow2 -b child.qcow2 -F qcow2 z 500",
        "-f qcow2 -b file:base.img -F raw z",
        "-f qcow2 -o backing_file=base.img,backing_fmt=raw,compat=0.10 z",
        "-f qcow2 -u -b not-there -F raw z 1M",
        "--format qcow2 --backing base.img --backing-format raw z",
    ] {
        assert_same_creation(&bench, arguments);
    }
}

#[test]
fn a_name_with_a_comma_is_doubled_in_the_line() {
    let bench = Workbench::new();
    bench.qemu_img("create -q -f raw a,b.img 1M");
    assert_same_creation(&bench, "-f qcow2 -b a,b.img -F raw z");
    assert_same_creation(&bench, "-f qcow2 -o backing_file=a,,b.img,backing_fmt=raw z");
}

#[test]
fn a_child_needs_no_format_and_no_size() {
    let bench = Workbench::with_images();
    let run = bench.cowimg("create -b base.img child2.qcow2").ok();
    assert!(run.text().contains("backing_file=base.img backing_fmt=raw"), "{}", run.text());
    assert!(run.stderr.contains("base.img: format raw found by looking"), "{}", run.stderr);
    bench.assert_same_disk("base.img", "child2.qcow2");

    let run = bench.cowimg("create -b top.qcow2 child3.qcow2").ok();
    assert!(run.stderr.contains("top.qcow2: format qcow2 found by looking"), "{}", run.stderr);
    bench.assert_same_disk("top.qcow2", "child3.qcow2");
    let info = bench.qemu_img("info child3.qcow2").text();
    assert!(info.contains("backing file format: qcow2"), "{info}");
}

#[test]
fn the_format_follows_the_name_only_where_nothing_else_says_it() {
    let bench = Workbench::with_images();
    for (arguments, format) in [
        ("create a.raw 1M", "raw"),
        ("create a.img 1M", "raw"),
        ("create a.qcow2 1M", "qcow2"),
        ("create a 1M", "qcow2"),
        ("create -b base.img b.img", "qcow2"),
        ("create -f raw b.qcow2 1M", "raw"),
        ("create -f qcow2 b.raw 1M", "qcow2"),
    ] {
        let run = bench.cowimg(arguments).ok();
        assert!(run.text().contains(&format!("fmt={format} ")), "{arguments}: {}", run.text());
    }
}

#[test]
fn an_existing_file_is_replaced_only_by_force() {
    let bench = Workbench::new();
    bench.cowimg("create z 1M").ok();
    let before = bench.content();
    let run = bench.cowimg("create z 2M");
    assert_eq!(run.code, Some(1));
    assert!(run.stderr.contains("--force"), "{}", run.stderr);
    assert_eq!(bench.content(), before);

    bench.cowimg("create --force z 2M").ok();
    let info = bench.qemu_img("info z").text();
    assert!(info.contains("virtual size: 2 MiB"), "{info}");
    assert_eq!(bench.names(), ["z"]);
}

#[test]
fn options_are_listed_on_request() {
    let bench = Workbench::new();
    for arguments in ["create -o help", "create -f qcow2 -o ? z", "convert -O qcow2 -o help"] {
        let run = bench.cowimg(arguments).ok();
        assert!(run.text().starts_with("Supported qcow2 options:\n  backing_file=<str>"), "{}", run.text());
    }
    assert!(bench.names().is_empty());
}
