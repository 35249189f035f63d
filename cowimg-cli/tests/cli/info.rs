//! `info`: the report is qemu-img's, byte for byte.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use crate::mounted::{Disk, on_a_disk};
use crate::workbench::{self, Workbench};

/// The report in all its forms.
const FORMS: [&str; 4] = ["", "--output=json", "--backing-chain", "-b -U --output=json"];

fn assert_same_reports(bench: &Workbench, file: &str) {
    for form in FORMS {
        bench.same(&format!("info {form} {file}"));
    }
}

/// Sets a byte of a file.
fn patch(bench: &Workbench, name: &str, offset: usize, byte: u8) {
    let mut bytes = fs::read(bench.path(name)).expect("the image can be read");
    bytes[offset] = byte;
    fs::write(bench.path(name), bytes).expect("the image can be written");
}

/// XFS gives a file space in steps that its maker asked for.
#[test]
fn the_steps_in_which_a_file_gets_space_are_told() {
    if workbench::reference_is_older() {
        return;
    }
    let bench = Workbench::new();
    let script = format!(
        "cd disk; qemu-img create -q -f raw base.raw 1M; qemu-img create -q -o extent_size_hint=0 -f raw none.raw 1M; \
         qemu-img create -q -f qcow2 -b base.raw -F raw -o extent_size_hint=64k top.qcow2; \
         {program} create -q two.qcow2 1M; cp base.raw copy.raw; \
         for image in *.qcow2 *.raw; do for form in '' --output=json '-b --output=human'; do \
         qemu-img info $form $image >theirs; {program} info $form $image >ours; \
         cmp theirs ours || cat theirs ours; grep -c extent.size ours >&2; done; done",
        program = env!("CARGO_BIN_EXE_cowimg")
    );
    let Some(output) = on_a_disk(&bench, Disk::Xfs, &script) else { return };
    let (said, found) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    assert!(found.is_empty(), "{found}{said}");
    // One of each file: top.qcow2 (and the one below it), two.qcow2, base.raw, copy.raw, none.raw.
    assert_eq!(said.split_whitespace().collect::<String>(), "112111111000000", "{said}");
}

/// What a header says is shown whether anybody knows it or not.
#[test]
fn all_that_a_header_says_is_shown_on_demand() {
    let bench = Workbench::new();
    bench.qemu_img("create -q -f raw base.img 1M");
    bench.qemu_img("create -q -f qcow2 -b base.img -F raw -o lazy_refcounts=on a.qcow2");
    bench.qemu_img("bitmap --add a.qcow2 daily");
    // A compatible and an autoclear feature that nobody knows, and a second bit of the latter kind with a name: the name table
    // follows the format's extension of 16 bytes.
    patch(&bench, "a.qcow2", 80, 0x80);
    patch(&bench, "a.qcow2", 95, 0x05);
    patch(&bench, "a.qcow2", 128 + 8 + 7 * 48 + 1, 2);
    let shown = bench.cowimg("info --header a.qcow2").ok().text();
    for line in [
        "Header:",
        "    version: 3",
        "    length: 112",
        "        offset: 196608",
        "    compatible features:",
        "        bits: 0x8000000000000001",
        "            [0]: lazy refcounts",
        "            [1]: bit 63",
        "            [1]: raw external data",
        "            type: 0x6803f857",
        "            name: feature name table",
        "            bitmaps: 1",
        "    backing file: base.img",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} is not in:\n{shown}");
    }
    let json = bench.cowimg("info --header --json a.qcow2").ok().text();
    assert!(json.contains("\"header\": {") && json.contains("\"bits\": \"0x5\""), "{json}");
    assert!(!bench.cowimg("info a.qcow2").ok().text().contains("Header:"));
    bench.qemu_img("create -q -f qcow b.qcow 1M");
    let old = bench.cowimg("info --header b.qcow").ok().text();
    assert!(old.contains("    version: 1\n") && old.contains("    l1 table offset: 48\n"), "{old}");
}

#[test]
fn every_image_of_a_chain_is_reported_as_by_qemu_img() {
    if workbench::reference_is_older() {
        return;
    }
    let bench = Workbench::with_images();
    for file in ["base.img", "base.qcow2", "child.qcow2", "top.qcow2", "comp.qcow2"] {
        assert_same_reports(&bench, file);
    }
}

#[test]
fn every_kind_of_image_is_reported_as_by_qemu_img() {
    if workbench::reference_is_older() {
        return;
    }
    let bench = Workbench::new();
    for (options, file) in [
        ("-o compat=0.10", "v2"),
        ("-o compression_type=zstd,lazy_refcounts=on,refcount_bits=8", "features"),
        ("-o extended_l2=on,cluster_size=128k", "subclusters"),
        ("-o preallocation=metadata", "preallocated"),
        ("-o preallocation=falloc,cluster_size=512", "small-clusters"),
        ("-o data_file=ext.raw,data_file_raw=on", "external"),
        ("--object secret,id=s,data=abc -o encrypt.format=aes,encrypt.key-secret=s", "aes"),
        (
            "--object secret,id=s,data=abc -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
            "luks",
        ),
    ] {
        bench.qemu_img(&format!("create -q -f qcow2 {options} {file} 16M"));
        assert_same_reports(&bench, file);
    }
}

