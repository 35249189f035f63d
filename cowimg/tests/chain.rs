//! Backing chains: which file a name means, which may be opened, and what is refused.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use cowimg::{
    Access, BackingOptions, ByteRange, CreateOptions, Error, ErrorKind, ExtentKind, FilePolicy, Format,
    Image, Verification, ZeroMode,
};
use tempfile::TempDir;

const SIZE: u64 = 1 << 20;
const CLUSTER: u64 = 65536;

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder can be made")
}

fn write_raw(path: &Path, byte: u8) {
    fs::write(path, vec![byte; SIZE as usize]).expect("the base can be written");
}

fn overlay_options(
    name: impl AsRef<OsStr>,
    format: Option<Format>,
    verification: Verification,
) -> CreateOptions {
    let backing = BackingOptions { format, verification, ..BackingOptions::new(name.as_ref()) };
    CreateOptions { backing: Some(backing), ..CreateOptions::qcow2(SIZE) }
}

/// An overlay whose backing file need not be there.
fn write_overlay(path: &Path, name: impl AsRef<OsStr>, format: Format) {
    let options = overlay_options(name, Some(format), Verification::Trust);
    cowimg::create(path, &options).expect("the overlay is created");
}

fn first_byte(image: &Image) -> u8 {
    let mut byte = [0];
    image.read_at(&mut byte, 0).expect("the disk can be read");
    byte[0]
}

fn refusal_of(opened: Result<Image, Error>) -> Error {
    opened.expect_err("the image must be refused")
}

#[test]
fn a_relative_name_starts_at_the_overlays_own_folder() {
    let folder = folder();
    let (images, bases) = (folder.path().join("images"), folder.path().join("bases"));
    fs::create_dir_all(images.join("deep")).expect("a folder can be made");
    fs::create_dir(&bases).expect("a folder can be made");
    write_raw(&bases.join("base.raw"), 1);
    write_raw(&images.join("base.raw"), 2);
    write_overlay(&images.join("beside.qcow2"), "base.raw", Format::Raw);
    write_overlay(&images.join("above.qcow2"), "../bases/base.raw", Format::Raw);
    write_overlay(&images.join("deep/two.qcow2"), "../above.qcow2", Format::Qcow2);
    assert_ne!(std::env::current_dir().expect("there is one"), images);
    for (name, byte) in [("beside.qcow2", 2), ("above.qcow2", 1), ("deep/two.qcow2", 1)] {
        assert_eq!(first_byte(&Image::open(images.join(name)).expect("the overlay opens")), byte, "{name}");
    }
}

#[test]
fn an_absolute_name_is_taken_as_it_is() {
    let (folder, elsewhere) = (folder(), folder());
    let base = elsewhere.path().join("base.raw");
    write_raw(&base, 3);
    let overlay = folder.path().join("overlay.qcow2");
    write_overlay(&overlay, base.to_str().expect("a plain path"), Format::Raw);
    assert_eq!(first_byte(&Image::open(&overlay).expect("the overlay opens")), 3);
}

#[test]
fn names_with_odd_characters_are_plain_names() {
    let folder = folder();
    let mut names: Vec<OsString> = [
        "with space.raw",
        "b\u{e4}se#1?%20.raw",
        "it's \"q\".raw",
        "new\nline.raw",
        "./a:b.raw",
        "-f.raw",
        "a,,b=c",
    ]
    .map(OsString::from)
    .into();
    names.push(OsStr::from_bytes(b"not \xff text.raw").to_os_string());
    for (index, name) in names.into_iter().enumerate() {
        write_raw(&folder.path().join(&name), index as u8 + 1);
        let overlay = folder.path().join(format!("overlay{index}.qcow2"));
        write_overlay(&overlay, &name, Format::Raw);
        let image = Image::open(&overlay).unwrap_or_else(|error| panic!("{}: {error}", name.display()));
        assert_eq!(first_byte(&image), index as u8 + 1, "{}", name.display());
        let backing =
            image.info().expect("the image tells of itself").backing.expect("it has a backing file");
        assert_eq!(backing.name, name);
    }
}

