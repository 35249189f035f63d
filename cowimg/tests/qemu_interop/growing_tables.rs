//! Tables that outgrow their first place: refcount tables of files that are large for their clusters, and disks of
//! many tebibytes.

use std::path::Path;

use cowimg::{Access, CreateOptions, Image};

use crate::model::Model;
use crate::qemu_tools;
use crate::seeded::noise;
use crate::subject;

const SIZE: u64 = 9 * 1024 * 1024 + 512;

fn create(path: &Path, size: u64, cluster_size: u64, refcount_bits: u32) -> Image {
    let mut options = CreateOptions::qcow2(size);
    options.qcow2.cluster_size = cluster_size;
    options.qcow2.refcount_bits = refcount_bits;
    Image::create(path, &options).expect("the image is created")
}

/// A cluster of 512 bytes holds 64 entries: with 64-bit refcounts a refcount table of one cluster is full when the
/// file has 2 MiB, with 16-bit ones at 8 MiB.
#[test]
fn refcount_tables_grow_as_often_as_it_takes() {
    for (refcount_bits, piece) in [(64, 3000), (64, 1 << 20), (16, 100_000)] {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("image.qcow2");
        let image = create(&path, SIZE, 512, refcount_bits);
        let mut model = Model::zeroed(SIZE);
        let bytes = noise(u64::from(refcount_bits), SIZE as usize);
        for (index, piece) in bytes.chunks(piece).enumerate() {
            let start = (index * bytes.chunks(piece.len()).next().map_or(0, <[u8]>::len)) as u64;
            let start = start.min(SIZE - piece.len() as u64);
            image.write_at(piece, start).expect("the write succeeds");
            model.write(start, piece);
        }
        subject::close_and_compare(image, &path, &model);
    }
}

#[test]
fn a_refcount_table_grows_in_an_image_that_qemu_made() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("image.qcow2");
    qemu_tools::img(
        "create -q -f qcow2 -o cluster_size=512,refcount_bits=32",
        &[&path, Path::new(&SIZE.to_string())],
    );
    qemu_tools::io(&path, &["write -q -P 1 0 2M".to_string()]);
    let mut model = Model::zeroed(SIZE);
    model.write(0, &vec![1; 2 << 20]);
    for (round, start) in (2 << 20..SIZE - (1 << 20)).step_by(1 << 20).enumerate() {
        let image = Image::options().access(Access::ReadWrite).open(&path).expect("the image opens");
        let bytes = noise(round as u64, 1 << 20);
        image.write_at(&bytes, start).expect("the write succeeds");
        model.write(start, &bytes);
        image.close().expect("the image closes");
        qemu_tools::assert_check_clean(&path);
    }
    subject::assert_agreement(&path, &model);
}

#[test]
fn both_ends_of_an_enormous_disk_can_be_written() {
    let sizes: [(u64, u64); 4] = [(512, 100 << 30), (4096, 1 << 43), (65536, 1 << 46), (2097152, 1 << 53)];
    for (cluster_size, size) in sizes {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("image.qcow2");
        let image = create(&path, size, cluster_size, 16);
        let places = [0, size / 2 - 350, size - 700];
        for (index, place) in places.into_iter().enumerate() {
            image.write_at(&[index as u8 + 1; 700], place).expect("the write succeeds");
        }
        image.close().expect("the image closes");
        qemu_tools::assert_check_clean(&path);
        let reads: Vec<String> = places
            .iter()
            .enumerate()
            .flat_map(|(index, place)| ["-c".to_string(), format!("read -P {} {place} 700", index + 1)])
            .chain([path.to_str().expect("a plain path").to_string()])
            .collect();
        let answer =
            qemu_tools::run("qemu-io", &[vec!["-f".to_string(), "qcow2".to_string()], reads].concat());
        assert!(!answer.contains("verification failed"), "{cluster_size}: {answer}");
        subject::assert_own_check_clean(&subject::open(&path));
        let mapped = subject::open(&path).extents(cowimg::ByteRange::between(0, size)).count();
        assert!(mapped < 12, "{mapped} extents");
    }
}
