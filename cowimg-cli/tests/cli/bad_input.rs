//! Command lines and files that make no sense: exit code 1, a message with the fact that matters, and nothing changed.

use std::fs;

use crate::workbench::Workbench;

/// Runs each command, which must fail with this part in its message and leave the folder as it was.
fn assert_refused(bench: &Workbench, cases: &[(&str, &str)]) {
    let before = bench.content();
    for (arguments, part) in cases {
        let run = bench.cowimg(arguments);
        assert_eq!(run.code, Some(1), "{arguments}: {}", run.stderr);
        assert!(run.stderr.starts_with("cowimg: "), "{arguments}: {}", run.stderr);
        assert!(run.stderr.contains(part), "{arguments}: {}", run.stderr);
        assert!(bench.content() == before, "{arguments} changed something: {:?}", bench.names());
    }
}

#[test]
fn create_refuses_what_cannot_be_made() {
    let bench = Workbench::with_images();
    assert_refused(
        &bench,
        &[
            ("create z", "how large"),
            ("create z banana", "'banana' is not a size"),
            ("create z -1", "below zero"),
            ("create z -- -1", "below zero"),
            ("create z 1.5", "part of a byte"),
            ("create z 8E", "too large"),
            ("create z 9223372036854775807", "larger than any disk"),
            ("create z 1E", "too large for its cluster size"),
            ("create z 1M 2M", "unexpected argument '2M'"),
            ("create -o size=1M z 1M", "given twice"),
            (
                "create -o cluster_size=3 z 1M",
                "cluster_size is 3 bytes; it must be a power of two from 512 bytes to 2 MiB",
            ),
            ("create -o cluster_size=3000 z 1M", "cluster_size is 3000 bytes"),
            ("create -o cluster_size=4M z 1M", "cluster_size is 4194304 bytes"),
            ("create -o cluster_size=x z 1M", "cluster_size: 'x' is not a size"),
            ("create -o cluster_sise=64k z 1M", "Did you mean 'cluster_size'?"),
            ("create -o refcount_bits=7 z 1M", "refcount_bits is '7'"),
            ("create -o compat=1.2 z 1M", "compat is '1.2'"),
            (
                "create -o compat=0.10,compression_type=zstd z 1M",
                "compression_type=zstd needs an image of version 3",
            ),
            ("create -o compat=0.10,lazy_refcounts=on z 1M", "lazy_refcounts=on needs an image of version 3"),
            ("create -o extended_l2=on,cluster_size=8k z 1M", "16 KiB"),
            ("create -o data_file_raw=on z 1M", "needs a data file"),
            ("create -o encrypt.format=luks z 1M", "encrypt.key-secret"),
            ("create -o , z 1M", "empty option"),
            ("create -f raw -o cluster_size=64k z 1M", "a raw image has no option 'cluster_size'"),
            ("create -f raw -o preallocation=metadata z 1M", "no metadata"),
            ("create -f vmdk z 1M", "format vmdk is not handled"),
            ("create -f banana z 1M", "there is no format 'banana'"),
            ("create base.img 1M", "--force"),
            ("create -b base.img child.qcow2", "--force"),
            ("create no-such-folder/z 1M", "No such file or directory"),
            ("create --force . 1M", "directory"),
            ("create nbd://host/z 1M", "names that start with 'nbd:'"),
        ],
    );
}

#[test]
fn create_refuses_backing_files_that_cannot_be_read() {
    let bench = Workbench::with_images();
    fs::create_dir(bench.path("folder")).unwrap();
    fs::write(bench.path("short.qcow2"), &fs::read(bench.path("base.qcow2")).unwrap()[..60]).unwrap();
    let looked =
        format!("Looked for {}", fs::canonicalize(bench.folder()).unwrap().join("missing.img").display());
    assert_refused(
        &bench,
        &[
            ("create -b missing.img z", "backing file not found: missing.img"),
            ("create -b missing.img z", &looked),
            ("create -b missing.img -F raw z 1M", "backing file not found: missing.img"),
            ("create -b folder z", "directory"),
            ("create -b base.img -F qcow2 z", "not a qcow2 image"),
            ("create -b short.qcow2 z", "short.qcow2"),
            ("create -b base.img -F vmdk z", "format vmdk is not handled"),
            ("create -F raw z 1M", "no backing file"),
            ("create -u -b base.img z 1M", "its format must be given"),
            ("create -u -b base.img -F raw z", "how large"),
            ("create -f raw -b base.img z", "a raw image cannot have a backing file"),
            ("create -b base.img -o preallocation=full z", "preallocated"),
            ("create -b base.img -o backing_file=base.img z", "given twice"),
            ("create -b json:{} z 1M", "json:"),
        ],
    );
}

