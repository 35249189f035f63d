//! `check`: report, findings and exit codes.

use std::fs;

use crate::workbench::Workbench;

/// Overwrites bytes of a file.
fn patch(bench: &Workbench, name: &str, offset: usize, with: &[u8]) {
    let mut bytes = fs::read(bench.path(name)).expect("the image can be read");
    bytes[offset..offset + with.len()].copy_from_slice(with);
    fs::write(bench.path(name), bytes).expect("the image can be written");
}

fn assert_same_reports(bench: &Workbench, file: &str, code: i32) {
    for form in ["", "--output=json", "-q", "-q --output=json"] {
        assert_eq!(bench.same(&format!("check {form} {file}")).code, Some(code));
    }
}

/// An image of 48 clusters whose refcount block is at 0x20000, with five clusters of data from 0x50000 on.
fn with_data() -> Workbench {
    let bench = Workbench::new();
    bench.qemu_img("create -q -f qcow2 a 8M");
    bench.qemu_io("a", &["write 0 128k", "write 256k 64k", "write 128k 64k", "write -c 1M 64k"]);
    let file = fs::OpenOptions::new().write(true).open(bench.path("a")).expect("the image is there");
    file.set_len(48 << 16).expect("the image can grow");
    bench
}

#[test]
fn sound_images_have_qemu_imgs_report_and_0() {
    let bench = Workbench::with_images();
    bench.qemu_img("snapshot -c one top.qcow2");
    for file in ["base.qcow2", "child.qcow2", "top.qcow2", "comp.qcow2"] {
        assert_same_reports(&bench, file, 0);
    }
    for (options, file) in [
        ("compat=0.10", "v2"),
        ("refcount_bits=1", "bits"),
        ("preallocation=metadata", "metadata"),
        ("extended_l2=on", "subclusters"),
    ] {
        bench.qemu_img(&format!("create -q -f qcow2 -o {options} {file} 16M"));
        assert_same_reports(&bench, file, 0);
    }
}

#[test]
fn leaks_are_3_and_contradictions_2_with_qemu_imgs_findings() {
    let bench = with_data();
    let refcount = |cluster: usize| 0x20000 + 2 * cluster;
    fs::copy(bench.path("a"), bench.path("leaks")).unwrap();
    patch(&bench, "leaks", refcount(40), &[0, 1]);
    patch(&bench, "leaks", refcount(41), &[0, 2]);
    assert_same_reports(&bench, "leaks", 3);

    fs::copy(bench.path("leaks"), bench.path("both")).unwrap();
    patch(&bench, "both", refcount(6), &[0, 0]);
    patch(&bench, "both", refcount(7), &[0, 3]);
    assert_same_reports(&bench, "both", 2);

    for file in ["leaks", "both"] {
        let theirs = bench.try_qemu_img(&["check", file]).stderr;
        assert_eq!(bench.cowimg(&format!("check {file}")).stderr, theirs);
        assert_eq!(bench.cowimg(&format!("check -q {file}")).stderr, theirs);
    }
}

#[test]
fn raw_has_nothing_to_check_which_is_63() {
    let bench = Workbench::with_images();
    for arguments in ["check base.img", "check -f raw base.qcow2"] {
        assert_eq!(bench.same(arguments).code, Some(63));
        assert!(bench.cowimg(arguments).stderr.contains("nothing to check"));
    }
}

#[test]
fn what_cannot_be_checked_is_1() {
    let bench = Workbench::with_images();
    for arguments in ["check not-there", "check .", "check -f qcow2 base.img", "check"] {
        assert_eq!(bench.same(arguments).code, Some(1));
    }
}

#[test]
fn the_backing_file_may_be_anywhere() {
    let bench = Workbench::with_images();
    fs::rename(bench.path("base.img"), bench.path("moved.img")).unwrap();
    let run = bench.cowimg("check child.qcow2").ok();
    assert!(run.text().starts_with("No errors were found"), "{}", run.text());
}

#[test]
fn nothing_is_changed() {
    let bench = with_data();
    patch(&bench, "a", 0x20000 + 80, &[0, 1]);
    let before = bench.content();
    assert_eq!(bench.cowimg("check a").code, Some(3));
    assert_eq!(bench.content(), before);
}
