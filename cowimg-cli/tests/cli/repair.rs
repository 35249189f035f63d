//! `check -r` in the strict manner on the damaged images of the library's tests, and what the program alone can do.

use std::fs;

use crate::qemu_tools::damage::{Kind, Sound};
use crate::workbench::{Run, Workbench};

/// Images whose check ends with another code than qemu-img's, which does not open the first two: ours says what is wrong.
const CHECKED_OTHERWISE: [&str; 5] = [
    "bitmap table entry within a cluster",
    "bitmap table entry with a reserved bit",
    // There the header is read as the table.
    "refcount table nowhere",
    // There what lies past the end of the file is read as entries.
    "an L1 table far longer than it is",
    // There the header is read as the table.
    "L1 table in the header",
];

/// Images in which one field makes more or fewer findings than in qemu-img.
const REPORTED_OTHERWISE: [&str; 2] =
    ["snapshot's L1 table in the header", "an L1 table far longer than it is"];

/// Images that qemu-img repairs and counts otherwise: how many contradictions one field makes.
const COUNTED_OTHERWISE: [&str; 16] = [
    // Moved away from the table, where qemu-img lets a table and data share a cluster.
    "L2 entry to its own table",
    "L2 entry to the L1 table",
    "L2 entry to the refcount table",
    "L1 entry to the refcount table",
    // The unaligned cluster is counted before the entry is mended.
    "kept cluster within a cluster",
    // The block's growth of the file is a repair of its own there.
    "refcount block far past the end",
    "refcount block just past the end",
    // What lies there is read as a table there.
    "refcount table nowhere",
    "refcount table at the L1 table",
    // An entry that makes no sense becomes an empty snapshot there.
    "snapshot table past the end",
    "snapshot table at the L1 table",
    "snapshot with a long name",
    // The snapshot's name is found again.
    "snapshot with too much extra data",
    "snapshot with endless extra data",
    // The table is found again, and what was no table counts.
    "L1 table at an L2 table",
    "an L1 table that goes on over what follows it",
];

/// qemu-img's repair loses the snapshots of an image with an unknown autoclear bit.
const SPOILT_THERE: [&str; 1] = ["an unknown autoclear bit"];

