//! Compressed clusters pass both ways, with both codecs, and can be written over.

use std::path::{Path, PathBuf};

use cowimg::encryption::Passphrase;
use cowimg::job::{self, Compression, ConvertOptions};
use cowimg::progress::Control;
use cowimg::{ByteRange, CompressionType, CreateOptions, ExtentKind, Format, Image, Overwrite};

use crate::model::{Model, Operations};
use crate::qemu_tools::{self, assert_same_bytes};
use crate::seeded::{Rng, noise};
use crate::subject::{self, Discarded};

const SIZE: usize = 5 * 1024 * 1024 + 1536;

const CODECS: [CompressionType; 2] = [CompressionType::Deflate, CompressionType::Zstd];
const CLUSTERS: [u64; 4] = [512, 4096, 65536, 2097152];

/// Text-like bytes, noise and zeroes: clusters that compress well, not at all, and away.
fn mixed_bytes() -> Vec<u8> {
    let mut bytes = vec![0; SIZE];
    for (index, piece) in bytes.chunks_mut(200_000).enumerate() {
        match index % 4 {
            0 => piece.copy_from_slice(&noise(index as u64, piece.len())),
            1 => {
                for (at, byte) in piece.iter_mut().enumerate() {
                    *byte = b"the quick brown fox jumps over the lazy dog "[at * 7 % 43] ^ (at / 1000) as u8;
                }
            }
            2 => piece.fill(index as u8),
            _ => {}
        }
    }
    bytes
}

fn qemu_compresses(folder: &Path, cluster: u64, codec: CompressionType) -> (PathBuf, Model) {
    let (raw, path) = (folder.join("source.raw"), folder.join("image.qcow2"));
    let bytes = mixed_bytes();
    std::fs::write(&raw, &bytes).expect("the source can be written");
    let codec = codec.as_str();
    let words = format!("convert -c -f raw -O qcow2 -o cluster_size={cluster},compression_type={codec}");
    qemu_tools::img(&words, &[&raw, &path]);
    (path, Model::holding(bytes))
}

#[test]
fn what_qemu_compressed_is_read() {
    for codec in CODECS {
        for cluster in CLUSTERS {
            let folder = tempfile::tempdir().expect("a temporary folder can be made");
            let (path, model) = qemu_compresses(folder.path(), cluster, codec);
            subject::assert_agreement(&path, &model);
        }
    }
}

/// Compresses the raw image at `raw` into a new image beside it.
fn we_compress(raw: &Path, options: &CreateOptions) -> PathBuf {
    let path = raw.with_file_name("ours.qcow2");
    let source = Image::options().format(Format::Raw).open(raw).expect("the source opens");
    let options = CreateOptions { overwrite: Overwrite::Replace, ..options.clone() };
    let target = Image::create(&path, &options).expect("the target is created");
    let compress = ConvertOptions { compression: Compression::On, ..Default::default() };
    let report =
        job::convert(&source, &target, &compress, &Control::default()).expect("the conversion succeeds");
    assert!(report.compressed_bytes > 0, "nothing was compressed");
    target.close().expect("the target closes");
    path
}

fn len_of(path: &Path) -> u64 {
    path.metadata().expect("the file is there").len()
}

#[test]
fn what_we_compressed_is_read_by_qemu() {
    for compression in CODECS {
        for cluster_size in CLUSTERS {
            let folder = tempfile::tempdir().expect("a temporary folder can be made");
            let (theirs, model) = qemu_compresses(folder.path(), cluster_size, compression);
            let mut options = CreateOptions::qcow2(SIZE as u64);
            options.qcow2.cluster_size = cluster_size;
            options.qcow2.compression = compression;
            let ours = we_compress(&folder.path().join("source.raw"), &options);
            subject::assert_agreement(&ours, &model);
            let (ours, theirs) = (len_of(&ours), len_of(&theirs));
            assert!(
                ours < theirs * 11 / 10,
                "{compression:?}, {cluster_size}: {ours} bytes, QEMU's has {theirs}"
            );
        }
    }
}

