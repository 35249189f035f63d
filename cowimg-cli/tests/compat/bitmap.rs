//! `bitmap`: every action, alone and one after the other, and what is refused.

use crate::images::{BITMAPS, CHAIN, STRANGE};
use crate::runner::Table;

const MORE: &str = r"
cp bm.qcow2 other.qcow2
io qcow2 other.qcow2 'write -P 3 3M 64k'
qemu-img create -q -f raw plain.img 4M
new v2.qcow2 4M -o compat=0.10
new small.qcow2 2M
qemu-img bitmap --add small.qcow2 b0
new c512.qcow2 4M -o cluster_size=512
cp bm.qcow2 inuse.qcow2
python3 - inuse.qcow2 <<'END'
import struct, sys
image = open(sys.argv[1], 'r+b')
header = image.read(65536)
at = struct.unpack('>I', header[100:104])[0]
while struct.unpack('>I', header[at:at + 4])[0] != 0x23852875:
    at += 8 + (struct.unpack('>I', header[at + 4:at + 8])[0] + 7) // 8 * 8
directory = struct.unpack('>Q', header[at + 24:at + 32])[0]
image.seek(directory + 12)
image.write(b'\0\0\0\3')
END
";

pub(crate) const GOOD: Table = Table {
    images: &[CHAIN, BITMAPS, MORE],
    rows: r"
bitmap --add top.qcow2 b
bitmap --add -f qcow2 top.qcow2 b
bitmap --add -fqcow2 -g 4k top.qcow2 b
bitmap --add -g128k top.qcow2 b
bitmap --add --granularity 512 top.qcow2 b  # since 10
bitmap --add --granularity=2M top.qcow2 b  # since 10
bitmap --add c512.qcow2 b
bitmap --add -g 512 c512.qcow2 b ; info c512.qcow2  # layout: a bitmap's place
bitmap --add --disable top.qcow2 b
bitmap --add --enable top.qcow2 b
bitmap --add top.qcow2 b ; bitmap --add top.qcow2 c ; info top.qcow2  # layout: a bitmap's place
bitmap --add top.qcow2 b ; ! io qcow2 top.qcow2 'write 0 64k' 'write 2M 100k' ; bitmap --clear top.qcow2 b
bitmap --add top.qcow2 b ; ! io qcow2 top.qcow2 'write 0 64k' 'write 2M 100k' ; check top.qcow2  # layout: a bitmap's place
bitmap --add top.qcow2 'two words'
bitmap --add --image-opts driver=qcow2,file.filename=top.qcow2 b
bitmap --remove bm.qcow2 b0
bitmap --remove bm.qcow2 b1 ; bitmap --remove bm.qcow2 b0 ; bitmap --remove bm.qcow2 off ; info bm.qcow2  # layout: a bitmap's place
bitmap --remove inuse.qcow2 b0
bitmap --clear bm.qcow2 b0
bitmap --clear bm.qcow2 off
bitmap --enable bm.qcow2 off
bitmap --enable bm.qcow2 b0
bitmap --disable bm.qcow2 b0
bitmap --disable bm.qcow2 off
bitmap --disable --clear bm.qcow2 b0
bitmap --enable --clear bm.qcow2 off
bitmap --merge b0 bm.qcow2 b1
bitmap --merge b1 bm.qcow2 b0
bitmap --merge b0 bm.qcow2 off
bitmap --merge off bm.qcow2 b0
bitmap --merge b0 bm.qcow2 b0
bitmap --merge b0 --merge b1 bm.qcow2 off
bitmap --merge b0 -b other.qcow2 -F qcow2 bm.qcow2 off
bitmap --merge b0 -b other.qcow2 bm.qcow2 b0
bitmap --merge=b0 --source-file=other.qcow2 --source-format=qcow2 bm.qcow2 off  # since 10
bitmap --merge b1 -b other.qcow2 -F qcow2 bm.qcow2 b0
bitmap --add --merge b0 bm.qcow2 new
bitmap --remove --add --merge b1 bm.qcow2 b0
bitmap --add --merge b0 --disable bm.qcow2 new
bitmap --add --disable --merge b0 -b other.qcow2 -F qcow2 bm.qcow2 new
bitmap --clear --merge b1 bm.qcow2 b0
bitmap --add -g 64k --merge b1 bm.qcow2 new
bitmap --add --remove bm.qcow2 new
bitmap --remove bm.qcow2 b0 ; bitmap --add bm.qcow2 b0
bitmap --add bm.qcow2 new ; resize bm.qcow2 8M ; ! io qcow2 bm.qcow2 'write 7M 64k'
resize bm.qcow2 8M
resize --shrink bm.qcow2 1M
bitmap --object secret,id=s0,data=abc --add top.qcow2 b
",
};

pub(crate) const BAD: Table = Table {
    images: &[BITMAPS, MORE, STRANGE],
    rows: r"
bitmap
bitmap bm.qcow2
bitmap bm.qcow2 b0
bitmap --add bm.qcow2
bitmap --add bm.qcow2 a b
bitmap --add bm.qcow2 b0
bitmap --add bm.qcow2 ''
bitmap --add missing.qcow2 b
bitmap --add folder b
bitmap --add plain.img b
bitmap --add -f raw plain.img b
bitmap --add v2.qcow2 b
bitmap --add -g 3 bm.qcow2 new
bitmap --add -g 256 bm.qcow2 new
bitmap --add -g 3000 bm.qcow2 new
bitmap --add -g 4G bm.qcow2 new
bitmap --add -g x bm.qcow2 new
bitmap --add -g 0 bm.qcow2 new
bitmap -g 64k bm.qcow2 b0
bitmap --clear -g 64k bm.qcow2 b0
bitmap --remove bm.qcow2 nosuch
bitmap --clear bm.qcow2 nosuch
bitmap --enable bm.qcow2 nosuch
bitmap --disable bm.qcow2 nosuch
bitmap --merge nosuch bm.qcow2 b0
bitmap --merge b0 bm.qcow2 nosuch
bitmap --merge b0 -b missing.qcow2 -F qcow2 bm.qcow2 b1
bitmap --merge b0 -b plain.img -F raw bm.qcow2 b1
bitmap --merge nosuch -b other.qcow2 -F qcow2 bm.qcow2 b1
bitmap --merge b0 -b small.qcow2 -F qcow2 bm.qcow2 b0
bitmap --merge
bitmap --merge b0 -F qcow2 bm.qcow2 b1
bitmap --add -b other.qcow2 bm.qcow2 new
bitmap --enable --disable bm.qcow2 b0
bitmap --clear inuse.qcow2 b0
bitmap --enable inuse.qcow2 b0
bitmap --merge b0 inuse.qcow2 b1
bitmap --nosuch bm.qcow2 b0
bitmap -x bm.qcow2 b0
bitmap --add -f nosuch bm.qcow2 new
bitmap --add short.qcow2 new
bitmap --add dirty.qcow2 new
bitmap --add corrupt.qcow2 new
bitmap --image-opts --add bm.qcow2 new
snapshot -a nosuch bm.qcow2
resize inuse.qcow2 8M
",
};

#[test]
fn actions() {
    GOOD.prove();
}

#[test]
fn what_is_refused() {
    BAD.prove();
}