#[test]
fn convert_refuses_what_cannot_be_made() {
    let bench = Workbench::with_images();
    bench.qemu_img("create -q -f qcow2 small.qcow2 1M");
    assert_refused(
        &bench,
        &[
            ("convert base.img", "which written"),
            ("convert missing.img z", "missing.img"),
            ("convert base.img no-such-folder/z", "No such file or directory"),
            ("convert base.img comp.qcow2", "--force"),
            ("convert base.img base.img", "reads from this file"),
            ("convert --force base.img base.img", "reads from this file"),
            ("convert --force top.qcow2 base.img", "reads from this file"),
            ("convert -n top.qcow2 base.img", "reads from this file"),
            ("convert -n base.img missing.qcow2", "missing.qcow2"),
            ("convert -n base.img small.qcow2", "the disk has 1048576 bytes and the source has 67108864"),
            ("convert -n -o cluster_size=4k base.img comp.qcow2", "-n makes none"),
            ("convert -c base.img z.raw", "a raw image cannot be compressed"),
            ("convert -c -o preallocation=full base.img z.qcow2", "cannot be combined"),
            ("convert -o size=1G base.img z.qcow2", "the size of the source"),
            ("convert -o cluster_size=3 base.img z.qcow2", "cluster_size is 3 bytes"),
            ("convert -o nosuch=1 base.img z.qcow2", "there is no option 'nosuch'"),
            ("convert -O vmdk base.img z", "format vmdk is not handled"),
            ("convert -f qcow2 base.img z", "not a qcow2 image"),
            ("convert -B missing.img base.img z.qcow2", "backing file not found: missing.img"),
            ("convert -F raw base.img z.qcow2", "no backing file"),
            ("convert -m 0 base.img z", "not in 1..=16"),
            ("convert -m 17 base.img z", "not in 1..=16"),
            ("convert -S 100 base.img z", "multiple of 512"),
            ("convert -S 32M base.img z", "multiple of 512"),
        ],
    );
}

#[test]
fn damaged_and_foreign_files_are_refused_by_every_command() {
    let bench = Workbench::with_images();
    let image = fs::read(bench.path("base.qcow2")).unwrap();
    fs::write(bench.path("short"), &image[..60]).unwrap();
    let mut unknown = image.clone();
    unknown[74] = 1; // bit 40 of the incompatible features
    fs::write(bench.path("unknown"), unknown).unwrap();
    let mut clusters = image;
    clusters[23] = 40;
    fs::write(bench.path("clusters"), clusters).unwrap();
    fs::write(bench.path("foreign"), b"KDMV\x01\0\0\0 and more").unwrap();
    let cases: Vec<(String, &str)> =
        [("short", "damaged"), ("clusters", "cluster_bits is 40"), ("foreign", "vmdk")]
            .into_iter()
            .flat_map(|(file, part)| {
                let commands =
                    ["info F", "check F", "map F", "convert F z", "resize F 1G", "read F 0 1", "zero F 0 1"];
                commands.map(|command| (command.replace('F', file), part))
            })
            .collect();
    let cases: Vec<(&str, &str)> = cases.iter().map(|(command, part)| (command.as_str(), *part)).collect();
    assert_refused(&bench, &cases);
    assert_refused(
        &bench,
        &[("map unknown", "bit 40"), ("check unknown", "bit 40"), ("zero unknown 0 1", "bit 40")],
    );
}

#[test]
fn a_mapping_past_the_end_of_the_file_is_named_with_its_place() {
    let bench = Workbench::with_images();
    bench.qemu_img("create -q -f qcow2 far.qcow2 1M");
    bench.qemu_io("far.qcow2", &["write 64k 64k"]);
    let mut image = fs::read(bench.path("far.qcow2")).unwrap();
    let number_at = |at: usize| u64::from_be_bytes(image[at..at + 8].try_into().unwrap());
    let l2_table = (number_at(number_at(40) as usize) & !(1 << 63)) as usize;
    image[l2_table + 8..l2_table + 16].copy_from_slice(&(1 << 63 | 0x7f_0000_u64).to_be_bytes());
    fs::write(bench.path("far.qcow2"), image).unwrap();
    let part = "far.qcow2: the image is damaged: the L2 entry for guest offset 0x10000 points at file offset 0x7f0000";
    let commands =
        ["read far.qcow2 64k 1", "write far.qcow2 64k --pattern 1 --length 1", "convert far.qcow2 z"];
    assert_refused(&bench, &commands.map(|command| (command, part)));
}

#[test]
fn a_base_that_has_moved_is_looked_for_aloud() {
    let bench = Workbench::with_images();
    fs::rename(bench.path("base.img"), bench.path("moved.img")).unwrap();
    let looked =
        format!("Looked for {}", fs::canonicalize(bench.folder()).unwrap().join("base.img").display());
    for command in
        ["map child.qcow2", "convert top.qcow2 z.raw", "read child.qcow2 0 1", "resize top.qcow2 1G"]
    {
        assert_refused(&bench, &[(command, "backing file not found: base.img"), (command, &looked)]);
    }
}

#[test]
fn a_loop_of_backing_files_is_refused() {
    let bench = Workbench::new();
    bench.qemu_img("create -q -f qcow2 -u -b b -F qcow2 a 1M");
    bench.qemu_img("create -q -f qcow2 -u -b a -F qcow2 b 1M");
    assert_refused(&bench, &[("map a", "comes back"), ("info --backing-chain a", "comes back")]);
}

#[test]
fn files_that_are_no_files_are_refused_at_once() {
    let bench = Workbench::new();
    let made = bench.command("mkfifo").arg("pipe").status().unwrap();
    assert!(made.success());
    assert_refused(&bench, &[("info pipe", "pipe"), ("info .", "directory"), ("convert pipe z", "pipe")]);
}
