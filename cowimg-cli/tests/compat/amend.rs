//! `amend`: what can be changed about an image that is there.

use crate::images::{BITMAPS, CHAIN, KINDS, SNAPSHOTS, STRANGE};
use crate::runner::Table;

pub(crate) const GOOD: Table = Table {
    images: &[KINDS, SNAPSHOTS, CHAIN],
    rows: r"
amend -f qcow2 -o compat=1.1 v2.qcow2
amend -f qcow2 -o compat=v3 v2.qcow2
amend -fqcow2 -o compat=1.1 v2.qcow2 ; info v2.qcow2
amend -o compat=1.1 v2.qcow2
amend --format=qcow2 --options=compat=1.1 v2.qcow2  # since 10
amend -f qcow2 -o compat=0.10 plain.qcow2
amend -f qcow2 -o compat=v2 plain.qcow2 ; info plain.qcow2  # layout: what a new header says comes from another file
amend -f qcow2 -o compat=0.10 v2.qcow2
amend -f qcow2 -o compat=1.1 plain.qcow2
amend -f qcow2 -o compat=0.10 c512.qcow2
amend -f qcow2 -o compat=0.10 empty.qcow2 ; amend -f qcow2 -o compat=1.1 empty.qcow2
amend -f qcow2 -o compat=0.10 child.qcow2
amend -f qcow2 -o compat=0.10 odd.qcow2
amend -p -f qcow2 -o compat=0.10 plain.qcow2  # progress
amend -p -f qcow2 -o compat=1.1 v2.qcow2  # progress
amend --progress -f qcow2 -o compat=1.1 v2.qcow2  # since 10; progress
amend -q -p -f qcow2 -o compat=0.10 plain.qcow2
amend -q -f qcow2 -o compat=0.10 plain.qcow2
amend -f qcow2 -o lazy_refcounts=on plain.qcow2
amend -f qcow2 -o lazy_refcounts=on plain.qcow2 ; amend -f qcow2 -o lazy_refcounts=off plain.qcow2
amend -f qcow2 -o lazy_refcounts plain.qcow2
amend -f qcow2 -o compat=1.1,lazy_refcounts=on v2.qcow2
amend -f qcow2 -o compat=0.10,lazy_refcounts=off odd.qcow2
amend -f qcow2 -o compat=0.10,lazy_refcounts=on odd.qcow2
! qemu-img create -q -f qcow2 -o compression_type=zstd fresh.qcow2 1M ; amend -f qcow2 -o compat=v2 fresh.qcow2 ; info fresh.qcow2  # layout: what a new header says comes from another file
! qemu-io -c 'write 0 4M' zstd.qcow2 ; amend -f qcow2 -o compat=v2 zstd.qcow2 ; ! qemu-img resize -q zstd.qcow2 5M && qemu-io -c 'write -c 4M 64k' zstd.qcow2 ; check -q zstd.qcow2
amend -f qcow2 -o refcount_bits=1 plain.qcow2
amend -f qcow2 -o refcount_bits=8 plain.qcow2
amend -f qcow2 -o refcount_bits=16 plain.qcow2
amend -f qcow2 -o refcount_bits=64 plain.qcow2
amend -f qcow2 -o refcount_bits=16 rc64.qcow2
amend -p -f qcow2 -o refcount_bits=32 plain.qcow2  # progress
amend -f qcow2 -o refcount_bits=8 snap.qcow2 ; check snap.qcow2  # layout: new refcounts are elsewhere
amend -f qcow2 -o refcount_bits=64 c512.qcow2
amend -f qcow2 -o refcount_bits=16,compat=0.10 rc64.qcow2
amend -f qcow2 -o refcount_bits=64,compat=1.1 v2.qcow2
amend -f qcow2 -o size=8M plain.qcow2
amend -f qcow2 -o size=4M plain.qcow2
amend -f qcow2 -o backing_file=base.img,backing_fmt=raw plain.qcow2
amend -f qcow2 -o backing_file=child.qcow2,backing_fmt=qcow2 top.qcow2
amend -f qcow2 -t none -o compat=1.1 v2.qcow2
amend -f qcow2 -t writethrough -o lazy_refcounts=on plain.qcow2
amend -tunsafe -f qcow2 -o lazy_refcounts=on plain.qcow2
amend --cache=directsync -f qcow2 -o lazy_refcounts=on plain.qcow2  # since 10
amend --force -f qcow2 -o compat=1.1 v2.qcow2
amend --image-opts -o compat=1.1 driver=qcow2,file.filename=v2.qcow2
amend -f qcow2 -o help  # own words
amend -f raw -o help
amend -f qcow2 -o help plain.qcow2  # own words
amend --object secret,id=s0,data=abc -f qcow2 -o compat=1.1 v2.qcow2
",
};

pub(crate) const BAD: Table = Table {
    images: &[STRANGE, KINDS, SNAPSHOTS, BITMAPS],
    rows: r"
amend
amend whole.qcow2
amend -o compat=1.1
amend -f qcow2 -o compat=1.1 missing.qcow2
amend -f qcow2 -o compat=1.1 folder
amend -f qcow2 -o compat=1.1 short.qcow2
amend -f qcow2 -o compat=1.1 whole.qcow2 text.img
amend -f qcow2 -o compat=1.2 whole.qcow2
amend -f qcow2 -o compat= whole.qcow2
amend -f qcow2 -o nosuch=1 whole.qcow2
amend -f qcow2 -o cluster_size=4k whole.qcow2
amend -f qcow2 -o cluster_size=64k whole.qcow2
amend -f qcow2 -o preallocation=full whole.qcow2
amend -f qcow2 -o compression_type=zstd whole.qcow2
amend -f qcow2 -o compression_type=zlib whole.qcow2
amend -f qcow2 -o extended_l2=on whole.qcow2
amend -f qcow2 -o refcount_bits=3 whole.qcow2
amend -f qcow2 -o refcount_bits=0 whole.qcow2
amend -f qcow2 -o refcount_bits=128 whole.qcow2
amend -f qcow2 -o refcount_bits=x whole.qcow2
amend -f qcow2 -o refcount_bits=8 v2.qcow2
amend -f qcow2 -o refcount_bits=1 snap.qcow2
amend -f qcow2 -o lazy_refcounts=on v2.qcow2
amend -f qcow2 -o lazy_refcounts=maybe whole.qcow2
amend -f qcow2 -o compat=0.10,lazy_refcounts=on whole.qcow2
amend -f qcow2 -o compat=0.10 rc1.qcow2
amend -f qcow2 -o compat=0.10 zstd.qcow2
amend -f qcow2 -o size=banana whole.qcow2
amend -f qcow2 -o size=512k whole.qcow2
amend -f qcow2 -o backing_file=missing.img,backing_fmt=raw whole.qcow2
amend -f qcow2 -o data_file=x.raw whole.qcow2
amend -f qcow2 -o data_file_raw=on whole.qcow2
amend -f raw -o size=1M base.img
amend -f raw -o preallocation=off base.img
amend -f nosuch -o compat=1.1 whole.qcow2
amend -f qcow2 -o compat=1.1 text.img
amend -f qcow2 -o '' whole.qcow2
amend -f qcow2 -t nosuch -o compat=1.1 whole.qcow2
amend --nosuch -o compat=1.1 whole.qcow2
amend -x -o compat=1.1 whole.qcow2
amend --image-opts -o compat=1.1 whole.qcow2
amend -f qcow2 -o compat=1.1 gone.qcow2
",
};

#[test]
fn changes() {
    GOOD.prove();
}

#[test]
fn what_cannot_be_changed() {
    BAD.prove();
}
