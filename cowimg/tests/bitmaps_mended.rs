//! Images with three bitmaps, one of which is damaged: the others stay, with every bit that they had, where it can be told
//! which those are.

mod qemu_tools;

use std::path::Path;

use cowimg::check::{Remedy, Repair, check_storage, plan_storage, repair_storage};
use cowimg::storage::MemoryStorage;
use cowimg::{ByteRange, Image};

const NAMES: [&str; 3] = ["first", "the second, which is damaged", "third"];

/// An image of three bitmaps, made by QEMU.
struct Sound {
    bytes: Vec<u8>,
    /// Where the header has the bitmaps, and where their directory is.
    extension: usize,
    directory: usize,
}

impl Sound {
    fn make(path: &Path) -> Sound {
        qemu_tools::img("create -q -f qcow2 -o cluster_size=4k,size=8M", &[path]);
        for (nth, name) in NAMES.iter().enumerate() {
            qemu_tools::img("bitmap --add -g 4k", &[path, Path::new(name)]);
            qemu_tools::io(path, &[format!("write -q -P 5 {nth}M 64k")]);
        }
        let bytes = std::fs::read(path).expect("the image can be read");
        let magic = 0x2385_2875_u32.to_be_bytes();
        let extension = bytes[..4096].windows(4).position(|window| window == magic);
        let extension = extension.expect("the image has bitmaps") + 8;
        let directory = &bytes[extension + 16..extension + 24];
        let directory = u64::from_be_bytes(directory.try_into().expect("eight bytes")) as usize;
        Sound { bytes, extension, directory }
    }

    /// Where entry `nth` of the directory is.
    fn entry(&self, nth: usize) -> usize {
        let len = |name: &&str| (24 + name.len()).next_multiple_of(8);
        self.directory + NAMES[..nth].iter().map(len).sum::<usize>()
    }

    fn with(&self, at: usize, value: &[u8]) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        bytes
    }
}

fn bits(image: &Image, name: &str) -> Vec<ByteRange> {
    let ranges = image.bitmap_ranges(name).expect("the bitmap can be read");
    ranges.collect::<cowimg::Result<_>>().expect("its bits can be read")
}

/// Repairs the image: the bitmaps `kept` are as they were, and there are no others.
fn assert_kept(what: &str, damaged: &[u8], kept: &[&str], path: &Path) {
    let sound = Image::options().open(path).expect("the sound image opens");
    let storage = MemoryStorage::with_bytes(damaged);
    let before = check_storage(&storage).expect("the image can be checked");
    assert!(!before.is_clean(), "{what}: nothing was found");
    let plan = plan_storage(&storage, Repair::All).expect("there is a plan");
    let planned = plan.steps.iter().any(|step| step.remedy == Remedy::RewriteBitmaps);
    assert_eq!(planned, !kept.is_empty(), "{what}: {:?}", plan.steps);
    let report = repair_storage(&storage, Repair::All).expect("the image is repaired");
    assert!(report.after.is_clean(), "{what}: {:?}", report.after);
    let mended = path.with_file_name("mended.qcow2");
    std::fs::write(&mended, storage.to_vec()).expect("the image can be written");
    let answer = qemu_tools::img_answer("check", &[mended.as_path()]);
    assert_eq!(answer.code, 0, "{what}: qemu-img check: {}", answer.text);
    let image = Image::options().open(&mended).expect("the image opens");
    let names: Vec<String> = image
        .bitmaps()
        .expect("the bitmaps can be read")
        .into_iter()
        .map(|b| String::from_utf8(b.name).expect("names are text"))
        .collect();
    assert_eq!(names, kept, "{what}");
    for name in kept {
        assert_eq!(bits(&image, name), bits(&sound, name), "{what}: {name}");
    }
    let info = qemu_tools::img("info", &[&mended]);
    for name in NAMES {
        assert_eq!(info.contains(&format!("name: {name}")), kept.contains(&name), "{what}: {info}");
    }
    image.close().expect("the image closes");
    // QEMU goes on with them.
    qemu_tools::io(&mended, &["write -q -P 9 5M 64k".to_owned()]);
    qemu_tools::assert_check_clean(&mended);
}

#[test]
fn a_damaged_entry_takes_no_other_with_it() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("sound.qcow2");
    let sound = Sound::make(&path);
    let (entry, rest) = (sound.entry(1), [NAMES[0], NAMES[2]]);
    let table = u64::from_be_bytes(sound.bytes[entry..entry + 8].try_into().expect("eight bytes"));
    let damages: [(&str, usize, Vec<u8>); 8] = [
        ("a table within a cluster", 0, (table | 0x200).to_be_bytes().to_vec()),
        ("a table past the end", 0, (1_u64 << 40).to_be_bytes().to_vec()),
        ("a table in the header", 0, vec![0; 8]),
        ("a table far too large", 8, vec![0xff; 4]),
        ("a table without entries", 8, vec![0; 4]),
        ("reserved flags", 12, 0xff00_u32.to_be_bytes().to_vec()),
        ("an unknown type", 16, vec![7]),
        ("a granularity of nothing", 17, vec![200]),
    ];
    for (what, at, value) in damages {
        assert_kept(what, &sound.with(entry + at, &value), &rest, &path);
    }
}

#[test]
fn a_wrong_number_of_bitmaps_takes_none_with_it() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("sound.qcow2");
    let sound = Sound::make(&path);
    for count in [1_u32, 2, 4, 60_000] {
        let damaged = sound.with(sound.extension, &count.to_be_bytes());
        assert_kept(&format!("{count} bitmaps"), &damaged, &NAMES, &path);
    }
}

#[test]
fn where_nobody_can_tell_none_is_trusted() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("sound.qcow2");
    let sound = Sound::make(&path);
    let damaged = sound.with(sound.entry(1) + 18, &[0xff, 0xff]);
    assert_kept("a long name", &damaged, &[], &path);
    let damaged = sound.with(sound.entry(0) + 20, &[0, 0, 0, 8]);
    assert_kept("extra data that is not there", &damaged, &[], &path);
}
