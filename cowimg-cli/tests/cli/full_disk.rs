//! File systems that are full or may not be written, limits on the size of files, and files that change beneath the
//! program: it says what happened, and what was there stays. The file systems are real, in memory and ext4 in a file, mounted
//! in a namespace of the test's own; where the host allows no such thing these tests say so and pass.
#![allow(clippy::unwrap_used, reason = "what cannot fail here is part of what is tested")]

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::Duration;

use crate::mounted::{Disk, on_a_disk};
use crate::workbench::Workbench;

/// Verbs that write to images of the template, and what they are called by. Each needs space for what it does.
const VERBS: [&str; 22] = [
    "create -o preallocation=full new.raw 8M",
    "create -o preallocation=falloc new.qcow2 8M",
    "create -o preallocation=metadata,cluster_size=512 new.qcow2 64M",
    "create -o preallocation=full,data_file=new.data new.qcow2 8M",
    "clone -n 20 base.qcow2 new.%d.qcow2",
    "convert base.qcow2 new.qcow2",
    "convert -c base.qcow2 new.qcow2",
    "convert -O raw base.qcow2 new.raw",
    "convert -n -f raw -O qcow2 noise.img base.qcow2",
    "dd if=base.qcow2 of=new.raw bs=64k",
    "commit top.qcow2",
    "rebase -b other.qcow2 -F qcow2 top.qcow2",
    "rebase -b '' top.qcow2",
    "resize --preallocation=full base.qcow2 +8M",
    "resize --preallocation=metadata many.qcow2 +8M",
    "amend -o refcount_bits=64 base.qcow2",
    "amend -o refcount_bits=64 many.qcow2",
    "snapshot -c new base.qcow2",
    "snapshot -c new many.qcow2",
    "bitmap --add base.qcow2 new",
    "bitmap --add -g 512 many.qcow2 new",
    "check -r all hurt.qcow2",
];

/// Where a qcow2 header has the place of the refcount table.
const REFCOUNT_TABLE: usize = 48;

/// Images on a disk of 2 MiB: base.qcow2 and other.qcow2 with different data, top.qcow2 over the base, many.qcow2 with
/// many tables, hurt.qcow2 which has lost its refcounts, noise.img.
fn template() -> Workbench {
    let bench = Workbench::new();
    let state = std::iter::successors(Some(1_u32), |state| {
        Some(state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223))
    });
    let noise: Vec<u8> = state.flat_map(u32::to_be_bytes).take(2 << 20).collect();
    fs::write(bench.path("noise.img"), &noise).unwrap();
    for name in ["base.qcow2", "other.qcow2"] {
        bench.qemu_img(&format!("create -q -f qcow2 -o cluster_size=4k {name} 2M"));
    }
    bench.qemu_io("base.qcow2", &["write -q -P 1 0 512k", "write -q -P 2 1M 64k"]);
    bench.qemu_io("other.qcow2", &["write -q -P 3 256k 512k"]);
    bench.qemu_img("create -q -f qcow2 -b base.qcow2 -F qcow2 -o cluster_size=4k top.qcow2");
    bench.qemu_io("top.qcow2", &["write -q -P 4 768k 128k", "write -q -P 5 1900k 64k"]);
    bench.qemu_img("create -q -f qcow2 -o cluster_size=512 many.qcow2 2M");
    bench.qemu_io("many.qcow2", &["write -q -P 6 0 300k"]);
    let mut hurt = fs::read(bench.path("many.qcow2")).unwrap();
    let table = u64::from_be_bytes(hurt[REFCOUNT_TABLE..][..8].try_into().unwrap()) as usize;
    hurt[table..][..8].fill(0);
    fs::write(bench.path("hurt.qcow2"), hurt).unwrap();
    bench
}

