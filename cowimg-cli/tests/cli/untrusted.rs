//! `--untrusted`: an image from a stranger opens no other file, and nothing is taken for a raw disk unasked.

use std::fs;

use crate::workbench::Workbench;

#[test]
fn no_file_that_an_image_names_is_opened() {
    let bench = Workbench::new();
    fs::write(bench.path("secret"), vec![7; 65536]).unwrap();
    bench.qemu_img("create -q -f qcow2 -b secret -F raw child.qcow2");
    bench.qemu_img("create -q -f qcow2 -o data_file=secret.data,data_file_raw=on data.qcow2 64k");
    bench.qemu_img("convert -O qcow2 -f raw secret own.qcow2");
    let before = bench.content();
    for (named, by) in [("child.qcow2", "backing file"), ("data.qcow2", "data file")] {
        for line in [
            "convert IMAGE out.raw",
            "map IMAGE",
            "compare IMAGE own.qcow2",
            "dd if=IMAGE of=out.raw",
            "measure -O raw IMAGE",
            "bench -c 1 IMAGE",
            "read IMAGE 0 512",
            "write --pattern 1 --length 1 IMAGE 0",
            "resize IMAGE 1M",
            "info --backing-chain IMAGE",
        ] {
            if by == "data file" && line.starts_with("info") {
                continue;
            }
            let line = line.replace("IMAGE", named);
            let run = bench.cowimg(&format!("--untrusted {line}"));
            assert_ne!(run.code, Some(0), "{line}");
            assert!(run.stderr.contains(by) && run.stderr.contains("policy"), "{line}: {}", run.stderr);
            assert!(bench.content() == before, "{line}");
        }
        // What is said of the image alone needs no other file.
        bench.cowimg(&format!("info --untrusted {named}")).ok();
        let checked = bench.cowimg(&format!("check --untrusted {named}"));
        assert_eq!(checked.code, Some(0), "{}", checked.stderr);
    }
    bench.cowimg("convert --untrusted own.qcow2 out.raw").ok();
    bench.assert_same_disk("out.raw", "secret");
}

#[test]
fn nothing_is_a_raw_disk_unless_it_is_stated() {
    let bench = Workbench::new();
    fs::write(bench.path("disk.img"), vec![7; 65536]).unwrap();
    for line in ["info disk.img", "convert disk.img out.qcow2", "map disk.img", "compare disk.img disk.img"] {
        let run = bench.cowimg(&format!("{line} --untrusted"));
        assert_ne!(run.code, Some(0), "{line}");
        assert!(run.stderr.contains("-f raw"), "{line}: {}", run.stderr);
        assert_eq!(bench.names(), ["disk.img"]);
    }
    bench.cowimg("convert --untrusted -f raw disk.img out.qcow2").ok();
    bench.assert_same_disk("disk.img", "out.qcow2");
}

#[test]
fn the_strict_manner_does_not_know_it() {
    let bench = Workbench::new();
    fs::write(bench.path("disk.img"), vec![7; 65536]).unwrap();
    for arguments in [["--untrusted", "info", "disk.img"], ["info", "--untrusted", "disk.img"]] {
        assert_ne!(bench.as_qemu_img(&arguments).code, Some(0));
    }
}
