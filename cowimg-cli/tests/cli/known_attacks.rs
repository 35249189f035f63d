//! Attacks that other programs fell for, each under its number: none gets the bytes of `secret`.

use std::fs;

use cowimg::{Access, FilePolicy, Format, Image};

use crate::workbench::Workbench;

/// What nobody is to see.
const SECRET: &[u8] = b"the host's secret";

/// A folder with the secret and an image `evil.qcow2` that names it as its backing file.
fn bench() -> Workbench {
    let bench = Workbench::new();
    let mut secret = SECRET.to_vec();
    secret.resize(65_536, b'.');
    fs::write(bench.path("secret"), secret).expect("a file can be written");
    bench.qemu_img("create -q -f qcow2 -b secret -F raw evil.qcow2");
    bench
}

/// Whether a file of the folder, the secret itself aside, has the secret in it, or what the program has said has.
fn is_told(bench: &Workbench, said: &str) -> bool {
    let has = |bytes: &[u8]| bytes.windows(SECRET.len()).any(|window| window == SECRET);
    let content = bench.content();
    let is_in_a_file = content.iter().any(|(name, (_, _, bytes))| *name != *"secret" && has(bytes));
    is_in_a_file || has(said.as_bytes())
}

/// Runs a line, which may succeed or not; what it said.
fn run(bench: &Workbench, line: &str) -> (Option<i32>, String) {
    let run = bench.cowimg(line);
    (run.code, format!("{}{}", run.text(), run.stderr))
}

/// An image whose data file's name is JSON that describes a file: whoever looked at the image opened it.
#[test]
fn cve_2024_4467_a_description_in_the_name_of_a_data_file() {
    let bench = bench();
    let secret = bench.path("secret");
    let json = format!(
        "json:{{\"driver\":\"raw\",\"file\":{{\"driver\":\"file\",\"filename\":\"{}\"}}}}",
        secret.display()
    );
    let plain = format!("./{}", "x".repeat(json.len() - 2));
    bench.qemu_img(&format!("create -q -f qcow2 -o data_file={plain},data_file_raw=on evil2.qcow2 64k"));
    let mut bytes = fs::read(bench.path("evil2.qcow2")).unwrap();
    let at = bytes.windows(plain.len()).position(|window| window == plain.as_bytes()).unwrap();
    bytes[at..at + json.len()].copy_from_slice(json.as_bytes());
    fs::write(bench.path("evil2.qcow2"), bytes).unwrap();
    fs::remove_file(bench.path(&plain)).unwrap();

    let (code, said) = run(&bench, "info evil2.qcow2");
    assert_eq!(code, Some(0), "an image tells of itself: {said}");
    for line in [
        "info --backing-chain evil2.qcow2",
        "check evil2.qcow2",
        "convert -O raw evil2.qcow2 out.raw",
        "map evil2.qcow2",
        "compare evil2.qcow2 secret",
        "measure -O raw evil2.qcow2",
        "read evil2.qcow2 0 512",
        "snapshot -l evil2.qcow2",
        "dd if=evil2.qcow2 of=out2.raw",
    ] {
        for line in [line.to_owned(), format!("--untrusted {line}")] {
            let (_, said) = run(&bench, &line);
            assert!(!is_told(&bench, &said), "{line}: {said}");
            assert!(!said.contains("panicked"), "{line}: {said}");
        }
    }
}

/// An image whose data file is any file of the host. What hands content on follows such a name only where it is told to.
#[test]
fn cve_2024_32498_a_data_file_that_is_a_file_of_the_host() {
    let bench = bench();
    let secret = bench.path("secret");
    bench.qemu_img("create -q -f qcow2 -o data_file=own.data,data_file_raw=on named.qcow2 64k");
    bench.qemu_img(&format!("amend -f qcow2 -o data_file={} named.qcow2", secret.display()));
    for line in
        ["convert -O raw named.qcow2 out.raw", "read named.qcow2 0 512", "dd if=named.qcow2 of=out.raw"]
    {
        let (code, said) = run(&bench, &format!("--untrusted {line}"));
        assert_ne!(code, Some(0), "{line}");
        assert!(said.contains("data file") && !is_told(&bench, &said), "{line}: {said}");
    }
    let (code, said) = run(&bench, "info named.qcow2");
    assert!(code == Some(0) && !is_told(&bench, &said), "{said}");
    // Below another folder the secret is no file of the image's own.
    fs::create_dir(bench.path("uploads")).unwrap();
    fs::rename(bench.path("named.qcow2"), bench.path("uploads/named.qcow2")).unwrap();
    for line in [
        "convert -O raw uploads/named.qcow2 out.raw",
        "read uploads/named.qcow2 0 512",
        "dd if=uploads/named.qcow2 of=out.raw",
    ] {
        let (code, said) = run(&bench, line);
        assert!(code != Some(0) && !is_told(&bench, &said), "{line}: {said}");
    }
    for policy in [FilePolicy::DenyAll, FilePolicy::SameFolder, FilePolicy::AllowList(Vec::new())] {
        for access in [Access::ReadOnly, Access::ReadWrite] {
            let options = Image::options().backing(policy.clone()).access(access);
            assert!(options.open(bench.path("uploads/named.qcow2")).is_err(), "{policy:?}");
        }
    }
}

