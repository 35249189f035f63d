//! `create`: every option of raw and qcow2, sizes in all their forms, backing files, and what is refused.

use crate::images::{CHAIN, STRANGE};
use crate::runner::Table;

pub(crate) const GOOD: Table = Table {
    images: &[CHAIN, "new old.qcow2 1M\nio qcow2 old.qcow2 'write -P 9 0 64k'\nmkdir d\n"],
    rows: r"
create a.raw 1M
create -f raw a.raw 1M
create -fraw a.raw 1M
create -f raw a.raw 0
create -f raw a.raw 1000
create -f raw a.raw 1k
create -f raw a.raw 1K
create -f raw a.raw 1b
create -f raw a.raw 1.5k
create -f raw a.raw 0x10000
create -f raw -o size=1M a.raw
create -f raw -o preallocation=off a.raw 1M
create -f raw -o preallocation=falloc a.raw 1M
create -f raw -o preallocation=full a.raw 1M
create -f raw a.raw 8T
create -q -f raw a.raw 1M
create --quiet --format raw a.raw 1M  # since 10
create --format=qcow2 a.qcow2 1M  # since 10
create -f qcow2 a.qcow2 1M
create -fqcow2 a.qcow2 1M
create a.qcow2 -f qcow2 1M
create a.qcow2 1M -f qcow2
create -qfqcow2 a.qcow2 1M
create -f qcow2 a.qcow2 0
create -f qcow2 a.qcow2 1
create -f qcow2 a.qcow2 1000
create -f qcow2 a.qcow2 1.5M
create -f qcow2 a.qcow2 1G
create -f qcow2 a.qcow2 1T
create -f qcow2 a.qcow2 8T
create -f qcow2 -o cluster_size=2M a.qcow2 1P
create -f qcow2 -o size=2M a.qcow2
create -f qcow2 -o cluster_size=512 a.qcow2 1M
create -f qcow2 -o cluster_size=4096 a.qcow2 1M
create -f qcow2 -o cluster_size=4k a.qcow2 1M
create -f qcow2 -o cluster_size=64K a.qcow2 1M
create -f qcow2 -o cluster_size=2M a.qcow2 1M
create -f qcow2 -o compat=0.10 a.qcow2 1M
create -f qcow2 -o compat=v2 a.qcow2 1M
create -f qcow2 -o compat=1.1 a.qcow2 1M
create -f qcow2 -o compat=v3 a.qcow2 1M
create -f qcow2 -o lazy_refcounts=on a.qcow2 1M
create -f qcow2 -o lazy_refcounts=off a.qcow2 1M
create -f qcow2 -o lazy_refcounts a.qcow2 1M
create -f qcow2 -o refcount_bits=1 a.qcow2 1M
create -f qcow2 -o refcount_bits=2 a.qcow2 1M
create -f qcow2 -o refcount_bits=8 a.qcow2 1M
create -f qcow2 -o refcount_bits=64 a.qcow2 1M
create -f qcow2 -o compression_type=zlib a.qcow2 1M
create -f qcow2 -o compression_type=zstd a.qcow2 1M
create -f qcow2 -o preallocation=off a.qcow2 1M
create -f qcow2 -o preallocation=metadata a.qcow2 1M
create -f qcow2 -o preallocation=falloc a.qcow2 1M
create -f qcow2 -o preallocation=full a.qcow2 1M
create -f qcow2 -o preallocation=metadata,cluster_size=512 a.qcow2 300k
create -f qcow2 -o preallocation=metadata,compat=0.10 a.qcow2 1M
create -f qcow2 -o cluster_size=1k,refcount_bits=32,lazy_refcounts=on,compression_type=zstd a.qcow2 1M
create -f qcow2 -o cluster_size=1k -o refcount_bits=32 a.qcow2 1M
create -f qcow2 -o size=1M,cluster_size=1k a.qcow2
create -f qcow2 -o extended_l2=off a.qcow2 1M
create -f qcow2 -o encryption=off a.qcow2 1M
create -f raw -o nocow=on,extent_size_hint=64k,preallocation=off a.raw 1M
create -f qcow2 -o extent_size_hint=64k,nocow=off,preallocation=off,cluster_size=4k a.qcow2 1M
create -f qcow2 -o extent_size_hint=0,lazy_refcounts=on a.qcow2 1M
create -f qcow2 -b base.img -F raw a.qcow2
create -f qcow2 -b base.img -F raw a.qcow2 8M
create -f qcow2 -b base.img -F raw a.qcow2 1M
create -fqcow2 -bbase.img -Fraw a.qcow2
create --backing base.img --backing-format raw --format qcow2 a.qcow2  # since 10
create --options cluster_size=4k --format qcow2 a.qcow2 1M  # since 10
create -f qcow2 -b top.qcow2 -F qcow2 a.qcow2
create -f qcow2 -b top.qcow2 -F qcow2 -o compat=0.10 a.qcow2
create -f qcow2 -o backing_file=base.img,backing_fmt=raw a.qcow2
create -f qcow2 -o backing_file=base.img,backing_fmt=raw,cluster_size=4k a.qcow2 5M
create -f qcow2 -b ../base.img -F raw d/a.qcow2
create -f qcow2 -b top.qcow2 -F qcow2 -o preallocation=metadata a.qcow2
create -f qcow2 -b @DIR@/base.img -F raw a.qcow2
create -f qcow2 -u -b missing.img -F raw a.qcow2 1M
create -f qcow2 --backing-unsafe -b missing.img -F raw a.qcow2 1M  # since 10
create -f qcow2 -u -b base.img -F raw a.qcow2 1M
create -f qcow2 -b file:base.img -F raw a.qcow2
create -f qcow2 @DIR@/a.qcow2 1M
create -f qcow2 old.qcow2 2M
create -f raw old.qcow2 2M
create -f qcow2 base.img 2M
create -f qcow2 --object secret,id=s0,data=abc a.qcow2 1M
create -f qcow2 -o help  # own words
create -f raw -o help  # own words
create -f qcow2 -o '?'  # own words
create -f qcow2 -o help a.qcow2 1M  # own words
create -f raw -o help a.raw 1M  # own words
create -f qcow2 -o cluster_size=4k,help  # own words
create -f qcow2 'two words' 1M
create -f qcow2 -o cluster_size=4k 'with,comma' 1M
",
};

