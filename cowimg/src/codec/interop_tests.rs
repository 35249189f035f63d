//! Clusters that pass between this crate and `qemu-img`, both ways.

use std::path::Path;
use std::process::Command;

use super::{compress, decompress};
use crate::format::qcow2::CompressionType;

const CLUSTER: usize = 65_536;

/// What users of the format have beside text: numbers that count up, so that no two clusters are alike.
fn guest_bytes(clusters: usize) -> Vec<u8> {
    let words = (0_u32..).flat_map(|i| if i % 7 == 0 { *b"qcow" } else { (i / 3).to_be_bytes() });
    words.take(clusters * CLUSTER).collect()
}

fn qemu_img(args: &[&str]) -> bool {
    let output = Command::new("qemu-img").args(args).output();
    output.expect("these tests need qemu-img (apt-get install qemu-utils)").status.success()
}

fn path_str(path: &Path) -> &str {
    path.to_str().expect("the temporary directory has a name in UTF-8")
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Offset of the first L2 table.
fn l2_table(image: &[u8]) -> usize {
    let l1_table = u64_at(image, 40) as usize;
    (u64_at(image, l1_table) & 0x00ff_ffff_ffff_fe00) as usize
}

/// Where a cluster's compressed bytes lie: from, to (exclusive).
fn compressed_span(entry: u64) -> Option<(usize, usize)> {
    // With clusters of 64 KiB the sector count takes bits 54 to 61.
    let offset = (entry & ((1 << 54) - 1)) as usize;
    let sectors = (entry >> 54 & 0xff) as usize;
    (entry >> 62 == 1).then_some((offset, offset / 512 * 512 + (sectors + 1) * 512))
}

/// A compressed image of `bytes`, made by `qemu-img` in `dir`.
fn image_by_qemu_img(dir: &Path, method: CompressionType, bytes: &[u8]) -> Vec<u8> {
    let (raw, image) = (dir.join("raw"), dir.join("image"));
    std::fs::write(&raw, bytes).unwrap();
    let name = if method == CompressionType::Zstd { "zstd" } else { "zlib" };
    let option = format!("compression_type={name}");
    let made = qemu_img(&[
        "convert",
        "-c",
        "-f",
        "raw",
        "-O",
        "qcow2",
        "-o",
        &option,
        path_str(&raw),
        path_str(&image),
    ]);
    assert!(made, "qemu-img could not make an image of type {name}");
    std::fs::read(&image).unwrap()
}

fn methods() -> &'static [CompressionType] {
    if cfg!(feature = "zstd") {
        &[CompressionType::Deflate, CompressionType::Zstd]
    } else {
        &[CompressionType::Deflate]
    }
}

#[test]
fn clusters_that_qemu_img_wrote_are_read() {
    let bytes = guest_bytes(12);
    for &method in methods() {
        let dir = tempfile::tempdir().unwrap();
        let image = image_by_qemu_img(dir.path(), method, &bytes);
        let table = l2_table(&image);
        for (nth, expected) in bytes.chunks(CLUSTER).enumerate() {
            let (from, to) = compressed_span(u64_at(&image, table + nth * 8)).unwrap();
            let mut cluster = vec![0; CLUSTER];
            decompress(method, &image[from..to.min(image.len())], &mut cluster).unwrap();
            assert!(cluster == expected, "cluster {nth} of {method:?}");
        }
    }
}

/// In an image of `qemu-img`'s every compressed cluster is replaced by one of ours.
#[test]
fn clusters_that_we_wrote_are_read_by_qemu_img() {
    let bytes = guest_bytes(12);
    for &method in methods() {
        let dir = tempfile::tempdir().unwrap();
        let mut image = image_by_qemu_img(dir.path(), method, &vec![1; bytes.len()]);
        let table = l2_table(&image);
        for (nth, cluster) in bytes.chunks(CLUSTER).enumerate() {
            let mut packed = vec![0; CLUSTER - 1];
            let len = compress(method, cluster, &mut packed).unwrap().unwrap();
            // On byte boundaries, and with the bytes of the next cluster in the last sector.
            let from = image.len();
            image.extend(&packed[..len]);
            let sectors = (from % 512 + len - 1) / 512;
            let entry = 1 << 62 | (sectors as u64) << 54 | from as u64;
            image[table + nth * 8..table + nth * 8 + 8].copy_from_slice(&entry.to_be_bytes());
        }
        image.resize(image.len().next_multiple_of(512), 0xaa);
        let (ours, back) = (dir.path().join("ours"), dir.path().join("back"));
        std::fs::write(&ours, &image).unwrap();
        assert!(
            qemu_img(&["convert", "-f", "qcow2", "-O", "raw", path_str(&ours), path_str(&back)]),
            "{method:?} clusters were refused"
        );
        assert!(std::fs::read(&back).unwrap() == bytes, "{method:?} clusters came back changed");
    }
}
