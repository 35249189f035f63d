//! `compare`: equal, not equal, of other lengths, strict or not, and every exit code.

use crate::images::{CHAIN, KINDS, STRANGE};
use crate::runner::Table;

const MORE: &str = r"
cp --sparse=always base.img same.img
cp --sparse=always base.img longer.img; truncate -s 6M longer.img
cp --sparse=always base.img longer-data.img; truncate -s 6M longer-data.img
io raw longer-data.img 'write -P 9 5M 4k'
cp --sparse=always base.img shorter.img; truncate -s 3M shorter.img
cp --sparse=always base.img other.img; io raw other.img 'write -P 9 1000 1'
cp base.img full.img; io raw full.img 'write -P 0 3M 64k'
printf abc >three.img
printf abd >three-other.img
truncate -s 8T huge.img
new huge.qcow2 8T
";

pub(crate) const TABLE: Table = Table {
    images: &[CHAIN, KINDS, STRANGE, MORE],
    rows: r#"
compare base.img same.img
compare -f raw -F raw base.img same.img
compare -fraw -Fqcow2 base.img plain.qcow2
compare --a-format=raw --b-format=qcow2 base.img plain.qcow2  # since 10
compare base.img plain.qcow2
compare plain.qcow2 zlib.qcow2
compare zlib.qcow2 zstd.qcow2
compare v2.qcow2 plain.qcow2
compare -s base.img same.img
compare -s base.img plain.qcow2
compare --strict plain.qcow2 v2.qcow2  # since 10
compare -s plain.qcow2 v2.qcow2
compare -s base.img full.img
compare base.img full.img
compare base.img top.qcow2
compare child.qcow2 top.qcow2
compare -s child.qcow2 top.qcow2
compare base.img longer.img
compare longer.img base.img
compare -s base.img longer.img
compare -s -p base.img longer.img
compare base.img longer-data.img
compare longer-data.img base.img
compare -s longer-data.img base.img
compare base.img shorter.img
compare -q base.img shorter.img
compare -q base.img longer-data.img
compare -qs base.img longer.img
compare base.img other.img
compare -q base.img other.img
compare --quiet base.img other.img  # since 10
compare -p base.img same.img  # progress
compare -p base.img plain.qcow2  # progress
compare -p base.img other.img  # progress
compare --progress base.img same.img  # since 10; progress
compare -p -q base.img same.img
compare -U base.img same.img
compare --force-share top.qcow2 top.qcow2
compare top.qcow2 top.qcow2
compare -T none base.img same.img
compare -T writeback base.img same.img
compare -Tunsafe base.img same.img
compare --cache=none base.img same.img  # since 10
compare zero.img zero.qcow2
compare zero.img empty.qcow2
compare empty.qcow2 zero.img
compare -s empty.qcow2 prealloc.qcow2
compare empty.qcow2 prealloc.qcow2
compare three.img three.img
compare three.img three-other.img
compare c512.qcow2 c2m.qcow2
compare huge.img huge.qcow2
compare -s huge.img huge.qcow2
compare odd.qcow2 odd.qcow2
compare --image-opts driver=raw,file.filename=base.img driver=qcow2,file.filename=plain.qcow2
compare --image-opts driver=raw,offset=0,size=1M,file.filename=base.img driver=raw,offset=0,size=1M,file.filename=other.img
compare 'json:{"driver":"raw","file":{"driver":"file","filename":"base.img"}}' base.img
compare --object secret,id=s0,data=abc base.img same.img
compare -f raw plain.qcow2 plain.qcow2
compare
compare base.img
compare base.img same.img other.img
compare base.img missing.img
compare missing.img base.img
compare folder base.img
compare short.qcow2 base.img
compare gone.qcow2 base.img
compare unknown.qcow2 base.img
compare -f nosuch base.img same.img
compare -F nosuch base.img same.img
compare -f qcow2 base.img same.img
compare -F qcow2 base.img same.img
compare -T nosuch base.img same.img
compare --nosuch base.img same.img
compare -x base.img same.img
compare --image-opts base.img same.img
compare --image-opts -f raw driver=raw,file.filename=base.img driver=raw,file.filename=same.img  # since 10
"#,
};

#[test]
fn pairs_of_images() {
    TABLE.prove();
}
