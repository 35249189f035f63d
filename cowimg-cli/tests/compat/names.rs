//! What names an image: files whose names look like something else, protocols, descriptions and objects, in every
//! command that copies or compares.

use crate::images::CHAIN;
use crate::runner::Table;

pub(crate) const NAMES: Table = Table {
    images: &[
        CHAIN,
        r"
new gone.qcow2 1M -u -b missing.img -F raw
over above.qcow2 child.qcow2 qcow2
qemu-img rebase -u -b missing.img -F raw above.qcow2
mkdir d
cp child.qcow2 a:b.qcow2
cp base.img d/x:y
new inner.qcow2 2M
io qcow2 inner.qcow2 'write -P 5 64k 192k'
qemu-img convert -f raw -O qcow2 inner.qcow2 nested.qcow2
",
    ],
    rows: r"
info nosuch:child.qcow2
info a:b.qcow2
info ./a:b.qcow2
info d/x:y
info file:child.qcow2
info file:./a:b.qcow2
info file:
info :child.qcow2
map nosuch:child.qcow2
check nosuch:child.qcow2
compare nosuch:base.img base.img
compare base.img nosuch:base.img
measure -O qcow2 nosuch:base.img
convert -O raw nosuch:base.img out.raw
convert -O raw base.img nosuch:out.raw
convert -O raw base.img file:out.raw
dd if=nosuch:base.img of=out.raw
dd if=base.img of=nosuch:out.raw
dd if=file:base.img of=file:out.raw
resize nosuch:child.qcow2 8M
rebase -u -b nosuch:base.img nosuch:child.qcow2
create -f qcow2 nosuch:out.qcow2 1M
create -f raw nosuch:out.raw 1M
create -f qcow2 file:out.qcow2 1M
create -f raw file:out.raw 1M
create -f qcow2 ./out:x.qcow2 1M
create -f qcow2 '' 1M
create -f raw '' 1M
create -q -f qcow2 '' 1M
create -f qcow2 -b file:base.img -F raw out.qcow2
create -f qcow2 -b nosuch:base.img -F raw out.qcow2
create -f qcow2 -b nosuch:base.img -F raw out.qcow2 1M
create -f qcow2 -b gone.qcow2 -F qcow2 out.qcow2
create -f qcow2 -b gone.qcow2 -F qcow2 out.qcow2 1M
create -f qcow2 -b above.qcow2 -F qcow2 out.qcow2 1M
create -f qcow2 -u -b gone.qcow2 -F qcow2 out.qcow2 1M
create -f qcow2 -b top.qcow2 -F qcow2 out.qcow2
-T nosuch=1 info child.qcow2
-T enable=nosuch info child.qcow2
-T nosuch info child.qcow2
--trace nosuch=1 info child.qcow2
info --limits child.qcow2
",
};

