//! The strict manner: command lines as getopt reads them, and what `create` announces, beside qemu-img.

use std::process::Command;
use std::time::Duration;

use crate::interrupted::started;
use crate::workbench::{self, Workbench};

fn same(bench: &Workbench, line: &str) {
    let arguments: Vec<&str> = line.split_whitespace().collect();
    let theirs = bench.try_qemu_img(&arguments);
    let ours = bench.as_qemu_img(&arguments);
    assert_eq!(ours.text(), theirs.text(), "{line}: {}{}", ours.stderr, theirs.stderr);
    assert_eq!(ours.code, theirs.code, "{line}: {}{}", ours.stderr, theirs.stderr);
    if ours.code != Some(0) {
        assert!(ours.stderr.starts_with("qemu-img: "), "{line}: {}", ours.stderr);
    }
}

#[test]
fn options_stand_anywhere_and_in_any_form() {
    if workbench::reference_is_older() {
        return;
    }
    let bench = Workbench::new();
    for line in [
        "create -- a.img 1M",
        "create -f qcow2 -f raw b.img 1M",
        "create --form qcow2 c.img 1M",
        "create -fqcow2 c.img 1M",
        "create c.img 1M -f qcow2",
        "create -qf qcow2 c.img 1M",
        "create --format=qcow2 --options=cluster_size=4k -o compat=v3 c.img 1.5M",
        "create -f qcow2 -f",
        "create -f -q c.img 1M",
        "create --objec secret,id=a,data=b --format=qcow2 c.img 1M",
        "create --back a.img c.img 1M",
        "create",
        "create c.img 1M extra",
        "create --json c.img 1M",
        "create --force c.img 1M",
        "create c.img -1",
        "info c.img --output=human --output json",
        "info --outp=json c.img",
        "info --output=yaml c.img",
        "info --json c.img",
        "info -b c.img",
        "info c.img extra",
        "info",
        "inf c.img",
        "map -s 0 -l 64k c.img",
        "map --start-offset=-1 c.img",
        "map --start-offset=x c.img",
        "map --max-length 1k --start-offset 1k --output=json c.img",
        "read c.img 0 1",
        "completions bash",
        "man",
        "-x",
        "--nosuch",
        "",
        "check --nosuch c.img",
    ] {
        same(&bench, line);
    }
}

#[test]
fn the_announcement_of_an_image_is_qemu_imgs_also_before_a_failure() {
    if workbench::reference_is_older() {
        return;
    }
    let bench = Workbench::new();
    bench.qemu_img("create -q -f raw base.img 1M");
    for line in [
        "create a.img 1M",
        "create -f raw -o preallocation=full a.img 1M",
        "create -f raw -o preallocation=metadata a.img 1M",
        "create -f qcow2 -o cluster_size=3000 a.qcow2 1M",
        "create -f qcow2 -o cluster_size=x a.qcow2 1M",
        "create -f qcow2 -o compat=1.2 a.qcow2 1M",
        "create -f qcow2 -o compat=0.10,compression_type=zstd a.qcow2 1M",
        "create -f qcow2 -o compression_type=lzma a.qcow2 1M",
        "create -f qcow2 -o refcount_bits=7 a.qcow2 1M",
        "create -f qcow2 -o refcount_bits=x a.qcow2 1M",
        "create -f qcow2 -o preallocation=some a.qcow2 1M",
        "create -f qcow2 -o lazy_refcounts=maybe a.qcow2 1M",
        "create -f qcow2 -o lazy_refcounts=on,compat=0.10 a.qcow2 1M",
        "create -f qcow2 -o extended_l2=on,cluster_size=4k a.qcow2 1M",
        "create -f qcow2 -o nosuch=1 a.qcow2 1M",
        "create -f qcow2 -o size=1M a.qcow2 2M",
        "create -f qcow2 -o size=1M a.qcow2",
        "create -f qcow2 a.qcow2",
        "create -f qcow2 -F raw a.qcow2 1M",
        "create -f qcow2 -b base.img a.qcow2",
        "create -f qcow2 -b base.img -F raw a.qcow2",
        "create -f qcow2 -b base.img -F raw a.qcow2 3M",
        "create -f qcow2 -b base.img -F raw -o backing_file=x a.qcow2",
        "create -f qcow2 -o backing_file=base.img,backing_fmt=raw a.qcow2",
        "create -f qcow2 -u -b missing a.qcow2 1M",
        "create -f qcow2 -u -b missing -F qcow2 a.qcow2 1M",
        "create -f qcow2 -u -b missing -F qcow2 a.qcow2",
        "create -f qcow2 -b missing -F raw a.qcow2 1M",
        "create -f raw -b base.img -F raw a.img 1M",
        "create -f qcow2 a.qcow2 0",
        "create -f qcow2 -b base.img -F raw -o data_file=d.raw a.qcow2",
        "create -f qcow2 -o data_file=d.raw,data_file_raw=yes,compat=v3 a.qcow2 1M",
        "info a.qcow2",
        "info --output=json a.qcow2",
        "create -f qcow2 -o data_file_raw=on a.qcow2 1M",
        "create -f qcow2 -o data_file_raw=off a.qcow2 1M",
        "create -f qcow2 -o data_file=d.raw,compat=0.10 a.qcow2 1M",
        "create -f nosuch a.img 1M",
        "create -q -f qcow2 a.qcow2 1M",
        "create -f qcow2 /nonexistent/a.qcow2 1M",
    ] {
        same(&bench, line);
    }
}

#[test]
fn the_version_is_read_by_scripts() {
    let bench = Workbench::new();
    for flag in ["-V", "--version"] {
        let text = bench.as_qemu_img(&[flag]).ok().text();
        let version = text.lines().next().and_then(|line| line.strip_prefix("qemu-img version ")).unwrap();
        let numbers = version.split([' ', '.']).take(3).map(str::parse::<u32>);
        assert!(numbers.clone().count() == 3 && numbers.clone().all(|number| number.is_ok()), "{text}");
    }
    let traced = bench.as_qemu_img(&["-T", "x", "create", "a.img", "1M"]).ok();
    assert!(traced.stderr.contains("no effect"), "{}", traced.stderr);
}

#[test]
fn how_far_a_job_is_can_be_asked_for() {
    let bench = Workbench::new();
    let child = started(&bench, "cowimg", "create -f raw -o preallocation=full big.raw 64G");
    let id = child.id().to_string();
    for signal in ["-USR1", "-INT"] {
        std::thread::sleep(Duration::from_millis(50));
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.lines().any(|line| line.ends_with("/100%)")), "{text}");
}