/// Compressed clusters that share one of the host's clusters are counted one by one, and narrow counters are soon full.
#[test]
fn compressed_clusters_do_not_run_over_narrow_refcounts() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let raw = folder.path().join("source.raw");
    let bytes = mixed_bytes();
    std::fs::write(&raw, &bytes).expect("the source can be written");
    for refcount_bits in [1, 2, 4] {
        for cluster_size in [4096, 65536] {
            let mut options = CreateOptions::qcow2(SIZE as u64);
            options.qcow2.cluster_size = cluster_size;
            options.qcow2.refcount_bits = refcount_bits;
            let path = we_compress(&raw, &options);
            let mut model = Model::holding(bytes.clone());
            subject::assert_agreement(&path, &model);
            let purpose = format!("narrow refcounts {refcount_bits} {cluster_size}");
            let mut operations = Operations::new(purpose, SIZE as u64, cluster_size);
            let image = subject::open_writable(&path);
            for _ in 0..40 {
                subject::apply(&image, &mut model, operations.next(), (Discarded::Zero, cluster_size));
            }
            subject::close_and_compare(image, &path, &model);
        }
    }
}

#[test]
fn compressed_clusters_can_be_written_over() {
    for codec in CODECS {
        for cluster in CLUSTERS {
            let folder = tempfile::tempdir().expect("a temporary folder can be made");
            let (path, mut model) = qemu_compresses(folder.path(), cluster, codec);
            let purpose = format!("over compressed clusters {codec:?} {cluster}");
            let mut operations = Operations::new(purpose, SIZE as u64, cluster);
            let image = subject::open_writable(&path);
            for _ in 0..80 {
                subject::apply(&image, &mut model, operations.next(), (Discarded::Zero, cluster));
            }
            subject::close_and_compare(image, &path, &model);
        }
    }
}

#[test]
fn every_compressed_cluster_can_be_replaced_in_part() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let (path, mut model) = qemu_compresses(folder.path(), 4096, CompressionType::Deflate);
    let image = subject::open_writable(&path);
    for start in (100..SIZE as u64 - 4096).step_by(4096) {
        let bytes = noise(start, 300);
        image.write_at(&bytes, start).expect("the write succeeds");
        model.write(start, &bytes);
    }
    let kinds: Vec<_> = image
        .extents(ByteRange::between(0, 4 * 1024 * 1024))
        .map(|extent| extent.expect("the mapping can be read").kind)
        .collect();
    assert!(!kinds.contains(&ExtentKind::Compressed), "a cluster is still compressed");
    subject::close_and_compare(image, &path, &model);
    assert_same_bytes(&qemu_tools::content(&path), model.bytes(), "the image");
}

/// Clusters of noise, which stay as they are, and of one byte each, which every compressor makes equally small: so the
/// length of the file tells how compressed bytes are packed into clusters, and nothing else.
#[test]
fn compressed_clusters_are_packed_as_qemu_packs_them() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let (raw, theirs) = (folder.path().join("source.raw"), folder.path().join("theirs.qcow2"));
    let mut bytes = noise(8, 60 * 65536);
    for (nth, cluster) in bytes.chunks_mut(65536).enumerate() {
        if nth % 3 > 0 {
            cluster.fill(nth as u8 + 1);
        }
    }
    std::fs::write(&raw, &bytes).expect("the source can be written");
    for codec in CODECS {
        for (cluster_size, refcount_bits, extended_l2) in
            [(4096, 16, false), (4096, 1, false), (4096, 2, false), (65536, 16, false), (65536, 2, true)]
        {
            let words = format!(
                "convert -c -f raw -O qcow2 -o cluster_size={cluster_size},refcount_bits={refcount_bits},\
                 extended_l2={},compression_type={}",
                if extended_l2 { "on" } else { "off" },
                codec.as_str()
            );
            qemu_tools::img(&words, &[&raw, &theirs]);
            let mut options = CreateOptions::qcow2(bytes.len() as u64);
            options.qcow2.cluster_size = cluster_size;
            options.qcow2.refcount_bits = refcount_bits;
            options.qcow2.extended_l2 = extended_l2;
            options.qcow2.compression = codec;
            let ours = we_compress(&raw, &options);
            assert_eq!(len_of(&ours), len_of(&theirs), "{words}");
            subject::assert_agreement(&ours, &Model::holding(bytes.clone()));
        }
    }
}

