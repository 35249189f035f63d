//! `clone`: many overlays of one image, each as qemu-img makes it, all or none.
#![allow(clippy::unwrap_used, reason = "what cannot fail here is part of what is tested")]

use std::fs;

use crate::workbench::Workbench;

fn read(bench: &Workbench, name: &str) -> Vec<u8> {
    fs::read(bench.path(name)).unwrap()
}

#[test]
fn each_overlay_is_qemus() {
    let bench = Workbench::with_images();
    bench.qemu_img("create -q -f qcow2 -b base.img -F raw theirs");
    let said = bench.cowimg("clone -F raw -n 12 base.img vm-%02d.qcow2").ok().text();
    assert!(said.contains("12 overlays") && said.contains("'vm-01.qcow2' to 'vm-12.qcow2'"), "{said}");
    for number in 1..=12 {
        assert!(read(&bench, &format!("vm-{number:02}.qcow2")) == read(&bench, "theirs"), "{number}");
    }
    bench.qemu_img("create -q -f qcow2 -o cluster_size=4k,compat=0.10 -b base.img -F raw others");
    let line = "clone -q -F raw -o cluster_size=4k,compat=0.10 base.img one two";
    assert_eq!(bench.cowimg(line).ok().text(), "");
    assert!(read(&bench, "one") == read(&bench, "others") && read(&bench, "two") == read(&bench, "others"));
}

#[test]
fn the_base_is_found_from_another_folder() {
    let bench = Workbench::with_images();
    fs::create_dir(bench.path("vms")).unwrap();
    bench.cowimg("clone -q -F raw -n 2 --first 0 base.img vms/%d.qcow2").ok();
    for name in ["vms/0.qcow2", "vms/1.qcow2"] {
        bench.qemu_img(&format!("compare -q -f raw -F qcow2 base.img {name}"));
    }
    bench.cowimg("clone -q -n 2 vms/0.qcow2 vms/above-%d.qcow2").ok();
    bench.qemu_img("compare -q -f raw -F qcow2 base.img vms/above-2.qcow2");
}

#[test]
fn one_that_cannot_be_made_leaves_none() {
    let bench = Workbench::with_images();
    fs::write(bench.path("vm-3"), "mine").unwrap();
    let before = bench.names();
    let failed = bench.cowimg("clone -F raw -n 5 base.img vm-%d");
    assert!(failed.code != Some(0));
    assert!(failed.stderr.contains("vm-3"));
    assert_eq!(bench.names(), before);
    assert_eq!(read(&bench, "vm-3"), b"mine");
    bench.cowimg("clone -q --force -F raw -n 5 base.img vm-%d").ok();
    assert!(read(&bench, "vm-3").starts_with(b"QFI\xfb"));
}

#[test]
fn lines_that_make_no_sense_make_nothing() {
    let bench = Workbench::with_images();
    let before = bench.names();
    for line in [
        "clone base.img",
        "clone -n 3 base.img same",
        "clone -n 3 base.img a%d b%d",
        "clone -n 0 base.img a%d",
        "clone missing.img a",
        "clone base.img a folder/b",
        "clone -u base.img a",
        "clone -o backing_file=x base.img a",
        "clone -F raw -o data_file=x base.img a b",
        "clone",
    ] {
        let failed = bench.cowimg(line);
        assert!(failed.code != Some(0), "{line}");
        assert!(!failed.stderr.is_empty(), "{line}");
        assert_eq!(bench.names(), before, "{line}");
    }
}
