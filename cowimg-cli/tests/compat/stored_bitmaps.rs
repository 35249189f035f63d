//! The bitmaps of a qcow2 image, read from the bytes as the specification lays them out.
//!
//! qemu-img reports names and granularities only; what is marked in a bitmap has to be read here.
//!
//! ```text
//! header extension 0x23852875     count u32, reserved u32, directory's length u64, directory's offset u64
//! directory entry                 table's offset u64, entries in table u32, flags u32, type u8, granularity bits u8,
//!                                 length of name u16, length of extra data u32, extra data, name, up to 8 bytes
//! table entry                     bits 9-55 offset of a cluster of bits; without one, bit 0 stands for all of them
//! ```

const BITMAPS_EXTENSION: u32 = 0x2385_2875;

/// A bitmap and the parts of the disk that it marks.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct StoredBitmap {
    pub(crate) name: String,
    /// Bit 0: in use, bit 1: recording.
    pub(crate) flags: u32,
    /// Bytes that a bit stands for.
    pub(crate) granularity: u64,
    /// Marked bytes of the disk, from and to, in order and joined.
    pub(crate) marked: Vec<(u64, u64)>,
}

/// All bitmaps; `None` where the image does not have what its header says.
pub(crate) fn read(image: &[u8]) -> Option<Vec<StoredBitmap>> {
    if u32_at(image, 4)? < 3 {
        return Some(Vec::new());
    }
    let mut at = u32_at(image, 100)? as usize;
    loop {
        let (kind, len) = (u32_at(image, at)?, u32_at(image, at + 4)? as usize);
        match kind {
            0 => return Some(Vec::new()),
            BITMAPS_EXTENSION => return read_directory(image, at + 8),
            _ => at += 8 + len.next_multiple_of(8),
        }
    }
}

fn read_directory(image: &[u8], extension: usize) -> Option<Vec<StoredBitmap>> {
    let count = u32_at(image, extension)?;
    let mut at = u64_at(image, extension + 16)? as usize;
    let mut bitmaps = Vec::new();
    for _ in 0..count {
        let granularity = 1_u64 << *image.get(at + 17)?;
        let name_len = u16::from_be_bytes(image.get(at + 18..at + 20)?.try_into().ok()?) as usize;
        let extra_len = u32_at(image, at + 20)? as usize;
        let name = image.get(at + 24 + extra_len..at + 24 + extra_len + name_len)?;
        bitmaps.push(StoredBitmap {
            name: String::from_utf8_lossy(name).into_owned(),
            flags: u32_at(image, at + 12)?,
            granularity,
            marked: read_table(
                image,
                u64_at(image, at)? as usize,
                u32_at(image, at + 8)? as usize,
                granularity,
            )?,
        });
        at += (24 + extra_len + name_len).next_multiple_of(8);
    }
    Some(bitmaps)
}

fn read_table(image: &[u8], table: usize, entries: usize, granularity: u64) -> Option<Vec<(u64, u64)>> {
    const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
    let disk = u64_at(image, 24)?;
    let cluster = 1_usize << u32_at(image, 20)?;
    let covered = cluster as u64 * 8 * granularity;
    let mut marked: Vec<(u64, u64)> = Vec::new();
    let mut mark = |from: u64, to: u64| match marked.last_mut() {
        _ if from >= disk => {}
        Some(last) if last.1 == from => last.1 = to.min(disk),
        _ => marked.push((from, to.min(disk))),
    };
    for index in 0..entries {
        let entry = u64_at(image, table + 8 * index)?;
        let start = index as u64 * covered;
        match (entry & OFFSET) as usize {
            0 if entry & 1 == 1 => mark(start, start + covered),
            0 => {}
            offset => {
                // A file may end within the cluster, which goes on with zeroes.
                let bits = image.get(offset..image.len().min(offset + cluster))?;
                for bit in (0..bits.len() * 8).filter(|bit| bits[bit / 8] >> (bit % 8) & 1 == 1) {
                    mark(start + bit as u64 * granularity, start + (bit as u64 + 1) * granularity);
                }
            }
        }
    }
    Some(marked)
}

fn u32_at(image: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(image.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(image: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(image.get(at..at + 8)?.try_into().ok()?))
}

#[test]
fn what_a_running_qemu_marked_is_read() {
    let bench = crate::bench_folder::BenchFolder::new(
        "new a 1M; qemu-img bitmap --add -g 64k a b; io qcow2 a 'write 100k 64k' 'write 960k 64k'",
    );
    bench.reset();
    let path = bench.folder(crate::bench_folder::Side::Theirs).join("a");
    let found = read(&std::fs::read(path).expect("the image is there")).expect("the image is whole");
    let marked = vec![(64 << 10, 192 << 10), (960 << 10, 1 << 20)];
    assert_eq!(found, [StoredBitmap { name: "b".into(), flags: 2, granularity: 64 << 10, marked }]);
}
