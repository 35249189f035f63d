//! Commit and rebase on chains of files, against real `qemu-img`: what a disk reads as, that the images are sound, and
//! that what is refused changes nothing.

mod qemu_tools;

use std::path::{Path, PathBuf};

use cowimg::format::qcow2::layout::BackingName;
use cowimg::job::{self, Afterwards, CommitOptions, Compression, NewBacking, RebaseOptions};
use cowimg::progress::Control;
use cowimg::{Access, ErrorKind, Format, Image, LayerChoice, OpenOptions, Verification};
use qemu_tools::{assert_check_clean, content, img, io};
use tempfile::TempDir;

/// A folder with a chain: `base.img` (raw), `mid.qcow2`, `top.qcow2`.
struct Chain {
    folder: TempDir,
}

impl Chain {
    /// Sizes in KiB.
    fn new(base: u64, mid: u64, top: u64, options: &str) -> Chain {
        let chain = Chain { folder: tempfile::tempdir().expect("a temporary folder can be made") };
        img("create -q -f raw", &[&chain.path("base.img"), Path::new(&format!("{base}k"))]);
        qemu_tools::run(
            "qemu-io",
            &["-f", "raw", "-c", &format!("write -q -P 1 0 {}k", base / 2), &chain.name("base.img")],
        );
        chain.overlay("mid.qcow2", ("base.img", "raw"), mid, options);
        io(
            &chain.path("mid.qcow2"),
            &[format!("write -q -P 2 {}k 100k", mid / 4), "write -q -z 0 64k".into()],
        );
        chain.overlay("top.qcow2", ("mid.qcow2", "qcow2"), top, options);
        io(
            &chain.path("top.qcow2"),
            &[
                format!("write -q -P 3 {}k 70k", top / 3),
                "write -q -z 128k 96k".into(),
                "write -q -P 4 1k 1k".into(),
            ],
        );
        chain
    }

    fn overlay(&self, name: &str, (backing, format): (&str, &str), kib: u64, options: &str) {
        let words = format!("create -q -f qcow2 {options} -F {format} -b {backing}");
        img(&words, &[&self.path(name), Path::new(&format!("{kib}k"))]);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn name(&self, name: &str) -> String {
        self.path(name).to_str().expect("a plain path").to_owned()
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).expect("the file can be read")
    }

    fn commit(&self, choice: LayerChoice, afterwards: Afterwards) -> cowimg::Result<job::CommitReport> {
        let options = Image::options().access(Access::ReadWrite).writable_layer(choice);
        let image = options.open(self.path("top.qcow2"))?;
        let options = CommitOptions { afterwards, ..CommitOptions::default() };
        let report = job::commit(&image, &options, &Control::default())?;
        image.close()?;
        Ok(report)
    }

    fn rebase(&self, name: &str, backing: Option<(&str, &str)>, compression: Compression) {
        let image = Image::options().access(Access::ReadWrite).open(self.path(name)).expect("it is done");
        let backing = backing.map(|(name, format)| backing_name(name, format));
        let opened = backing
            .as_ref()
            .map(|name| image.open_backing(name, &OpenOptions::default()).expect("it is done"));
        let new = backing.as_ref().zip(opened.as_ref()).map(|(name, image)| NewBacking { name, image });
        let options = RebaseOptions { compression, ..RebaseOptions::default() };
        job::rebase(image, new, &options, &Control::default()).expect("it is done");
    }
}

fn backing_name(name: &str, format: &str) -> BackingName {
    BackingName { name: name.as_bytes().to_vec(), format: Some(format.as_bytes().to_vec()) }
}

const SIZES: [(u64, u64, u64); 5] =
    [(1024, 1024, 1024), (1024, 512, 2048), (2048, 1024, 512), (512, 2048, 1024), (512, 1000, 3001)];
const OPTIONS: [&str; 5] = [
    "",
    "-o compat=0.10",
    "-o cluster_size=4k",
    "-o cluster_size=512,refcount_bits=1",
    "-o extended_l2=on,cluster_size=32k",
];

