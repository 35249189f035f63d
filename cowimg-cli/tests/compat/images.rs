//! Scripts that make the images of several tables. The words in them are those of `bench_folder`.

/// A raw disk with holes, and a chain of three over it: base.img, child.qcow2, top.qcow2.
pub(crate) const CHAIN: &str = r"
qemu-img create -q -f raw base.img 4M
io raw base.img 'write -P 1 0 1M' 'write -P 3 2M 512k'
over child.qcow2 base.img raw
io qcow2 child.qcow2 'write -P 4 1M 64k' 'write -z 2M 64k'
over top.qcow2 child.qcow2 qcow2
io qcow2 top.qcow2 'write -P 5 3M 128k' 'write -P 6 100k 1k'
";

/// The same disk in other kinds: compressed in both ways, of version 2, with small and with large clusters, with
/// narrow and with wide refcounts, of an odd length, and one that has nothing at all.
pub(crate) const KINDS: &str = r"
qemu-img create -q -f raw base.img 4M
io raw base.img 'write -P 1 0 1M' 'write -P 3 2M 512k'
new empty.qcow2 4M
qemu-img convert -f raw -O qcow2 base.img plain.qcow2
qemu-img convert -c -f raw -O qcow2 base.img zlib.qcow2
qemu-img convert -c -f raw -O qcow2 -o compression_type=zstd base.img zstd.qcow2
qemu-img convert -f raw -O qcow2 -o compat=0.10 base.img v2.qcow2
new c512.qcow2 1M -o cluster_size=512
io qcow2 c512.qcow2 'write -P 7 3k 5k' 'write -z 64k 1k'
new c2m.qcow2 9M -o cluster_size=2M
io qcow2 c2m.qcow2 'write -P 7 3M 64k' 'write -z 6M 2M'
new rc1.qcow2 2M -o refcount_bits=1
io qcow2 rc1.qcow2 'write -P 7 0 64k'
new rc64.qcow2 2M -o refcount_bits=64
io qcow2 rc64.qcow2 'write -P 7 0 64k'
new odd.qcow2 1000448 -o lazy_refcounts=on
io qcow2 odd.qcow2 'write -P 8 960k 17408'
new zero.qcow2 0
qemu-img create -q -f raw zero.img 0
new prealloc.qcow2 2M -o preallocation=metadata
";

/// Images with snapshots, two of one name, over changing content, and one of a name in other letters.
pub(crate) const SNAPSHOTS: &str = r"
new snap.qcow2 2M
io qcow2 snap.qcow2 'write -P 1 0 256k'
qemu-img snapshot -c first snap.qcow2
io qcow2 snap.qcow2 'write -P 2 64k 64k' 'write -z 128k 64k'
qemu-img snapshot -c 'two words' snap.qcow2
io qcow2 snap.qcow2 'write -P 3 1M 64k'
qemu-img snapshot -c first snap.qcow2
io qcow2 snap.qcow2 'write -P 4 0 64k'
";

/// Images with bitmaps: recording, stopped, of another granularity, and one that nobody closed.
pub(crate) const BITMAPS: &str = r"
new bm.qcow2 4M
qemu-img bitmap --add bm.qcow2 b0
qemu-img bitmap --add -g 128k bm.qcow2 b1
qemu-img bitmap --add --disable bm.qcow2 off
io qcow2 bm.qcow2 'write -P 1 0 256k' 'write -P 2 2M 64k'
";

/// Files that are no good images: cut short, of an unknown feature, in a loop, without their base, of another format.
pub(crate) const STRANGE: &str = r"
new whole.qcow2 1M
io qcow2 whole.qcow2 'write -P 1 0 64k'
head -c 60 whole.qcow2 >short.qcow2
cp whole.qcow2 unknown.qcow2; poke unknown.qcow2 74 '\001'
cp whole.qcow2 clusters.qcow2; poke clusters.qcow2 23 '\050'
cp whole.qcow2 version.qcow2; poke version.qcow2 7 '\007'
cp whole.qcow2 dirty.qcow2; poke dirty.qcow2 79 '\001'
cp whole.qcow2 corrupt.qcow2; poke corrupt.qcow2 79 '\002'
new gone.qcow2 1M -u -b missing.img -F raw
new remote.qcow2 1M -u -b nbd://host.invalid/x -F raw
mkdir folder
printf 'KDMV\001\000\000\000 and more' >foreign.vmdk
printf 'some text, no image' >text.img
: >nothing.img
";
