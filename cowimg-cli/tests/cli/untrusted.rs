//! `--untrusted`: an image from a stranger opens no other file, and nothing is taken for a raw disk unasked. `--follow`, and
//! what is followed where neither is given: no content leaves that lies outside the image's folder.

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

/// A folder `vm` with two images that name files of the folder above it, by a relative and by an absolute name.
fn with_a_base_elsewhere() -> Workbench {
    let bench = Workbench::new();
    fs::write(bench.path("secret"), vec![7; 65536]).expect("a file can be written");
    fs::create_dir(bench.path("vm")).expect("a folder can be made");
    bench.qemu_img("create -q -f qcow2 -b ../secret -F raw vm/child.qcow2");
    bench.qemu_img("create -q -f qcow2 -o data_file=own.data,data_file_raw=on vm/data.qcow2 64k");
    bench.qemu_img(&format!("amend -o data_file={} vm/data.qcow2", bench.path("secret").display()));
    bench
}

#[test]
fn content_outside_of_the_folder_is_handed_on_only_where_that_is_said() {
    let bench = with_a_base_elsewhere();
    for image in ["vm/child.qcow2", "vm/data.qcow2"] {
        let before = bench.content();
        for line in ["convert IMAGE out.raw", "dd if=IMAGE of=out.raw", "read IMAGE 0 512"] {
            let line = line.replace("IMAGE", image);
            for line in [line.clone(), format!("--follow folder {line}"), format!("{line} --follow none")] {
                let run = bench.cowimg(&line);
                assert_eq!(run.code, Some(1), "{line}");
                assert!(run.stderr.contains("--follow all"), "{line}: {}", run.stderr);
                assert!(run.stdout.is_empty() && bench.content() == before, "{line}");
            }
        }
        bench.cowimg(&format!("convert --follow all {image} out.raw")).ok();
        bench.assert_same_disk("out.raw", "secret");
        fs::remove_file(bench.path("out.raw")).unwrap();
        // What hands nothing on follows.
        for line in ["map IMAGE", "measure -O raw IMAGE", "compare IMAGE secret", "check IMAGE"] {
            bench.cowimg(&line.replace("IMAGE", image)).ok();
        }
        let run = bench.cowimg(&format!("map --follow folder {image}"));
        assert!(run.code == Some(1) && run.stderr.contains("policy"), "{}", run.stderr);
    }
}

#[test]
fn an_image_that_is_written_may_have_its_base_anywhere() {
    let bench = with_a_base_elsewhere();
    fs::write(bench.path("new"), vec![9; 65536]).unwrap();
    bench.cowimg("convert -n -f raw -O qcow2 new vm/child.qcow2").ok();
    bench.cowimg("convert --follow all vm/child.qcow2 out.raw").ok();
    bench.assert_same_disk("out.raw", "new");
}

#[test]
fn the_callers_own_words_and_the_folder_are_followed() {
    let bench = with_a_base_elsewhere();
    fs::write(bench.path("vm/base"), vec![8; 65536]).unwrap();
    bench.qemu_img("create -q -f qcow2 -b base -F raw vm/near.qcow2");
    bench.cowimg("convert vm/near.qcow2 near.raw").ok();
    bench.assert_same_disk("near.raw", "vm/base");
    bench.cowimg("convert --untrusted --follow folder -f qcow2 vm/near.qcow2 again.raw").ok();
    bench.assert_same_disk("again.raw", "vm/base");
    let named = "driver=qcow2,file.filename=vm/child.qcow2,backing.driver=raw,backing.file.filename=secret";
    bench.cowimg(&format!("convert --image-opts {named} said.raw")).ok();
    bench.assert_same_disk("said.raw", "secret");
}

#[test]
fn the_strict_manner_follows_every_name_and_knows_no_such_option() {
    let bench = with_a_base_elsewhere();
    assert_eq!(bench.as_qemu_img(&["convert", "-O", "raw", "vm/child.qcow2", "out.raw"]).code, Some(0));
    bench.assert_same_disk("out.raw", "secret");
    for arguments in [
        &["--untrusted", "info", "secret"][..],
        &["info", "--untrusted", "secret"],
        &["--follow", "all", "info", "secret"],
        &["info", "--follow", "all", "secret"],
    ] {
        assert_ne!(bench.as_qemu_img(arguments).code, Some(0));
    }
}
