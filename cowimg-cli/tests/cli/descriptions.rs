//! Images that are described instead of named (`--image-opts`, `json:`), and secrets, beside qemu-img.

use crate::workbench::{self, Workbench};

/// Both programs under the same name: output and exit code are the same.
fn same(bench: &Workbench, arguments: &[&str]) {
    let theirs = bench.try_qemu_img(arguments);
    let ours = bench.as_qemu_img(arguments);
    assert_eq!(ours.text(), theirs.text(), "{arguments:?}: {}{}", ours.stderr, theirs.stderr);
    assert_eq!(ours.code, theirs.code, "{arguments:?}: {}{}", ours.stderr, theirs.stderr);
}

#[test]
fn a_described_image_is_the_one_that_qemu_img_sees() {
    if workbench::reference_is_older() {
        return;
    }
    let bench = Workbench::with_images();
    for description in [
        "driver=qcow2,file.filename=top.qcow2",
        "driver=qcow2,file.driver=file,file.filename=top.qcow2",
        "file.filename=top.qcow2",
        "driver=raw,file.filename=top.qcow2",
        "driver=raw,offset=512,size=1024,file.filename=base.img",
        "driver=raw,offset=1k,size=1.5k,file.filename=base.img",
        "driver=raw,offset=8M,file.filename=base.img",
        "driver=raw,size=513,file.filename=base.img",
        "driver=raw,offset=65M,file.filename=base.img",
        "driver=raw,offset=63M,size=2M,file.filename=base.img",
        "driver=qcow2,file.filename=top.qcow2,backing.driver=qcow2",
        "driver=qcow2,file.filename=top.qcow2,nonsense=1",
        "driver=qcow2,file.filename=top.qcow2,file.nonsense=1",
        "driver=qcow2,file.filename=top.qcow2,file.locking=off,read-only=on,cache.direct=on,cache.no-flush=on,\
         discard=unmap,detect-zeroes=on,lazy-refcounts=on,overlap-check=all,force-share=on,node-name=foo",
        "driver=qcow2,file.filename=top.qcow2,file.locking=maybe",
        "driver=qcow2,file.filename=top.qcow2,read-only=maybe",
        "driver=qcow2,file.filename=top.qcow2,discard=maybe",
        "driver=qcow2,file.filename=top.qcow2,detect-zeroes=unmap",
        "driver=qcow2,file.filename=top.qcow2,overlap-check=maybe",
        "driver=qcow2,file.filename=missing",
        "driver=nosuch,file.filename=top.qcow2",
        "driver=qcow2,file.driver=nosuch,file.filename=top.qcow2",
        "driver=qcow2,file.driver=qcow2,file.file.filename=top.qcow2",
        "driver=qcow2,filename=top.qcow2",
        "driver=qcow2,file=top.qcow2",
        "driver=qcow2",
        "top.qcow2",
        "",
    ] {
        same(&bench, &["info", "--image-opts", description]);
        same(&bench, &["info", "--output=json", "--image-opts", description]);
    }
    same(&bench, &["info", "--image-opts", "-f", "qcow2", "driver=qcow2,file.filename=top.qcow2"]);
}

#[test]
fn a_json_name_is_the_image_that_qemu_img_sees() {
    if workbench::reference_is_older() {
        return;
    }
    let bench = Workbench::with_images();
    for name in [
        r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"top.qcow2"}}"#,
        r#"json:{"driver":"qcow2","file.filename":"top.qcow2"}"#,
        r#"json:{"file":{"filename":"top.qcow2"}}"#,
        r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"top.qcow2"},"backing":null}"#,
        r#"json:{"driver":"raw","offset":512,"size":"1024","file":{"driver":"file","filename":"base.img"}}"#,
        r#"json:{"driver":"raw","read-only":true,"file":{"driver":"file","filename":"base.img"}}"#,
        "json:{'driver':'qcow2','file.filename':'top.qcow2'}",
        r#"json:{"filename":"top.qcow2"}"#,
        r#"json:{"driver":"qcow2","file":"top.qcow2"}"#,
        r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"top.qcow2"},"x":1}"#,
        r#"json:{"driver":"qcow2""#,
        "json:[]",
        "json:{}",
    ] {
        same(&bench, &["info", name]);
        same(&bench, &["map", "--output=json", name]);
        same(&bench, &["check", name]);
    }
    same(&bench, &["info", "-f", "raw", "json:{'driver':'qcow2','file.filename':'top.qcow2'}"]);
}

#[test]
fn what_stands_below_an_image_can_be_said() {
    if workbench::reference_is_older() {
        return;
    }
    let bench = Workbench::with_images();
    for description in [
        "driver=qcow2,file.filename=top.qcow2,backing.driver=qcow2,backing.file.filename=base.qcow2",
        "driver=qcow2,file.filename=top.qcow2,backing.file.filename=base.qcow2",
        "driver=qcow2,file.filename=top.qcow2,backing.driver=raw",
        "driver=qcow2,file.filename=top.qcow2,backing.driver=raw,backing.file.filename=base.img",
        "driver=qcow2,file.filename=child.qcow2,backing.driver=raw,backing.offset=8M,backing.size=1M,\
         backing.file.filename=base.img",
        "driver=qcow2,file.filename=top.qcow2,backing.driver=qcow2,backing.file.filename=missing",
    ] {
        same(&bench, &["map", "--output=json", "--image-opts", description]);
    }
    same(
        &bench,
        &["map", "--output=json", r#"json:{"file.filename":"top.qcow2","driver":"qcow2","backing":null}"#],
    );
}

#[test]
fn a_secret_that_is_not_valid_stops_the_command() {
    let bench = Workbench::new();
    bench.qemu_img("create -q -f qcow2 a.qcow2 1M");
    for object in [
        "secret,id=a,data=x",
        "secret,id=a,data=aGVsbG8=,format=base64",
        r#"{"qom-type":"secret","id":"a","data":"x"}"#,
        "secret,id=a",
        "secret,id=a,data=x,format=foo",
        "secret,id=a,data=%%,format=base64",
        "secret,id=a,file=missing",
        "secret,data=x",
        "secret,id=1a,data=x",
        "secret,id=a,data=x,file=y",
        "secret,id=a,data=x,foo=y",
        "iothread,id=a",
        "nosuch,id=a",
    ] {
        same(&bench, &["check", "--object", object, "a.qcow2"]);
        same(&bench, &["create", "--object", object, "new.img", "1M"]);
    }
    same(&bench, &["check", "--object", "secret,id=a,data=x", "--object", "secret,id=a,data=y", "a.qcow2"]);
}
