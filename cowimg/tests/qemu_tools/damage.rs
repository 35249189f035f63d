//! Images that real tools made, each with one field of its metadata damaged.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::Path;

use super::{img, io};

/// What is known of a sound image: its bytes, and where its tables are.
pub(crate) struct Sound {
    pub(crate) kind: Kind,
    pub(crate) bytes: Vec<u8>,
    cluster: u64,
}

/// Kinds of images, each with data that a snapshot shares in part, zero and compressed clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Version3,
    Version2,
    Extended,
    /// Over a raw backing file.
    Backed,
    /// With a bitmap and without a snapshot.
    Bitmap,
}

/// What must survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Survives {
    /// Every byte of the disk and of the snapshot.
    All,
    /// Every byte that could be read; of the others, the sound image's bytes, or zeroes or the backing file's.
    Readable,
}

pub(crate) struct Damage {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) survives: Survives,
}

const COPIED: u64 = 1 << 63;
/// Far past the end of each of the images.
const FAR: u64 = 1 << 30;
const BACKING: &str = "base.raw";
/// What the backing file is full of.
pub(crate) const BACKING_BYTE: u8 = 9;

impl Sound {
    /// Makes an image of 32 clusters of 64 KiB at `path` with real tools.
    pub(crate) fn make(kind: Kind, path: &Path) -> Sound {
        Sound::with_clusters(kind, path, 64 << 10)
    }

    /// The same with clusters of so many bytes; subclusters need 16 KiB.
    pub(crate) fn with_clusters(kind: Kind, path: &Path, cluster: u64) -> Sound {
        let options = match kind {
            Kind::Version3 | Kind::Bitmap => format!("cluster_size={cluster}"),
            Kind::Version2 => format!("compat=0.10,cluster_size={cluster}"),
            Kind::Extended => format!("extended_l2=on,cluster_size={cluster}"),
            Kind::Backed => {
                let base = path.with_file_name(BACKING);
                let bytes = vec![BACKING_BYTE; 32 * cluster as usize];
                std::fs::write(&base, bytes).expect("the backing file can be written");
                format!("cluster_size={cluster},backing_file={BACKING},backing_fmt=raw")
            }
        };
        img(&format!("create -q -f qcow2 -o {options},size={}", 32 * cluster), &[path]);
        let write = |how: &str, first: u64, clusters: u64| {
            format!("write -q {how} {} {}", first * cluster, clusters * cluster)
        };
        io(path, &[write("-P 5", 0, 4)]);
        if kind == Kind::Bitmap {
            img("bitmap --add", &[path, Path::new("b0")]);
        } else {
            img("snapshot -c one", &[path]);
        }
        io(path, &[write("-P 6", 1, 1), write("-P 7", 8, 1), write("-c -P 8", 16, 1)]);
        if kind != Kind::Version2 {
            io(path, &[write("-z", 12, 1)]);
        }
        Sound { kind, bytes: std::fs::read(path).expect("the image can be read"), cluster }
    }

    fn word(&self, at: u64) -> u64 {
        let at = at as usize;
        u64::from_be_bytes(self.bytes[at..at + 8].try_into().expect("eight bytes"))
    }

    fn l1(&self) -> u64 {
        self.word(40)
    }

    fn entry(&self) -> u64 {
        if self.kind == Kind::Extended { 16 } else { 8 }
    }

    fn l2(&self) -> u64 {
        self.word(self.l1()) & 0x00ff_ffff_ffff_fe00
    }

    fn refcount_table(&self) -> u64 {
        self.word(48)
    }

    fn refcount_block(&self) -> u64 {
        self.word(self.refcount_table())
    }

    fn snapshots(&self) -> u64 {
        self.word(64)
    }

    fn snapshot_l1(&self) -> u64 {
        self.word(self.snapshots())
    }

    /// Where the header's extension has the bitmaps.
    fn bitmaps(&self) -> u64 {
        let magic = 0x2385_2875_u32.to_be_bytes();
        let at = self.bytes[..4096].windows(4).position(|window| window == magic);
        at.expect("the image has a bitmap") as u64 + 8
    }

    fn directory(&self) -> u64 {
        self.word(self.bitmaps() + 16)
    }

    /// The first cluster behind the file.
    fn end(&self) -> u64 {
        (self.bytes.len() as u64).next_multiple_of(self.cluster)
    }

    fn damage(&self, name: &str, at: u64, with: &[u8], survives: Survives) -> Damage {
        let mut bytes = self.bytes.clone();
        bytes[at as usize..at as usize + with.len()].copy_from_slice(with);
        Damage { name: format!("{:?}: {name}", self.kind), bytes, survives }
    }

    fn long(&self, name: &str, at: u64, value: u64, survives: Survives) -> Damage {
        self.damage(name, at, &value.to_be_bytes(), survives)
    }

    fn int(&self, name: &str, at: u64, value: u32, survives: Survives) -> Damage {
        self.damage(name, at, &value.to_be_bytes(), survives)
    }