#[test]
fn a_base_that_is_stated_raw_stays_raw_whatever_it_holds() {
    let folder = folder();
    let inner = folder.path().join("inner.qcow2");
    write_overlay(&inner, "/etc/hostname", Format::Raw);
    let bytes = fs::read(&inner).expect("the image can be read");
    let overlay = folder.path().join("overlay.qcow2");
    write_overlay(&overlay, "inner.qcow2", Format::Raw);
    let image = Image::open(&overlay).expect("the overlay opens");
    assert_eq!(image.layers().len(), 2, "nothing that a raw file holds names a layer");
    let mut start = vec![0; 512];
    image.read_at(&mut start, 0).expect("the disk can be read");
    assert_eq!(start, bytes[..512]);
}

#[test]
fn a_base_that_is_stated_qcow2_and_is_not_is_refused() {
    let folder = folder();
    write_raw(&folder.path().join("base"), 1);
    let overlay = folder.path().join("overlay.qcow2");
    write_overlay(&overlay, "base", Format::Qcow2);
    let error = refusal_of(Image::open(&overlay));
    let ErrorKind::Backing { name, source } = error.kind() else { panic!("{error}") };
    assert_eq!(name, "base");
    assert!(matches!(source.kind(), ErrorKind::WrongFormat { .. }), "{error}");
}

#[test]
fn a_missing_base_is_named() {
    let folder = folder();
    let overlay = folder.path().join("overlay.qcow2");
    write_overlay(&overlay, "gone.raw", Format::Raw);
    let error = refusal_of(Image::open(&overlay));
    assert!(error.to_string().contains("gone.raw"), "{error}");

    let options = overlay_options("gone.raw", Some(Format::Raw), Verification::Verify);
    let other = folder.path().join("other.qcow2");
    let error = refusal_of(Image::create(&other, &options));
    assert!(error.to_string().contains("gone.raw"), "{error}");
    assert!(!other.exists(), "a failed creation leaves a file");
}

fn chain_of(folder: &Path, overlays: usize) -> PathBuf {
    write_raw(&folder.join("base.raw"), 7);
    let mut below = ("base.raw".to_string(), Format::Raw);
    for index in 0..overlays {
        let name = format!("layer{index}.qcow2");
        write_overlay(&folder.join(&name), &below.0, below.1);
        below = (name, Format::Qcow2);
    }
    folder.join(below.0)
}

#[test]
fn a_loop_is_refused() {
    let folder = folder();
    let (a, b) = (folder.path().join("a.qcow2"), folder.path().join("b.qcow2"));
    write_overlay(&a, "b.qcow2", Format::Qcow2);
    write_overlay(&b, "a.qcow2", Format::Qcow2);
    let own = folder.path().join("own.qcow2");
    write_overlay(&own, "own.qcow2", Format::Qcow2);
    let through_link = folder.path().join("through-link.qcow2");
    write_overlay(&through_link, "link", Format::Qcow2);
    std::os::unix::fs::symlink(&through_link, folder.path().join("link")).expect("a link can be made");
    for path in [a, b, own, through_link] {
        for access in [Access::ReadOnly, Access::ReadWrite] {
            let error = refusal_of(Image::options().access(access).open(&path));
            assert!(matches!(error.kind(), ErrorKind::BackingLoop), "{}: {error}", path.display());
        }
    }
}

#[test]
fn a_chain_that_is_too_deep_is_refused() {
    let folder = folder();
    let top = chain_of(folder.path(), 6);
    let error = refusal_of(Image::options().max_depth(6).open(&top));
    assert!(matches!(error.kind(), ErrorKind::ChainTooDeep { limit: 6 }), "{error}");
    let image = Image::options().max_depth(7).open(&top).expect("seven layers are allowed");
    assert_eq!(image.layers().len(), 7);
    assert_eq!(first_byte(&image), 7);
}

#[test]
fn a_chain_of_a_hundred_layers_reads_as_its_base() {
    let folder = folder();
    let top = chain_of(folder.path(), 99);
    let image = Image::options().max_depth(100).open(&top).expect("the chain opens");
    let mut bytes = vec![0; SIZE as usize];
    image.read_at(&mut bytes, 0).expect("the disk can be read");
    assert!(bytes.iter().all(|byte| *byte == 7));
}

