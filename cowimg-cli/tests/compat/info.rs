//! `info`: the report of every kind of image, in all its forms.

use crate::images::{BITMAPS, CHAIN, KINDS, SNAPSHOTS, STRANGE};
use crate::runner::Table;

pub(crate) const CHAINS: Table = Table {
    images: &[
        CHAIN,
        r#"
mkdir d
over d/up.qcow2 ../base.img raw
over abs.qcow2 "$PWD/base.img" raw
over obj.qcow2 'json:{"driver":"raw","file":{"driver":"file","filename":"base.img"}}' raw
new './it"s.qcow2' 1M
"#,
    ],
    rows: r#"
info base.img
info -f raw base.img
info -fraw base.img
info -fqcow2 child.qcow2
info --format qcow2 child.qcow2
info --format=qcow2 child.qcow2
info --form qcow2 child.qcow2
info --output json base.img
info --output=json base.img
info --output=human base.img
info --out=json child.qcow2
info child.qcow2
info child.qcow2 --output=json
info -U child.qcow2
info --force-share child.qcow2
info --force-sh child.qcow2
info -U -f qcow2 --output=json top.qcow2
info -Ufqcow2 top.qcow2
info --backing-chain top.qcow2
info --backing-chain --output=json top.qcow2
info --backing top.qcow2
info -b top.qcow2  # since 10
info -bU --output=json top.qcow2  # since 10
info --backing-chain base.img
info --backing-chain --output=json base.img
info -- base.img
info d/up.qcow2
info --output=json d/up.qcow2
info --backing-chain d/up.qcow2
info --backing-chain --output=json d/up.qcow2
info ./top.qcow2
info --backing-chain ./top.qcow2
info @DIR@/top.qcow2
info --backing-chain --output=json @DIR@/d/up.qcow2
info abs.qcow2
info --output=json abs.qcow2
info obj.qcow2
info --output=json obj.qcow2
info file:top.qcow2
info --image-opts driver=qcow2,file.filename=top.qcow2
info --image-opts --output=json driver=qcow2,file.filename=top.qcow2
info --image-opts driver=qcow2,file.driver=file,file.filename=child.qcow2
info --image-opts file.filename=base.img,driver=raw
info --image-opts driver=raw,file.filename=child.qcow2
info --image-opts driver=raw,offset=64k,size=1M,file.filename=base.img
info --image-opts --backing-chain driver=qcow2,file.filename=top.qcow2
info --image-opts -U driver=qcow2,file.filename=top.qcow2
info 'json:{"driver":"qcow2","file":{"driver":"file","filename":"top.qcow2"}}'
info --output=json 'json:{"driver":"qcow2","file":{"driver":"file","filename":"top.qcow2"}}'
info 'json:{"driver":"qcow2","file.filename":"child.qcow2"}'
info 'json:{"file":{"driver":"file","filename":"base.img"}}'
info --object secret,id=s0,data=abc base.img
info './it"s.qcow2'
info --output=json './it"s.qcow2'
info -f raw child.qcow2
info -f raw --output=json child.qcow2
"#,
};

pub(crate) const DISKS: Table = Table {
    images: &[KINDS, SNAPSHOTS, BITMAPS],
    rows: r"
info empty.qcow2
info plain.qcow2
info zlib.qcow2
info zstd.qcow2
info --output=json zstd.qcow2
info v2.qcow2
info --output=json v2.qcow2
info c512.qcow2
info c2m.qcow2
info rc1.qcow2
info --output=json rc1.qcow2
info rc64.qcow2
info odd.qcow2
info --output=json odd.qcow2
info zero.qcow2
info zero.img
info prealloc.qcow2
info snap.qcow2
info --output=json snap.qcow2
info --backing-chain snap.qcow2
info bm.qcow2
info --output=json bm.qcow2
! truncate -s 8T huge.img ; info -f raw huge.img ; info --output=json huge.img
! truncate -s 1000 odd.img ; info odd.img
! truncate -s 1025 odd.img ; info --output=json odd.img
create -q -f qcow2 huge.qcow2 8T ; info huge.qcow2 ; info --output=json huge.qcow2
create -q -f qcow2 -o cluster_size=2M huge.qcow2 1P ; info huge.qcow2
create -q -f qcow2 x.qcow2 1023 ; info x.qcow2
create -q -f qcow2 x.qcow2 1.5M ; info x.qcow2
create -q -f qcow2 x.qcow2 999M ; info x.qcow2
create -q -f qcow2 x.qcow2 1023.9M ; info x.qcow2
",
};

pub(crate) const BAD: Table = Table {
    images: &[STRANGE],
    rows: r#"
info
info whole.qcow2 text.img
info missing.qcow2
info ''
info .
info folder
info folder/none
info whole.qcow2/none
info short.qcow2
info unknown.qcow2
info -U unknown.qcow2
info clusters.qcow2
info version.qcow2
info dirty.qcow2
info --output=json dirty.qcow2
info corrupt.qcow2
info --output=json corrupt.qcow2
info gone.qcow2
info --output=json gone.qcow2
info --backing-chain gone.qcow2
info --backing-chain --output=json gone.qcow2
info remote.qcow2
info --output=json remote.qcow2
info text.img
info nothing.img
info --output=json nothing.img
info -f qcow2 text.img
info -f qcow2 nothing.img
info -f raw short.qcow2
info -f nosuch whole.qcow2
info -f '' whole.qcow2
info --output=yaml whole.qcow2
info --output= whole.qcow2
info --output
info -f
info --nosuch whole.qcow2
info -x whole.qcow2
info --o=json whole.qcow2
info --f raw whole.qcow2
info --image-opts -f qcow2 driver=qcow2,file.filename=whole.qcow2  # since 10
info --image-opts whole.qcow2
info --image-opts driver=qcow2,file.filename=missing.qcow2
info --image-opts driver=nosuch,file.filename=whole.qcow2
info --image-opts driver=qcow2
info --image-opts driver=qcow2,file.filename=whole.qcow2,nosuch=1
info --image-opts driver=qcow2,file.driver=nosuch,file.filename=whole.qcow2
info --image-opts driver=qcow2,file.filename=text.img
info --image-opts driver=raw,offset=2M,file.filename=text.img
info 'json:{'
info 'json:[]'
info 'json:{"driver":"qcow2"}'
info 'json:{"driver":"nosuch","file":{"driver":"file","filename":"whole.qcow2"}}'
info 'json:{"driver":"qcow2","file":"whole.qcow2"}'
info 'json:{"driver":"qcow2","file":{"driver":"file","filename":"whole.qcow2"},"nosuch":1}'
info -f raw 'json:{"driver":"qcow2","file":{"driver":"file","filename":"whole.qcow2"}}'
info --object nosuch,id=a whole.qcow2
info --object secret,data=abc whole.qcow2
info --object whole.qcow2
"#,
};

#[test]
fn images_in_a_chain() {
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