/// Says what is wrong with the images in the folder disk, of which the originals are here. One that has its old bytes is as
/// it was; of the others, those in `same` must read as before and all must be sound, hurt.qcow2 after a repair.
fn judged(same: &str) -> String {
    format!(
        "for image in base top many other hurt; do cmp -s disk/$image.qcow2 $image.qcow2 && continue; \
         [ $image = hurt ] && {program} check -q -r all disk/hurt.qcow2 >/dev/null 2>&1; \
         qemu-img check -q disk/$image.qcow2; case $? in 0|3) ;; *) echo \"$image is damaged\";; esac; \
         case ' {same} ' in *\" $image \"*) qemu-img compare -q disk/$image.qcow2 $image.qcow2 \
         || echo \"$image has changed\";; esac; done; ls -A disk",
        program = env!("CARGO_BIN_EXE_cowimg")
    )
}

/// Images that read as before whatever becomes of the verb.
fn same_after(verb: &str) -> &'static str {
    match verb {
        // A part may be written already, and shows through the image above.
        _ if verb.starts_with("convert -n") => "many other hurt",
        // Its disk may have grown.
        _ if verb.starts_with("resize") => "top other hurt",
        // What is committed is in the base.
        _ if verb.starts_with("commit") => "top many other hurt",
        _ => "base top many other hurt",
    }
}

/// Takes all space: in one file first, and then the blocks that ext4 keeps back from it one by one.
const FILL: &str = "cat /dev/zero >fill 2>/dev/null; sync -f .; n=0; \
                    while dd if=/dev/zero of=fill.$n bs=4k count=1 conv=fsync 2>/dev/null; do n=$((n+1)); done";

/// Runs each of `verbs` on a disk with no room, and on one with a little, so that it gets further than to its first write.
fn fill_the_disk(disk: Disk, verbs: &[&str]) {
    let bench = template();
    let program = env!("CARGO_BIN_EXE_cowimg");
    for verb in verbs {
        for room in [0, 24] {
            let script = format!(
                "cp *.qcow2 noise.img disk; cd disk; head -c {room}k /dev/zero > room; {FILL}; rm room; {program} {verb} >../said 2>&1; code=$?; rm fill*; cd ..; cat said >&2; {}; \
                 exit $code",
                judged(same_after(verb))
            );
            let Some(output) = on_a_disk(&bench, disk, &script) else { return };
            let said = String::from_utf8_lossy(&output.stderr);
            let found = String::from_utf8_lossy(&output.stdout);
            let context = format!("`{verb}` on {disk:?} with {room}k: {said}{found}");
            assert!(!found.contains("changed") && !found.contains("damaged"), "{context}");
            assert!(!found.contains(".part") && output.status.signal().is_none(), "{context}");
            assert!(!said.contains("panicked"), "{context}");
            match output.status.code() {
                Some(1) => assert!(!found.contains("new."), "{context}"),
                // Where so little was enough.
                Some(0) => assert!(room > 0, "{context}"),
                code => panic!("{context}: exit code {code:?}"),
            }
        }
    }
}

#[test]
fn on_a_full_disk_what_makes_images_fails_and_leaves_nothing() {
    fill_the_disk(Disk::Memory, &VERBS[..10]);
}

#[test]
fn on_a_full_disk_what_changes_images_fails_and_leaves_them_sound() {
    fill_the_disk(Disk::Memory, &VERBS[10..]);
}

/// Some verbs, and all with `COWIMG_SOAK`, as in `make soak`.
#[test]
fn on_a_full_ext4_verbs_fail_and_leave_nothing_half() {
    let some = [
        "create -o preallocation=full,data_file=new.data new.qcow2 8M",
        "convert base.qcow2 new.qcow2",
        "commit top.qcow2",
        "snapshot -c new many.qcow2",
    ];
    assert!(some.iter().all(|verb| VERBS.contains(verb)));
    fill_the_disk(Disk::Ext4, if std::env::var_os("COWIMG_SOAK").is_some() { &VERBS } else { &some });
}

#[test]
fn on_a_read_only_mount_every_verb_fails_and_nothing_changes() {
    let bench = template();
    let program = env!("CARGO_BIN_EXE_cowimg");
    let mut verbs = String::new();
    for verb in VERBS {
        verbs.push_str("(cd disk; ");
        verbs.push_str(&[program, verb].join(" "));
        verbs.push_str(" >/dev/null 2>../said; [ $? = 1 ] || cat ../said)\n");
    }
    let script = format!(
        "cp *.qcow2 noise.img disk; ls -A disk >names; mount -o remount,ro disk || exit 99\n{verbs}\
         for image in disk/*; do cmp $image $(basename $image); done; ls -A disk | cmp - names"
    );
    let Some(output) = on_a_disk(&bench, Disk::Memory, &script) else { return };
    let (said, found) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success() && found.is_empty(), "{found}{said}");
}