#[test]
fn the_policy_says_which_files_an_image_may_name() {
    let folder = folder();
    let images = folder.path().join("images");
    fs::create_dir_all(images.join("below")).expect("a folder can be made");
    write_raw(&images.join("beside.raw"), 1);
    write_raw(&images.join("below/base.raw"), 2);
    write_raw(&folder.path().join("outside.raw"), 3);
    std::os::unix::fs::symlink("../outside.raw", images.join("link.raw")).expect("a link can be made");
    let listed = FilePolicy::AllowList(vec![images.join("beside.raw"), folder.path().join("outside.raw")]);
    let deny_all = FilePolicy::DenyAll;
    // Name, and whether it may be opened: deny all, same folder, the list, allow all.
    let cases = [
        ("beside.raw", [false, true, true, true]),
        ("below/base.raw", [false, true, false, true]),
        ("../outside.raw", [false, false, true, true]),
        ("link.raw", [false, false, true, true]),
        ("below/../../outside.raw", [false, false, true, true]),
    ];
    for (index, (name, allowed)) in cases.into_iter().enumerate() {
        let overlay = images.join(format!("overlay{index}.qcow2"));
        write_overlay(&overlay, name, Format::Raw);
        let policies = [deny_all.clone(), FilePolicy::SameFolder, listed.clone(), FilePolicy::AllowAll];
        for (policy, allowed) in policies.into_iter().zip(allowed) {
            let opened = Image::options().backing(policy.clone()).open(&overlay);
            match opened {
                Ok(_) => assert!(allowed, "{name} was opened under {policy:?}"),
                Err(error) => {
                    assert!(!allowed, "{name} under {policy:?}: {error}");
                    assert!(matches!(error.kind(), ErrorKind::Refused { .. }), "{error}");
                    assert!(error.to_string().contains(name), "the refusal does not name the file: {error}");
                }
            }
        }
    }
}

#[test]
fn the_policy_holds_for_every_layer() {
    let folder = folder();
    let inner = folder.path().join("inner");
    fs::create_dir(&inner).expect("a folder can be made");
    write_raw(&folder.path().join("base.raw"), 1);
    write_overlay(&inner.join("middle.qcow2"), "../base.raw", Format::Raw);
    let top = inner.join("top.qcow2");
    write_overlay(&top, "middle.qcow2", Format::Qcow2);
    let error = refusal_of(Image::options().backing(FilePolicy::SameFolder).open(&top));
    assert!(matches!(error.kind(), ErrorKind::Refused { .. }), "{error}");
}

#[test]
fn an_image_without_a_backing_file_needs_no_permission() {
    let folder = folder();
    let path = folder.path().join("alone.qcow2");
    cowimg::create(&path, &CreateOptions::qcow2(SIZE)).expect("the image is created");
    let image = Image::options().backing(FilePolicy::DenyAll).open(&path).expect("the image opens");
    assert_eq!(first_byte(&image), 0);
}

#[test]
fn names_that_are_no_files_are_refused() {
    let folder = folder();
    let names = [
        "json:{\"driver\":\"file\",\"filename\":\"/etc/hostname\"}",
        "nbd:localhost:10809",
        "https://host/disk",
        "fat:rw:/tmp",
    ];
    for (index, name) in names.into_iter().enumerate() {
        let overlay = folder.path().join(format!("{index}.qcow2"));
        write_overlay(&overlay, name, Format::Raw);
        for policy in [FilePolicy::AllowAll, FilePolicy::SameFolder] {
            let error = refusal_of(Image::options().backing(policy).open(&overlay));
            assert!(matches!(error.kind(), ErrorKind::Refused { .. }), "{name}: {error}");
            assert!(error.to_string().contains(&name[..4]), "{name}: {error}");
        }
    }
}

