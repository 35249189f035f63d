//! The consistency check against the real one: `qemu-img check` on the same images, healthy and damaged, must find the
//! same and count the same.
//!
//! Needs qemu-img and qemu-io; without them the tests fail and say so.
#![allow(clippy::unwrap_used, reason = "what helps a test may fail as a test does")]

mod lab;

use std::fs::OpenOptions;
use std::path::Path;
use std::process::Output;

use cowimg::check::{CheckReport, check_storage};
use cowimg::storage::{FileOptions, FileStorage};

use lab::{Lab, OFFSET, Patient, io, run, run_ok, snapshot};

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

/// The numbers that both report, by the names that QEMU gives them.
const NUMBERS: [&str; 8] = [
    "corruptions",
    "leaks",
    "check-errors",
    "allocated-clusters",
    "fragmented-clusters",
    "compressed-clusters",
    "total-clusters",
    "image-end-offset",
];

/// The value of a key in QEMU's flat JSON report; a key that is left out is zero.
fn number(json: &str, key: &str) -> u64 {
    let Some((_, rest)) = json.split_once(&format!("\"{key}\":")) else { return 0 };
    let digits: String = rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

fn numbers(report: &CheckReport) -> [u64; 8] {
    [
        report.corruptions,
        report.leaks,
        report.check_errors,
        report.allocated_clusters,
        report.fragmented_clusters,
        report.compressed_clusters,
        report.total_clusters,
        report.image_end_offset,
    ]
}

/// Those lines whose form is the same in both reports.
fn well_known<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<String> {
    let forms = ["Leaked cluster ", "ERROR cluster ", "ERROR OFLAG_COPIED "];
    let known =
        lines.filter(|line| forms.iter().any(|form| line.starts_with(form)) && line.contains("refcount="));
    let mut lines: Vec<String> = known.map(str::to_owned).collect();
    lines.sort();
    lines
}

fn our_report(image: &Path) -> CheckReport {
    let storage = FileStorage::open(image, &FileOptions::read_only()).unwrap();
    check_storage(&storage).unwrap()
}

/// Each finding as often as it counts.
fn our_lines(report: &CheckReport) -> Vec<String> {
    let lines = report.issues.iter().flat_map(|issue| {
        std::iter::repeat_n(issue.finding.to_string(), usize::try_from(issue.times).unwrap())
    });
    let lines: Vec<String> = lines.collect();
    well_known(lines.iter().map(String::as_str))
}

/// What `qemu-img check` has printed, with the report as JSON.
fn compare(what: &str, image: &Path, qemu: &Output) -> CheckReport {
    let json = String::from_utf8_lossy(&qemu.stdout);
    // QEMU's warning about forgotten bitmaps does not end its line.
    let errors = String::from_utf8_lossy(&qemu.stderr).replace("file to fix.", "file to fix.\n");
    assert!(json.contains("image-end-offset"), "{what}: QEMU has not checked: {errors}");
    let report = our_report(image);
    let ours: Vec<_> = NUMBERS.iter().copied().zip(numbers(&report)).collect();
    let theirs: Vec<_> = NUMBERS.iter().map(|&key| (key, number(&json, key))).collect();
    let lines: Vec<_> = report.issues.iter().map(ToString::to_string).collect();
    assert_eq!(ours, theirs, "{what}: ours and QEMU's\nours: {lines:#?}\nQEMU: {errors}");
    assert_eq!(our_lines(&report), well_known(errors.lines()), "{what}");
    report
}

/// Our report, once it is known to be the same as QEMU's.
fn same_as_qemu(what: &str, image: &Path) -> CheckReport {
    let qemu = run("qemu-img", &["check", "-f", "qcow2", "--output=json", image.to_str().unwrap()]);
    compare(what, image, &qemu)
}

fn clean_as_in_qemu(what: &str, image: &Path) -> CheckReport {
    let report = same_as_qemu(what, image);
    assert!(report.is_clean(), "{what}");
    report
}

type Damage = (&'static str, fn(&Patient));

/// Makes each damage to a copy of `image` and compares; every one must be found.
fn compare_damaged(lab: &Lab, image: &Path, damages: &[Damage]) {
    let copy = lab.path("damaged.qcow2");
    for (what, damage) in damages {
        std::fs::copy(image, &copy).unwrap();
        damage(&Patient::open(&copy));
        let report = same_as_qemu(what, &copy);
        assert!(!report.is_clean(), "{what}: nobody has noticed");
    }
}

#[test]
fn a_fresh_image_of_64_mib_ends_where_qemu_says() {
    let lab = Lab::new();
    let report = clean_as_in_qemu("fresh", &lab.create("fresh.qcow2", "", "64M"));
    assert_eq!((report.image_end_offset, report.total_clusters), (262144, 1024));
}

#[test]
fn healthy_images_of_many_geometries() {
    let lab = Lab::new();
    let empty = lab.create("empty.qcow2", "", "0");
    clean_as_in_qemu("no size", &empty);
    for options in [
        "cluster_size=512",
        "cluster_size=1024,refcount_bits=1",
        "cluster_size=4096,refcount_bits=2",
        "cluster_size=16384,refcount_bits=4",
        "cluster_size=65536,refcount_bits=8",
        "cluster_size=4096,refcount_bits=32",
        "cluster_size=512,refcount_bits=64",
        "cluster_size=2M",
        "compat=0.10,cluster_size=4096",
        "preallocation=metadata,cluster_size=4096",
        "preallocation=falloc",
        "extended_l2=on,cluster_size=16384",
    ] {
        let image = lab.create("image.qcow2", options, "4000000");
        let zeroes = if options.contains("0.10") { "read 2M 64k" } else { "write -z 2M 64k" };
        io(
            &image,
            &["write 0 100k", "write 3M 70k", "write 512 512", zeroes, "discard 3M 8k", "write 1M 3k"],
        );
        let report = clean_as_in_qemu(options, &image);
        assert!(report.allocated_clusters > 0);
    }
}

#[test]
fn healthy_images_with_snapshots() {
    let lab = Lab::new();
    for options in
        ["", "cluster_size=4096", "cluster_size=512,refcount_bits=8", "compat=0.10,cluster_size=4096"]
    {
        clean_as_in_qemu(options, &lab.with_snapshots(options));
    }
    let image = lab.with_snapshots("cluster_size=4096");
    snapshot(&image, "-a", "s1");
    clean_as_in_qemu("back to a snapshot", &image);
}

#[test]
fn healthy_images_with_compressed_clusters() {
    let lab = Lab::new();
    for options in ["cluster_size=4096", "cluster_size=512", "compression_type=zstd", "cluster_size=2M"] {
        let image = lab.convert("compressed.qcow2", &["-c", "-o", options]);
        let report = clean_as_in_qemu(options, &image);
        assert!(report.compressed_clusters > 0 && report.fragmented_clusters >= report.compressed_clusters);
    }
    let image = lab.convert("compressed.qcow2", &["-c"]);
    snapshot(&image, "-c", "s");
    io(&image, &["write 10k 200k"]);
    clean_as_in_qemu("compressed, with a snapshot", &image);
}

#[test]
fn healthy_images_with_bitmaps_and_bitmaps_that_were_forgotten() {
    let lab = Lab::new();
    let image = lab.create("bitmaps.qcow2", "cluster_size=4096", "200M");
    let path = image.to_str().unwrap();
    run_ok("qemu-img", &["bitmap", "--add", "-g", "512", path, "fine"]);
    run_ok("qemu-img", &["bitmap", "--add", path, "coarse"]);
    io(&image, &["write 0 100k", "write 3M 1M", "write 150M 64k"]);
    clean_as_in_qemu("two bitmaps", &image);

    // A program that does not know bitmaps has changed the image: they are nobody's now.
    let patient = Patient::open(&image);
    patient.change(88, |autoclear| autoclear & !1);
    let report = same_as_qemu("forgotten bitmaps", &image);
    assert!(report.leaks > 4);
}

#[test]
fn healthy_images_with_a_backing_file_a_data_file_and_encryption() {
    let lab = Lab::new();
    let base = lab.with_data("");
    let child = lab.path("child.qcow2");
    let (base, path) = (base.to_str().unwrap(), child.to_str().unwrap());
    run_ok("qemu-img", &["create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", path]);
    io(&child, &["write 100k 10k"]);
    assert_eq!(clean_as_in_qemu("child", &child).allocated_clusters, 1);

    let data_file = lab.path("guest-data");
    let options = format!("cluster_size=4096,data_file={}", data_file.display());
    let image = lab.create("image.qcow2", &options, "10M");
    io(&image, &["write 0 100k", "write 5M 64k"]);
    clean_as_in_qemu("data file", &image);

    let image = lab.path("encrypted.qcow2");
    let path = image.to_str().unwrap();
    let secret = ["--object", "secret,id=s,data=word"];
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1";
    run_ok(
        "qemu-img",
        &[&["create", "-q", "-f", "qcow2"], &secret[..], &["-o", options, path, "1M"]].concat(),
    );
    let options = format!("driver=qcow2,file.filename={path},encrypt.key-secret=s");
    let args = [&["check", "--output=json"], &secret[..], &["--image-opts", &options]].concat();
    let report = compare("encrypted", &image, &run("qemu-img", &args));
    assert!(report.is_clean());
}

#[test]
fn an_image_that_was_not_closed() {
    let lab = Lab::new();
    let image = lab.create("dirty.qcow2", "lazy_refcounts=on", "20M");
    // qemu-io ends without closing the image, by a signal.
    run("qemu-io", &["-c", "write 0 200k", "-c", "abort", image.to_str().unwrap()]);
    let report = same_as_qemu("dirty", &image);
    assert!(report.corruptions > 0);
}

#[test]
fn damaged_l2_entries() {
    let lab = Lab::new();
    let image = lab.with_data("");
    compare_damaged(
        &lab,
        &image,
        &[
            ("reserved bits", |p| p.change(p.l2, |entry| entry | 1 << 57 | 1 << 4)),
            ("copied flag missing", |p| p.change(p.l2, |entry| entry & !COPIED)),
            ("unaligned", |p| p.change(p.l2, |entry| entry + 512)),
            ("unaligned and zero", |p| p.change(p.l2, |entry| entry + 513)),
            ("past the end", |p| p.put(p.l2, COPIED | 1 << 28)),
            ("absurdly far", |p| p.put(p.l2, COPIED | OFFSET & !0xffff)),
            ("just past the end", |p| p.put(p.l2, COPIED | p.len())),
            ("compressed and copied", |p| p.change(p.l2, |entry| entry | COMPRESSED)),
            ("compressed past the end", |p| p.put(p.l2, COMPRESSED | (0xff << 54) | (p.len() - 100))),
            ("shared", |p| p.put(p.l2, p.word(p.l2 + 8))),
            ("gone", |p| p.put(p.l2 + 8, 0)),
            ("into the header", |p| p.put(p.l2, COPIED | 1)),
            ("into the L1 table", |p| p.put(p.l2, COPIED | p.l1)),
            ("into itself", |p| p.put(p.l2, COPIED | p.l2)),
        ],
    );
}

#[test]
fn damaged_l1_entries() {
    let lab = Lab::new();
    let image = lab.with_data("cluster_size=4096");
    compare_damaged(
        &lab,
        &image,
        &[
            ("reserved bits", |p| p.change(p.l1, |entry| entry | 1 << 60 | 1)),
            ("copied flag missing", |p| p.change(p.l1, |entry| entry & !COPIED)),
            ("unaligned", |p| p.change(p.l1, |entry| entry + 512)),
            ("past the end", |p| p.put(p.l1, COPIED | 1 << 28)),
            ("absurdly far", |p| p.put(p.l1, COPIED | OFFSET & !0xfff)),
            ("the L1 table itself", |p| p.put(p.l1, COPIED | p.l1)),
            ("a data cluster", |p| p.put(p.l1, p.word(p.l2))),
            ("twice the same", |p| p.put(p.l1 + 8, p.word(p.l1))),
            ("gone", |p| p.put(p.l1, 0)),
        ],
    );
}

#[test]
fn damaged_refcounts() {
    let lab = Lab::new();
    let image = lab.with_data("");
    compare_damaged(
        &lab,
        &image,
        &[
            ("too low", |p| p.set_refcount(5, 0)),
            ("too high", |p| p.set_refcount(6, 65535)),
            ("of a table, too high", |p| p.set_refcount(p.l2 / p.cluster_size, 2)),
            ("of the header", |p| p.set_refcount(0, 0)),
            ("table entry with reserved bits", |p| p.change(p.refcount_table, |entry| entry | 1)),
            ("block unaligned", |p| p.change(p.refcount_table, |entry| entry + 512)),
            ("block past the end", |p| p.put(p.refcount_table, 1 << 28)),
            ("block past every file's end", |p| p.put(p.refcount_table, !0xffff)),
            ("block at the last offset", |p| p.put(p.refcount_table, (1 << 63) - (1 << 16))),
            ("no block", |p| p.put(p.refcount_table, 0)),
            ("one block twice", |p| p.put(p.refcount_table + 8, p.refcount_block)),
            ("a data cluster as a block", |p| p.put(p.refcount_table + 8, p.word(p.l2) & OFFSET)),
            ("unused block past the end", |p| p.put(p.refcount_table + 80, 1 << 28)),
        ],
    );
    std::fs::copy(&image, lab.path("longer.qcow2")).unwrap();
    let longer = Patient::open(&lab.path("longer.qcow2"));
    longer.set_refcount(longer.len() / longer.cluster_size + 9, 1);
    clean_as_in_qemu("a refcount past the end is nobody's", &lab.path("longer.qcow2"));
}

#[test]
fn damaged_snapshots() {
    let lab = Lab::new();
    let image = lab.with_snapshots("cluster_size=4096");
    compare_damaged(
        &lab,
        &image,
        &[
            ("L1 table unaligned", |p| p.change(p.snapshot_table, |l1_table| l1_table + 512)),
            ("L1 table past the end", |p| p.put(p.snapshot_table, 1 << 40)),
            ("L1 table of data", |p| p.put(p.snapshot_table, p.word(p.l2) & OFFSET)),
            ("L1 table too large", |p| p.change(p.snapshot_table + 8, |sizes| sizes | 1 << 62)),
            ("L1 table longer than the file", |p| {
                let last = p.len().next_multiple_of(p.cluster_size);
                p.file.set_len(last + p.cluster_size).unwrap();
                p.put(p.snapshot_table, last);
                p.change(p.snapshot_table + 8, |sizes| sizes & 0xffff_ffff | 2000 << 32);
            }),
            ("the active L1 table", |p| p.put(p.snapshot_table, p.l1)),
            ("entry incomplete", |p| {
                // What the extra data loses, the name gets, so that the next entry stays where it is.
                p.change(p.snapshot_table + 32, |sizes| sizes - 12);
                p.change(p.snapshot_table + 8, |sizes| sizes + 12);
            }),
            ("one entry gone", |p| p.change(56, |counts| counts - 1)),
            ("reserved bits in a shared table", |p| {
                let table = p.word(p.word(p.snapshot_table)) & OFFSET;
                p.change(table + 8 * 30, |entry| entry | 0x10);
            }),
        ],
    );
}

#[test]
fn damaged_images_of_special_kinds() {
    let lab = Lab::new();
    let narrow = lab.create("narrow.qcow2", "refcount_bits=2,cluster_size=4096", "2M");
    io(&narrow, &["write 0 100k"]);
    snapshot(&narrow, "-c", "1");
    snapshot(&narrow, "-c", "2");
    let more_than_fit: &[Damage] = &[("more references than fit", |p| {
        (0..10).for_each(|index| p.put(p.l2 + 8 * index, p.word(p.l2)));
    })];
    compare_damaged(&lab, &narrow, more_than_fit);

    let extended = lab.create("extended.qcow2", "extended_l2=on,cluster_size=16384", "40M");
    io(&extended, &["write 0 100k", "write 5M 3k", "write -z 6M 4k"]);
    compare_damaged(
        &lab,
        &extended,
        &[
            ("subclusters allocated and zero", |p| p.put(p.l2 + 8, !0)),
            ("subclusters of no cluster", |p| p.put(p.l2 + 16 * 100 + 8, 1)),
            ("compressed with subclusters", |p| p.change(p.l2, |entry| (entry | COMPRESSED) & !COPIED)),
            ("unaligned", |p| p.change(p.l2, |entry| entry + 512)),
            ("unaligned, without data", |p| {
                p.change(p.l2, |entry| entry + 512);
                p.put(p.l2 + 8, 0);
            }),
        ],
    );

    let options = format!("cluster_size=4096,data_file={}", lab.path("guest-data").display());
    let data_file = lab.create("data-file.qcow2", &options, "10M");
    io(&data_file, &["write 0 100k", "write 5M 64k"]);
    compare_damaged(
        &lab,
        &data_file,
        &[
            ("compressed", |p| p.change(p.l2 + 8, |entry| entry | COMPRESSED)),
            ("copied flag missing", |p| p.change(p.l2 + 8, |entry| entry & !COPIED)),
            ("first cluster's entry reserved", |p| p.change(p.l2, |entry| entry | 4)),
        ],
    );
}

#[test]
fn images_that_were_cut() {
    let lab = Lab::new();
    for (what, left) in [("half", 2), ("a third", 3), ("most", 50)] {
        let image = lab.with_snapshots("cluster_size=4096");
        let file = OpenOptions::new().write(true).open(&image).unwrap();
        let len = file.metadata().unwrap().len();
        file.set_len(len - len / left + 100).unwrap();
        let report = same_as_qemu(what, &image);
        assert!(report.corruptions > 0);
    }
}

/// Where we differ: QEMU takes the header for an L2 table when an L1 entry has flags and no table, and passes over the
/// zero flag in version 2, which then makes every read of the cluster fail.
#[test]
fn what_qemu_misreads_or_misses_is_a_corruption() {
    let lab = Lab::new();
    let image = lab.with_data("compat=0.10");
    let patient = Patient::open(&image);
    patient.put(patient.l2 + 8 * 100, 1);
    assert_eq!(numbers(&our_report(&image))[..3], [1, 0, 0]);
    let output = run("qemu-io", &["-r", "-c", "read 6553600 4096", image.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("failed"), "{output:?}");

    let image = lab.create("empty.qcow2", "", "64M");
    let patient = Patient::open(&image);
    patient.put(patient.l1, COPIED);
    assert_eq!(numbers(&our_report(&image))[..3], [1, 0, 0]);
    let output = run("qemu-img", &["check", "--output=json", image.to_str().unwrap()]);
    assert!(number(&String::from_utf8_lossy(&output.stdout), "corruptions") > 1);
}

/// Where QEMU gives up, we say what is wrong and check the rest, without calling anything leaked that may be in use.
#[test]
fn what_qemu_cannot_check_is_a_finding() {
    let lab = Lab::new();
    let image = lab.with_snapshots("cluster_size=4096");
    let patient = Patient::open(&image);
    patient.change(patient.snapshot_table + 32, |sizes| sizes | 0x7fff_0000);
    let output = run("qemu-img", &["check", image.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let report = our_report(&image);
    assert_eq!((report.leaks, report.corruptions, report.check_errors), (0, 0, 1));

    let image = lab.create("bitmap.qcow2", "cluster_size=4096", "2M");
    run_ok("qemu-img", &["bitmap", "--add", image.to_str().unwrap(), "b"]);
    let directory =
        8 + std::fs::read(&image).unwrap().windows(4).position(|w| w == [0x23, 0x85, 0x28, 0x75]).unwrap();
    let patient = Patient::open(&image);
    let directory = patient.word(directory as u64 + 16);
    patient.change(directory, |table| table + 512);
    let output = run("qemu-img", &["check", image.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let report = our_report(&image);
    assert_eq!((report.leaks, report.corruptions, report.check_errors), (0, 0, 1));
}
