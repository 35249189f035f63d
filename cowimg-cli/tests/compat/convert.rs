//! `convert`: every option, every kind of source and target, parts joined, and what is refused.

use crate::images::{BITMAPS, CHAIN, KINDS, SNAPSHOTS, STRANGE};
use crate::runner::Table;

const TARGETS: &str = r"
new old.qcow2 4M
io qcow2 old.qcow2 'write -P 9 0 4M'
new larger.qcow2 6M
io qcow2 larger.qcow2 'write -P 9 5M 64k'
qemu-img create -q -f raw old.img 4M
io raw old.img 'write -P 9 0 2M'
new small.qcow2 1M
";

pub(crate) const FORMS: Table = Table {
    images: &[CHAIN, KINDS, SNAPSHOTS, BITMAPS, TARGETS],
    rows: r#"
convert -p -c -f raw -O raw -o cluster_size=4k base.img out.img
convert base.img z
convert top.qcow2 z
convert -O raw top.qcow2 z
convert -f qcow2 -O raw top.qcow2 z
convert -fqcow2 -Oraw top.qcow2 z
convert -O qcow2 base.img z
convert -Oqcow2 base.img z
convert -f raw -O qcow2 base.img z
convert -O qcow2 top.qcow2 z
convert base.img z -O qcow2
convert -O qcow2 -o cluster_size=4k base.img z
convert -O qcow2 -o cluster_size=512,refcount_bits=8 base.img z
convert -O qcow2 -o cluster_size=2M base.img z
convert -O qcow2 -o compat=0.10 base.img z
convert -O qcow2 -o lazy_refcounts=on base.img z
convert -O qcow2 -o preallocation=metadata base.img z
convert -O qcow2 -o preallocation=falloc base.img z
convert -O qcow2 -o preallocation=full base.img z
convert -O raw -o preallocation=falloc top.qcow2 z
convert -O raw -o preallocation=full top.qcow2 z
convert -c -O qcow2 base.img z
convert -c -O qcow2 -o compression_type=zstd top.qcow2 z
convert -c -W -O qcow2 base.img z
convert -cO qcow2 -o cluster_size=4k top.qcow2 z
convert -W -O qcow2 base.img z
convert --oob-writes -O qcow2 base.img z  # since 10
convert -m 1 -O qcow2 base.img z
convert -m 16 -W -O qcow2 base.img z
convert --parallel=4 -O qcow2 base.img z  # since 10
convert -C -O raw base.img z
convert --copy-range-offloading -O raw base.img z  # since 10
convert -p -O qcow2 base.img z  # progress
convert -p -O raw empty.qcow2 z  # progress
convert -q -O qcow2 base.img z
convert -q -p -O qcow2 base.img z
convert -r 1G -O qcow2 base.img z
convert --rate=1G -O qcow2 base.img z  # since 10
convert -S 0 -O raw base.img z
convert -S 0 -O qcow2 base.img z
convert -S 4k -O qcow2 base.img z
convert -S 64k -O qcow2 base.img z
convert --sparse-size=64k -O raw base.img z  # since 10
convert -t none -T none -O qcow2 base.img z
convert -t writethrough -O qcow2 base.img z
convert -twriteback -Tunsafe -O qcow2 base.img z
convert -U -O raw top.qcow2 z
convert --force-share -O raw top.qcow2 z
convert --salvage -O raw top.qcow2 z
convert -B base.img -F raw -O qcow2 top.qcow2 z
convert -B base.img -F raw -O qcow2 -o cluster_size=4k top.qcow2 z
convert -O qcow2 -o backing_file=base.img,backing_fmt=raw top.qcow2 z
convert --backing=child.qcow2 --backing-format=qcow2 -O qcow2 top.qcow2 z  # since 10
convert -B child.qcow2 -F qcow2 -O qcow2 top.qcow2 z
convert -B child.qcow2 -F qcow2 -c -O qcow2 top.qcow2 z
convert -n -O qcow2 base.img old.qcow2
convert -n -O raw base.img old.img
convert -n -f raw -O qcow2 base.img larger.qcow2
convert -n --target-is-zero -O qcow2 base.img empty.qcow2
convert -n -S 0 -O qcow2 base.img empty.qcow2
convert -n -c -O qcow2 base.img empty.qcow2
convert -n -O raw small.qcow2 old.img
convert -n --target-image-opts base.img driver=qcow2,file.filename=old.qcow2
convert -n --target-image-opts base.img driver=raw,file.filename=old.img
convert --image-opts -O raw driver=qcow2,file.filename=top.qcow2 z
convert --source-image-opts -O raw driver=qcow2,file.filename=top.qcow2 z  # since 10
convert --image-opts -O raw driver=raw,offset=1M,size=1M,file.filename=base.img z
convert -O raw 'json:{"driver":"qcow2","file":{"driver":"file","filename":"top.qcow2"}}' z
convert -l first -O raw snap.qcow2 z
convert -l snapshot.id=2 -O raw snap.qcow2 z
convert -l snapshot.name=first -O qcow2 snap.qcow2 z
convert -l 'snapshot.id=3,snapshot.name=first' -O qcow2 snap.qcow2 z
convert -l 'two words' -O raw snap.qcow2 z
convert -l 2 -O raw snap.qcow2 z
convert -O qcow2 snap.qcow2 z
convert --bitmaps -O qcow2 bm.qcow2 z
convert --bitmaps --skip-broken-bitmaps -O qcow2 bm.qcow2 z
convert --bitmaps -O qcow2 -o cluster_size=4k bm.qcow2 z
convert --bitmaps -n -O qcow2 bm.qcow2 empty.qcow2
convert -O qcow2 bm.qcow2 z
convert -O raw base.img top.qcow2 z
convert -O qcow2 odd.qcow2 base.img c512.qcow2 z
convert -O raw odd.qcow2 odd.qcow2 z
convert -O raw -f qcow2 odd.qcow2 v2.qcow2 z
convert -O qcow2 empty.qcow2 z
convert -O raw empty.qcow2 z
convert -O qcow2 zero.img z
convert -O raw zero.qcow2 z
convert -O raw odd.qcow2 z
convert -O qcow2 odd.qcow2 z
convert -O raw zlib.qcow2 z
convert -O qcow2 zstd.qcow2 z
convert -O raw c512.qcow2 z
convert -O qcow2 c2m.qcow2 z
convert -O qcow2 prealloc.qcow2 z
convert -O raw rc1.qcow2 z
convert -O raw rc64.qcow2 z
convert -O raw base.img old.img
convert -O qcow2 base.img old.qcow2
convert -O raw base.img old.qcow2
convert -O qcow2 base.img old.img
! truncate -s 1000 odd.img ; convert -f raw -O qcow2 odd.img z ; convert -f raw -O raw odd.img y
convert -O qcow2 base.img @DIR@/z
convert -O qcow2 file:base.img file:z
convert --object secret,id=s0,data=abc -O qcow2 base.img z
create -q -f qcow2 huge.qcow2 8T ; convert -O qcow2 huge.qcow2 z
create -q -f qcow2 huge.qcow2 8T ; convert -O raw huge.qcow2 z
convert -O raw -o help base.img z  # own words
convert -O qcow2 -o help base.img z  # own words
"#,
};

