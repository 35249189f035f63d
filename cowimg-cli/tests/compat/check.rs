//! `check`: sound images, damaged ones, their repair, and every exit code.

use crate::images::{BITMAPS, CHAIN, KINDS, SNAPSHOTS, STRANGE};
use crate::runner::Table;

/// An image with data in clusters 5 and 6; then such with refcounts that are too high and too low. The refcount block
/// is cluster 2, its entries have 2 bytes.
const DAMAGED: &str = r"
new sound.qcow2 1M
io qcow2 sound.qcow2 'write -P 1 0 128k'
cp sound.qcow2 leak.qcow2
truncate -s 576k leak.qcow2
poke leak.qcow2 131086 '\000\001'
poke leak.qcow2 131088 '\000\001'
cp sound.qcow2 high.qcow2; poke high.qcow2 131082 '\000\002'
cp sound.qcow2 low.qcow2; poke low.qcow2 131082 '\000\000'
cp sound.qcow2 both.qcow2; truncate -s 576k both.qcow2
poke both.qcow2 131082 '\000\000'; poke both.qcow2 131088 '\000\001'
cp sound.qcow2 flag.qcow2; poke flag.qcow2 262144 '\000'
cp sound.qcow2 noblock.qcow2; poke noblock.qcow2 65536 '\000\000\000\000\000\000\000\000'
";

pub(crate) const SOUND: Table = Table {
    images: &[KINDS, SNAPSHOTS, BITMAPS],
    rows: r#"
check empty.qcow2
check plain.qcow2
check -f qcow2 plain.qcow2
check -fqcow2 plain.qcow2
check --format qcow2 plain.qcow2
check --output=json plain.qcow2
check --output json zlib.qcow2
check --output=human zlib.qcow2
check --out=json zstd.qcow2
check zlib.qcow2
check zstd.qcow2
check v2.qcow2
check --output=json v2.qcow2
check c512.qcow2
check --output=json c512.qcow2
check c2m.qcow2
check rc1.qcow2
check rc64.qcow2
check odd.qcow2
check --output=json odd.qcow2
check zero.qcow2
check --output=json zero.qcow2
check prealloc.qcow2
check snap.qcow2
check --output=json snap.qcow2
check bm.qcow2
check --output=json bm.qcow2
check -q plain.qcow2
check --quiet --output=json plain.qcow2
check -U plain.qcow2
check --force-share plain.qcow2
check -T none plain.qcow2
check -T writeback plain.qcow2
check -Tunsafe plain.qcow2
check --cache=directsync plain.qcow2  # since 10
check --image-opts driver=qcow2,file.filename=plain.qcow2
check 'json:{"driver":"qcow2","file":{"driver":"file","filename":"plain.qcow2"}}'
check -r leaks plain.qcow2
check -r all plain.qcow2
check --repair=all --output=json plain.qcow2
check -rall snap.qcow2
check -r leaks bm.qcow2
check --object secret,id=s0,data=abc plain.qcow2
create -q -f qcow2 huge.qcow2 1T ; check huge.qcow2
"#,
};

pub(crate) const DAMAGE: Table = Table {
    images: &[DAMAGED, CHAIN, STRANGE],
    rows: r"
check child.qcow2
check top.qcow2
check leak.qcow2  # damaged
check --output=json leak.qcow2  # damaged
check -q leak.qcow2  # damaged
check -r leaks leak.qcow2  # damaged
check -q -r leaks leak.qcow2  # damaged
check -r all leak.qcow2  # damaged
check -r leaks --output=json leak.qcow2  # damaged
check -r all leak.qcow2 ; check leak.qcow2  # damaged
check high.qcow2  # damaged
check --output=json high.qcow2  # damaged
check -r leaks high.qcow2  # damaged
check -r all high.qcow2  # damaged
check low.qcow2  # damaged
check --output=json low.qcow2  # damaged
check -r all low.qcow2  # damaged; layout: the refcounts are built anew at another place
check both.qcow2  # damaged
check -r all both.qcow2  # damaged; layout: the refcounts are built anew at another place
check flag.qcow2  # damaged
check -r all flag.qcow2  # damaged
check -r all --output=json flag.qcow2  # damaged
check noblock.qcow2  # damaged
check dirty.qcow2  # damaged
check -r leaks dirty.qcow2
check -r all dirty.qcow2
check -r all --output=json dirty.qcow2
check corrupt.qcow2
check -r all corrupt.qcow2
check whole.qcow2
",
};

pub(crate) const BAD: Table = Table {
    images: &[STRANGE, "qemu-img create -q -f raw base.img 1M\n"],
    rows: r"
check
check whole.qcow2 text.img
check base.img
check -f raw base.img
check -q base.img
check --output=json base.img
check -r all base.img
check missing.qcow2
check folder
check short.qcow2
check unknown.qcow2
check -r all unknown.qcow2
check clusters.qcow2
check text.img
check -f qcow2 text.img
check -f nosuch whole.qcow2
check -r
check -r nosuch whole.qcow2
check -r '' whole.qcow2
check -U -r all whole.qcow2
check --output=yaml whole.qcow2
check -T nosuch whole.qcow2
check --nosuch whole.qcow2
check -x whole.qcow2
check --image-opts whole.qcow2
check --image-opts driver=qcow2,file.filename=missing.qcow2
check --image-opts -f qcow2 driver=qcow2,file.filename=whole.qcow2  # since 10
",
};

#[test]
fn sound_images() {
    SOUND.prove();
}

#[test]
fn damaged_images() {
    DAMAGE.prove();
}

#[test]
fn bad_images_and_bad_words() {
    BAD.prove();
}
