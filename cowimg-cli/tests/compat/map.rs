//! `map`: what is where, for humans and for programs, in part and as a whole.

use crate::images::{CHAIN, KINDS, SNAPSHOTS, STRANGE};
use crate::runner::Table;

pub(crate) const CHAINS: Table = Table {
    images: &[
        CHAIN,
        r"
over longer.qcow2 base.img raw
qemu-img resize -q longer.qcow2 6M
io qcow2 longer.qcow2 'write -P 9 5M 64k'
over shorter.qcow2 longer.qcow2 qcow2
qemu-img resize -q --shrink shorter.qcow2 3M
over discarded.qcow2 child.qcow2 qcow2
qemu-io -f qcow2 -d unmap -c 'discard 0 64k' discarded.qcow2 >/dev/null
mkdir d
over d/up.qcow2 ../top.qcow2 qcow2
new divided.qcow2 4M -o extended_l2=on,cluster_size=128k
io qcow2 divided.qcow2 'write -P 4 4k 4k' 'write -P 4 400k 20k' 'write -z 8k 4k'
over divided-over.qcow2 child.qcow2 qcow2 -o extended_l2=on,cluster_size=128k
io qcow2 divided-over.qcow2 'write -P 4 4k 4k' 'write -P 4 400k 20k'
",
    ],
    rows: r#"
map base.img
map -f raw base.img
map -fraw --output=json base.img
map child.qcow2
map top.qcow2
map --output=human top.qcow2
map --output=json base.img
map --output=json child.qcow2
map --output json top.qcow2
map --out=json top.qcow2
map --format=qcow2 --output=json top.qcow2
map -f qcow2 top.qcow2
map -U top.qcow2
map --force-share --output=json top.qcow2
map --start-offset=1M top.qcow2
map --start-offset 1M --output=json top.qcow2
map --start-offset=0 --max-length=1M top.qcow2
map --start-offset=1M --max-length=1M --output=json top.qcow2
map --max-length=100 --output=json top.qcow2
map --max-length=0 --output=json top.qcow2
map -s 1M -l 1M --output=json top.qcow2
map --start-offset=1000 --max-length=5000 --output=json top.qcow2
map --start-offset=513 --output=json base.img
map --start-offset=4M --output=json top.qcow2
map --start-offset=5M --output=json top.qcow2
map --start-offset=5M top.qcow2
map --start-offset=3M --max-length=100M --output=json top.qcow2
map longer.qcow2
map --output=json longer.qcow2
map --output=json shorter.qcow2
map shorter.qcow2
map --output=json discarded.qcow2
map --output=json divided.qcow2
map divided.qcow2
map --output=json divided-over.qcow2
map d/up.qcow2
map --output=json d/up.qcow2
map --image-opts driver=qcow2,file.filename=top.qcow2
map --image-opts --output=json driver=raw,offset=512k,size=1M,file.filename=base.img
map --image-opts --output=json driver=qcow2,file.filename=top.qcow2,backing.driver=raw,backing.file.filename=base.img
map --output=json 'json:{"driver":"qcow2","file":{"driver":"file","filename":"top.qcow2"}}'
map --output=json 'json:{"driver":"qcow2","file":{"driver":"file","filename":"top.qcow2"},"backing":null}'
map --object secret,id=s0,data=abc base.img
map @DIR@/top.qcow2
"#,
};

pub(crate) const DISKS: Table = Table {
    images: &[KINDS, SNAPSHOTS],
    rows: r"
map --output=json empty.qcow2
map empty.qcow2
map --output=json plain.qcow2
map zlib.qcow2
map --output=json zlib.qcow2
map --output=json zstd.qcow2
map --output=json v2.qcow2
map --output=json c512.qcow2
map c512.qcow2
map --output=json c2m.qcow2
map --output=json rc1.qcow2
map --output=json rc64.qcow2
map odd.qcow2
map --output=json odd.qcow2
map --output=json zero.qcow2
map zero.qcow2
map zero.img
map --output=json zero.img
map --output=json prealloc.qcow2
map prealloc.qcow2
map snap.qcow2
map --output=json snap.qcow2
! truncate -s 8T huge.img ; map -f raw --output=json huge.img
! truncate -s 1000 odd.img ; map -f raw --output=json odd.img ; map -f raw odd.img
create -q -f qcow2 huge.qcow2 8T ; map --output=json huge.qcow2
create -q -f qcow2 huge.qcow2 8T ; map --output=json --start-offset=7T huge.qcow2
",
};

pub(crate) const BAD: Table = Table {
    images: &[STRANGE],
    rows: r"
map
map whole.qcow2 text.img
map missing.qcow2
map folder
map short.qcow2
map unknown.qcow2
map gone.qcow2
map dirty.qcow2
map --output=json corrupt.qcow2
map --output=yaml whole.qcow2
map --start-offset=banana whole.qcow2
map --start-offset=-1 whole.qcow2
map --max-length=banana whole.qcow2
map --max-length=-1 whole.qcow2
map --start-offset=99E whole.qcow2
map --nosuch whole.qcow2
map -x whole.qcow2
map -f nosuch whole.qcow2
map -f qcow2 text.img
map --image-opts whole.qcow2
map --image-opts -f qcow2 driver=qcow2,file.filename=whole.qcow2  # since 10
",
};

#[test]
fn chains() {
    CHAINS.prove();
}

#[test]
fn disks_of_every_kind() {
    DISKS.prove();
}

#[test]
fn bad_images_and_bad_words() {
    BAD.prove();
}
