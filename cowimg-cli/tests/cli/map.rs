//! `map`: the table and the list are qemu-img's, byte for byte.

use std::fs;

use crate::workbench::{self, Workbench};

fn assert_same_maps(bench: &Workbench, file: &str) {
    for form in ["", "--output=json"] {
        for range in [
            "",
            "--start-offset=100 --max-length=70000",
            "--start-offset 1M",
            "--max-length=0",
            "--start-offset=7T",
        ] {
            bench.same(&format!("map {form} {range} {file}"));
        }
    }
}

#[test]
fn every_image_of_a_chain_is_mapped_as_by_qemu_img() {
    if workbench::reference_is_older() {
        return;
    }
    let bench = Workbench::with_images();
    bench.qemu_io("comp.qcow2", &["write 3M 64k"]);
    for file in ["base.img", "base.qcow2", "child.qcow2", "top.qcow2", "comp.qcow2"] {
        assert_same_maps(&bench, file);
    }
}

#[test]
fn clusters_of_every_kind_are_mapped_as_by_qemu_img() {
    if workbench::reference_is_older() {
        return;
    }
    let bench = Workbench::new();
    bench.qemu_img("create -q -f qcow2 a 8M");
    let out_of_order = ["write 0 128k", "write 256k 64k", "write 128k 64k"];
    bench.qemu_io("a", &out_of_order);
    bench.qemu_io("a", &["write -z 512k 64k", "write -z 0 64k", "write 1M 300k"]);
    bench.qemu_img("create -q -f qcow2 -b a -F qcow2 b");
    bench.qemu_io("b", &["write 192k 64k", "write -z -u 256k 64k"]);
    bench.qemu_img("create -q -f qcow2 -o preallocation=metadata pm 4M");
    bench.qemu_io("pm", &["write 1M 64k"]);
    bench.qemu_img("create -q -f qcow2 -o preallocation=falloc pf 4M");
    bench.qemu_img("create -q -f qcow2 -o compat=0.10,cluster_size=512 small 1M");
    bench.qemu_io("small", &["write 3k 5k", "write 100k 1k"]);
    bench.qemu_img("create -q -f qcow2 -b a -F qcow2 larger 20M");
    bench.qemu_io("larger", &["write 15M 64k"]);
    for file in ["a", "b", "larger", "pm", "pf", "small"] {
        assert_same_maps(&bench, file);
    }
}

#[test]
fn a_raw_file_of_any_length_is_mapped_to_whole_sectors() {
    if workbench::reference_is_older() {
        return;
    }
    let bench = Workbench::new();
    for len in [0_usize, 3, 512, 5000] {
        fs::write(bench.path("odd.img"), vec![1; len]).unwrap();
        assert_same_maps(&bench, "odd.img");
    }
    fs::File::create(bench.path("hole.img")).unwrap().set_len(1000).unwrap();
    assert_same_maps(&bench, "hole.img");
}

#[test]
fn the_table_names_each_layers_file_as_it_was_found() {
    if workbench::reference_is_older() {
        return;
    }
    let bench = Workbench::with_images();
    fs::create_dir(bench.path("d")).unwrap();
    bench.qemu_img("create -q -f qcow2 -b ../base.img -F raw d/k.qcow2");
    bench.qemu_io("d/k.qcow2", &["write 3M 64k"]);
    let absolute = bench.path("d/k.qcow2");
    for file in ["d/k.qcow2", "./d/k.qcow2", absolute.to_str().unwrap()] {
        assert_same_maps(&bench, file);
    }
}

#[test]
fn what_the_table_cannot_show_is_said() {
    let bench = Workbench::with_images();
    let run = bench.cowimg("map comp.qcow2");
    assert_eq!(run.code, Some(1));
    assert!(run.stderr.contains("compressed") && run.stderr.contains("--json"), "{}", run.stderr);
}
