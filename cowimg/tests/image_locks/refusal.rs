//! What a refusal says, what it leaves, and how long a lock lasts.

use cowimg::check::check_file;
use cowimg::{
    Access, CreateOptions, ErrorKind, Format, Image, LockConflict, LockMode, ResizeOptions, StagedImage,
};

use crate::holder::{Holder, Manner, Who};
use crate::lab::{Lab, SIZE};
use crate::operation::{Operation, Outcome};

#[test]
fn a_refusal_says_what_the_other_does_and_who_it_is() {
    let lab = Lab::new();
    let path = lab.path("base.qcow2");
    let holder = Holder::of(Who::QemuIo, Manner::Writing, &path);
    let error = Image::open(&path).expect_err("somebody writes it");
    let text = error.to_string();
    let expected = format!(
        "{}: in use: another process has it open for writing (pid {}, qemu-io)",
        path.display(),
        holder.pid()
    );
    assert_eq!(text, expected);
    assert!(matches!(error.kind(), ErrorKind::Locked { conflict: LockConflict::Written, .. }));
}

#[test]
fn a_refusal_within_one_process_says_so() {
    let lab = Lab::new();
    let path = lab.path("base.qcow2");
    let _reader = Holder::of(Who::Library, Manner::Reading, &path);
    let error = Image::options().access(Access::ReadWrite).open(&path).expect_err("somebody reads it");
    assert!(
        error.to_string().ends_with("in use: this process has it open and relies on nobody else writing it"),
        "{error}"
    );
    assert!(matches!(error.kind(), ErrorKind::Locked { conflict: LockConflict::KeptUnwritten, .. }));
}

#[test]
fn a_backing_file_that_is_written_refuses_the_overlay() {
    let lab = Lab::new();
    let _writer = Holder::of(Who::QemuIo, Manner::Writing, &lab.path("base.qcow2"));
    let error = Image::open(lab.path("top.qcow2")).expect_err("the base is being written");
    assert_eq!(error.path(), Some(&*lab.path("top.qcow2")));
    let ErrorKind::Backing { source, .. } = error.kind() else { panic!("{error}") };
    assert_eq!(source.path(), Some(&*lab.path("base.qcow2")));
    assert!(matches!(source.kind(), ErrorKind::Locked { .. }));
}

#[test]
fn a_lock_lasts_as_long_as_its_image() {
    let lab = Lab::new();
    let path = lab.path("top.qcow2");
    let image = Image::options().access(Access::ReadWrite).open(&path).expect("the image opens");
    assert_eq!(Operation::Read.try_by_qemu(&path), Outcome::Refused);
    image.write_at(&[1; 100], 0).expect("a write succeeds");
    image.flush().expect("a flush succeeds");
    assert_eq!(Operation::Read.try_by_qemu(&path), Outcome::Refused);
    image.close().expect("the image closes");
    assert_eq!(Operation::Write.try_by_qemu(&path), Outcome::Done);

    let image = Image::options().access(Access::ReadWrite).open(&path).expect("the image opens");
    drop(image);
    assert_eq!(Operation::Write.try_by_qemu(&path), Outcome::Done);
}

#[test]
fn an_open_that_fails_leaves_no_lock() {
    let lab = Lab::new();
    let path = lab.path("base.raw");
    let error = Image::options().access(Access::ReadWrite).format(Format::Qcow2).open(&path);
    assert!(error.is_err());
    let _guest = Holder::guest(&path);
}

#[test]
fn a_raw_image_that_is_resized_keeps_others_from_relying_on_its_length() {
    let lab = Lab::new();
    let path = lab.path("base.raw");
    let image = Image::options().access(Access::ReadWrite).format(Format::Raw).open(&path).expect("it opens");
    let beside = Image::options().format(Format::Raw).open(&path).expect("readers of raw images share them");
    image.resize(2 * SIZE, &ResizeOptions::default()).expect("nobody relies on the length");
    drop((image, beside));
    let Some(_export) = Holder::export(&path, Access::ReadOnly) else { return };
    let image = Image::options().access(Access::ReadWrite).format(Format::Raw).open(&path).expect("it opens");
    let error =
        image.resize(3 * SIZE, &ResizeOptions::default()).expect_err("the export relies on the length");
    assert!(
        matches!(error.kind(), ErrorKind::Locked { conflict: LockConflict::KeptUnresized, .. }),
        "{error}"
    );
    assert_eq!(image.size(), 2 * SIZE);
}

#[test]
fn without_locks_everything_is_open_to_everybody() {
    let lab = Lab::new();
    let path = lab.path("top.qcow2");
    let unlocked = Image::options().access(Access::ReadWrite).lock(LockMode::Off);
    let first = unlocked.open(&path).expect("the image opens");
    unlocked.open(&path).expect("the image opens again");
    assert_eq!(Operation::Write.try_by_qemu(&path), Outcome::Done);
    drop(first);
}

#[test]
fn a_writer_cannot_share() {
    let lab = Lab::new();
    let sharing = Image::options().access(Access::ReadWrite).lock(LockMode::Share);
    let error = sharing.open(lab.path("base.qcow2")).expect_err("it makes no sense");
    assert!(matches!(error.kind(), ErrorKind::InvalidArgument(_)), "{error}");
}

#[test]
fn a_check_takes_a_readers_lock() {
    let lab = Lab::new();
    let path = lab.path("base.qcow2");
    let _writer = Holder::of(Who::QemuIo, Manner::Writing, &path);
    let error = check_file(&path, &Image::options()).expect_err("somebody writes it");
    assert!(matches!(error.kind(), ErrorKind::Locked { .. }), "{error}");
    check_file(&path, &Image::options().lock(LockMode::Share)).expect("-U checks all the same");
}

#[test]
fn a_storage_that_the_caller_brought_is_not_locked() {
    use std::sync::Arc;
    let lab = Lab::new();
    let path = lab.path("base.qcow2");
    let file = cowimg::storage::FileStorage::open(&path, &cowimg::storage::FileOptions::read_write());
    let image = Image::options()
        .access(Access::ReadWrite)
        .open_storage(Arc::new(file.expect("the file opens")))
        .expect("the image opens");
    assert_eq!(Operation::Write.try_by_qemu(&path), Outcome::Done);
    drop(image);
}

#[test]
fn a_file_that_is_to_be_replaced_is_locked_until_then() {
    let lab = Lab::new();
    let path = lab.path("base.qcow2");
    let options = CreateOptions { overwrite: cowimg::Overwrite::Replace, ..CreateOptions::qcow2(SIZE) };
    let staged = StagedImage::create(&path, &options).expect("nobody uses the file");
    assert_eq!(Operation::Write.try_by_qemu(&path), Outcome::Refused);
    staged.publish().expect("the image gets its name");
    assert_eq!(Operation::Write.try_by_qemu(&path), Outcome::Done);
}
