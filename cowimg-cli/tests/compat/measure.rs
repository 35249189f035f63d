//! `measure`: the exact numbers, for a size and for an image.

use crate::images::{BITMAPS, CHAIN, KINDS, SNAPSHOTS, STRANGE};
use crate::runner::Table;

pub(crate) const TABLE: Table = Table {
    images: &[CHAIN, KINDS, SNAPSHOTS, BITMAPS, STRANGE],
    rows: r#"
measure --size 1G
measure --size 1G -O raw
measure --size=1G -O qcow2
measure -s 1G -O qcow2  # since 10
measure --size 1G -Oqcow2
measure --size 1G --target-format=qcow2  # since 10
measure --size 1G -O qcow2 --output=json
measure --size 1G -O raw --output json
measure --size 1G -O qcow2 --output=human
measure --size 0 -O qcow2
measure --size 0 -O raw
measure --size 1 -O qcow2
measure --size 1000 -O qcow2
measure --size 1.5G -O qcow2
measure --size 1T -O qcow2
measure --size 63T -O qcow2
measure --size 1P -O qcow2 -o cluster_size=2M
measure --size 1000 -O raw
measure --size 1G -O qcow2 -o cluster_size=512
measure --size 1G -O qcow2 -o cluster_size=4k
measure --size 1G -O qcow2 -o cluster_size=2M
measure --size 1G -O qcow2 -o refcount_bits=1
measure --size 1G -O qcow2 -o refcount_bits=64
measure --size 1G -O qcow2 -o cluster_size=512,refcount_bits=64
measure --size 1G -O qcow2 -o compat=0.10
measure --size 1G -O qcow2 -o lazy_refcounts=on
measure --size 1G -O qcow2 -o compression_type=zstd
measure --size 1G -O qcow2 -o preallocation=off
measure --size 1G -O qcow2 -o preallocation=metadata
measure --size 1G -O qcow2 -o preallocation=falloc
measure --size 1G -O qcow2 -o preallocation=full
measure --size 1G -O raw -o preallocation=full
measure -o size=1G -O qcow2 --size 2G
measure --size 4M -O qcow2 -o backing_file=base.img,backing_fmt=raw
measure -O qcow2 base.img
measure -O qcow2 -f raw base.img
measure -O qcow2 -f raw --output=json base.img
measure -Oqcow2 top.qcow2
measure -O qcow2 --output=json top.qcow2
measure -O raw top.qcow2
measure top.qcow2
measure child.qcow2 -O qcow2
measure -O qcow2 -o cluster_size=4k top.qcow2
measure -O qcow2 -o cluster_size=2M top.qcow2
measure -O qcow2 -o preallocation=full top.qcow2
measure -O qcow2 -o backing_file=child.qcow2,backing_fmt=qcow2 top.qcow2
measure -O qcow2 empty.qcow2
measure -O qcow2 zlib.qcow2
measure -O qcow2 zstd.qcow2
measure -O qcow2 v2.qcow2
measure -O qcow2 c512.qcow2
measure -O qcow2 -o cluster_size=512 c512.qcow2
measure -O qcow2 c2m.qcow2
measure -O qcow2 odd.qcow2
measure -O raw odd.qcow2
measure -O qcow2 zero.qcow2
measure -O qcow2 zero.img
measure -O qcow2 prealloc.qcow2
measure -O qcow2 -l first snap.qcow2
measure -O qcow2 -l snapshot.id=2 snap.qcow2
measure -O qcow2 --snapshot=first snap.qcow2  # since 10
measure -O qcow2 snap.qcow2
measure -O qcow2 bm.qcow2
measure -O qcow2 --output=json bm.qcow2
measure -O qcow2 -o cluster_size=4k bm.qcow2
measure -O raw bm.qcow2
measure -U -O qcow2 top.qcow2
measure --force-share -O qcow2 top.qcow2
measure --image-opts -O qcow2 driver=qcow2,file.filename=top.qcow2
measure -O qcow2 'json:{"driver":"qcow2","file":{"driver":"file","filename":"top.qcow2"}}'
measure --object secret,id=s0,data=abc -O qcow2 base.img
create -q -f qcow2 huge.qcow2 8T ; measure -O qcow2 huge.qcow2
measure
measure -O qcow2
measure --size 1G base.img
measure base.img top.qcow2
measure --size banana -O qcow2
measure --size -1 -O qcow2
measure --size 9E -O qcow2
measure --size 1P -O qcow2
measure --size
measure -O qcow2 missing.img
measure -O qcow2 folder
measure -O qcow2 gone.qcow2
measure -O nosuch --size 1G
measure -O vmdk --size 1G
measure -O qcow2 -o nosuch=1 --size 1G
measure -O qcow2 -o cluster_size=3 --size 1G
measure -O qcow2 -o refcount_bits=3 --size 1G
measure -O qcow2 -o preallocation=nosuch --size 1G
measure -O qcow2 -l nosuch snap.qcow2
measure -O qcow2 -l first --size 1G
measure -O qcow2 --output=yaml --size 1G
measure -f nosuch base.img
measure -f qcow2 base.img
measure --nosuch base.img
measure -x base.img
measure --image-opts base.img
measure -U --size 1G
measure -f raw --size 1G
"#,
};

#[test]
fn numbers() {
    TABLE.prove();
}
