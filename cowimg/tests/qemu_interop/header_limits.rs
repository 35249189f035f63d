//! Header fields at their limits and beyond, one at a time: what real `qemu-io` opens the library opens, and what it refuses
//! the library refuses, for reading and for writing. A run draws some of the values; `make soak` takes all.

use std::path::{Path, PathBuf};

use cowimg::{Access, Format, Image};
use tempfile::TempDir;

use crate::qemu_tools;
use crate::seeded::{Rng, is_soak};

/// A field by its offset and length, and values for it.
struct Field {
    name: &'static str,
    at: usize,
    len: usize,
    values: &'static [u64],
}

const fn field(name: &'static str, at: usize, len: usize, values: &'static [u64]) -> Field {
    Field { name, at, len, values }
}

/// Fields with values that QEMU opens and the library does not, each for its reason: nothing makes such images, and what
/// QEMU reads there is not what anybody wrote.
const STRICTER: [(&str, &str); 6] = [
    ("backing_file_offset", "a name that lies within the header, or has no bytes"),
    (
        "l1_size",
        "a table that reaches past the end of the file, or into data whose entries then name nothing",
    ),
    ("l1_table_offset", "a table within the header's cluster or past the end of the file"),
    ("refcount_table_offset", "the same"),
    ("refcount_table_clusters", "entries that name blocks past the end of the file; to write only"),
    ("header_length", "a header whose extensions start at no multiple of 8"),
];

const MAX_L1: u64 = 4 << 20;

const FIELDS: [Field; 17] = [
    field("magic", 0, 4, &[0, 0x514649fa]),
    field("version", 4, 4, &[0, 1, 2, 3, 4, u32::MAX as u64]),
    field("backing_file_offset", 8, 8, &[1, 104, 65535, 65536, 1 << 40, u64::MAX]),
    field("backing_file_size", 16, 4, &[1, 1023, 1024, u32::MAX as u64]),
    field("cluster_bits", 20, 4, &[0, 8, 9, 15, 17, 21, 22, 63, u32::MAX as u64]),
    field(
        "size",
        24,
        8,
        &[0, 511, 512, 1000001, 1 << 29, (1 << 29) + 1, 1 << 40, 1 << 62, 1 << 63, u64::MAX],
    ),
    field("crypt_method", 32, 4, &[3, u32::MAX as u64]),
    field("l1_size", 36, 4, &[0, 1, 2, 8192, MAX_L1, MAX_L1 + 1, u32::MAX as u64]),
    field("l1_table_offset", 40, 8, &[0, 0x30008, 0x30200, 1 << 40, 1 << 56, 1 << 63, u64::MAX << 16]),
    field("refcount_table_offset", 48, 8, &[0, 0x10008, 0x10200, 1 << 56, u64::MAX << 16]),
    field("refcount_table_clusters", 56, 4, &[0, 1, 2, 128, 129, u32::MAX as u64]),
    field("nb_snapshots", 60, 4, &[65537, u32::MAX as u64]),
    field("incompatible_features", 72, 8, &[2, 4, 8, 16, 32, 1 << 63]),
    field("compatible_features", 80, 8, &[1, 2, u64::MAX]),
    field("autoclear_features", 88, 8, &[1, 2, 4, u64::MAX]),
    field("refcount_order", 96, 4, &[0, 1, 5, 6, 7, 32, u32::MAX as u64]),
    field("header_length", 100, 4, &[0, 72, 100, 104, 105, 111, 112, 120, 65536, 65537, u32::MAX as u64]),
];

struct Sound {
    folder: TempDir,
    bytes: Vec<u8>,
}

impl Sound {
    fn new(options: &str) -> Sound {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("sound.qcow2");
        let words = format!("create -q -f qcow2 -o {options}");
        qemu_tools::img(&words, &[&path, Path::new("4M")]);
        qemu_tools::io(&path, &["write -q -P 1 0 256k".to_owned()]);
        Sound { bytes: std::fs::read(path).expect("the image can be read"), folder }
    }

    /// A copy that is changed in its header.
    fn with(&self, changes: &[(usize, usize, u64)]) -> PathBuf {
        let mut bytes = self.bytes.clone();
        for &(at, len, value) in changes {
            bytes[at..at + len].copy_from_slice(&value.to_be_bytes()[8 - len..]);
        }
        let path = self.folder.path().join("image.qcow2");
        std::fs::write(&path, bytes).expect("the image can be written");
        path
    }

    /// Whether QEMU and the library open the changed copy, for reading or to write. Reading is what is asked of it.
    fn opened_by_both(&self, changes: &[(usize, usize, u64)], access: Access) -> [bool; 2] {
        let path = self.with(changes);
        let name = path.display().to_string();
        let mut arguments = vec!["-f", "qcow2"];
        if access == Access::ReadOnly {
            arguments.push("-r");
        }
        arguments.push(&name);
        let theirs = qemu_tools::answer_of("qemu-io", &[&arguments[..], &["-c", "flush"]].concat());
        let path = self.with(changes);
        let ours = Image::options().access(access).format(Format::Qcow2).open(&path);
        [theirs.code == 0, ours.is_ok()]
    }
}

fn compare(sound: &Sound, options: &str, (field, value): (&Field, u64), wrong: &mut Vec<String>) {
    for access in [Access::ReadOnly, Access::ReadWrite] {
        let [theirs, ours] = sound.opened_by_both(&[(field.at, field.len, value)], access);
        let stricter = theirs && STRICTER.iter().any(|(name, _)| *name == field.name);
        if theirs != ours && !stricter {
            let name = field.name;
            wrong.push(format!(
                "{options}: {name} = {value:#x}, {access:?}: QEMU: {theirs}, the library: {ours}"
            ));
        }
    }
}

#[test]
fn a_header_is_refused_where_qemu_refuses_it() {
    let (mut wrong, mut rng) = (Vec::new(), Rng::new("header limits"));
    for options in ["compat=1.1", "compat=0.10", "cluster_size=2M", "cluster_size=512"] {
        let sound = Sound::new(options);
        for field in &FIELDS {
            for &value in field.values {
                let is_there = field.at < 72 || options != "compat=0.10";
                let drawn = is_soak() || rng.below(20) == 0;
                if !is_there || !drawn {
                    continue;
                }
                compare(&sound, options, (field, value), &mut wrong);
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}
