//! Images of the format luks.

use crate::runner::Table;

/// A LUKS image that the secrets a and b open, over 1 MiB with data; the header of another in a file of its own; a raw disk.
/// They are made by our program: qemu-img takes seconds for each.
const VOLUMES: &str = r"
S='--object secret,id=a,data=alpha --object secret,id=b,data=beta'
$OURS create -q $S -f luks -o key-secret=a,iter-time=10 x.luks 1M
$OURS amend $S --image-opts -o state=active,new-secret=b,iter-time=10 driver=luks,key-secret=a,file.filename=x.luks
qemu-io $S --image-opts driver=luks,key-secret=b,file.filename=x.luks -c 'write -P 0 0 1M' -c 'write -P 7 64k 64k' >/dev/null
head -c 2068480 x.luks >apart.luks; poke apart.luks 104 '\000\000\000\000'
tail -c +2068481 x.luks >apart.data
qemu-img create -q -f raw plain.img 1M
io raw plain.img 'write -P 5 0 128k'
qemu-img create -q -f qcow2 -b x.luks -F luks -u over.qcow2 1M
";

/// The words that stand for longer ones in the rows.
fn spelled_out(rows: &str) -> &'static str {
    let rows = rows
        .replace("READ:", "! qemu-io SECRETS -c 'read -P 7 64k 64k' --image-opts driver=luks,file.filename=x.luks,key-secret=")
        .replace("SECRETS", "--object secret,id=a,data=alpha --object secret,id=b,data=beta")
        .replace("LUKS:", "driver=luks,file.filename=x.luks,key-secret=")
        .replace("APART:", "driver=luks,file.filename=apart.data,header.filename=apart.luks,key-secret=")
        .replace("OVER:", "driver=qcow2,file.filename=over.qcow2,backing.driver=luks,backing.file.filename=x.luks,backing.key-secret=");
    String::leak(rows)
}

const READING: &str = r"
info x.luks
info --output=json x.luks
info -f luks x.luks
info -f raw x.luks
info SECRETS --image-opts LUKS:a
info apart.luks
map x.luks
map SECRETS --image-opts LUKS:b
map --output=json SECRETS --image-opts LUKS:b
map --output=json SECRETS --image-opts APART:b
check x.luks
check SECRETS --image-opts LUKS:a
compare SECRETS --image-opts LUKS:a LUKS:b
compare SECRETS --image-opts LUKS:a APART:b
compare SECRETS --image-opts LUKS:a driver=raw,file.filename=plain.img
convert SECRETS --image-opts LUKS:a -O raw out.img
convert SECRETS --image-opts LUKS:a -O qcow2 out.qcow2
convert SECRETS --image-opts OVER:b -O raw out.img
convert -O raw over.qcow2 out.img
convert -f luks x.luks -O raw out.img
dd SECRETS --image-opts bs=64k if=LUKS:a of=out.img
measure SECRETS --image-opts -O qcow2 LUKS:a
measure SECRETS --image-opts -O raw LUKS:a
snapshot -l SECRETS --image-opts LUKS:a
info over.qcow2
info --backing-chain over.qcow2
create -f qcow2 -b x.luks -F luks new.qcow2
create -f qcow2 -b x.luks -F luks -u new.qcow2 2M
";

const CHANGING: &str = r"
resize SECRETS --image-opts LUKS:a 2M ; info x.luks ; READ:b
resize SECRETS --image-opts LUKS:a 512k
resize SECRETS --shrink --image-opts LUKS:a 1000001 ; info x.luks ; READ:a
resize SECRETS --preallocation=falloc --image-opts LUKS:a +1M
resize SECRETS --preallocation=metadata --image-opts LUKS:a +1M
resize x.luks 2M
snapshot -c one SECRETS --image-opts LUKS:a
bitmap --add SECRETS --image-opts LUKS:a b0
commit SECRETS --image-opts LUKS:a
rebase SECRETS -u -b '' --image-opts LUKS:a
convert SECRETS -n -f raw --target-image-opts plain.img LUKS:a ; ! qemu-io SECRETS -c 'read -P 5 0 128k' -c 'read -P 0 128k 896k' --image-opts LUKS:b
commit SECRETS --image-opts OVER:a
amend -f luks -o help  # own words
amend SECRETS --image-opts LUKS:a -o state=inactive,keyslot=0 ; info x.luks ; READ:b
amend SECRETS --image-opts LUKS:a -o state=inactive,old-secret=b ; map SECRETS --image-opts LUKS:b ; READ:a
amend -p SECRETS --image-opts LUKS:a -o state=inactive,old-secret=b
amend SECRETS --image-opts LUKS:a -o state=inactive,keyslot=5
amend SECRETS --image-opts LUKS:a -o state=active,keyslot=1,new-secret=b
amend SECRETS --image-opts LUKS:a -o state=active
amend SECRETS --image-opts LUKS:a -o new-secret=b
amend SECRETS --image-opts LUKS:a -o cipher-alg=aes-128
amend SECRETS --image-opts LUKS:a -o encrypt.state=inactive,encrypt.keyslot=0
amend SECRETS --image-opts LUKS:a -o size=2M
amend SECRETS --image-opts LUKS:a -o nosuch=1
amend -f luks -o state=inactive,keyslot=0 x.luks
amend SECRETS --image-opts APART:a -o state=inactive,keyslot=1 ; info apart.luks
";

/// What makes a volume takes qemu-img seconds: few rows.
const MAKING: &str = r"
create SECRETS -f luks -o key-secret=b,iter-time=0,cipher-alg=serpent-256,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256,hash-alg=sha1 new.luks 1000k
create -f luks new.luks 1M
create SECRETS -f luks -o key-secret=nobody new.luks 1M
create SECRETS -f luks -o key-secret=a,cipher-alg=rot13 new.luks 1M
create SECRETS -f luks -o key-secret=a,nosuch=1 new.luks 1M
create SECRETS -f luks -o key-secret=a new.luks
create SECRETS -f luks -o key-secret=a -b x.luks -F luks new.luks 1M
convert SECRETS -f raw -O luks -o key-secret=b,iter-time=10 plain.img new.luks ; ! qemu-io SECRETS -c 'read -P 5 0 128k' -c 'read -P 0 128k 896k' --image-opts driver=luks,file.filename=new.luks,key-secret=b
convert -f raw -O luks plain.img new.luks
convert SECRETS -c -f raw -O luks -o key-secret=b plain.img new.luks
measure -O luks --size 1G
dd -f raw -O luks if=plain.img of=new.luks
";

fn prove(rows: &str) {
    Table { images: &[VOLUMES], rows: spelled_out(rows) }.prove();
}

#[test]
fn volumes_are_read() {
    prove(READING);
}

#[test]
fn volumes_are_changed() {
    prove(CHANGING);
}

#[test]
fn volumes_are_made() {
    prove(MAKING);
}
