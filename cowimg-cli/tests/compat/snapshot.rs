//! `snapshot`: list, create, apply, delete, one after the other, with names that are there twice.

use crate::images::{BITMAPS, CHAIN, KINDS, SNAPSHOTS, STRANGE};
use crate::runner::Table;

pub(crate) const TABLE: Table = Table {
    images: &[CHAIN, KINDS, SNAPSHOTS, BITMAPS, STRANGE],
    rows: r#"
snapshot -l snap.qcow2
snapshot snap.qcow2
snapshot --list snap.qcow2  # since 10
snapshot -l plain.qcow2
snapshot -f qcow2 -l snap.qcow2
snapshot -fqcow2 snap.qcow2
snapshot -U -l snap.qcow2
snapshot --force-share snap.qcow2
snapshot -q -l snap.qcow2
snapshot --image-opts driver=qcow2,file.filename=snap.qcow2
snapshot -l 'json:{"driver":"qcow2","file":{"driver":"file","filename":"snap.qcow2"}}'
snapshot -l base.img
snapshot -l -f raw base.img
snapshot -c new plain.qcow2
snapshot -cnew plain.qcow2
snapshot -q -c new plain.qcow2
snapshot --quiet -c new plain.qcow2  # since 10
snapshot -c 'a name that is a good deal longer than its column in the list' plain.qcow2 ; snapshot -l plain.qcow2
snapshot -c first snap.qcow2 ; snapshot -l snap.qcow2
snapshot -c 1 snap.qcow2 ; snapshot -l snap.qcow2
snapshot -c '' plain.qcow2 ; snapshot -l plain.qcow2
snapshot -c a plain.qcow2 ; snapshot -c b plain.qcow2 ; snapshot -d a plain.qcow2 ; snapshot -c c plain.qcow2 ; snapshot -l plain.qcow2
snapshot -c a plain.qcow2 ; ! io qcow2 plain.qcow2 'write -P 9 0 1M' ; snapshot -a a plain.qcow2
snapshot -c a plain.qcow2 ; ! io qcow2 plain.qcow2 'write -P 9 0 1M' ; snapshot -d a plain.qcow2
snapshot -c a v2.qcow2 ; ! io qcow2 v2.qcow2 'write -P 9 0 64k' ; snapshot -a a v2.qcow2 ; info v2.qcow2  # layout: a table's place
snapshot -c a c512.qcow2 ; ! io qcow2 c512.qcow2 'write -P 9 0 64k' ; snapshot -a a c512.qcow2
snapshot -c a c2m.qcow2 ; ! io qcow2 c2m.qcow2 'write -P 9 0 64k' ; snapshot -a a c2m.qcow2
snapshot -c a rc64.qcow2 ; ! io qcow2 rc64.qcow2 'write -P 9 0 64k' ; snapshot -a a rc64.qcow2
snapshot -c a zlib.qcow2 ; ! io qcow2 zlib.qcow2 'write -P 9 0 64k' ; snapshot -a a zlib.qcow2 ; check zlib.qcow2  # layout: a table's place
snapshot -c a zstd.qcow2 ; ! io qcow2 zstd.qcow2 'write -P 9 0 64k' ; snapshot -d a zstd.qcow2
snapshot -c a odd.qcow2 ; ! io qcow2 odd.qcow2 'write -P 9 0 900k' ; snapshot -a a odd.qcow2
snapshot -c a zero.qcow2 ; snapshot -l zero.qcow2
snapshot -c a prealloc.qcow2 ; snapshot -a a prealloc.qcow2
snapshot -c a empty.qcow2 ; ! io qcow2 empty.qcow2 'write -P 9 0 1M' ; snapshot -a a empty.qcow2
snapshot -c a top.qcow2 ; ! io qcow2 top.qcow2 'write -P 9 0 1M' ; snapshot -a a top.qcow2
snapshot -a first snap.qcow2
snapshot -afirst snap.qcow2
snapshot -a 2 snap.qcow2
snapshot -a 'two words' snap.qcow2
snapshot -a 3 snap.qcow2 ; snapshot -a 1 snap.qcow2
snapshot -q -a first snap.qcow2
snapshot -d first snap.qcow2
snapshot -d first snap.qcow2 ; snapshot -d first snap.qcow2 ; snapshot -l snap.qcow2
snapshot -d 2 snap.qcow2 ; snapshot -l snap.qcow2
snapshot -d 3 snap.qcow2 ; snapshot -d 2 snap.qcow2 ; snapshot -d 1 snap.qcow2 ; check snap.qcow2  # layout: a file's end
snapshot -d 1 snap.qcow2 ; snapshot -c new snap.qcow2 ; snapshot -l snap.qcow2
snapshot --image-opts -c new driver=qcow2,file.filename=plain.qcow2
snapshot --object secret,id=s0,data=abc -c new plain.qcow2
snapshot -c a bm.qcow2
snapshot -c a dirty.qcow2
snapshot -l gone.qcow2
snapshot -l -c new plain.qcow2
snapshot -c a -c b plain.qcow2
snapshot
snapshot -l
snapshot -c
snapshot -c new
snapshot snap.qcow2 plain.qcow2
snapshot -l missing.qcow2
snapshot -l folder
snapshot -l short.qcow2
snapshot -l unknown.qcow2
snapshot -c new missing.qcow2
snapshot -c new base.img
snapshot -c new -f raw base.img
snapshot -c new rc1.qcow2  # theirs changes: a cluster leaks
snapshot -c new gone.qcow2
snapshot -c new corrupt.qcow2
snapshot -a nosuch snap.qcow2
snapshot -a nosuch plain.qcow2
snapshot -a nosuch -f raw base.img
snapshot -d nosuch snap.qcow2
snapshot -d nosuch -f raw base.img
snapshot -d '' snap.qcow2
snapshot -a 9 snap.qcow2
snapshot -c a bm.qcow2 ; snapshot -a a bm.qcow2
snapshot -U -c new plain.qcow2
snapshot --nosuch snap.qcow2
snapshot -x snap.qcow2
snapshot -f nosuch snap.qcow2
snapshot -f qcow2 base.img
snapshot --image-opts -l snap.qcow2
snapshot -a first -d first snap.qcow2
"#,
};

#[test]
fn snapshots() {
    TABLE.prove();
}