pub(crate) const BAD: Table = Table {
    images: &[
        CHAIN,
        STRANGE,
        "new precious.qcow2 1M\nio qcow2 precious.qcow2 'write -P 9 0 64k'\nqemu-img create -q -f raw precious.img 1M\n",
    ],
    rows: r"
create
create a.raw
create -f qcow2 a.qcow2
create -f qcow2 precious.qcow2
create -f qcow2 a.qcow2 banana
create -f qcow2 precious.qcow2 banana
create -f qcow2 a.qcow2 ''
create -f qcow2 a.qcow2 -- -1
create -f qcow2 -- a.qcow2 -1M
create -f qcow2 a.qcow2 1.5
create -f qcow2 a.qcow2 1Z
create -f qcow2 a.qcow2 1MM
create -f qcow2 a.qcow2 '1 M'
create -f qcow2 a.qcow2 8E
create -f qcow2 a.qcow2 99999999999999999999
create -f qcow2 a.qcow2 1M 2M
create -f nosuch a.qcow2 1M
create -f '' a.qcow2 1M
create -f
create -o
create -f qcow2 -o nosuch=1 a.qcow2 1M
create -f qcow2 -o cluster_sise=4k precious.qcow2 1M
create -f raw -o cluster_size=4k a.raw 1M
create -f raw -o preallocation=nosuch a.raw 1M  # theirs changes: the target is made before the mode is looked at
create -f raw -o preallocation=metadata a.raw 1M  # theirs changes: the target is made before the mode is looked at
create -f qcow2 -o cluster_size=banana a.qcow2 1M
create -f qcow2 -o cluster_size=3000 a.qcow2 1M
create -f qcow2 -o cluster_size=256 a.qcow2 1M
create -f qcow2 -o cluster_size=4M a.qcow2 1M
create -f qcow2 -o cluster_size=0 a.qcow2 1M
create -f qcow2 -o cluster_size=3000 precious.qcow2 1M  # theirs changes: it deletes the image that stands there
create -f qcow2 -o refcount_bits=3 precious.qcow2 1M  # theirs changes: it deletes the image that stands there
create -f qcow2 -o refcount_bits=128 a.qcow2 1M
create -f qcow2 -o refcount_bits=0 a.qcow2 1M
create -f qcow2 -o refcount_bits=x a.qcow2 1M
create -f qcow2 -o compat=0.10,refcount_bits=8 a.qcow2 1M
create -f qcow2 -o compat=0.10,lazy_refcounts=on a.qcow2 1M
create -f qcow2 -o compat=0.10,compression_type=zstd a.qcow2 1M
create -f qcow2 -o compat=1.2 a.qcow2 1M
create -f qcow2 -o compression_type=lz4 a.qcow2 1M
create -f qcow2 -o lazy_refcounts=maybe a.qcow2 1M
create -f qcow2 -o preallocation=nosuch a.qcow2 1M
create -f qcow2 -o preallocation=full -b base.img -F raw precious.qcow2  # theirs changes: it deletes the image that stands there
create -f qcow2 -o encryption=maybe a.qcow2 1M
create -f raw -o extent_size_hint=8G a.raw 1M
create -f qcow2 -o extent_size_hint=8G a.qcow2 1M
create -f raw -o nocow=maybe a.raw 1M
create -f raw -o extent_size_hint=x a.raw 1M
create -f qcow2 -o , a.qcow2 1M
create -f qcow2 -o '' a.qcow2 1M
create -f qcow2 -o size=banana a.qcow2
create -f qcow2 -b base.img a.qcow2
create -f qcow2 -b top.qcow2 a.qcow2
create -f qcow2 -F raw a.qcow2
create -f qcow2 -b missing.img -F raw a.qcow2
create -f qcow2 -b missing.img -F raw a.qcow2 1M
create -f qcow2 -b base.img -F qcow2 a.qcow2
create -f qcow2 -b base.img -F nosuch a.qcow2
create -f qcow2 -b short.qcow2 -F qcow2 a.qcow2
create -f qcow2 -b folder -F raw a.qcow2
create -f qcow2 -b base.img -F raw -o backing_file=top.qcow2 a.qcow2  # since 10
create -f qcow2 -u -b missing.img -F raw a.qcow2
create -f qcow2 -u -b missing.img a.qcow2 1M
create -f raw -b base.img -F raw a.raw
create -f raw -b base.img -F raw precious.img 1M
create -f qcow2 folder 1M
create -f qcow2 nofolder/a.qcow2 1M
create -f raw nofolder/a.raw 1M
create -f qcow2 base.img/a.qcow2 1M
create --nosuch a.qcow2 1M
create -x a.qcow2 1M
create -6 a.qcow2 1M
create -e a.qcow2 1M
create -f qcow2 --object nosuch,id=a a.qcow2 1M
",
};

#[test]
fn images_that_can_be_made() {
    GOOD.prove();
}

#[test]
fn images_that_cannot_be_made() {
    BAD.prove();
}
