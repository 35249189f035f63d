//! `amend`, beside qemu-img on an equal copy.

use crate::workbench::Workbench;

/// A disk with data and zero clusters, kept or not, over a base and with a snapshot; copied for each program.
fn bench() -> Workbench {
    let bench = Workbench::new();
    bench.qemu_img("create -q -f raw base.img 8M");
    bench.qemu_io("base.img", &["write -P 1 0 8M"]);
    bench.qemu_img("create -q -f qcow2 -o cluster_size=4k -b base.img -F raw image.qcow2");
    bench.qemu_io("image.qcow2", &["write -P 2 0 300k", "write -z 100k 100k", "write -z -u 2M 100k"]);
    bench.qemu_img("snapshot -c one image.qcow2");
    bench.qemu_io("image.qcow2", &["write -P 3 2M 30k", "write -z 200k 50k"]);
    bench
}

/// Runs both programs on copies of the image, the real one first; compares reports, exit codes and what became of it.
fn same(bench: &Workbench, line: &str) {
    let words: Vec<&str> = line.split(' ').collect();
    let kept = std::fs::read(bench.path("image.qcow2")).expect("the image can be read");
    let theirs = bench.try_qemu_img(&words);
    let told = bench.qemu_img("info image.qcow2").text();
    std::fs::rename(bench.path("image.qcow2"), bench.path("theirs.qcow2")).expect("files can be renamed");
    std::fs::write(bench.path("image.qcow2"), &kept).expect("the image can be written");
    let ours = bench.as_qemu_img(&words);
    assert_eq!(ours.text(), theirs.text(), "{line}: {}{}", ours.stderr, theirs.stderr);
    assert_eq!(ours.code, theirs.code, "{line}: {}{}", ours.stderr, theirs.stderr);
    bench.assert_sound("image.qcow2");
    bench.assert_same_disk("image.qcow2", "theirs.qcow2");
    if ours.code == Some(0) {
        let features = |info: &str| -> Vec<String> {
            let is_told = |line: &&str| {
                ["compat:", "refcount bits:", "lazy refcounts:", "virtual size:"]
                    .iter()
                    .any(|key| line.contains(key))
            };
            info.lines().filter(is_told).map(str::to_owned).collect()
        };
        assert_eq!(features(&bench.qemu_img("info image.qcow2").text()), features(&told), "{line}");
    } else {
        assert!(ours.stderr.starts_with("qemu-img: "), "{line}: {}", ours.stderr);
        let now = std::fs::read(bench.path("image.qcow2")).expect("the image can be read");
        assert!(now == kept, "{line} was refused and changed the image");
    }
}

#[test]
fn an_image_is_amended_as_qemu_img_does_it() {
    let bench = bench();
    for line in [
        "amend -p -o compat=v2 image.qcow2",
        "amend -o lazy_refcounts=on image.qcow2",
        "amend -o refcount_bits=8 image.qcow2",
        "amend -p -f qcow2 -o compat=1.1 image.qcow2",
        "amend -o refcount_bits=8 image.qcow2",
        "amend -o refcount_bits=1 image.qcow2",
        "amend -o compat=0.10 image.qcow2",
        "amend -q -p -o refcount_bits=64,lazy_refcounts image.qcow2",
        "amend --force -t none -o lazy_refcounts=off image.qcow2",
        "amend -o compat=v2,refcount_bits=16 image.qcow2",
        "amend -o compat=v2 -o compat=v3,lazy_refcounts=on image.qcow2",
        "amend -o size=9M image.qcow2",
        "amend -o size=0 image.qcow2",
        "amend -o size=10M --image-opts driver=qcow2,file.filename=image.qcow2",
        "amend -o backing_file=base.img,backing_fmt=raw image.qcow2",
        "amend -o data_file_raw=off image.qcow2",
    ] {
        same(&bench, line);
    }
}

#[test]
fn what_qemu_img_refuses_is_refused_and_changes_nothing() {
    let bench = bench();
    for line in [
        "amend image.qcow2",
        "amend -o  image.qcow2",
        "amend -o , image.qcow2",
        "amend -o help",
        "amend -o compat=3 image.qcow2",
        "amend -o refcount_bits=0 image.qcow2",
        "amend -o refcount_bits=x image.qcow2",
        "amend -o refcount_bits=128 image.qcow2",
        "amend -o cluster_size=64k image.qcow2",
        "amend -o preallocation=off image.qcow2",
        "amend -o lazy_refcounts=zz image.qcow2",
        "amend -o foo=1 image.qcow2",
        "amend -o encrypt.keyslot=1 image.qcow2",
        "amend -o backing_file=x image.qcow2",
        "amend -o backing_fmt=raw image.qcow2",
        "amend -o data_file=x image.qcow2",
        "amend -o data_file_raw=on image.qcow2",
        "amend -o size=1000 image.qcow2",
        "amend -p -o refcount_bits=0 image.qcow2",
        "amend -p -o refcount_bits=x image.qcow2",
        "amend -p -o compat=3 image.qcow2",
        "amend -p -o backing_file=x image.qcow2",
        "amend -p -o foo=1 image.qcow2",
        "amend -p -o size=1000 image.qcow2",
        "amend -f raw -o size=1M base.img",
        "amend -f raw -o help base.img",
        "amend -f nosuch -o compat=v3 image.qcow2",
        "amend -t bad -o compat=v3 image.qcow2",
        "amend -U -o compat=v3 image.qcow2",
        "amend -o compat=v3 image.qcow2 image.qcow2",
        "amend -o compat=v3 nosuch.qcow2",
    ] {
        same(&bench, line);
    }
}

#[test]
fn a_disk_becomes_smaller_only_with_force() {
    let bench = Workbench::with_images();
    let before = bench.content();
    let refused = bench.cowimg("amend -o size=1M child.qcow2");
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("--force"), "{}", refused.stderr);
    assert!(bench.content() == before);
    bench.cowimg("amend --force -o size=1M child.qcow2").ok();
    bench.assert_sound("child.qcow2");
    assert!(bench.cowimg("amend -f qcow2 -o help").ok().text().contains("refcount_bits=<num>"));
}
