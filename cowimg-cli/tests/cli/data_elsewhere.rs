//! Encrypted images and external data files from the command line, beside real qemu-img.

use crate::workbench::Workbench;

const SECRET: &str = "--object secret,id=s,data=abc";
const LUKS: &str = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";

#[test]
fn what_is_encrypted_by_one_is_read_by_the_other() {
    let bench = Workbench::with_images();
    let described = |file: &str| format!("driver=qcow2,encrypt.key-secret=s,file.filename={file}");
    bench.cowimg(&format!("convert -q {SECRET} -O qcow2 -o {LUKS} top.qcow2 ours.qcow2")).ok();
    bench.qemu_img(&format!("convert {SECRET} -O qcow2 -o {LUKS} top.qcow2 theirs.qcow2"));
    for file in ["ours.qcow2", "theirs.qcow2"] {
        let compare =
            format!("compare {SECRET} --image-opts {} driver=qcow2,file.filename=top.qcow2", described(file));
        assert_eq!(bench.cowimg(&compare).ok().text(), "Images are identical.\n");
        bench.qemu_img(&compare);
    }
    bench.qemu_img(&format!("check {SECRET} --image-opts {}", described("ours.qcow2")));
    // Space that is taken in advance reads as noise, so that zeroes are written.
    bench
        .cowimg(&format!("convert -q {SECRET} -O qcow2 -o {LUKS},preallocation=metadata top.qcow2 pre.qcow2"))
        .ok();
    let compare = format!(
        "compare {SECRET} --image-opts {} driver=qcow2,file.filename=top.qcow2",
        described("pre.qcow2")
    );
    bench.qemu_img(&compare);
}

#[test]
fn without_the_right_secret_nothing_is_read() {
    let bench = Workbench::new();
    bench.cowimg(&format!("create -q {SECRET} -f qcow2 -o {LUKS} a.qcow2 1M")).ok();
    for (line, why) in [
        ("convert a.qcow2 b.raw".to_owned(), "encrypted"),
        ("map a.qcow2".to_owned(), "encrypted"),
        ("map --image-opts driver=qcow2,encrypt.key-secret=s,file.filename=a.qcow2".to_owned(), "no secret"),
        (
            "map --object secret,id=s,data=abd --image-opts driver=qcow2,encrypt.key-secret=s,file.filename=a.qcow2"
                .to_owned(),
            "passphrase",
        ),
    ] {
        let run = bench.cowimg(&line);
        assert_eq!(run.code, Some(1), "{line}");
        assert!(run.stderr.contains(why), "{line}: {}", run.stderr);
    }
    assert!(!bench.path("b.raw").exists());
}

#[test]
fn data_goes_to_its_own_file() {
    let bench = Workbench::with_images();
    bench.cowimg("convert -q -O qcow2 -o data_file=d.raw,data_file_raw=on top.qcow2 a.qcow2").ok();
    assert_eq!(bench.cowimg("compare -f raw d.raw top.qcow2").ok().text(), "Images are identical.\n");
    bench.qemu_img("check a.qcow2");
    bench.qemu_img("compare a.qcow2 top.qcow2");
    assert_eq!(bench.cowimg("map a.qcow2").ok().text(), bench.qemu_img("map a.qcow2").text());
    // A file that is there is not emptied unasked.
    let run = bench.cowimg("create -q -o data_file=d.raw b.qcow2 1M");
    assert_eq!(run.code, Some(1));
    assert!(!bench.path("b.qcow2").exists());
    assert_eq!(bench.cowimg("compare -f raw d.raw top.qcow2").ok().text(), "Images are identical.\n");
}

#[test]
fn measured_as_by_qemu_img() {
    let bench = Workbench::new();
    // What qemu-img 10.0.2 says.
    let volume = format!("measure {SECRET} -O luks -o key-secret=s,cipher-alg=aes-128 --size 1000001");
    assert!(bench.cowimg(&volume).ok().text().starts_with("required size: 2052673\n"));
    // One size: each takes qemu-img seconds, in which it measures the machine.
    let line = format!("measure {SECRET} -O qcow2 -o {LUKS} --size 77777");
    assert_eq!(bench.cowimg(&line).ok().text(), bench.qemu_img(&line).text());
}
