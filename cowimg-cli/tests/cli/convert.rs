//! `convert`: the content survives, the target appears whole or not at all.

use std::fs;
use std::os::unix::process::ExitStatusExt;

use crate::interrupted::started;
use crate::workbench::Workbench;

#[test]
fn content_survives_every_way_from_format_to_format() {
    let bench = Workbench::with_images();
    for (arguments, target) in [
        ("base.img a.qcow2", "a.qcow2"),
        ("-f raw -O qcow2 base.img b", "b"),
        ("top.qcow2 c.raw", "c.raw"),
        ("top.qcow2 d.qcow2", "d.qcow2"),
        ("comp.qcow2 e.img", "e.img"),
        ("-c top.qcow2 f.qcow2", "f.qcow2"),
        ("-c -o compression_type=zstd,cluster_size=4k top.qcow2 g.qcow2", "g.qcow2"),
        ("-o compat=0.10,cluster_size=512 top.qcow2 h.qcow2", "h.qcow2"),
        ("-S 0 comp.qcow2 i.qcow2", "i.qcow2"),
        ("-S 64k -m 1 -W -U comp.qcow2 j.qcow2", "j.qcow2"),
        ("-o preallocation=metadata top.qcow2 k.qcow2", "k.qcow2"),
    ] {
        let run = bench.cowimg(&format!("convert {arguments}")).ok();
        assert!(run.stdout.is_empty() && run.stderr.is_empty(), "{arguments}: {}{}", run.text(), run.stderr);
        let source = arguments.split_whitespace().rev().nth(1).unwrap();
        bench.assert_same_disk(source, target);
        if bench.cowimg(&format!("info {target}")).ok().text().contains("file format: qcow2") {
            bench.assert_sound(target);
        }
    }
}

#[test]
fn the_target_format_follows_the_name_and_is_else_raw() {
    let bench = Workbench::with_images();
    for (target, format) in
        [("a.qcow2", "qcow2"), ("a.raw", "raw"), ("a.img", "raw"), ("a", "raw"), ("a.bin", "raw")]
    {
        bench.cowimg(&format!("convert base.img {target}")).ok();
        let info = bench.qemu_img(&format!("info {target}")).text();
        assert!(info.contains(&format!("file format: {format}\n")), "{info}");
    }
}

#[test]
fn compressed_clusters_are_compressed_and_holes_stay_holes() {
    let bench = Workbench::with_images();
    bench.cowimg("convert -c base.img c.qcow2").ok();
    let report = bench.qemu_img("check c.qcow2").text();
    assert!(report.contains("48/1024 = 4.69% allocated, 100.00% fragmented, 100.00% compressed"), "{report}");
    bench.cowimg("convert c.qcow2 back.img").ok();
    let blocks =
        |name: &str| std::os::unix::fs::MetadataExt::blocks(&fs::metadata(bench.path(name)).unwrap());
    assert!(blocks("back.img") <= blocks("base.img") + 8);
}

#[test]
fn a_target_over_a_backing_file_holds_only_the_difference() {
    let bench = Workbench::with_images();
    bench.cowimg("convert -B base.img -F raw top.qcow2 diff.qcow2").ok();
    bench.assert_same_disk("top.qcow2", "diff.qcow2");
    bench.assert_sound("diff.qcow2");
    let info = bench.qemu_img("info diff.qcow2").text();
    assert!(info.contains("backing file: base.img\nbacking file format: raw\n"), "{info}");
    let map = bench.qemu_img("map diff.qcow2").text();
    assert!(map.contains("base.img") && map.contains("diff.qcow2"), "{map}");
    assert!(fs::metadata(bench.path("diff.qcow2")).unwrap().len() < 1 << 20);
}

#[test]
fn an_existing_target_is_written_into_as_what_it_is() {
    let bench = Workbench::with_images();
    bench.qemu_img("create -q -f qcow2 larger.img 80M");
    bench.qemu_io("base.qcow2", &["write -P 9 0 20M"]);
    bench.cowimg("convert -n base.qcow2 larger.img").ok();
    bench.cowimg("convert -n top.qcow2 larger.img").ok();
    let info = bench.qemu_img("info larger.img").text();
    assert!(info.contains("file format: qcow2") && info.contains("virtual size: 80 MiB"), "{info}");
    bench.assert_same_disk("top.qcow2", "larger.img");
    bench.assert_sound("larger.img");
}

#[test]
fn force_replaces_the_target_and_keeps_a_link() {
    let bench = Workbench::with_images();
    fs::write(bench.path("old.img"), b"old").unwrap();
    std::os::unix::fs::symlink("old.img", bench.path("link.img")).unwrap();
    bench.cowimg("convert --force top.qcow2 link.img").ok();
    assert!(fs::symlink_metadata(bench.path("link.img")).unwrap().is_symlink());
    bench.assert_same_disk("top.qcow2", "old.img");
}

#[test]
fn progress_is_printed_in_qemu_imgs_form() {
    let bench = Workbench::with_images();
    let text = bench.cowimg("convert -p base.img a.qcow2").ok().text();
    let steps: Vec<&str> = text.split('\r').collect();
    assert_eq!(steps.first(), Some(&"    (0.00/100%)"));
    assert_eq!(steps[steps.len() - 2..], ["    (100.00/100%)", "\n"]);
    for step in &steps[..steps.len() - 1] {
        let number = step.strip_prefix("    (").and_then(|rest| rest.strip_suffix("/100%)")).unwrap();
        assert!(number.parse::<f64>().unwrap() <= 100.0 && number.split('.').nth(1).unwrap().len() == 2);
    }
    assert!(bench.cowimg("convert -p -q base.img b.qcow2").ok().stdout.is_empty());
}

/// Bytes that take a compressor its time.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(len).collect()
}

#[test]
fn an_interrupted_copy_leaves_nothing_and_ends_by_the_signal() {
    let bench = Workbench::new();
    fs::write(bench.path("noise.img"), noise(96 << 20)).unwrap();
    for (signal, number) in [("INT", 2), ("TERM", 15)] {
        let child = started(&bench, "cowimg", "convert -c -m 1 noise.img z.qcow2");
        let killed =
            bench.command("kill").args([&format!("-{signal}"), &child.id().to_string()]).status().unwrap();
        assert!(killed.success());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(number), "{said}");
        assert_eq!(said, "cowimg: stopped; z.qcow2 was not made\n");
        assert_eq!(bench.names(), ["noise.img"]);
    }
}

#[test]
fn a_copy_that_does_not_fit_leaves_nothing_and_keeps_the_old_target() {
    let bench = Workbench::new();
    fs::write(bench.path("noise.img"), noise(4 << 20)).unwrap();
    fs::write(bench.path("z.qcow2"), b"old").unwrap();
    let line = format!(
        "trap '' XFSZ; ulimit -f 1024; exec {} convert --force noise.img z.qcow2",
        env!("CARGO_BIN_EXE_cowimg")
    );
    let output = bench.command("sh").args(["-c", &line]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("z.qcow2") && said.contains("too large") && !said.contains(".part"), "{said}");
    assert_eq!(bench.names(), ["noise.img", "z.qcow2"]);
    assert_eq!(fs::read(bench.path("z.qcow2")).unwrap(), b"old");
}
