//! `bench`: the report, and what the writes leave behind.

use crate::images::{CHAIN, STRANGE};
use crate::runner::Table;

pub(crate) const TABLE: Table = Table {
    images: &[CHAIN, STRANGE],
    rows: r"
bench -c 10 -f qcow2 top.qcow2
bench -c 10 -fraw base.img
bench -c10 -d1 -f raw base.img
bench --count=10 --depth=2 --format=raw base.img  # since 10
bench -c 10 -d 4 -s 8k -f raw base.img
bench -c 10 -s 64k -S 128k -o 1M -f qcow2 top.qcow2
bench --count 5 --buffer-size 4k --step-size 8k --offset 64k -f raw base.img  # since 10
bench -c 10 -S 0 -f qcow2 top.qcow2
bench -c 2000 -s 4k -f qcow2 child.qcow2
bench -q -c 10 -f qcow2 top.qcow2
bench -U -c 10 -f qcow2 top.qcow2
bench --force-share -c 10 -f qcow2 top.qcow2
bench -n -t none -c 10 -f qcow2 top.qcow2
bench -i threads -c 10 -f qcow2 top.qcow2
bench --aio=threads -c 10 -f qcow2 top.qcow2  # since 10
bench -i native -t none -c 10 -f raw base.img
bench -t none -c 10 -f raw base.img
bench -t writethrough -c 10 -f raw base.img
bench -t unsafe -c 10 -f raw base.img
bench -w -c 10 -d 1 -f raw base.img
bench --write -c 10 -f qcow2 top.qcow2
bench -w -c 10 -s 64k --pattern=7 -f qcow2 top.qcow2
bench -w -c 10 -s 4k -S 64k -o 4k --pattern 255 -f qcow2 child.qcow2
bench -w -c 20 -d 2 --flush-interval=5 -f qcow2 top.qcow2
bench -w -c 20 -d 5 --flush-interval=5 --no-drain -f qcow2 top.qcow2
bench -w -c 20 -d 2 --flush-interval=4 -t writethrough -f raw base.img
bench -w -c 10 --pattern=0 -f raw base.img
bench --image-opts -c 10 driver=qcow2,file.filename=top.qcow2
bench -c 10 text.img
bench -f qcow2
bench
bench -c 0 -f raw base.img
bench -c x -f raw base.img
bench -c -1 -f raw base.img
bench -d 0 -f raw base.img
bench -d x -f raw base.img
bench -s x -f raw base.img
bench -s 8G -f raw base.img
bench -S x -f raw base.img
bench -S 8G -f raw base.img
bench -o x -f raw base.img
bench -o -1 -f raw base.img
bench -w --pattern=256 -f raw base.img
bench -w --pattern=x -f raw base.img
bench -w --flush-interval=x -f raw base.img
bench --flush-interval=5 -f raw base.img
bench -w --no-drain --flush-interval=1 -d 64 -f raw base.img
bench -w --no-drain -f raw base.img
bench -i nosuch -f raw base.img
bench -i native -f raw base.img
bench -t nosuch -f raw base.img
bench --nosuch -f raw base.img
bench -f raw missing.img
bench -f nosuch base.img
bench -f qcow2 base.img
bench -f raw base.img top.qcow2
bench -f qcow2 gone.qcow2
bench -c 10 -s 0 -f raw base.img
",
};

#[test]
fn requests() {
    TABLE.prove();
}
