//! `rebase`: safe and not, onto another base, a shorter one, a longer one and none.

use crate::images::{CHAIN, SNAPSHOTS, STRANGE};
use crate::runner::Table;

const MORE: &str = r"
qemu-img create -q -f raw other.img 4M
io raw other.img 'write -P 9 0 512k' 'write -P 4 1M 64k' 'write -P 3 2M 512k'
qemu-img create -q -f raw short.img 2M
io raw short.img 'write -P 1 0 1M'
qemu-img create -q -f raw long.img 6M
io raw long.img 'write -P 1 0 6M'
new plain.qcow2 4M
io qcow2 plain.qcow2 'write -P 1 0 64k'
over odd.qcow2 base.img raw
qemu-img resize -q odd.qcow2 4390912
io qcow2 odd.qcow2 'write -P 2 4194304 512'
over small.qcow2 base.img raw -o cluster_size=512
io qcow2 small.qcow2 'write -P 2 1k 512' 'write -z 2M 1k'
over snapped.qcow2 child.qcow2 qcow2
qemu-img snapshot -c s snapped.qcow2
new zoverlay.qcow2 4M -o compression_type=zstd,backing_file=base.img,backing_fmt=raw
new v2.qcow2 4M -o compat=0.10,backing_file=base.img,backing_fmt=raw
";

pub(crate) const TABLE: Table = Table {
    images: &[CHAIN, SNAPSHOTS, STRANGE, MORE],
    rows: r"
rebase -b base.img -F raw top.qcow2
rebase -f qcow2 -b base.img -F raw top.qcow2
rebase -fqcow2 -bbase.img -Fraw top.qcow2
rebase --backing base.img --backing-format raw --format qcow2 top.qcow2  # since 10
rebase -b other.img -F raw top.qcow2
rebase -b other.img -F raw child.qcow2
rebase -b plain.qcow2 -F qcow2 top.qcow2
rebase -b plain.qcow2 -F qcow2 small.qcow2
rebase -b short.img -F raw child.qcow2
rebase -b long.img -F raw child.qcow2
rebase -b long.img -F raw odd.qcow2
rebase -b short.img -F raw odd.qcow2
rebase -b '' top.qcow2
rebase -b '' child.qcow2
rebase -b '' small.qcow2
rebase -b '' odd.qcow2
rebase -b '' v2.qcow2
rebase -b other.img -F raw v2.qcow2
rebase -b '' plain.qcow2
rebase -b base.img -F raw plain.qcow2
rebase -p -b base.img -F raw top.qcow2  # progress
rebase -p -b '' top.qcow2  # progress
rebase --progress -b '' child.qcow2  # since 10; progress
rebase -p -b missing.img -F raw top.qcow2
rebase -p -b base.img -F raw missing.qcow2
rebase -p -u -b base.img top.qcow2
rebase -q -b base.img -F raw top.qcow2
rebase -q -p -b base.img -F raw top.qcow2
rebase -c -b '' top.qcow2  # since 10
rebase -c -b '' zoverlay.qcow2  # since 10
rebase --compress -b other.img -F raw child.qcow2  # since 10
rebase -u -b base.img -F raw top.qcow2
rebase -u -b missing.img -F raw top.qcow2
rebase -u -b missing.img -F qcow2 top.qcow2 ; info top.qcow2
rebase -u -b '' top.qcow2
rebase -u top.qcow2
rebase -u -b other.img -F raw snapped.qcow2
rebase --backing-unsafe -b missing.img -F raw top.qcow2  # since 10
rebase -u -b base.img -F raw gone.qcow2
rebase -u -b '' gone.qcow2
rebase -u -b other.img -F raw plain.qcow2
rebase -u -b './a rather long name of a base that is not there, in a folder that is not there either/base.img' -F raw top.qcow2
rebase -t none -T none -b base.img -F raw top.qcow2
rebase -t writethrough -b base.img -F raw top.qcow2
rebase -tunsafe -Tunsafe -b base.img -F raw top.qcow2
rebase --cache=directsync --backing-cache=none -b base.img -F raw top.qcow2  # since 10
rebase -b @DIR@/base.img -F raw top.qcow2  # layout: a name of the folder
rebase --image-opts -b base.img -F raw driver=qcow2,file.filename=top.qcow2
rebase --object secret,id=s0,data=abc -b base.img -F raw top.qcow2
rebase -b base.img -F raw top.qcow2 ; rebase -b child.qcow2 -F qcow2 top.qcow2
rebase -b base.img -F raw snapped.qcow2
rebase
rebase -b base.img -F raw
rebase top.qcow2
rebase -b base.img top.qcow2
rebase -b child.qcow2 top.qcow2
rebase -u -b base.img top.qcow2
rebase -b base.img -F raw missing.qcow2
rebase -b missing.img -F raw top.qcow2
rebase -b folder -F raw top.qcow2
rebase -b base.img -F nosuch top.qcow2
rebase -b base.img -F raw gone.qcow2
rebase -b base.img -F raw short.qcow2
rebase -b base.img -F raw corrupt.qcow2
rebase -b child.qcow2 -F qcow2 base.img
rebase -f raw -b child.qcow2 -F qcow2 base.img
rebase -u -b child.qcow2 -F qcow2 -f raw base.img
rebase -b gone.qcow2 -F qcow2 top.qcow2
rebase -F raw top.qcow2
rebase -u -F raw top.qcow2
rebase -t nosuch -b base.img -F raw top.qcow2
rebase -T nosuch -b base.img -F raw top.qcow2
rebase -f nosuch -b base.img -F raw top.qcow2
rebase --nosuch -b base.img -F raw top.qcow2
rebase -x -b base.img -F raw top.qcow2
rebase --image-opts -b base.img -F raw top.qcow2
rebase -b base.img -F raw top.qcow2 child.qcow2
rebase -b base.img -F raw folder
",
};

#[test]
fn bases() {
    TABLE.prove();
}
