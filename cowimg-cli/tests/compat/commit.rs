//! `commit`: into the base below, into one further down, with and without emptying, into bases of other sizes.

use crate::images::{CHAIN, SNAPSHOTS, STRANGE};
use crate::runner::Table;

const MORE: &str = r"
qemu-img create -q -f raw short.img 1000000
over long.qcow2 short.img raw
qemu-img resize -q long.qcow2 3M
io qcow2 long.qcow2 'write -P 7 2M 64k' 'write -P 8 990000 512'
new big.qcow2 8M
io qcow2 big.qcow2 'write -P 1 0 8M'
over little.qcow2 big.qcow2 qcow2
qemu-img resize -q --shrink little.qcow2 2M
io qcow2 little.qcow2 'write -P 2 0 64k' 'write -z 64k 128k'
new zbase.qcow2 2M -o compression_type=zstd
io qcow2 zbase.qcow2 'write -P 1 0 1M'
over zeroes.qcow2 zbase.qcow2 qcow2 -o cluster_size=4k
io qcow2 zeroes.qcow2 'write -z 4k 8k' 'write -P 3 100k 512' 'write -c -P 5 512k 4k'
new v2base.qcow2 2M -o compat=0.10,cluster_size=512
io qcow2 v2base.qcow2 'write -P 1 0 64k'
over v2top.qcow2 v2base.qcow2 qcow2 -o compat=0.10
io qcow2 v2top.qcow2 'write -P 2 32k 64k'
over nothing.qcow2 base.img raw
";

pub(crate) const TABLE: Table = Table {
    images: &[CHAIN, SNAPSHOTS, STRANGE, MORE],
    rows: r"
commit top.qcow2
commit -f qcow2 top.qcow2
commit -fqcow2 top.qcow2
commit --format=qcow2 top.qcow2  # since 10
commit child.qcow2
commit nothing.qcow2
commit -q top.qcow2
commit --quiet top.qcow2  # since 10
commit -d top.qcow2
commit --drop top.qcow2  # since 10
commit -d child.qcow2 ; commit child.qcow2
commit -p top.qcow2  # progress
commit -p -d top.qcow2  # progress
commit --progress child.qcow2  # since 10; progress
commit -q -p top.qcow2
commit -b base.img top.qcow2
commit -b child.qcow2 top.qcow2
commit --base base.img top.qcow2  # since 10
commit --base=child.qcow2 -d top.qcow2  # since 10
commit -bbase.img -d top.qcow2
commit -b base.img child.qcow2
commit -b @DIR@/base.img top.qcow2
commit -b ./base.img top.qcow2
commit -r 100M top.qcow2
commit --rate=1G child.qcow2  # since 10
commit -t none top.qcow2
commit -t writethrough top.qcow2
commit -tunsafe child.qcow2
commit --cache=directsync child.qcow2  # since 10
commit --image-opts driver=qcow2,file.filename=top.qcow2
commit --object secret,id=s0,data=abc top.qcow2
commit top.qcow2 ; commit child.qcow2
commit top.qcow2 ; info top.qcow2 ; commit top.qcow2  # layout: what an emptied image keeps is up to each
commit long.qcow2
commit -d long.qcow2
commit little.qcow2
commit zeroes.qcow2
commit -d zeroes.qcow2
commit v2top.qcow2
snapshot -c s top.qcow2 ; commit top.qcow2 ; snapshot -l top.qcow2
snapshot -c s child.qcow2 ; commit top.qcow2 ; snapshot -a s child.qcow2
bitmap --add child.qcow2 b ; commit top.qcow2
bitmap --add top.qcow2 b ; commit top.qcow2
commit
commit top.qcow2 child.qcow2
commit missing.qcow2
commit folder
commit base.img
commit -f raw base.img
commit snap.qcow2
commit whole.qcow2
commit gone.qcow2
commit short.qcow2
commit corrupt.qcow2
commit -b nosuch.img top.qcow2
commit -b top.qcow2 top.qcow2
commit -b top.qcow2 child.qcow2
commit -b '' top.qcow2
commit -r banana top.qcow2
commit -r -1 top.qcow2
commit -t nosuch top.qcow2
commit -f nosuch top.qcow2
commit -f raw top.qcow2
commit --nosuch top.qcow2
commit -x top.qcow2
commit --image-opts top.qcow2
commit -U top.qcow2
",
};

#[test]
fn chains() {
    TABLE.prove();
}