    /// All damages of this image.
    pub(crate) fn damages(&self) -> Vec<Damage> {
        if self.kind == Kind::Bitmap {
            return self.bitmap_damages();
        }
        let mut all = self.l2_damages();
        all.extend(self.l1_damages());
        all.extend(self.refcount_damages());
        all.extend(self.snapshot_damages());
        all
    }

    fn l2_damages(&self) -> Vec<Damage> {
        use Survives::{All, Readable};
        let (l2, size) = (self.l2(), self.entry());
        let (first, second) = (self.word(l2), l2 + size);
        let compressed = l2 + 16 * size;
        let mut all = vec![
            self.long("L2 entry far past the end", l2, COPIED | FAR, Readable),
            self.long("L2 entry just past the end", l2, COPIED | self.end(), Readable),
            self.long("L2 entry a cluster past the end", l2, COPIED | (self.end() + self.cluster), Readable),
            self.long("L2 entry within a cluster", l2, first | 0x200, All),
            self.long("L2 entry with a low reserved bit", l2, first | 2, All),
            self.long("L2 entry with a high reserved bit", l2, first | 1 << 58, All),
            self.long("L2 entry to its own table", second, COPIED | l2, Readable),
            self.long("L2 entry to the L1 table", second, COPIED | self.l1(), Readable),
            self.long("L2 entry to the refcount block", second, COPIED | self.refcount_block(), Readable),
            self.long("L2 entry to the refcount table", second, COPIED | self.refcount_table(), Readable),
            self.long("L2 entry to another's data", second, first, Readable),
            self.long("L2 entry that went", second, 0, Readable),
            self.long("compressed with the copied flag", compressed, self.word(compressed) | COPIED, All),
            self.long("compressed past the end", compressed, 1 << 62 | FAR, Readable),
        ];
        if matches!(self.kind, Kind::Version3 | Kind::Backed) {
            all.push(self.long(
                "kept cluster within a cluster",
                l2 + 12 * size,
                5 * self.cluster + 0x201,
                All,
            ));
        }
        if self.kind == Kind::Extended {
            let words = self.word(l2 + 8);
            all.push(self.long("subclusters twice", l2 + 8, words | 1 << 32, All));
            all.push(self.long("subclusters of no cluster", l2 + 28 * 16 + 8, 0xf, All));
            all.push(self.long("compressed with subclusters", compressed + 8, 0xf, All));
        }
        all
    }

    fn l1_damages(&self) -> Vec<Damage> {
        use Survives::{All, Readable};
        let l1 = self.l1();
        let entry = self.word(l1);
        let data = self.word(self.l2() + self.entry());
        vec![
            self.long("L1 entry far past the end", l1, COPIED | FAR, Readable),
            self.long("L1 entry just past the end", l1, COPIED | self.end(), Readable),
            self.long("L1 entry within a cluster", l1, entry | 0x200, All),
            self.long("L1 entry with a low reserved bit", l1, entry | 1, All),
            self.long("L1 entry with a high reserved bit", l1, entry | 1 << 60, All),
            self.long("L1 entry to the L1 table", l1, COPIED | l1, Readable),
            self.long("L1 entry to the refcount block", l1, COPIED | self.refcount_block(), Readable),
            self.long("L1 entry to the refcount table", l1, COPIED | self.refcount_table(), Readable),
            self.long("L1 entry to data", l1, data, Readable),
            self.long("L1 entry that went", l1, 0, Readable),
            self.int("an L1 table far longer than it is", 36, 1 << 20, All),
            self.int("an L1 table of more entries than any has", 36, u32::MAX, All),
            self.int("an L1 table that goes on over what follows it", 36, (self.cluster / 8) as u32 + 1, All),
            self.int("an L1 table without entries", 36, 0, All),
            self.long("L1 table within a cluster", 40, l1 | 0x200, All),
            self.long("L1 table in the header", 40, 0, All),
            self.long("L1 table far past the end", 40, FAR, All),
            self.long("L1 table where no file is", 40, 1 << 63, All),
            self.long("L1 table just past the end", 40, self.end(), All),
            self.long("L1 table at an L2 table", 40, self.l2(), All),
            self.long("L1 table at data", 40, data & !COPIED, All),
            self.long("L1 table at the refcount table", 40, self.refcount_table(), All),
            self.long("L1 table at the refcount block", 40, self.refcount_block(), All),
            self.long("L1 table at the snapshot table", 40, self.snapshots(), All),
        ]
    }