#[test]
fn marks_in_the_header_are_reported_as_by_qemu_img() {
    if workbench::reference_is_older() {
        return;
    }
    let bench = Workbench::new();
    for (file, incompatible) in [("dirty", 1), ("corrupt", 2)] {
        bench.qemu_img(&format!("create -q -f qcow2 -o compat=1.1 {file} 16M"));
        patch(&bench, file, 79, incompatible);
        assert_same_reports(&bench, file);
    }
}

#[test]
fn snapshots_are_listed_as_by_qemu_img() {
    if workbench::reference_is_older() {
        return;
    }
    let bench = Workbench::with_images();
    bench.qemu_img("snapshot -c one top.qcow2");
    bench.qemu_io("top.qcow2", &["write 10M 1M"]);
    bench.try_qemu_img(&["snapshot", "-c", "a name longer than its column", "top.qcow2"]).ok();
    bench.try_qemu_img(&["snapshot", "-c", "quote\" and Umlaut ä", "top.qcow2"]).ok();
    assert_same_reports(&bench, "top.qcow2");
}

#[test]
fn bitmaps_are_listed_as_by_qemu_img() {
    if workbench::reference_is_older() {
        return;
    }
    let bench = Workbench::with_images();
    bench.qemu_img("bitmap --add child.qcow2 daily");
    bench.qemu_img("bitmap --add --disable -g 1M child.qcow2 idle");
    assert_same_reports(&bench, "child.qcow2");
}

#[test]
fn the_path_of_a_backing_file_is_told_where_its_name_is_not_the_path() {
    if workbench::reference_is_older() {
        return;
    }
    let bench = Workbench::with_images();
    fs::create_dir(bench.path("d")).unwrap();
    bench.qemu_img("create -q -f qcow2 -b ../base.img -F raw d/k.qcow2");
    let absolute = bench.path("d/k.qcow2");
    for file in ["d/k.qcow2", "./d/k.qcow2", "./top.qcow2", absolute.to_str().unwrap()] {
        assert_same_reports(&bench, file);
    }
}

#[test]
fn a_backing_file_that_is_missing_or_no_file_is_named_all_the_same() {
    if workbench::reference_is_older() {
        return;
    }
    let bench = Workbench::new();
    bench.qemu_img("create -q -f qcow2 -u -b gone.img -F raw gone.qcow2 1M");
    assert_same_reports(&bench, "gone.qcow2");
    bench.qemu_img("create -q -f qcow2 -u -b nbd://host/x -F raw net.qcow2 1M");
    bench.same("info net.qcow2");
    bench.same("info --output=json net.qcow2");
}

#[test]
fn a_raw_file_of_any_length_has_whole_sectors() {
    if workbench::reference_is_older() {
        return;
    }
    let bench = Workbench::new();
    for len in [0_usize, 1, 511, 512, 5000, 999 * 1024 + 512, 1024000, 1234567] {
        fs::write(bench.path("odd.img"), vec![1; len]).unwrap();
        assert_same_reports(&bench, "odd.img");
    }
    // Nothing is as large as it says.
    for len in [1 << 20, 1000 << 20, 999 << 30, 1 << 40, (1 << 43) + 512] {
        fs::File::create(bench.path("sparse.img")).unwrap().set_len(len).unwrap();
        assert_same_reports(&bench, "sparse.img");
    }
}

#[test]
fn names_of_any_bytes_are_printed_and_escaped_as_by_qemu_img() {
    if workbench::reference_is_older() {
        return;
    }
    let bench = Workbench::new();
    let name =
        b"q\"'b\\\x01\n\t\r\x08\x0c\x7f<>& \xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80\xff\xfe\xe2\x82x\xed\xa0\x80";
    let name = OsStr::from_bytes(name);
    bench
        .try_qemu_img(&[
            OsStr::new("create"),
            "-q".as_ref(),
            "-f".as_ref(),
            "qcow2".as_ref(),
            name,
            "1M".as_ref(),
        ])
        .ok();
    bench.same_with(&[OsStr::new("info"), name]);
    bench.same_with(&[OsStr::new("info"), "--output=json".as_ref(), name]);

    // The same name as a backing file's, which this program records.
    let create = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "z", "-b"].map(OsStr::new);
    bench.cowimg_with(&[&create[..], &[name]].concat()).ok();
    for form in FORMS {
        bench.same(&format!("info {form} z"));
    }
}

#[test]
fn json_has_a_short_name() {
    let bench = Workbench::with_images();
    for command in ["info", "check", "map"] {
        let long = bench.cowimg(&format!("{command} --output json child.qcow2")).ok();
        let short = bench.cowimg(&format!("{command} --json child.qcow2")).ok();
        assert_eq!(short.text(), long.text());
    }
}
