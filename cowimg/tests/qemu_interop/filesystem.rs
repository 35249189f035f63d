//! A real filesystem survives: an ext4 image is cloned, changed through the clone block by block, and checked by
//! its own checker.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use cowimg::job::{self, ConvertOptions};
use cowimg::progress::Control;
use cowimg::{BackingOptions, CreateOptions, Format, Image};

use crate::model::Model;
use crate::qemu_tools::{self, assert_same_bytes};
use crate::seeded::noise;
use crate::subject;

const DISK_LEN: u64 = 48 * 1024 * 1024;
const BLOCK: usize = 4096;

/// An ext4 filesystem that holds this crate's sources and some larger files.
fn make_filesystem(folder: &Path) -> PathBuf {
    let tree = folder.join("tree");
    std::fs::create_dir_all(tree.join("large")).expect("a folder can be made");
    copy_tree(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &tree.join("src"));
    for index in 0..6_u64 {
        let bytes = noise(index, 500_000 + 77_777 * index as usize);
        std::fs::write(tree.join("large").join(index.to_string()), bytes).expect("a file can be written");
    }
    let raw = folder.join("base.raw");
    let file = std::fs::File::create(&raw).expect("the image can be made");
    file.set_len(DISK_LEN).expect("the image can be grown");
    let arguments = ["-q".as_ref(), "-F".as_ref(), "-d".as_ref(), tree.as_os_str(), raw.as_os_str()];
    qemu_tools::run("mkfs.ext4", &arguments);
    raw
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder can be made");
    for entry in std::fs::read_dir(from).expect("the sources can be listed") {
        let entry = entry.expect("the sources can be listed");
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            copy_tree(&source, &target);
        } else {
            std::fs::copy(&source, &target).expect("a source can be copied");
        }
    }
}

/// Writes, deletes and renames files in the filesystem at `raw`.
fn change_filesystem(raw: &Path, folder: &Path) {
    let commands = folder.join("commands");
    let mut text = String::new();
    for index in 0..12_u64 {
        let file = folder.join(format!("new{index}"));
        std::fs::write(&file, noise(100 + index, 40_000 + 90_001 * index as usize))
            .expect("a file can be written");
        writeln!(text, "write {} /large/new{index}", file.display()).expect("text grows");
    }
    text.push_str(
        "rm /large/1\nrm /large/4\nmkdir /made\nln /large/0 /made/link\nsymlink /made/soft /large/2\n",
    );
    text.push_str("rm /src/lib.rs\nset_inode_field /large/0 links_count 2\n");
    std::fs::write(&commands, text).expect("the commands can be written");
    qemu_tools::run("debugfs", &["-w".as_ref(), "-f".as_ref(), commands.as_os_str(), raw.as_os_str()]);
}

fn assert_filesystem_sound(raw: &Path) {
    qemu_tools::run("e2fsck", &["-f".as_ref(), "-n".as_ref(), raw.as_os_str()]);
}

/// Writes the blocks of `changed` that differ from `base` to `image`, and gives their number.
fn write_differences(image: &Image, base: &[u8], changed: &[u8]) -> usize {
    let mut blocks = 0;
    for (index, (old, new)) in base.chunks(BLOCK).zip(changed.chunks(BLOCK)).enumerate() {
        if old != new {
            image.write_at(new, (index * BLOCK) as u64).expect("a block can be written");
            blocks += 1;
        }
    }
    image.flush().expect("a flush succeeds");
    blocks
}

fn try_clone(cluster: u64, base_format: Format) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let raw = make_filesystem(folder.path());
    let changed = folder.path().join("changed.raw");
    std::fs::copy(&raw, &changed).expect("the image can be copied");
    change_filesystem(&changed, folder.path());
    assert_filesystem_sound(&changed);
    let base_name = match base_format {
        Format::Qcow2 => "base.qcow2",
        _ => "base.raw",
    };
    if base_format == Format::Qcow2 {
        qemu_tools::img("convert -f raw -O qcow2 -c", &[&raw, &folder.path().join(base_name)]);
    }
    let base_path = folder.path().join(base_name);
    let base_file = std::fs::read(&base_path).expect("the base can be read");
    let (old, new) = (std::fs::read(&raw).expect("read"), std::fs::read(&changed).expect("read"));

    let clone = folder.path().join("clone.qcow2");
    let backing = BackingOptions { format: Some(base_format), ..BackingOptions::new(base_name) };
    let mut options = CreateOptions { backing: Some(backing), ..CreateOptions::new(Format::Qcow2) };
    options.qcow2.cluster_size = cluster;
    let image = Image::create(&clone, &options).expect("the clone is created");
    assert_eq!(image.size(), DISK_LEN, "a clone has its base's size");
    assert!(write_differences(&image, &old, &new) > 100);
    subject::close_and_compare(image, &clone, &Model::holding(new.clone()));

    let out = folder.path().join("out.raw");
    convert_to_raw(&clone, &out);
    assert_same_bytes(&std::fs::read(&out).expect("read"), &new, "converted by us");
    assert_filesystem_sound(&out);
    assert!(std::fs::read(&base_path).expect("read") == base_file, "the base has changed");
}

fn convert_to_raw(from: &Path, to: &Path) {
    let source = subject::open(from);
    let options = CreateOptions { size: Some(source.size()), ..CreateOptions::new(Format::Raw) };
    let target = Image::create(to, &options).expect("the raw image is created");
    job::convert(&source, &target, &ConvertOptions::default(), &Control::default())
        .expect("the conversion succeeds");
    target.close().expect("the target closes");
}

#[test]
fn a_filesystem_changed_through_a_clone_of_a_raw_base_is_sound() {
    try_clone(65536, Format::Raw);
}

#[test]
fn a_filesystem_changed_through_a_clone_of_a_compressed_base_is_sound() {
    try_clone(4096, Format::Qcow2);
}
