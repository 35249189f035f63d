//! `commit` and `rebase`: what is said, what is left, and what is refused. Their content is the library's tests' matter.

use crate::workbench::Workbench;

#[test]
fn a_commit_empties_the_image_unless_it_is_told_not_to() {
    let bench = Workbench::with_images();
    bench.qemu_img("convert -O raw top.qcow2 before.img");
    let run = bench.cowimg("commit top.qcow2").ok();
    assert_eq!((run.text().as_str(), run.stderr.as_str()), ("Image committed.\n", ""));
    bench.assert_same_disk("before.img", "top.qcow2");
    bench.assert_same_disk("before.img", "child.qcow2");
    assert!(
        !bench.qemu_img("map --output=json top.qcow2").text().contains("\"depth\": 0, \"present\": true")
    );
    for file in ["top.qcow2", "child.qcow2"] {
        bench.assert_sound(file);
    }
    bench.qemu_io("top.qcow2", &["write -P 7 5M 64k"]);
    let length = bench.content()["top.qcow2".as_ref() as &std::ffi::OsStr].0;
    assert!(bench.cowimg("commit -q -d top.qcow2").ok().text().is_empty());
    assert_eq!(bench.content()["top.qcow2".as_ref() as &std::ffi::OsStr].0, length);
    bench.assert_same_disk("top.qcow2", "child.qcow2");
    bench.cowimg("commit -q -p -t none -r 1G -f qcow2 -b base.img top.qcow2").ok();
    bench.assert_same_disk("top.qcow2", "base.img");
}

#[test]
fn a_commit_grows_a_base_that_is_smaller() {
    let bench = Workbench::with_images();
    bench.qemu_img("create -q -f raw small.img 1M");
    bench.qemu_img("create -q -f qcow2 -b small.img -F raw large.qcow2 5M");
    bench.qemu_io("large.qcow2", &["write -P 9 3M 1M"]);
    bench.cowimg("commit large.qcow2").ok();
    bench.assert_same_disk("small.img", "large.qcow2");
    assert_eq!(bench.content()["small.img".as_ref() as &std::ffi::OsStr].0, 5 << 20);
}

#[test]
fn an_image_is_rebased_with_and_without_a_look_at_the_data() {
    let bench = Workbench::with_images();
    bench.qemu_img("convert -O raw top.qcow2 before.img");
    for arguments in [
        "rebase -b base.img -F raw top.qcow2",
        "rebase -c -t writethrough -T none -b base.qcow2 -F qcow2 top.qcow2",
        "rebase -U -b child.qcow2 top.qcow2",
        "rebase -b= top.qcow2",
        "rebase -q -p -b child.qcow2 -F qcow2 top.qcow2",
    ] {
        let run = bench.cowimg(arguments).ok();
        assert_eq!((run.text().as_str(), run.stderr.as_str()), ("", ""), "{arguments}");
        bench.assert_same_disk("before.img", "top.qcow2");
        bench.assert_sound("top.qcow2");
    }
    std::fs::rename(bench.path("child.qcow2"), bench.path("moved.qcow2")).expect("it can be moved");
    bench.cowimg("rebase -u -b moved.qcow2 -F qcow2 top.qcow2").ok();
    bench.assert_same_disk("before.img", "top.qcow2");
    bench.cowimg("rebase -u top.qcow2").ok();
    assert!(!bench.qemu_img("info top.qcow2").text().contains("backing"));
}

#[test]
fn what_is_refused_changes_no_file() {
    let bench = Workbench::with_images();
    bench.qemu_img("create -q -f qcow2 -b base.img -F raw snapshots.qcow2");
    bench.qemu_img("snapshot -c one snapshots.qcow2");
    bench.qemu_img("create -q -f qcow2 -o cluster_size=512 narrow.qcow2 1M");
    let before = bench.content();
    let long = "x".repeat(500);
    for (arguments, why) in [
        ("commit base.qcow2", "no backing file"),
        ("commit base.img", "no backing file"),
        ("commit -b other.img top.qcow2", "there is no \"other.img\" in its backing chain"),
        ("commit -b top.qcow2 top.qcow2", "in its backing chain"),
        ("commit -r fast top.qcow2", "not a size"),
        ("commit -t fast top.qcow2", "cache mode"),
        ("commit missing.qcow2", "No such file"),
        ("rebase top.qcow2", "Give -b"),
        ("rebase -b missing.img -F raw top.qcow2", "backing file not found"),
        ("rebase -b base.img -F qcow2 top.qcow2", "not a qcow2 image"),
        ("rebase -b top.qcow2 -F qcow2 top.qcow2", "in use"),
        ("rebase -b top.qcow2 -F qcow2 child.qcow2", "in use"),
        ("rebase -u -b top.qcow2 -F qcow2 top.qcow2", "comes back to this file"),
        ("rebase -u -b base.img top.qcow2", "format"),
        ("rebase -b child.qcow2 -F qcow2 base.img", "raw image"),
        ("rebase -c -f raw -b child.qcow2 -F qcow2 base.img", "compressed"),
        ("rebase -b base.qcow2 -F qcow2 snapshots.qcow2", "--force"),
        (&format!("rebase -u -b {long} -F raw narrow.qcow2"), "no room"),
    ] {
        let run = bench.cowimg(arguments);
        assert_eq!(run.code, Some(1), "{arguments}: {}", run.stderr);
        assert!(run.text().is_empty() && run.stderr.contains(why), "{arguments}: {}", run.stderr);
        assert!(bench.content() == before, "{arguments} changed a file");
    }
    bench.cowimg("rebase --force -b base.qcow2 -F qcow2 snapshots.qcow2").ok();
    bench.assert_same_disk("snapshots.qcow2", "base.img");
    bench.assert_sound("snapshots.qcow2");
}