pub(crate) const DESCRIBED: Table = Table {
    images: &[CHAIN],
    rows: r#"
info --image-opts driver=file,filename=child.qcow2
info --output=json --image-opts driver=file,filename=child.qcow2
info --object help child.qcow2  # own words
convert --image-opts -O raw driver=qcow2,file.filename=top.qcow2 out.raw
convert --image-opts -O raw driver=raw,offset=1M,size=1M,file.filename=base.img out.raw
convert --image-opts -O raw driver=raw,offset=1M,size=1M,file.driver=qcow2,file.file.filename=top.qcow2 out.raw
convert --image-opts -O qcow2 driver=raw,file.driver=qcow2,file.file.filename=child.qcow2 out.qcow2
convert -O raw 'json:{"driver":"raw","offset":512,"file":{"driver":"qcow2","file":{"driver":"file","filename":"top.qcow2"}}}' out.raw
convert --image-opts -O raw driver=raw,offset=1M,size=9M,file.driver=qcow2,file.file.filename=top.qcow2 out.raw
convert --image-opts -O raw driver=qcow2,file.driver=qcow2,file.file.filename=nested.qcow2 out.raw
convert --image-opts -O raw driver=qcow2,file.driver=qcow2,file.file.filename=child.qcow2 out.raw
compare --image-opts driver=qcow2,file.driver=qcow2,file.file.filename=nested.qcow2 driver=qcow2,file.filename=inner.qcow2
compare --image-opts driver=raw,offset=0,size=1M,file.driver=qcow2,file.file.filename=inner.qcow2 driver=raw,offset=1M,size=1M,file.driver=qcow2,file.file.filename=inner.qcow2
measure --image-opts -O qcow2 driver=raw,offset=64k,size=1M,file.driver=qcow2,file.file.filename=inner.qcow2
check --image-opts driver=qcow2,file.driver=qcow2,file.file.filename=nested.qcow2
dd --image-opts bs=64k count=3 if=driver=raw,offset=1M,file.driver=qcow2,file.file.filename=top.qcow2 of=out.raw
convert --image-opts -O qcow2 driver=qcow2,file.driver=file,file.filename=child.qcow2,backing.driver=raw,backing.file.filename=base.img out.qcow2
convert -O raw 'json:{"driver":"raw","size":1048576,"file":{"driver":"file","filename":"base.img"}}' out.raw
convert --object secret,id=a,data=b -O raw top.qcow2 out.raw
convert --object nosuch,id=a -O raw top.qcow2 out.raw
convert --image-opts -O raw driver=qcow2,file.filename=top.qcow2,nosuch=1 out.raw
compare --image-opts driver=qcow2,file.filename=child.qcow2 driver=qcow2,file.filename=top.qcow2
compare --image-opts driver=qcow2,file.filename=child.qcow2 driver=qcow2,file.driver=file,file.filename=child.qcow2
compare --image-opts driver=raw,file.filename=base.img,size=1M driver=raw,file.filename=base.img,offset=1M,size=1M
compare --image-opts driver=raw,file.filename=base.img,offset=512k,size=512k driver=raw,file.filename=base.img,offset=2M,size=512k
compare --object secret,id=a,data=b base.img base.img
compare --object nosuch,id=a base.img base.img
compare --image-opts base.img base.img
dd --image-opts if=driver=qcow2,file.filename=top.qcow2 of=out.raw bs=1M count=1
dd --object secret,id=a,data=b if=top.qcow2 of=out.raw bs=1M skip=1
measure --image-opts -O qcow2 driver=qcow2,file.filename=top.qcow2
measure --image-opts --output=json -O raw driver=raw,offset=1M,file.filename=base.img
measure --object secret,id=a,data=b -O qcow2 top.qcow2
bench --image-opts -c 10 driver=qcow2,file.filename=child.qcow2
bench --image-opts -q -c 10 driver=raw,offset=1M,file.filename=base.img
rebase --image-opts -u -b base.img -F raw driver=qcow2,file.filename=top.qcow2
rebase --object secret,id=a,data=b -b base.img -F raw top.qcow2
rebase --image-opts -b base.img -F raw driver=qcow2,file.filename=top.qcow2
commit --image-opts driver=qcow2,file.filename=top.qcow2
commit --object secret,id=a,data=b -d child.qcow2
commit --image-opts driver=qcow2,file.filename=top.qcow2,read-only=on
resize --image-opts driver=qcow2,file.filename=top.qcow2 8M
map --image-opts --output=json driver=qcow2,file.filename=top.qcow2,file.driver=file
snapshot --image-opts -c a driver=qcow2,file.filename=top.qcow2
amend --image-opts -o lazy_refcounts=on driver=qcow2,file.filename=top.qcow2
bitmap --image-opts --add driver=qcow2,file.filename=top.qcow2 b
check --image-opts driver=qcow2,file.filename=top.qcow2
"#,
};

#[test]
fn files_whose_names_look_like_something_else() {
    NAMES.prove();
}

#[test]
fn images_that_are_described() {
    DESCRIBED.prove();
}
