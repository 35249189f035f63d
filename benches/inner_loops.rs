//! The loops that run once per cluster or once per request. `benches/README.md` says how to run and read them.

use std::hint::black_box;
use std::sync::Arc;

use cowimg::format::qcow2::{Geometry, Header, L2Entry, Version, refcounts};
use cowimg::job::{self, Compression, ConvertOptions, TargetContent};
use cowimg::progress::Control;
use cowimg::storage::MemoryStorage;
use cowimg::{Access, CreateOptions, Format, Image};
use criterion::{BatchSize, Criterion, Throughput};

/// Log2 of the usual cluster size, 64 KiB, and of the usual refcount width, 16 bits.
const CLUSTER_BITS: u32 = 16;
const REFCOUNT_ORDER: u32 = 4;
const CLUSTER: usize = 1 << CLUSTER_BITS;

/// A real image, made by qemu-img: version 3, zlib, every data cluster compressed.
const ZLIB_IMAGE: &[u8] = include_bytes!("../testdata/zlib.qcow2");

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    decode_header(&mut criterion);
    decode_l2_table(&mut criterion);
    find_free_clusters(&mut criterion);
    random_requests(&mut criterion);
    read_compressed(&mut criterion);
    compress_clusters(&mut criterion);
    criterion.final_summary();
}

fn decode_header(criterion: &mut Criterion) {
    criterion.bench_function("header/decode", |bencher| {
        bencher.iter(|| Header::decode(black_box(ZLIB_IMAGE)).expect("a real header"));
    });
}

fn decode_l2_table(criterion: &mut Criterion) {
    let geometry = geometry();
    let copied = 1u64 << 63;
    let table: Vec<u64> = (1..=geometry.l2_entries()).map(|index| copied | index << CLUSTER_BITS).collect();
    let mut group = criterion.benchmark_group("l2_entry");
    group.throughput(Throughput::Elements(geometry.l2_entries()));
    group.bench_function("decode a table", |bencher| {
        bencher.iter(|| {
            let entries = table.iter().map(|&raw| L2Entry::decode(black_box(raw), &geometry, Version::V3));
            entries.flatten().count()
        });
    });
    group.finish();
}

fn find_free_clusters(criterion: &mut Criterion) {
    let last = geometry().refcounts_per_block() - 1;
    let mut block = vec![0; CLUSTER];
    for index in 0..last {
        assert!(refcounts::set(&mut block, REFCOUNT_ORDER, index, 1), "the index is in the block");
    }
    let mut group = criterion.benchmark_group("refcounts");
    group.throughput(Throughput::Elements(last + 1));
    group.bench_function("find_free_run/only the last is free", |bencher| {
        bencher.iter(|| refcounts::find_free_run(black_box(&block), REFCOUNT_ORDER, 0, 1));
    });
    group.finish();
}

fn random_requests(criterion: &mut Criterion) {
    const REQUEST: usize = 4096;
    const SIZE: u64 = 64 << 20;
    let image = open(MemoryStorage::with_bytes(fresh_image(SIZE)), Format::Qcow2);
    let mut buffer = vec![0xa5; REQUEST];
    let mut offsets = Offsets::new(SIZE / REQUEST as u64);
    let mut group = criterion.benchmark_group("request/4 KiB at random");
    group.throughput(Throughput::Bytes(REQUEST as u64));
    group.bench_function("write", |bencher| {
        bencher
            .iter(|| image.write_at(&buffer, offsets.next() * REQUEST as u64).expect("memory takes writes"));
    });
    group.bench_function("read", |bencher| {
        bencher.iter(|| {
            image.read_at(&mut buffer, offsets.next() * REQUEST as u64).expect("memory can be read");
        });
    });
    group.finish();
}

fn read_compressed(criterion: &mut Criterion) {
    const SIZE: usize = 512 << 10;
    let mut buffer = vec![0; SIZE];
    let mut group = criterion.benchmark_group("compressed");
    group.throughput(Throughput::Bytes(SIZE as u64));
    group.bench_function("open and read/zlib", |bencher| {
        bencher.iter_batched(
            || MemoryStorage::with_bytes(ZLIB_IMAGE),
            |storage| open(storage, Format::Qcow2).read_at(&mut buffer, 0).expect("a real image"),
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

fn compress_clusters(criterion: &mut Criterion) {
    let lines: Vec<String> = (0..200_000).map(|line: u32| line.to_string()).collect();
    let source = open(MemoryStorage::with_bytes(&lines.join("\n").as_bytes()[..16 * CLUSTER]), Format::Raw);
    let target = fresh_image(source.size());
    let options = ConvertOptions {
        compression: Compression::On,
        target_content: TargetContent::Zeroes,
        threads: 1,
        ..ConvertOptions::default()
    };
    let mut group = criterion.benchmark_group("compressed");
    group.throughput(Throughput::Bytes(source.size()));
    group.bench_function("convert on one thread/zlib", |bencher| {
        bencher.iter_batched(
            || open(MemoryStorage::with_bytes(&target), Format::Qcow2),
            |target| {
                job::convert(&source, &target, &options, &Control::default()).expect("memory takes writes")
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

/// The bytes of a new image for a disk of `size` bytes.
fn fresh_image(size: u64) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("there is a folder for temporary files");
    let path = folder.path().join("fresh.qcow2");
    cowimg::create(&path, &CreateOptions::qcow2(size)).expect("the folder takes an image");
    std::fs::read(path).expect("the image was made")
}

fn open(storage: MemoryStorage, format: Format) -> Image {
    let options = Image::options().format(format).access(Access::ReadWrite);
    options.open_storage(Arc::new(storage)).expect("the image is sound")
}

fn geometry() -> Geometry {
    Geometry::new(CLUSTER_BITS, REFCOUNT_ORDER).expect("the usual geometry")
}

/// Places that come in no order, the same in every run.
struct Offsets {
    state: u64,
    count: u64,
}

impl Offsets {
    fn new(count: u64) -> Offsets {
        Offsets { state: 0x9e37_79b9_7f4a_7c15, count }
    }

    /// The next place, below `count`: the high bits of a linear congruential generator.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.state >> 33) % self.count
    }
}
