//! qcow images of version 1, which are read and not written: as a source, as a base, for `info` and `map`.

use crate::runner::Table;

/// Of all cluster sizes that qemu-img makes, plain, compressed and encrypted, over a base, and some that are damaged.
/// (qemu-img 10.0.2 makes a good image with `convert -c -O qcow`, and exits with 1 all the same.)
const IMAGES: &str = r#"
old() { old_file=$1 old_size=$2; shift 2; qemu-img create -q -f qcow "$@" "$old_file" "$old_size"; }
old plain.qcow 3000000
io qcow plain.qcow 'write -P 1 3k 20k' 'write -P 2 2900k 4k' 'write -P 3 8k 1k' 'write -P 4 2047k 2k'
old empty.qcow 5M
old tiny.qcow 512
seq 1 200000 >text.raw
truncate -s 2M text.raw
qemu-img convert -f raw -O qcow -c text.raw packed.qcow || [ $? = 1 ]
cp packed.qcow mixed.qcow
io qcow mixed.qcow 'write -P 9 5000 9000' 'write -P 8 1M 64k'
qemu-img create -q -f qcow -b packed.qcow -F qcow over.qcow
io qcow over.qcow 'write -P 5 64k 3k' 'write -P 6 1500k 100k'
qemu-img create -q -f qcow -b text.raw -F raw overraw.qcow 3M
io qcow overraw.qcow 'write -P 5 64k 3k' 'write -P 6 2500k 100k'
over child.qcow2 over.qcow qcow
io qcow2 child.qcow2 'write -P 7 128k 64k'
qemu-img convert --object secret,id=s,data=sesame -f raw -O qcow -o encrypt.format=aes,encrypt.key-secret=s text.raw locked.qcow
qemu-img convert -f qcow -O qcow2 packed.qcow new.qcow2
cp plain.qcow version2.qcow; poke version2.qcow 7 '\002'
cp plain.qcow clusters.qcow; poke clusters.qcow 32 '\021'
cp plain.qcow l2.qcow; poke l2.qcow 33 '\005'
cp plain.qcow method.qcow; poke method.qcow 39 '\002'
cp plain.qcow huge.qcow; poke huge.qcow 24 '\077'
cp plain.qcow odd.qcow; poke odd.qcow 31 '\001'
cp over.qcow longname.qcow; poke longname.qcow 18 '\004\000'
cp over.qcow gone.qcow; poke gone.qcow 48 'g'
cp packed.qcow spoiled.qcow; poke spoiled.qcow 20000 '\377\377\377\377\377\377\377\377'
head -c 30 plain.qcow >short.qcow
"#;

pub(crate) const READ: Table = Table {
    images: &[IMAGES],
    rows: r"
info plain.qcow
info --output=json plain.qcow
info -f qcow packed.qcow
info over.qcow
info --output=json over.qcow
info --backing-chain over.qcow
info --backing-chain --output=json child.qcow2
info overraw.qcow
info locked.qcow
info --output=json locked.qcow
info odd.qcow
info --output=json huge.qcow
info gone.qcow
info --image-opts driver=qcow,file.filename=plain.qcow
map plain.qcow
map --output=json plain.qcow
map --output=json empty.qcow
map --output=json tiny.qcow
map --output=json packed.qcow
map packed.qcow
map --output=json mixed.qcow
map --output=json over.qcow
map overraw.qcow
map --output=json overraw.qcow
map --output=json child.qcow2
map --output=json -s 1M -l 300k mixed.qcow
convert -O raw plain.qcow out.raw
convert -f qcow -O raw packed.qcow out.raw
convert -O qcow2 mixed.qcow out.qcow2
convert -c -O qcow2 over.qcow out.qcow2
convert -O raw overraw.qcow out.raw
convert -p -O raw mixed.qcow out.raw  # progress
convert -O qcow2 -o cluster_size=4k child.qcow2 out.qcow2
convert --object secret,id=s,data=sesame --image-opts driver=qcow,file.filename=locked.qcow,encrypt.key-secret=s -O raw out.raw
convert --object secret,id=s,data=sesame --image-opts driver=qcow,file.filename=locked.qcow,encrypt.format=aes,encrypt.key-secret=s -O qcow2 out.qcow2
map --output=json --object secret,id=s,data=sesame --image-opts driver=qcow,file.filename=locked.qcow,encrypt.key-secret=s
compare text.raw packed.qcow
compare packed.qcow mixed.qcow
compare -s packed.qcow mixed.qcow
compare -s packed.qcow new.qcow2
compare -s text.raw packed.qcow
compare -s plain.qcow plain.qcow
compare over.qcow child.qcow2
compare -f qcow -F qcow over.qcow packed.qcow
dd if=mixed.qcow of=out.raw bs=64k skip=1 count=3
dd -f qcow -O qcow2 if=over.qcow of=out.qcow2 bs=1M
measure -O raw packed.qcow
measure -O qcow2 packed.qcow
measure --output=json -O qcow2 mixed.qcow
measure -O qcow2 over.qcow
create -f qcow2 -b packed.qcow -F qcow out.qcow2
create -f qcow2 -b over.qcow -F qcow out.qcow2 5M
rebase -b packed.qcow -F qcow child.qcow2
rebase -b '' child.qcow2
rebase -u -b plain.qcow -F qcow child.qcow2
snapshot -l plain.qcow
check child.qcow2
convert -n -O qcow2 packed.qcow new.qcow2
",
};

pub(crate) const REFUSED: Table = Table {
    images: &[IMAGES],
    rows: r"
check plain.qcow
check --output=json plain.qcow
check -f qcow -r all plain.qcow
convert -O raw locked.qcow out.raw
convert -O raw spoiled.qcow out.raw  # theirs changes: it leaves a part of the disk
convert -O raw gone.qcow out.raw
map locked.qcow
map packed.qcow
info version2.qcow
info -f qcow version2.qcow
info clusters.qcow
info l2.qcow
info method.qcow
info longname.qcow
info short.qcow
info -f qcow short.qcow
info -f qcow text.raw
info -f qcow2 plain.qcow
amend -o size=6M plain.qcow
amend -f qcow -o size=6M plain.qcow
resize plain.qcow 6M
resize -f qcow --shrink plain.qcow 1M
snapshot -c a plain.qcow
snapshot -a a plain.qcow
snapshot -d a plain.qcow
bitmap --add plain.qcow a
bitmap --remove plain.qcow a
rebase -u -b '' over.qcow
rebase -u -b plain.qcow -F qcow over.qcow
measure -O qcow --size 1M
measure -O qcow packed.qcow
create -f qcow -o cluster_size=4k out.qcow 1M
create -f qcow out.qcow
create -f qcow2 -b plain.qcow out.qcow2
create -f qcow2 -b text.raw -F qcow out.qcow2
convert -l a -O raw plain.qcow out.raw
",
};

#[test]
fn images_that_can_be_read() {
    READ.prove();
}

#[test]
fn what_is_refused() {
    REFUSED.prove();
}
