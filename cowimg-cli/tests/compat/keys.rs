//! Encrypted images: `amend` of their key slots, and what is said of them without and with their secrets.

use crate::runner::Table;

/// An encrypted image that the secrets a (slot 0), b (slot 1) and c (slot 6) open, one that only a opens, one of the old method.
/// They are made by our program: qemu-img takes seconds for each.
const ENCRYPTED: &str = r"
secrets() { $OURS $1 --object secret,id=a,data=alpha --object secret,id=b,data=beta --object secret,id=c,data=gamma $2; }
luks() { secrets 'create -q' '-f qcow2 -o encrypt.format=luks,encrypt.key-secret=a,encrypt.iter-time=10 '$1' 1M'; }
slot() { secrets amend '--image-opts -o encrypt.state=active,encrypt.iter-time=10,encrypt.keyslot='$2',encrypt.new-secret='$3' driver=qcow2,encrypt.key-secret=a,file.filename='$1; }
luks one.qcow2
luks keys.qcow2; slot keys.qcow2 1 b; slot keys.qcow2 6 c
qemu-io --object secret,id=b,data=beta --image-opts driver=qcow2,encrypt.key-secret=b,file.filename=keys.qcow2 -c 'write -P 7 0 64k' >/dev/null
qemu-img create -q -f qcow2 --object secret,id=a,data=alpha -o encrypt.format=aes,encrypt.key-secret=a aes.qcow2 1M
new plain.qcow2 1M
printf gamma >c.secret
printf 'Z2FtbWE=' >c64.secret
";

/// The words that stand for longer ones in the rows.
fn spelled_out(rows: &str) -> &'static str {
    let secrets =
        "--object secret,id=a,data=alpha --object secret,id=b,data=beta --object secret,id=c,data=gamma";
    let rows = rows
        .replace("SECRETS", secrets)
        .replace("KEYS:", "--image-opts driver=qcow2,file.filename=keys.qcow2,encrypt.key-secret=")
        .replace("ONE:", "--image-opts driver=qcow2,file.filename=one.qcow2,encrypt.key-secret=")
        .replace("AES:", "--image-opts driver=qcow2,file.filename=aes.qcow2,encrypt.key-secret=")
        .replace("READ:", "! qemu-io SECRETS -c 'read -P 7 0 64k' --image-opts driver=qcow2,file.filename=keys.qcow2,encrypt.key-secret=")
        .replace("SECRETS", secrets);
    String::leak(rows)
}

/// Adding a slot takes qemu-img more than a second each time.
const ADDING: &str = r"
amend SECRETS ONE:a --force -o encrypt.state=active,encrypt.new-secret=b,encrypt.keyslot=0,encrypt.iter-time=0,compat=0.10 ; ! qemu-io SECRETS -c 'read -P 0 0 64k' --image-opts driver=qcow2,file.filename=one.qcow2,encrypt.key-secret=b | grep -v failed ; map SECRETS ONE:a
amend -p SECRETS KEYS:c -o encrypt.state=active,encrypt.new-secret=b,encrypt.iter-time=010,lazy_refcounts=on ; map SECRETS KEYS:b  # progress
";

const ERASING: &str = r"
amend SECRETS KEYS:a -o encrypt.state=inactive,encrypt.old-secret=b ; map SECRETS KEYS:b ; READ:a
amend SECRETS KEYS:a -o encrypt.state=inactive,encrypt.keyslot=0 ; map SECRETS KEYS:a ; READ:c
amend SECRETS KEYS:a -o encrypt.state=inactive,encrypt.keyslot=6,encrypt.old-secret=c ; info keys.qcow2
amend SECRETS KEYS:a -o encrypt.state=inactive,encrypt.keyslot=6,encrypt.old-secret=b
amend SECRETS KEYS:a -o encrypt.state=inactive,encrypt.keyslot=6 ; info --output=json keys.qcow2
amend -q SECRETS KEYS:b --force -o encrypt.state=inactive,encrypt.keyslot=5 ; READ:b
amend SECRETS ONE:a --force -o encrypt.state=inactive,encrypt.old-secret=a ; info one.qcow2 ; map SECRETS ONE:a
amend SECRETS ONE:a --force -o encrypt.state=inactive,encrypt.keyslot=0 ; info one.qcow2
amend SECRETS ONE:a -o encrypt.state=inactive,encrypt.keyslot=0
amend SECRETS ONE:a -o encrypt.state=inactive,encrypt.old-secret=a
amend SECRETS ONE:a -o encrypt.state=inactive,encrypt.old-secret=b
amend SECRETS ONE:a -o encrypt.state=inactive,encrypt.old-secret=nobody
amend SECRETS ONE:a -o encrypt.state=inactive
amend SECRETS ONE:a -o encrypt.state=inactive,encrypt.keyslot=5
amend SECRETS ONE:a -o encrypt.state=inactive,encrypt.keyslot=8
amend SECRETS KEYS:a -o encrypt.state=inactive,encrypt.keyslot=1,encrypt.new-secret=b
amend SECRETS KEYS:a -o encrypt.state=inactive,encrypt.keyslot=1,encrypt.iter-time=10
";

