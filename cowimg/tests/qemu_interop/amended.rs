//! Images that were amended: QEMU finds them sound, with the same content, and can amend them back.

use std::path::Path;

use cowimg::progress::Control;
use cowimg::{AmendOptions, ErrorKind, LazyRefcounts, NewBitmap, Version};

use crate::qemu_tools::{self, assert_same_bytes};
use crate::subject;

const SIZE: u64 = 6 << 20;

/// An overlay with compressed, plain and zero clusters, some with a cluster kept for them, and two snapshots.
fn create(folder: &Path, cluster: u64, compress: &str) -> std::path::PathBuf {
    let (base, path) = (folder.join("base.raw"), folder.join("image.qcow2"));
    std::fs::write(&base, vec![0x11; SIZE as usize]).expect("the base can be written");
    let words = format!("create -q -f qcow2 -F raw -o cluster_size={cluster} -b");
    qemu_tools::img(&words, &[&base, &path]);
    let io = |commands: &[&str]| {
        qemu_tools::io(&path, &commands.iter().map(|&command| command.to_owned()).collect::<Vec<_>>());
    };
    io(&[
        "write -P 2 0 1M",
        "write -z 256k 256k",
        "write -z -u 2M 1M",
        &format!("write {compress} -P 3 4M 2M"),
    ]);
    qemu_tools::img("snapshot -c one", &[&path]);
    io(&["write -z 512k 256k", "write -P 5 2M 200k", "write -z -u 3M 512k", "write -z 100k 100k"]);
    qemu_tools::img("snapshot -c two", &[&path]);
    io(&["write -z 600k 400k", "write -P 6 3M 64k"]);
    path
}

fn amend(path: &Path, wanted: &AmendOptions) -> cowimg::Result<()> {
    let mut image = subject::open_writable(path);
    image.amend(wanted, &Control::default())?;
    // What was amended is good to work on without being opened anew.
    image.write_at(&[7; 512], SIZE - 512)?;
    image.close()
}

fn version(version: Version) -> AmendOptions {
    AmendOptions { version: Some(version), ..AmendOptions::default() }
}

fn width(bits: u32) -> AmendOptions {
    AmendOptions { refcount_bits: Some(bits), ..AmendOptions::default() }
}

/// What the disk and its snapshots hold.
fn contents(path: &Path) -> [Vec<u8>; 3] {
    let snapshot = |name| qemu_tools::snapshot_content(path, name);
    [qemu_tools::content(path), snapshot("one"), snapshot("two")]
}

fn assert_holds(path: &Path, expected: &[Vec<u8>; 3], what: &str) {
    qemu_tools::assert_check_clean(path);
    for (found, expected) in contents(path).iter().zip(expected) {
        assert_same_bytes(found, expected, what);
    }
    subject::assert_own_check_clean(&subject::open(path));
}

#[test]
fn every_width_and_both_versions_hold_the_same() {
    // Compressed clusters share clusters of the file, and so take wide refcounts.
    let narrow = ("", &[64, 4, 2, 32, 8, 16][..]);
    let wide = ("-c", &[64, 32, 16][..]);
    let all =
        [512, 4096, 65536, 2 << 20].into_iter().flat_map(|cluster| [(cluster, narrow), (cluster, wide)]);
    for (cluster, (compress, widths)) in all {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = create(folder.path(), cluster, compress);
        amend(&path, &AmendOptions::default()).expect("nothing is amended");
        let expected = contents(&path);
        for &bits in widths {
            amend(&path, &width(bits)).expect("the width changes");
            assert_holds(&path, &expected, &format!("{cluster}, {bits} bits"));
            let info = qemu_tools::img("info -f qcow2", &[&path]);
            assert!(info.contains(&format!("refcount bits: {bits}\n")), "{info}");
        }
        amend(&path, &version(Version::V2)).expect("the image is downgraded");
        assert_holds(&path, &expected, &format!("{cluster}, version 2"));
        assert!(qemu_tools::img("info -f qcow2", &[&path]).contains("compat: 0.10"));
        let lazy = AmendOptions { lazy_refcounts: Some(LazyRefcounts::On), ..version(Version::V3) };
        amend(&path, &lazy).expect("the image is upgraded");
        assert_holds(&path, &expected, &format!("{cluster}, version 3"));
        assert!(qemu_tools::img("info -f qcow2", &[&path]).contains("lazy refcounts: true"));
        qemu_tools::img("amend -f qcow2 -o compat=0.10", &[&path]);
        assert_holds(&path, &expected, &format!("{cluster}, downgraded by QEMU"));
    }
}

#[test]
fn what_cannot_be_had_changes_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = create(folder.path(), 4096, "-c");
    let before = std::fs::read(&path).expect("the image can be read");
    let size = |bytes| AmendOptions { size: Some(bytes), ..AmendOptions::default() };
    for wanted in [
        width(1),
        width(3),
        width(128),
        AmendOptions { refcount_bits: Some(8), ..version(Version::V2) },
        AmendOptions { lazy_refcounts: Some(LazyRefcounts::On), ..version(Version::V2) },
        AmendOptions { data_file: Some("data".into()), ..width(8) },
        AmendOptions { data_file_raw: Some(true), ..width(8) },
        AmendOptions { size: Some(SIZE + 1), ..width(8) },
        AmendOptions { size: Some(SIZE + 512), ..version(Version::V2) },
        size(512),
    ] {
        let error = subject::open_writable(&path).amend(&wanted, &Control::default()).unwrap_err();
        let known = matches!(error.kind(), ErrorKind::InvalidArgument(_) | ErrorKind::Unsupported(_));
        assert!(known, "{wanted:?}: {error}");
        let after = std::fs::read(&path).expect("the image can be read");
        assert!(after == before, "{wanted:?} was refused and changed the image");
    }
    let image = subject::open_writable(&path);
    image.add_bitmap("b", &NewBitmap::default()).expect("a bitmap is added");
    image.close().expect("the image closes");
    assert!(amend(&path, &version(Version::V2)).is_err(), "version 2 has no bitmaps");
    amend(&path, &width(32)).expect("an image with bitmaps gets wider refcounts");
    qemu_tools::assert_check_clean(&path);
}

#[test]
fn the_name_of_a_data_file_changes() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let (path, data) = (folder.path().join("image.qcow2"), folder.path().join("data"));
    let words = format!("create -q -f qcow2 -o data_file={},data_file_raw=on,size=1M", data.display());
    qemu_tools::img(&words, &[&path]);
    qemu_tools::io(&path, &["write -P 9 0 1M".to_owned()]);
    let moved = folder.path().join("moved");
    std::fs::hard_link(&data, &moved).expect("a link can be made");
    let wanted = AmendOptions {
        data_file: Some(moved.clone().into()),
        data_file_raw: Some(false),
        ..AmendOptions::default()
    };
    let mut image = subject::open_writable(&path);
    assert!(image.amend(&version(Version::V2), &Control::default()).is_err());
    image.amend(&wanted, &Control::default()).expect("the name changes");
    image.close().expect("the image closes");
    let info = qemu_tools::img("info -f qcow2", &[&path]);
    assert!(info.contains("moved") && info.contains("data file raw: false"), "{info}");
    assert_same_bytes(&qemu_tools::content(&path), &vec![9; 1 << 20], "by its new name");
}