pub(crate) const BAD: Table = Table {
    images: &[CHAIN, STRANGE, SNAPSHOTS, BITMAPS, TARGETS],
    rows: r"
convert
convert base.img
convert -O qcow2 base.img
convert missing.img z
convert -O qcow2 missing.img z
convert missing.img old.qcow2
convert base.img nofolder/z
convert -O qcow2 base.img nofolder/z
convert base.img folder
convert folder z
convert short.qcow2 z
convert unknown.qcow2 old.qcow2
convert gone.qcow2 z
convert -f qcow2 base.img z
convert -f qcow2 base.img old.img
convert -f nosuch base.img z
convert -O nosuch base.img z
convert -O nosuch base.img old.img
convert -O
convert -O qcow2 -o nosuch=1 base.img z
convert -O qcow2 -o nosuch=1 base.img old.qcow2
convert -O qcow2 -o cluster_size=3 base.img old.qcow2  # theirs changes: it deletes the image that stands there
convert -O qcow2 -o cluster_size=3 base.img z
convert -O qcow2 -o size=1G base.img z  # theirs changes: a file stays behind
convert -O raw -o cluster_size=4k top.qcow2 z
convert -c -O raw base.img z
convert -c -O raw base.img old.img
convert -c base.img z
convert -c -O qcow2 -o preallocation=metadata base.img z
convert -O qcow2 -B base.img top.qcow2 z
convert -O qcow2 -B missing.img -F raw top.qcow2 z  # theirs changes: a file stays behind
convert -O qcow2 -F raw top.qcow2 z
convert -O raw -B base.img -F raw top.qcow2 z
convert -O qcow2 -B base.img -F nosuch top.qcow2 z
convert -n -B base.img -F raw -O qcow2 top.qcow2 old.qcow2
convert -n -O qcow2 base.img missing.qcow2
convert -n -O qcow2 base.img small.qcow2
convert -n -O raw base.img small.qcow2
convert -n -o cluster_size=4k -O qcow2 base.img old.qcow2
convert -n -O qcow2 base.img old.img
convert --target-is-zero -O qcow2 base.img z
convert --target-image-opts base.img driver=qcow2,file.filename=z
convert --target-image-opts -n -O qcow2 base.img driver=qcow2,file.filename=old.qcow2
convert --image-opts -f raw driver=raw,file.filename=base.img z  # since 10
convert --image-opts base.img z
convert -O raw base.img base.img
convert -O qcow2 base.img base.img
convert -O qcow2 top.qcow2 base.img
convert -O qcow2 top.qcow2 child.qcow2
convert -l nosuch -O raw snap.qcow2 z
convert -l snapshot.id=9 -O raw snap.qcow2 z
convert -l snapshot.nosuch=9 -O raw snap.qcow2 z
convert -l first -O raw base.img z
convert -l first -O raw snap.qcow2 snap.qcow2 z
convert -m 0 base.img z
convert -m 17 base.img z
convert -m x base.img z
convert -S x base.img z
convert -S 100 base.img z
convert -S -1 base.img z
convert -r x base.img z
convert -t nosuch base.img z  # theirs changes: a file stays behind
convert -T nosuch base.img z
convert -W -C base.img z
convert -S 4k -C base.img z
convert -c -C -O qcow2 base.img z
convert --bitmaps -O raw bm.qcow2 z  # theirs changes: a file stays behind
convert --bitmaps -O qcow2 -o compat=0.10 bm.qcow2 z  # theirs changes: a file stays behind
convert --bitmaps -O qcow2 base.img z
convert --bitmaps -O qcow2 bm.qcow2 bm.qcow2 z
convert --skip-broken-bitmaps -O qcow2 bm.qcow2 z
convert --nosuch base.img z
convert -x base.img z
convert -s first -O raw snap.qcow2 z
convert base.img ''
convert '' z
convert -O qcow2 base.img missing.img z
",
};

#[test]
fn copies() {
    FORMS.prove();
}

#[test]
fn what_is_refused() {
    BAD.prove();
}
