//! `dd`: blocks of an image into a new one.

use crate::images::{CHAIN, KINDS, STRANGE};
use crate::runner::Table;

pub(crate) const TABLE: Table = Table {
    images: &[CHAIN, KINDS, STRANGE, "new old.qcow2 4M\nio qcow2 old.qcow2 'write -P 9 0 4M'\n"],
    rows: r#"
dd if=base.img of=z
dd -f raw -O raw if=base.img of=z
dd -fraw -Oqcow2 if=base.img of=z
dd --format=raw --output-format=qcow2 if=base.img of=z  # since 10
dd -f raw -O qcow2 bs=1M count=2 if=base.img of=z
dd -f raw -O qcow2 bs=1M skip=1 count=2 if=base.img of=z
dd -O raw bs=1M skip=1 if=top.qcow2 of=z
dd -f qcow2 bs=64k if=top.qcow2 of=z
dd -f qcow2 -O qcow2 bs=64k if=top.qcow2 of=z
dd bs=4k skip=10 count=3 if=top.qcow2 of=z
dd bs=3000 count=3 if=base.img of=z
dd bs=3000 skip=2 count=3 -O qcow2 if=base.img of=z
dd bs=1 count=700 if=base.img of=z
dd count=0 if=base.img of=z
dd count=0 -O qcow2 if=base.img of=z
dd bs=1M skip=4 if=base.img of=z
dd bs=1M skip=5 if=base.img of=z
dd bs=1M skip=5 count=1 -O qcow2 if=base.img of=z
dd bs=1M count=100 if=base.img of=z
dd bs=2M skip=1 count=100 -O qcow2 if=top.qcow2 of=z
dd bs=0x1000 count=1 if=base.img of=z
dd bs=1.5k count=1 if=base.img of=z
dd bs=1k count=1k if=base.img of=z
dd -U if=top.qcow2 of=z
dd --force-share if=top.qcow2 of=z
dd --image-opts if=driver=qcow2,file.filename=top.qcow2 of=z
dd 'if=json:{"driver":"qcow2","file":{"driver":"file","filename":"top.qcow2"}}' of=z
dd --object secret,id=s0,data=abc if=base.img of=z
dd of=z if=base.img
dd bs=64k -O qcow2 if=odd.qcow2 of=z
dd bs=64k if=odd.qcow2 of=z
dd bs=64k if=c512.qcow2 of=z
dd bs=64k if=zlib.qcow2 of=z
dd if=zero.img of=z
dd bs=1M count=1 -O qcow2 if=base.img of=old.qcow2
dd
dd if=base.img
dd of=z
dd if=missing.img of=z
dd if=missing.img of=old.qcow2
dd if=folder of=z
dd if=base.img of=nofolder/z
dd if=base.img of=folder
dd if=gone.qcow2 of=z
dd bs=banana if=base.img of=z
dd bs=0 if=base.img of=z
dd bs=-1 if=base.img of=z
dd bs=4G if=base.img of=z
dd bs= if=base.img of=z
dd count=banana if=base.img of=z
dd count=-1 if=base.img of=z
dd skip=banana if=base.img of=z
dd skip=-1 if=base.img of=z
dd seek=1 if=base.img of=z
dd conv=notrunc if=base.img of=z
dd nosuch if=base.img of=z
dd -f nosuch if=base.img of=z
dd -O nosuch if=base.img of=z
dd -O nosuch if=base.img of=old.qcow2
dd -f qcow2 if=base.img of=z
dd --nosuch if=base.img of=z
dd -x if=base.img of=z
dd --image-opts if=base.img of=z
dd --image-opts -f raw if=driver=raw,file.filename=base.img of=z  # since 10
"#,
};

#[test]
fn blocks() {
    TABLE.prove();
}