fn try_kind(kind: Kind, part: fn(usize) -> bool) {
    let bench = Workbench::new();
    let sound = Sound::make(kind, &bench.path("sound.qcow2"));
    let mut different = Vec::new();
    for (_, damage) in sound.damages().iter().enumerate().filter(|(nth, _)| part(*nth)) {
        let name = damage.name.split_once(": ").map_or(damage.name.as_str(), |(_, name)| name);
        let both = |arguments: &[&str]| -> (Run, Run) {
            fs::write(bench.path("image.qcow2"), &damage.bytes).expect("the image can be written");
            let theirs = bench.try_qemu_img(arguments);
            fs::write(bench.path("image.qcow2"), &damage.bytes).expect("the image can be written");
            (theirs, bench.as_qemu_img(arguments))
        };
        let (theirs, ours) = both(&["check", "image.qcow2"]);
        if theirs.code != ours.code && !CHECKED_OTHERWISE.contains(&name) {
            different.push(format!("{name}: check: {:?}, ours {:?}", theirs.code, ours.code));
        }
        if theirs.code == ours.code && counts(&theirs) != counts(&ours) && !REPORTED_OTHERWISE.contains(&name)
        {
            different.push(format!("{name}: check: {:?}, ours {:?}", counts(&theirs), counts(&ours)));
        }
        let (theirs, ours) = both(&["check", "-r", "leaks", "image.qcow2"]);
        if theirs.code != ours.code && !CHECKED_OTHERWISE.contains(&name) && !SPOILT_THERE.contains(&name) {
            different.push(format!("{name}: leaks: {:?}, ours {:?}", theirs.code, ours.code));
        }
        let (theirs, ours) = both(&["check", "-r", "all", "image.qcow2"]);
        if ours.code != Some(0) {
            different.push(format!("{name}: repair: {:?}, ours {:?}", theirs.code, ours.code));
        }
        let is_counted_so = COUNTED_OTHERWISE.contains(&name) || SPOILT_THERE.contains(&name);
        if theirs.code == Some(0) && counts(&theirs) != counts(&ours) && !is_counted_so {
            different.push(format!("{name}: repair: {:?}, ours {:?}", counts(&theirs), counts(&ours)));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

/// The lines of the report that do not tell of places in the file.
fn counts(run: &Run) -> Vec<String> {
    let is_place = |line: &&str| line.contains("Image end offset") || line.contains("% fragmented");
    run.text().lines().filter(|line| !is_place(line)).map(str::to_owned).collect()
}

#[test]
fn damaged_images_end_with_qemu_imgs_codes_or_are_repaired_where_it_gives_up_first_part() {
    try_kind(Kind::Version3, |nth| nth % 4 == 0);
}

#[test]
fn damaged_images_end_with_qemu_imgs_codes_or_are_repaired_where_it_gives_up_second_part() {
    try_kind(Kind::Version3, |nth| nth % 4 == 1);
}

#[test]
fn damaged_images_end_with_qemu_imgs_codes_or_are_repaired_where_it_gives_up_third_part() {
    try_kind(Kind::Version3, |nth| nth % 4 == 2);
}

#[test]
fn damaged_images_end_with_qemu_imgs_codes_or_are_repaired_where_it_gives_up_fourth_part() {
    try_kind(Kind::Version3, |nth| nth % 4 == 3);
}

#[test]
fn damaged_bitmaps_end_with_qemu_imgs_codes_or_are_repaired_where_it_gives_up() {
    try_kind(Kind::Bitmap, |_| true);
}

#[test]
fn a_dry_run_tells_the_plan_and_changes_nothing() {
    let bench = Workbench::new();
    let sound = Sound::make(Kind::Version3, &bench.path("sound.qcow2"));
    let damages = sound.damages();
    let damage = damages.iter().find(|damage| damage.name.ends_with("L2 entry far past the end")).unwrap();
    fs::write(bench.path("a.qcow2"), &damage.bytes).unwrap();
    let before = bench.content();
    let run = bench.cowimg("check --dry-run -r all a.qcow2");
    assert_eq!(run.code, Some(2));
    for words in ["past the end of the file", "give its data up: it reads as zeroes", "set the refcount to 1"]
    {
        assert!(run.text().contains(words), "{}", run.text());
    }
    let run = bench.cowimg("check --dry-run -r leaks --json a.qcow2");
    assert_eq!(run.code, Some(2));
    assert!(run.text().contains("\"changes\": false"), "{}", run.text());
    assert_eq!(bench.content(), before);

    let run = bench.cowimg("check --dry-run -r all sound.qcow2").ok();
    assert_eq!(run.text(), "There is nothing to repair.\n");
    assert_eq!(bench.cowimg("check --dry-run sound.qcow2").code, Some(1), "-r says what would be done");
    assert_eq!(bench.as_qemu_img(&["check", "--dry-run", "-r", "all", "sound.qcow2"]).code, Some(1));
}

#[test]
fn a_base_that_is_missing_fails_the_strict_check_and_is_told_in_the_other() {
    let bench = Workbench::with_images();
    fs::rename(bench.path("base.img"), bench.path("moved.img")).unwrap();
    for arguments in [&["check", "child.qcow2"][..], &["check", "-r", "all", "top.qcow2"]] {
        assert_eq!(bench.try_qemu_img(arguments).code, Some(1));
        assert_eq!(bench.as_qemu_img(arguments).code, Some(1));
    }
    let run = bench.cowimg("check top.qcow2").ok();
    assert!(
        run.stderr.contains("base.img") && run.stderr.contains("only the image itself"),
        "{}",
        run.stderr
    );
    bench.cowimg("check -r all top.qcow2").ok();
}

#[test]
fn a_description_is_repeated_as_it_was_given() {
    let bench = Workbench::with_images();
    for arguments in [
        &["check", "--output=json", "--image-opts", "driver=qcow2,file.filename=base.qcow2"][..],
        &["check", "--output=json", "json:{\"driver\":\"qcow2\",\"file.filename\":\"base.qcow2\"}"],
        &["check", "--output=json", "file:base.qcow2"],
    ] {
        bench.same_with(arguments).ok();
    }
}
