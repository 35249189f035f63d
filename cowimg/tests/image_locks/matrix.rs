//! Every operation on every file beside every holder.

use cowimg::{Access, Format, Image, LayerChoice};

use crate::holder::{Holder, Manner, Who};
use crate::lab::{FILES, Lab};
use crate::operation::{
    OPERATIONS, Operation, Outcome, holder_in, outcome_of, replace_by_qemu, try_replacing_by_library,
};
use crate::qemu_tools;

/// What was done or refused, in the order of the files and operations.
type Outcomes = Vec<(&'static str, Operation, Outcome)>;

/// Tries everything beside `holder` and compares the library with QEMU at every step.
fn compare_beside(lab: &Lab, holder: &Holder, what: &str) -> Outcomes {
    let mut outcomes = Vec::new();
    for name in FILES {
        let path = lab.path(name);
        for operation in OPERATIONS {
            let before = lab.contents();
            let ours = operation.try_by_library(&path);
            assert!(lab.contents() == before, "{what}: {operation:?} of {name} changed a file");
            let theirs = operation.try_by_qemu(&path);
            assert_eq!(outcome_of(&ours), theirs, "{what}: {operation:?} of {name}: {ours:?}");
            assert_holder_is_named(&ours, holder, what);
            outcomes.push((name, operation, theirs));
        }
    }
    compare_replacing(lab, holder, what);
    outcomes
}

/// Each file gives way to a new image; the last thing that is tried, because QEMU's program really does it.
fn compare_replacing(lab: &Lab, holder: &Holder, what: &str) {
    for (name, format) in FILES.into_iter().zip([Format::Qcow2, Format::Qcow2, Format::Raw, Format::Qcow2]) {
        let path = lab.path(name);
        let before = lab.contents();
        let ours = try_replacing_by_library(&path, format);
        assert!(lab.contents() == before, "{what}: replacing {name} has changed a file");
        assert_eq!(outcome_of(&ours), replace_by_qemu(&path, format), "{what}: replacing {name}: {ours:?}");
        assert_holder_is_named(&ours, holder, what);
    }
}

fn assert_holder_is_named(result: &Result<(), cowimg::Error>, holder: &Holder, what: &str) {
    let Err(error) = result else { return };
    let named = holder_in(error).unwrap_or_else(|| panic!("{what}: the refusal names nobody: {result:?}"));
    assert_eq!(named.pid, holder.pid(), "{what}: {result:?}");
    assert!(named.command.is_some(), "{what}: {result:?}");
}

/// The same with `qemu-io` and with the library as holders; which of them it is makes no difference to anybody.
fn compare_holders(manner: Manner, name: &str) {
    let [by_qemu, by_library] = [Who::QemuIo, Who::Library].map(|who| {
        let lab = Lab::new();
        let holder = Holder::of(who, manner, &lab.path(name));
        compare_beside(&lab, &holder, &format!("{who:?} {manner:?} {name}"))
    });
    assert_eq!(by_qemu, by_library, "{manner:?} {name}: the library holds it otherwise than qemu-io does");
}

#[test]
fn beside_a_writer_of_a_base() {
    compare_holders(Manner::Writing, "base.qcow2");
}

#[test]
fn beside_a_reader_of_a_base() {
    compare_holders(Manner::Reading, "base.qcow2");
}

#[test]
fn beside_a_reader_that_shares() {
    compare_holders(Manner::Sharing, "base.qcow2");
    compare_holders(Manner::Sharing, "over-raw.qcow2");
}

#[test]
fn beside_a_writer_of_an_overlay() {
    compare_holders(Manner::Writing, "top.qcow2");
}

#[test]
fn beside_a_reader_of_an_overlay() {
    compare_holders(Manner::Reading, "top.qcow2");
}

#[test]
fn beside_a_writer_of_a_raw_image() {
    compare_holders(Manner::Writing, "base.raw");
}

#[test]
fn beside_a_reader_of_a_raw_image() {
    compare_holders(Manner::Reading, "base.raw");
}

#[test]
fn beside_a_writer_of_an_overlay_on_a_raw_image() {
    compare_holders(Manner::Writing, "over-raw.qcow2");
}

#[test]
fn beside_an_export() {
    for (name, access) in [
        ("base.qcow2", Access::ReadWrite),
        ("top.qcow2", Access::ReadOnly),
        ("base.raw", Access::ReadWrite),
        ("base.raw", Access::ReadOnly),
    ] {
        let lab = Lab::new();
        let Some(holder) = Holder::export(&lab.path(name), access) else {
            eprintln!("skipped: qemu-storage-daemon is not installed (Debian: qemu-system-common)");
            return;
        };
        compare_beside(&lab, &holder, &format!("export {access:?} {name}"));
    }
}

#[test]
fn beside_a_guests_raw_disk() {
    let lab = Lab::new();
    let holder = Holder::guest(&lab.path("base.raw"));
    compare_beside(&lab, &holder, "a guest's disk");
}

/// The locks themselves that the holder has on each file of the lab.
fn locked_bytes(lab: &Lab, holder: &Holder) -> Vec<(&'static str, Vec<String>)> {
    FILES.into_iter().map(|name| (name, holder.locks_on(&lab.path(name)))).collect()
}

#[test]
fn the_library_locks_the_bytes_that_qemu_locks() {
    for manner in [Manner::Writing, Manner::Reading, Manner::Sharing] {
        for (name, is_part) in FILES.map(|name| (name, false)).into_iter().chain([("base.raw", true)]) {
            let lab = Lab::new();
            let [theirs, ours] = [Who::QemuIo, Who::Library].map(|who| {
                let hold = if is_part { Holder::of_part } else { Holder::of };
                let holder = hold(who, manner, &lab.path(name));
                locked_bytes(&lab, &holder)
            });
            assert!(theirs.iter().any(|(_, locks)| !locks.is_empty()));
            assert_eq!(ours, theirs, "{manner:?} {name}, a part: {is_part}");
        }
    }
}

#[test]
fn beside_a_writer_of_a_part_of_a_file() {
    for who in [Who::QemuIo, Who::Library] {
        let lab = Lab::new();
        let holder = Holder::of_part(who, Manner::Writing, &lab.path("base.raw"));
        compare_beside(&lab, &holder, &format!("{who:?} with a part of a file"));
    }
}

/// An image is committed through the one below it into the base: the one between has no content to rely on meanwhile.
#[test]
fn beside_a_commit_through_several_layers() {
    let [by_qemu, by_library] = [Who::QemuIo, Who::Library].map(|who| {
        let lab = Lab::new();
        let upper = lab.path("upper.qcow2");
        qemu_tools::img("create -q -f qcow2 -F qcow2 -b top.qcow2", &[&upper]);
        qemu_tools::io(&upper, &["write -P 1 0 1M".to_owned()]);
        let base = lab.path("base.qcow2");
        let _holder = match who {
            Who::QemuIo => Holder::commit(&upper, &base),
            Who::Library => Holder::Image(
                Image::options()
                    .access(Access::ReadWrite)
                    .writable_layer(LayerChoice::Named(base.into_os_string()))
                    .open(&upper)
                    .expect("the image opens"),
            ),
        };
        let mut outcomes = Vec::new();
        for name in ["upper.qcow2", "top.qcow2", "base.qcow2"] {
            for operation in OPERATIONS {
                let ours = operation.try_by_library(&lab.path(name));
                let theirs = operation.try_by_qemu(&lab.path(name));
                assert_eq!(outcome_of(&ours), theirs, "{who:?}: {operation:?} of {name}: {ours:?}");
                outcomes.push((name, operation, theirs));
            }
        }
        outcomes
    });
    assert_eq!(by_qemu, by_library);
    let between = |operation| (by_qemu.iter()).find(|row| row.0 == "top.qcow2" && row.1 == operation);
    assert_eq!(between(Operation::ReadShared).map(|row| &row.2), Some(&Outcome::Refused));
}

/// Nobody is there, so that everything may be done: the matrix above does not compare failures of another kind.
#[test]
fn beside_nobody_nothing_is_refused() {
    let lab = Lab::new();
    for name in FILES {
        for operation in OPERATIONS {
            let path = lab.path(name);
            assert_eq!(
                outcome_of(&operation.try_by_library(&path)),
                Outcome::Done,
                "{operation:?} of {name}"
            );
            assert_eq!(operation.try_by_qemu(&path), Outcome::Done, "{operation:?} of {name}");
        }
    }
}