#[test]
fn a_commit_moves_the_top_into_its_backing_file_and_empties_it() {
    for ((base, mid, top), options) in SIZES.iter().flat_map(|&sizes| OPTIONS.map(|options| (sizes, options)))
    {
        let chain = Chain::new(base, mid, top, options);
        let before = content(&chain.path("top.qcow2"));
        let report = chain.commit(LayerChoice::Below, Afterwards::Empty).unwrap();
        assert_eq!(report.grown_from.is_some(), mid < top);
        assert!(content(&chain.path("top.qcow2")) == before, "{base} {mid} {top} {options}: the top changed");
        let below = content(&chain.path("mid.qcow2"));
        assert!(below[..before.len()] == before, "{base} {mid} {top} {options}: the base differs");
        assert_check_clean(&chain.path("mid.qcow2"));
        assert_check_clean(&chain.path("top.qcow2"));
        let map = img("map --output=json -f qcow2", &[&chain.path("top.qcow2")]);
        assert!(!map.contains("\"depth\": 0, \"present\": true"), "nothing is left in the top: {map}");
        let fresh = chain.path("fresh.qcow2");
        chain.overlay("fresh.qcow2", ("mid.qcow2", "qcow2"), top, options);
        let length = |path: &Path| std::fs::metadata(path).unwrap().len();
        assert!(length(&chain.path("top.qcow2")) <= length(&fresh).next_multiple_of(65536));
    }
}

#[test]
fn a_commit_goes_through_the_layers_between() {
    for ((base, mid, top), options) in SIZES.iter().flat_map(|&sizes| OPTIONS.map(|options| (sizes, options)))
    {
        let chain = Chain::new(base, mid, top, options);
        let before = content(&chain.path("top.qcow2"));
        chain.commit(LayerChoice::Named("base.img".into()), Afterwards::Keep).unwrap();
        assert!(content(&chain.path("top.qcow2")) == before, "{base} {mid} {top} {options}: the top changed");
        let below = chain.bytes("base.img");
        assert!(below[..before.len()] == before, "{base} {mid} {top} {options}: the base differs");
        assert_check_clean(&chain.path("top.qcow2"));
    }
}

#[test]
fn a_commit_that_makes_no_sense_changes_nothing() {
    let chain = Chain::new(1024, 1024, 1024, "");
    let names = ["base.img", "mid.qcow2", "top.qcow2"];
    let before = names.map(|name| chain.bytes(name));
    let refused = chain.commit(LayerChoice::Named("other.img".into()), Afterwards::Keep).unwrap_err();
    assert!(matches!(refused.kind(), ErrorKind::NoSuchLayer { .. }), "{refused}");
    let refused = chain.commit(LayerChoice::Named("base.img".into()), Afterwards::Empty).unwrap_err();
    assert!(matches!(refused.kind(), ErrorKind::InvalidArgument(_)), "{refused}");
    let options = Image::options().access(Access::ReadWrite).writable_layer(LayerChoice::Below);
    let refused = options.clone().format(Format::Raw).open(chain.path("base.img")).unwrap_err();
    assert!(matches!(refused.kind(), ErrorKind::NoBacking), "{refused}");
    assert!(before == names.map(|name| chain.bytes(name)));
}

#[test]
fn snapshots_of_an_emptied_image_stay() {
    for options in OPTIONS {
        let chain = Chain::new(1024, 1024, 1024, &options.replace("refcount_bits=1", "refcount_bits=8"));
        let top = chain.path("top.qcow2");
        img("snapshot -c kept", &[&top]);
        io(&top, &["write -q -P 9 300k 100k".into(), "write -q -z 20k 200k".into()]);
        let before = content(&top);
        let snapshot = |at: &Path| {
            let image = chain.path("alone.qcow2");
            std::fs::copy(at, &image).unwrap();
            img("rebase -u", &[&image]);
            qemu_tools::snapshot_content(&image, "kept")
        };
        let kept = snapshot(&top);
        chain.commit(LayerChoice::Below, Afterwards::Empty).unwrap();
        assert!(content(&top) == before, "{options}");
        assert_check_clean(&top);
        assert!(snapshot(&top) == kept, "{options}: what the snapshot holds itself changed");
    }
}

#[test]
fn a_rebased_image_reads_as_before() {
    for ((base, mid, top), options) in SIZES.iter().flat_map(|&sizes| OPTIONS.map(|options| (sizes, options)))
    {
        let chain = Chain::new(base, mid, top, options);
        chain.overlay("other.qcow2", ("base.img", "raw"), 700, "-o cluster_size=64k");
        io(&chain.path("other.qcow2"), &["write -q -P 7 30k 200k".into(), "write -q -P 3 340k 80k".into()]);
        let before = content(&chain.path("top.qcow2"));
        let targets = [
            Some(("base.img", "raw")),
            Some(("other.qcow2", "qcow2")),
            None,
            Some(("mid.qcow2", "qcow2")),
            None,
        ];
        for (nth, backing) in targets.into_iter().enumerate() {
            let compression = if nth % 2 == 0 { Compression::Off } else { Compression::On };
            chain.rebase("top.qcow2", backing, compression);
            let context = format!("{base} {mid} {top} {options} onto {backing:?}");
            assert!(content(&chain.path("top.qcow2")) == before, "{context}: the disk changed");
            assert_check_clean(&chain.path("top.qcow2"));
            let info = img("info", &[&chain.path("top.qcow2")]);
            match backing {
                None => assert!(!info.contains("backing"), "{info}"),
                Some((name, format)) => {
                    assert!(info.contains(&format!("backing file: {name}")), "{info}");
                    assert!(info.contains(&format!("backing file format: {format}")), "{info}");
                }
            }
        }
    }
}

