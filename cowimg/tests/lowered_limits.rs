//! Limits that somebody lowered: what asks for more is refused under the limit's name, by whoever opens, checks, plans or repairs
//! it, and nothing has changed then.

mod sound_image;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use cowimg::check::{CheckedFile, Repair, check_storage_with, plan_storage_with, repair_storage_with};
use cowimg::format::qcow2::CompressionType;
use cowimg::progress::Control;
use cowimg::storage::{MemoryStorage, StorageExt};
use cowimg::{Access, CreateOptions, ErrorKind, Format, Image, Limits, Result};

use sound_image::{L1_ENTRIES, REFCOUNT_CLUSTERS, SNAPSHOT_COUNT, SNAPSHOT_TABLE, changed, sound};

#[test]
fn a_lowered_limit_is_said_by_its_name_and_holds() {
    let storage = sound(9, CompressionType::Deflate);
    let open = |limits: Limits| {
        let options = Image::options().format(Format::Qcow2).access(Access::ReadWrite).limits(limits);
        options.open_storage(storage.clone())
    };
    open(Limits::default()).expect("the default opens it").close().expect("it closes");
    let none = || Limits::default();
    for (name, limits) in [
        ("metadata_bytes", none().metadata_bytes(100)),
        ("snapshots", none().snapshots(0)),
        ("bitmaps", none().bitmaps(0)),
    ] {
        let error = open(limits).map(drop).expect_err("over the limit");
        assert!(matches!(error.kind(), ErrorKind::OverLimit { .. }), "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
    open(none().metadata_bytes(4096).snapshots(1).bitmaps(1)).expect("what is enough is enough");
}

/// What a check, a plan and a repair of the image say to these limits.
fn judged(storage: &Arc<MemoryStorage>, limits: &Limits) -> [Result<()>; 3] {
    let control = Control::default();
    let copy = MemoryStorage::copy_of(&**storage).expect("memory can be copied");
    let before = copy.to_vec();
    let repaired = repair_storage_with(&copy, Repair::All, limits, &control).map(drop);
    assert!(
        repaired.is_ok() || copy.to_vec() == before,
        "a refused repair has changed something: {limits:?}"
    );
    let checked = check_storage_with(&**storage, limits, &control).map(drop);
    [checked, plan_storage_with(&**storage, Repair::All, limits, &control).map(drop), repaired]
}

#[test]
fn a_lowered_limit_holds_for_checks_plans_and_repairs_of_sound_and_damaged_images() {
    let storage = sound(9, CompressionType::Deflate);
    let mut table = [0; 8];
    storage.read_exact_at(&mut table, SNAPSHOT_TABLE as u64).expect("memory can be read");
    let table = u64::from_be_bytes(table) as usize;
    let damaged = [
        ("sound", storage.clone()),
        ("too many entries of L1", changed(&storage, L1_ENTRIES, &u32::MAX.to_be_bytes())),
        ("too many snapshots", changed(&storage, SNAPSHOT_COUNT, &u32::MAX.to_be_bytes())),
        ("a snapshot in the header", changed(&storage, table, &0_u64.to_be_bytes())),
        ("no refcounts", changed(&storage, REFCOUNT_CLUSTERS, &0_u32.to_be_bytes())),
    ];
    let none = Limits::default;
    for (what, storage) in &damaged {
        for (name, limits, is_met_by_a_repair_alone) in [
            ("metadata_bytes", none().metadata_bytes(16), false),
            ("bitmaps", none().bitmaps(0), false),
            ("check_bytes", none().check_bytes(100), false),
            ("check_bytes", none().check_bytes(800), false),
            ("snapshots", none().snapshots(0), *what == "too many snapshots"),
        ] {
            let skipped = usize::from(is_met_by_a_repair_alone);
            for result in &judged(storage, &limits)[skipped..] {
                let error = result.as_ref().expect_err("over the limit");
                assert!(matches!(error.kind(), ErrorKind::OverLimit { .. }), "{what}: {error}");
                assert!(error.to_string().contains(name), "{what}, {name}: {error}");
            }
        }
        let enough = none().metadata_bytes(4096).snapshots(1).bitmaps(1).check_bytes(1 << 16);
        for result in judged(storage, &enough) {
            result.unwrap_or_else(|error| panic!("{what}: what is enough is enough: {error}"));
        }
    }
}

#[test]
fn a_lowered_limit_holds_for_a_file_that_is_opened_to_be_checked_and_for_what_it_needs() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = |name: &str| -> PathBuf { folder.path().join(name) };
    fs::write(path("base"), sound(9, CompressionType::Deflate).to_vec()).expect("a file can be written");
    for (name, below) in [("middle", "base"), ("top", "middle")] {
        cowimg::create(path(name), &CreateOptions::overlay(below)).expect("it is made");
    }
    let open = |name: &str, limits: Limits| {
        CheckedFile::open(path(name), &Image::options().limits(limits), Access::ReadWrite)
    };
    let none = Limits::default;
    // The header alone is enough to refuse it.
    for limits in [none().metadata_bytes(16), none().snapshots(0)] {
        let error = open("base", limits).map(drop).expect_err("over the limit");
        assert!(matches!(error.kind(), ErrorKind::OverLimit { .. }), "{error}");
        assert!(error.to_string().contains("base"), "{error}");
    }
    let control = Control::default();
    let mut file = open("base", none().check_bytes(100)).expect("that much is not counted to open it");
    for result in [
        file.check(&control).map(drop),
        file.plan(Repair::All, &control).map(drop),
        file.repair(Repair::All, &control).map(drop),
    ] {
        let error = result.expect_err("over the limit");
        assert!(matches!(error.kind(), ErrorKind::OverLimit { name: "check_bytes", .. }), "{error}");
    }
    drop(file);
    for (layers, is_enough) in [(1, false), (2, false), (3, true)] {
        let mut file = open("top", none().chain_depth(layers)).expect("one file is opened");
        match file.open_dependencies() {
            Ok(()) => assert!(is_enough),
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::ChainTooDeep { .. }) && !is_enough, "{error}");
            }
        }
    }
    // An image that is open checks itself by its own limits.
    let open = Image::options().limits(none().check_bytes(100)).open(path("base")).expect("it opens");
    let error = open.check().expect_err("over the limit");
    assert!(matches!(error.kind(), ErrorKind::OverLimit { name: "check_bytes", .. }), "{error}");
}