/// Compressed over compressed, in another order each time: what the old ones shared is counted down, and used again.
#[test]
fn compressed_clusters_are_compressed_over_again_and_again() {
    for codec in CODECS {
        for (cluster, refcount_bits) in [(4096, 16), (4096, 2), (65536, 8)] {
            let folder = tempfile::tempdir().expect("a temporary folder can be made");
            let path = folder.path().join("image.qcow2");
            let mut options = CreateOptions::qcow2(SIZE as u64);
            options.qcow2.cluster_size = cluster;
            options.qcow2.refcount_bits = refcount_bits;
            options.qcow2.compression = codec;
            let image = Image::create(&path, &options).expect("the image is created");
            let mut model = Model::zeroed(SIZE as u64);
            let mut rng = Rng::new(format!("compressed over {codec:?} {cluster} {refcount_bits}"));
            for round in 0..300 {
                let at = rng.below(SIZE as u64 / cluster) * cluster;
                let len = (rng.between(1, 4) * cluster).min(SIZE as u64 / cluster * cluster - at);
                let mut bytes = vec![round as u8; len as usize];
                let changed = rng.below(cluster / 2) as usize;
                bytes[..changed].copy_from_slice(&noise(round, changed));
                image.write_compressed_at(&bytes, at).expect("the write succeeds");
                model.write(at, &bytes);
                if rng.below(20) == 0 {
                    image.flush().expect("the flush succeeds");
                }
            }
            subject::close_and_compare(image, &path, &model);
            assert!(len_of(&path).is_multiple_of(512), "the file ends with a sector");
            assert!(len_of(&path) < 3 * SIZE as u64, "freed space is used again");
        }
    }
}

/// QEMU compresses into encrypted images when it is told to, and stores what it compresses as it is: so it is read.
#[test]
fn what_qemu_compresses_into_an_encrypted_image_is_read() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("image.qcow2");
    let secret = "--object secret,id=s,data=open-sesame";
    qemu_tools::img(
        &format!("create -q -f qcow2 {secret} -o encrypt.format=aes,encrypt.key-secret=s"),
        &[&path, Path::new("1M")],
    );
    let name = format!("driver=qcow2,encrypt.key-secret=s,file.filename={}", path.display());
    let words: Vec<&str> =
        secret.split(' ').chain(["--image-opts", "-c", "write -q -c -P 5 64k 128k"]).collect();
    qemu_tools::run("qemu-io", &[&words[..], &["-c", "write -q -P 6 0 64k", &name]].concat());
    let options = Image::options().passphrase(Passphrase::new("open-sesame"));
    let image = options.access(cowimg::Access::ReadWrite).open(&path).expect("the image opens");
    let mut expected = vec![0; 1 << 20];
    expected[..65536].fill(6);
    expected[65536..3 * 65536].fill(5);
    assert_same_bytes(&subject::content_of(&image), &expected, "read by us");
    // Written over in part, it is encrypted.
    image.write_at(&[7; 4096], 70000).expect("the write succeeds");
    expected[70000..74096].fill(7);
    assert_same_bytes(&subject::content_of(&image), &expected, "after a write");
    image.write_compressed_at(&vec![8; 65536], 0).expect_err("in plain text nothing is stored here");
    image.close().expect("the image closes");
    qemu_tools::run(
        "qemu-io",
        &[&words[..3], &["-c", "read -q -P 5 64k 4k", "-c", "read -q -P 7 70000 4k", &name]].concat(),
    );
}