#[test]
fn what_both_chains_have_is_neither_read_nor_written() {
    let chain = Chain::new(4096, 4096, 4096, "");
    let before = content(&chain.path("top.qcow2"));
    let image = Image::options().access(Access::ReadWrite).open(chain.path("top.qcow2")).unwrap();
    let name = backing_name("base.img", "raw");
    let new = image.open_backing(&name, &OpenOptions::default()).unwrap();
    let new = NewBacking { name: &name, image: &new };
    let report = job::rebase(image, Some(new), &RebaseOptions::default(), &Control::default()).unwrap();
    // The middle layer has 100 KiB of data and a zeroed cluster.
    assert!(report.compared_bytes <= 256 << 10, "{report:?}");
    assert!(content(&chain.path("top.qcow2")) == before);
}

#[test]
fn a_rebase_that_makes_no_sense_changes_nothing() {
    let chain = Chain::new(1024, 1024, 1024, "");
    let before = ["base.img", "mid.qcow2", "top.qcow2"].map(|name| chain.bytes(name));
    let open = |name: &str| Image::options().access(Access::ReadWrite).open(chain.path(name)).unwrap();
    let try_rebase = |name: &str, backing: BackingName, below: &Image| {
        let new = NewBacking { name: &backing, image: below };
        job::rebase(open(name), Some(new), &RebaseOptions::default(), &Control::default()).unwrap_err()
    };
    {
        let top = Image::options().lock(cowimg::LockMode::Off).open(chain.path("top.qcow2")).unwrap();
        let refused = Image::options()
            .access(Access::ReadWrite)
            .lock(cowimg::LockMode::Off)
            .open(chain.path("mid.qcow2"))
            .unwrap();
        let name = backing_name("top.qcow2", "qcow2");
        let new = NewBacking { name: &name, image: &top };
        let refused =
            job::rebase(refused, Some(new), &RebaseOptions::default(), &Control::default()).unwrap_err();
        assert!(matches!(refused.kind(), ErrorKind::BackingLoop), "{refused}");
    }
    let base = Image::options().format(Format::Raw).open(chain.path("base.img")).unwrap();
    let refused =
        try_rebase("top.qcow2", BackingName { format: None, ..backing_name("base.img", "raw") }, &base);
    assert!(refused.to_string().contains("format"), "{refused}");
    let refused = try_rebase("top.qcow2", backing_name(&"x".repeat(1024), "raw"), &base);
    assert!(refused.to_string().contains("1023"), "{refused}");
    assert!(before == ["base.img", "mid.qcow2", "top.qcow2"].map(|name| chain.bytes(name)));
}

#[test]
fn a_name_alone_is_changed_without_a_look_at_the_data() {
    for options in OPTIONS {
        let chain = Chain::new(1024, 1024, 1024, options);
        let top = chain.path("top.qcow2");
        let set = |backing: Option<&BackingName>, verification| {
            let image = Image::options().access(Access::ReadWrite).open(&top).unwrap();
            let result = image.set_backing(backing, verification);
            image.close().unwrap();
            result
        };
        std::fs::rename(chain.path("mid.qcow2"), chain.path("moved.qcow2")).unwrap();
        std::os::unix::fs::symlink("moved.qcow2", chain.path("mid.qcow2")).unwrap();
        let before = content(&top);
        let missing = set(Some(&backing_name("missing.img", "raw")), Verification::Verify).unwrap_err();
        assert!(matches!(missing.kind(), ErrorKind::Backing { .. }), "{missing}");
        set(Some(&backing_name("moved.qcow2", "qcow2")), Verification::Verify).unwrap();
        assert!(content(&top) == before);
        set(Some(&backing_name("missing.img", "raw")), Verification::Trust).unwrap();
        let info = img("info", &[&top]);
        assert!(info.contains("backing file: missing.img"), "{info}");
        img("rebase -u", &[&top]);
        assert_check_clean(&top);
    }
}