const REFUSED: &str = r"
amend SECRETS KEYS:a -o encrypt.state=active,encrypt.new-secret=b,encrypt.keyslot=1
amend SECRETS KEYS:a -o encrypt.state=active,encrypt.new-secret=b,encrypt.keyslot=8
amend SECRETS KEYS:a -o encrypt.state=active,encrypt.new-secret=b,encrypt.keyslot=-1
amend SECRETS KEYS:a -o encrypt.state=active,encrypt.new-secret=b,encrypt.keyslot=x
amend SECRETS KEYS:a -o encrypt.state=active,encrypt.new-secret=nobody
amend SECRETS KEYS:a -o encrypt.state=active
amend SECRETS KEYS:a -o encrypt.new-secret=b
amend SECRETS KEYS:a -o encrypt.state=perhaps,encrypt.new-secret=b
amend SECRETS KEYS:a -o encrypt.state=active,encrypt.new-secret=b,encrypt.old-secret=a
amend SECRETS KEYS:a -o encrypt.state=active,encrypt.new-secret=b,encrypt.iter-time=x
amend SECRETS KEYS:a -o encrypt.key-secret=a
amend SECRETS KEYS:a -o encrypt.format=luks
amend SECRETS KEYS:a -o encrypt.cipher-alg=aes-128
amend SECRETS KEYS:a -o encryption=on
amend SECRETS KEYS:a -o encrypt.nosuch=1
amend SECRETS -f qcow2 -o encrypt.state=active,encrypt.new-secret=b keys.qcow2
amend SECRETS -f qcow2 -o encrypt.state=inactive,encrypt.keyslot=1 plain.qcow2
amend SECRETS AES:a -o encrypt.state=inactive,encrypt.keyslot=1
";

const LOOKING: &str = r"
info keys.qcow2
info --output=json keys.qcow2
info aes.qcow2
info --output=json aes.qcow2
check SECRETS KEYS:a
map SECRETS KEYS:a
map SECRETS --output=json KEYS:c
map keys.qcow2
map aes.qcow2
map SECRETS ONE:c
map --object secret,id=x,file=c.secret KEYS:x
map --object secret,id=x,file=c64.secret,format=base64 KEYS:x
map --object secret,id=x,data=Z2FtbWE=,format=base64 KEYS:x
map --object secret,id=x,data=Z2FtbWE=,format=raw KEYS:x
map --object secret,id=x,data=Z2Ft,format=hex KEYS:x
map --output=json --object secret,id=x,file=c64.secret,format=base64 KEYS:x
map --output=json --object secret,id=k,data=kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk --object secret,id=x,keyid=k,iv=dnZ2dnZ2dnZ2dnZ2dnZ2dg==,format=base64,data=dq96HEWTZnE7ExSXmN8arA== KEYS:x
map --output=json --object secret,id=k,data=kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk --object secret,id=x,keyid=k,iv=dnZ2dnZ2dnZ2dnZ2dnZ2dw==,format=base64,data=dq96HEWTZnE7ExSXmN8arA== KEYS:x
map --output=json --object secret,id=k,data=kkkk --object secret,id=x,keyid=k,iv=dnZ2dnZ2dnZ2dnZ2dnZ2dg==,format=base64,data=dq96HEWTZnE7ExSXmN8arA== KEYS:x
map --output=json --object secret,id=k,data=kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk --object secret,id=x,keyid=k,format=base64,data=dq96HEWTZnE7ExSXmN8arA== KEYS:x
map --output=json --object secret,id=x,keyid=nosuch,iv=dnZ2dnZ2dnZ2dnZ2dnZ2dg==,format=base64,data=dq96HEWTZnE7ExSXmN8arA== KEYS:x
map --output=json --object secret,id=k,data=kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk --object secret,id=x,keyid=k,iv=dnZ2,format=base64,data=dq96HEWTZnE7ExSXmN8arA== KEYS:x
map --output=json --object secret,id=x,data=/w==,format=base64 KEYS:x
map --object secret,id=x,file=nosuch KEYS:x
map --object secret,id=x KEYS:x
";

fn prove(rows: &str) {
    Table { images: &[ENCRYPTED], rows: spelled_out(rows) }.prove();
}

#[test]
fn passphrases_are_added() {
    prove(ADDING);
}

#[test]
fn passphrases_are_erased() {
    prove(ERASING);
}

#[test]
fn what_cannot_be_done_with_key_slots() {
    prove(REFUSED);
}

#[test]
fn encrypted_images_are_looked_at() {
    prove(LOOKING);
}