#[test]
fn a_backing_file_that_is_no_file_is_refused_at_once() {
    let folder = folder();
    let pipe = folder.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs");
    assert!(made.success());
    fs::create_dir(folder.path().join("directory")).expect("a folder can be made");
    for name in ["pipe", "directory"] {
        let overlay = folder.path().join(format!("over-{name}.qcow2"));
        write_overlay(&overlay, name, Format::Raw);
        let error = refusal_of(Image::open(&overlay));
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn layers_below_the_top_are_never_written() {
    let folder = folder();
    let top = chain_of(folder.path(), 3);
    let names = ["base.raw", "layer0.qcow2", "layer1.qcow2"];
    let contents = || names.map(|name| fs::read(folder.path().join(name)).expect("a layer can be read"));
    let before = contents();
    let image = Image::options().access(Access::ReadWrite).open(&top).expect("the chain opens");
    image.write_at(&vec![9; 200_000], 1000).expect("the write succeeds");
    image.discard(ByteRange::between(0, SIZE / 2)).expect("the discard succeeds");
    image.close().expect("the image closes");
    assert!(contents() == before, "a layer below the top has changed");
}

#[test]
fn layers_that_cannot_be_written_do_not_hinder_the_top() {
    use std::os::unix::fs::PermissionsExt;

    let folder = folder();
    let top = chain_of(folder.path(), 2);
    for name in ["base.raw", "layer0.qcow2"] {
        let path = folder.path().join(name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).expect("permissions can be set");
    }
    let image = Image::options().access(Access::ReadWrite).open(&top).expect("the chain opens");
    image.write_at(&[9; 10], 0).expect("the write succeeds");
    image.close().expect("the image closes");
}

#[test]
fn extents_say_which_layer_answers() {
    let folder = folder();
    let top = chain_of(folder.path(), 2);
    // Clusters 0 and 1 stay the base's; the middle writes 2 and 3; the top writes 3 and says that 4 is zero.
    let middle = folder.path().join("layer0.qcow2");
    let image = Image::options().access(Access::ReadWrite).open(&middle).expect("the middle opens");
    image.write_at(&vec![1; 2 * CLUSTER as usize], 2 * CLUSTER).expect("the write succeeds");
    image.close().expect("the image closes");
    let image = Image::options().access(Access::ReadWrite).open(&top).expect("the top opens");
    image.write_at(&vec![2; CLUSTER as usize], 3 * CLUSTER).expect("the write succeeds");
    let zero = ByteRange::between(4 * CLUSTER, 5 * CLUSTER);
    image.write_zeroes(zero, ZeroMode::Unmap).expect("zeroing succeeds");

    let found: Vec<_> = image
        .extents(ByteRange::between(CLUSTER + 512, 6 * CLUSTER - 512))
        .map(|extent| extent.expect("the mapping can be read"))
        .map(|extent| (extent.range.start(), extent.range.end(), extent.kind, extent.depth))
        .collect();
    let expected = [
        (CLUSTER + 512, 2 * CLUSTER, ExtentKind::Data, 2),
        (2 * CLUSTER, 3 * CLUSTER, ExtentKind::Data, 1),
        (3 * CLUSTER, 4 * CLUSTER, ExtentKind::Data, 0),
        (4 * CLUSTER, 5 * CLUSTER, ExtentKind::Zero, 0),
        (5 * CLUSTER, 6 * CLUSTER - 512, ExtentKind::Data, 2),
    ];
    assert_eq!(found, expected);
    let base = image.extents(ByteRange::between(5 * CLUSTER, SIZE)).next().expect("there is one");
    assert_eq!(base.expect("the mapping can be read").host, Some(5 * CLUSTER), "a raw layer is its own map");
}

#[test]
fn an_overlay_takes_its_bases_size() {
    let folder = folder();
    fs::write(folder.path().join("base.raw"), vec![1; 700_001]).expect("the base can be written");
    let path = folder.path().join("overlay.qcow2");
    let mut options = overlay_options("base.raw", Some(Format::Raw), Verification::Verify);
    options.size = None;
    let image = Image::create(&path, &options).expect("the overlay is created");
    assert_eq!(image.size(), 700_001_u64.next_multiple_of(512));
    let mut end = vec![0xee; 1000];
    image.read_at(&mut end, image.size() - 1000).expect("the disk can be read");
    let data = 1000 - (image.size() - 700_001) as usize;
    assert!(end[..data].iter().all(|byte| *byte == 1) && end[data..].iter().all(|byte| *byte == 0));
}