    fn refcount_damages(&self) -> Vec<Damage> {
        use Survives::All;
        let (table, block) = (self.refcount_table(), self.refcount_block());
        let mut all = vec![
            self.long("no refcount block", table, 0, All),
            self.long("refcount block within a cluster", table, block | 0x200, All),
            self.long("refcount block with a reserved bit", table, block | 1, All),
            self.long("refcount block far past the end", table, FAR, All),
            self.long("refcount block just past the end", table, self.end(), All),
            self.long("refcount block at the L1 table", table, self.l1(), All),
            self.long("refcount block at an L2 table", table, self.l2(), All),
            self.long("refcount block at the refcount table", table, table, All),
            self.long("refcount block twice", table + 8, block, All),
            self.long("refcount block at no offset", table + 80, 1 << 62, All),
            self.int("refcount table without clusters", 56, 0, All),
            self.int("refcount table of too many clusters", 56, u32::MAX, All),
            self.int("refcount table longer than it is", 56, 3, All),
            self.long("refcount table nowhere", 48, 0, All),
            self.long("refcount table within a cluster", 48, table | 0x200, All),
            self.long("refcount table far past the end", 48, FAR, All),
            self.long("refcount table at the L1 table", 48, self.l1(), All),
            self.long("refcount table at an L2 table", 48, self.l2(), All),
        ];
        for cluster in 0..(self.bytes.len() as u64).div_ceil(self.cluster) {
            let refcount = if cluster % 2 == 0 { 0 } else { 200 };
            let name = format!("refcount of cluster {cluster} is {refcount}");
            all.push(self.damage(&name, block + 2 * cluster, &[0, refcount], All));
        }
        if self.kind != Kind::Version2 {
            let bits = self.word(72);
            all.push(self.long("marked corrupt", 72, bits | 2, All));
            all.push(self.long("marked dirty", 72, bits | 1, All));
            all.push(self.long("an unknown autoclear bit", 88, self.word(88) | 0x80, All));
        }
        all
    }

    fn snapshot_damages(&self) -> Vec<Damage> {
        use Survives::{All, Readable};
        let (table, l1) = (self.snapshots(), self.snapshot_l1());
        let entry = self.word(l1);
        let mut all = vec![
            self.int("one snapshot too many", 60, 2, All),
            self.int("no snapshots", 60, 0, Readable),
            self.int("too many snapshots", 60, 70_000, All),
            self.long("snapshot table within a cluster", 64, table | 0x200, All),
            self.long("snapshot table past the end", 64, FAR, Readable),
            self.long("snapshot table at the L1 table", 64, self.l1(), Readable),
            self.long("snapshot's L1 table within a cluster", table, l1 | 0x200, All),
            self.long("snapshot's L1 table past the end", table, FAR, Readable),
            self.long("snapshot's L1 table in the header", table, 0, Readable),
            self.long("snapshot's L1 table is the active one", table, self.l1(), Readable),
            self.int("snapshot's L1 table far too large", table + 8, u32::MAX, All),
            self.int("snapshot's L1 table too large", table + 8, 5 << 20, All),
            self.int("snapshot's L1 table without entries", table + 8, 0, Readable),
            self.int("snapshot with too much extra data", table + 36, 2000, All),
            self.int("snapshot with endless extra data", table + 36, u32::MAX, All),
            self.damage("snapshot with a long name", table + 14, &[0xff, 0xff], Readable),
            self.long("snapshot's L1 entry past the end", l1, FAR, Readable),
            self.long("snapshot's L1 entry within a cluster", l1, entry | 0x200, All),
            self.long("snapshot's L1 entry with a reserved bit", l1, entry | 1, All),
        ];
        // Version 2 can do without; what follows is then taken for ID and name.
        if self.kind != Kind::Version2 {
            all.push(self.int("snapshot without extra data", table + 36, 0, All));
            all.push(self.int("snapshot with half its extra data", table + 36, 8, All));
        }
        all
    }

    fn bitmap_damages(&self) -> Vec<Damage> {
        use Survives::All;
        let (extension, directory) = (self.bitmaps(), self.directory());
        let table = self.word(directory);
        vec![
            self.long("bitmap directory past the end", extension + 16, FAR, All),
            self.long("bitmap directory within a cluster", extension + 16, directory | 0x200, All),
            self.long("bitmap directory far too large", extension + 8, FAR, All),
            self.long("bitmap directory without bytes", extension + 8, 0, All),
            self.int("one bitmap too many", extension, 2, All),
            self.int("no bitmaps", extension, 0, All),
            self.long("bitmap table within a cluster", directory, table | 0x200, All),
            self.long("bitmap table past the end", directory, FAR, All),
            self.int("bitmap table far too large", directory + 8, u32::MAX, All),
            self.int("bitmap table too large", directory + 8, 2, All),
            self.int("bitmap with reserved flags", directory + 12, 0xff00, All),
            self.damage("bitmap of unknown type", directory + 16, &[7], All),
            self.damage("bitmap of impossible granularity", directory + 17, &[60], All),
            self.damage("bitmap with a long name", directory + 18, &[0xff, 0xff], All),
            self.long("bitmap table entry past the end", table, FAR, All),
            self.long("bitmap table entry within a cluster", table, 5 * self.cluster + 0x200, All),
            self.long("bitmap table entry with a reserved bit", table, 1 << 60, All),
        ]
    }
}
