//! `resize`: to a size, by a size, in both directions, with space reserved, and what is refused.

use crate::images::{CHAIN, KINDS, SNAPSHOTS, STRANGE};
use crate::runner::Table;

pub(crate) const TABLE: Table = Table {
    images: &[CHAIN, KINDS, SNAPSHOTS, STRANGE],
    rows: r"
resize plain.qcow2 8M
resize -f qcow2 plain.qcow2 8M
resize -fqcow2 plain.qcow2 +4M
resize --format qcow2 plain.qcow2 8M  # since 10
resize plain.qcow2 +1M
resize plain.qcow2 +1000
resize plain.qcow2 5000000
resize plain.qcow2 4M
resize plain.qcow2 +0
resize plain.qcow2 1T
resize plain.qcow2 0x800000
resize plain.qcow2 4.5M
resize -q plain.qcow2 8M
resize --quiet plain.qcow2 8M  # since 10
resize --shrink plain.qcow2 1M
resize --shrink plain.qcow2 -- -1M
resize --shrink -- plain.qcow2 -1M
resize --shrink plain.qcow2 -1M
resize plain.qcow2 --shrink 1000000
resize --shrink plain.qcow2 0
resize --shrink plain.qcow2 8M
resize --shrink plain.qcow2 1M ; resize plain.qcow2 4M
resize --preallocation=off plain.qcow2 8M
resize --preallocation=metadata plain.qcow2 8M
resize --preallocation=falloc plain.qcow2 8M
resize --preallocation=full plain.qcow2 8M
resize --preallocation full empty.qcow2 +64k
resize --preallocation=metadata odd.qcow2 +1M
resize v2.qcow2 8M
resize --shrink v2.qcow2 1M
resize c512.qcow2 40M
resize --shrink c512.qcow2 5k
resize c2m.qcow2 1G
resize --shrink c2m.qcow2 4M
resize rc1.qcow2 8M
resize rc64.qcow2 8M
resize odd.qcow2 1000960
resize --shrink odd.qcow2 999936
resize zlib.qcow2 8M
resize --shrink zlib.qcow2 1M
resize zero.qcow2 1M
resize zero.qcow2 +1
resize top.qcow2 8M
resize child.qcow2 8M ; ! io qcow2 child.qcow2 'read 4M 4M'
resize --shrink top.qcow2 2M
resize --shrink child.qcow2 1M ; resize child.qcow2 4M
resize snap.qcow2 4M
resize snap.qcow2 4M ; snapshot -l snap.qcow2
resize --shrink snap.qcow2 512k
resize --shrink snap.qcow2 512k ; snapshot -a first snap.qcow2 ; info snap.qcow2  # layout: a shrunken image's end
resize -f raw base.img 8M
resize -fraw base.img +1000
resize base.img 8M
resize --shrink -f raw base.img 1M
resize --shrink -f raw base.img -- -1M
resize -f raw base.img 1T
resize --preallocation=falloc -f raw base.img 5M
resize --preallocation=full -f raw base.img 5M
resize --image-opts driver=qcow2,file.filename=plain.qcow2 8M
resize --image-opts driver=raw,file.filename=base.img 8M
resize --object secret,id=s0,data=abc plain.qcow2 8M
resize dirty.qcow2 2M
resize
resize plain.qcow2
resize 8M
resize plain.qcow2 banana
resize plain.qcow2 ''
resize plain.qcow2 +
resize plain.qcow2 -
resize plain.qcow2 +banana
resize plain.qcow2 8Z
resize plain.qcow2 +-1M
resize plain.qcow2 8M 9M
resize plain.qcow2 1M
resize plain.qcow2 -1M
resize -f raw base.img 1M
resize --shrink plain.qcow2 -100M
resize --shrink plain.qcow2 -4M
resize plain.qcow2 9E
resize plain.qcow2 1E
resize plain.qcow2 +99999999999999999999
resize --preallocation=nosuch plain.qcow2 8M
resize --preallocation=metadata -f raw base.img 8M
resize --preallocation=full --shrink plain.qcow2 1M
resize --preallocation=falloc --shrink -f raw base.img 1M
resize missing.qcow2 8M
resize folder 8M
resize short.qcow2 8M
resize gone.qcow2 8M
resize unknown.qcow2 8M
resize corrupt.qcow2 8M
resize -f nosuch plain.qcow2 8M
resize -f qcow2 base.img 8M
resize --nosuch plain.qcow2 8M
resize -x plain.qcow2 8M
resize --image-opts plain.qcow2 8M
resize -U plain.qcow2 8M
",
};

#[test]
fn sizes() {
    TABLE.prove();
}