/// An upload that is said to be raw and looks like qcow2, which names a file of the host: a conversion reads what was said, or
/// refuses what it finds.
#[test]
fn cve_2024_44082_an_upload_that_is_not_what_it_is_said_to_be() {
    let bench = bench();
    fs::rename(bench.path("evil.qcow2"), bench.path("upload.img")).unwrap();
    for line in
        ["convert -f raw -O raw upload.img a.raw", "--untrusted convert -f raw -O qcow2 upload.img b.qcow2"]
    {
        let (code, said) = run(&bench, line);
        assert!(code == Some(0) && !is_told(&bench, &said), "{line}: {said}");
    }
    let (copy, upload) =
        (fs::read(bench.path("a.raw")).unwrap(), fs::read(bench.path("upload.img")).unwrap());
    assert!(copy.starts_with(&upload), "a copy to the byte, and zeroes to the end of a sector");
    for line in [
        "convert -O raw upload.img c.raw",
        "convert -f qcow2 -O raw upload.img c.raw",
        "measure -O raw upload.img",
    ] {
        let (code, said) = run(&bench, &format!("--untrusted {line}"));
        assert!(code != Some(0) && !is_told(&bench, &said), "{line}: {said}");
    }
}

/// A guest writes a header into its raw disk, and the host then resizes or looks at the disk.
#[test]
fn cve_2026_24708_a_raw_disk_with_a_header_that_its_guest_wrote_is_resized() {
    let bench = bench();
    let header = fs::read(bench.path("evil.qcow2")).unwrap();
    let mut disk = header.clone();
    disk.resize(1 << 20, 0);
    fs::write(bench.path("disk.img"), &disk).unwrap();
    for line in ["resize -f raw disk.img 2M", "--untrusted resize -f raw disk.img 3M", "info -f raw disk.img"]
    {
        let (code, said) = run(&bench, line);
        assert!(code == Some(0) && !is_told(&bench, &said), "{line}: {said}");
    }
    let after = fs::read(bench.path("disk.img")).unwrap();
    assert!(after.len() == 3 << 20 && after[..disk.len()] == disk, "its bytes are its guest's");
    // Nobody says what it is: it is not touched.
    for line in ["resize disk.img 4M", "convert -O raw disk.img out.raw", "read disk.img 0 512"] {
        let (code, said) = run(&bench, &format!("--untrusted {line}"));
        assert!(code != Some(0) && !is_told(&bench, &said), "{line}: {said}");
    }
    assert_eq!(fs::read(bench.path("disk.img")).unwrap(), after);
}

/// A guest writes a header into its raw disk while it is open; and the disk is the base of an overlay.
#[test]
fn cve_2026_27211_a_raw_disk_does_not_become_another_format() {
    let bench = bench();
    let header = fs::read(bench.path("evil.qcow2")).unwrap();
    fs::write(bench.path("disk.img"), vec![0; 1 << 20]).unwrap();
    let raw = Image::options().format(Format::Raw).access(Access::ReadWrite);
    for options in [raw.clone(), Image::options().access(Access::ReadWrite)] {
        fs::write(bench.path("disk.img"), vec![0; 1 << 20]).unwrap();
        let image = options.open(bench.path("disk.img")).unwrap();
        image.write_at(&header, 0).unwrap();
        image.flush().unwrap();
        assert_eq!((image.format(), image.layers().len(), image.size()), (Format::Raw, 1, 1 << 20));
        let mut read = vec![0; header.len()];
        image.read_at(&mut read, 0).unwrap();
        assert_eq!(read, header);
    }
    // The next time it is what is stated; and what is not stated is refused, where that is asked for.
    assert_eq!(raw.open(bench.path("disk.img")).unwrap().layers().len(), 1);
    let careful = Image::options().backing(FilePolicy::DenyAll).refuse_probed_raw();
    assert!(careful.open(bench.path("disk.img")).is_err());
    bench.cowimg("create -f qcow2 -b disk.img -F raw overlay.qcow2").ok();
    let (code, said) = run(&bench, "convert -O raw overlay.qcow2 out.raw");
    assert!(code == Some(0) && !is_told(&bench, &said), "{said}");
}