/// The limit's signal would end the process, with a half image left behind.
#[test]
fn past_the_limit_on_the_size_of_files_a_write_fails_and_the_program_lives() {
    let bench = template();
    let before = bench.names();
    for verb in [
        "convert -O raw noise.img new.raw",
        "convert noise.img new.qcow2",
        "create -o preallocation=full new.raw 8M",
    ] {
        let script = format!("ulimit -f 1024; exec {} {verb}", env!("CARGO_BIN_EXE_cowimg"));
        let output = bench.command("sh").args(["-c", &script]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "`{verb}`: {said} {:?}", output.status);
        assert!(said.contains("too large"), "`{verb}`: {said}");
        assert_eq!(bench.names(), before, "`{verb}`");
    }
}

#[test]
fn an_image_that_may_not_grow_keeps_what_it_has() {
    let template = template();
    for (verb, image) in [
        ("convert -n -f raw -O qcow2 noise.img base.qcow2", "base.qcow2"),
        ("snapshot -c new base.qcow2", "base.qcow2"),
        ("snapshot -c new many.qcow2", "many.qcow2"),
        ("bitmap --add base.qcow2 new", "base.qcow2"),
        ("resize --preallocation=full base.qcow2 +8M", "base.qcow2"),
        ("amend -o refcount_bits=64 base.qcow2", "base.qcow2"),
        ("rebase -b '' top.qcow2", "top.qcow2"),
        ("commit top.qcow2", "base.qcow2"),
        ("check -r all hurt.qcow2", "hurt.qcow2"),
    ] {
        // As long as it is, in units of 512 bytes.
        let limit = fs::metadata(template.path(image)).unwrap().len().div_ceil(512);
        let script = format!(
            "rm -rf disk; mkdir disk; cp *.qcow2 noise.img disk; \
             (cd disk; ulimit -f {limit}; exec {} {verb} >/dev/null); code=$?; {}; exit $code",
            env!("CARGO_BIN_EXE_cowimg"),
            judged(same_after(verb))
        );
        let output = template.command("sh").args(["-c", &script]).output().unwrap();
        let (said, found) =
            (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
        assert_eq!(output.status.code(), Some(1), "`{verb}`: {said} {:?}", output.status);
        assert!(said.contains("too large"), "`{verb}`: {said}");
        assert!(!found.contains("changed") && !found.contains("damaged"), "`{verb}`: {found}{said}");
        let names: Vec<_> = found.lines().map(str::to_owned).collect();
        assert!(names.iter().all(|name| template.names().contains(name)), "`{verb}`: {names:?}");
    }
}

/// Sources that somebody cuts while they are read: an error or zeroes, and no signal from memory that is no more.
#[test]
fn a_source_that_shrinks_is_no_end_of_the_program() {
    let bench = template();
    bench.qemu_img("convert -q -f raw -O qcow2 noise.img full.qcow2");
    for (source, format) in [("noise.img", "raw"), ("full.qcow2", "qcow2")] {
        let whole = fs::read(bench.path(source)).unwrap();
        let mut command = bench.command(env!("CARGO_BIN_EXE_cowimg"));
        // Slow enough to be met halfway.
        command.args(["convert", "-f", format, "-r", "4M", "-m", "1", source, "new.raw"]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(60));
        fs::OpenOptions::new().write(true).open(bench.path(source)).unwrap().set_len(1000).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(0 | 1)), "{source}: {said} {:?}", output.status);
        assert!(!said.contains("panicked"), "{source}: {said}");
        if output.status.code() == Some(1) {
            assert!(!bench.names().contains(&"new.raw".to_owned()), "{source}: {said}");
        }
        fs::write(bench.path(source), whole).unwrap();
        let _made_in_time = fs::remove_file(bench.path("new.raw"));
        assert!(bench.names().iter().all(|name| !name.contains(".part")), "{:?}", bench.names());
    }
}
