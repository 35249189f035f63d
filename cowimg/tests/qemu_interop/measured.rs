//! `measure` gives `qemu-img measure`'s numbers, whatever the options.

use std::path::Path;

use cowimg::job::{self, MeasureSource, MeasureTarget, Measurement};
use cowimg::progress::Control;
use cowimg::{CreateOptions, Format, Image, Preallocation, Version};

use crate::qemu_tools;
use crate::seeded::Rng;

/// A target that qemu-img accepts, and the words that ask for it.
fn draw_target(rng: &mut Rng) -> (MeasureTarget, String) {
    let mut target = MeasureTarget::from(&CreateOptions::new(Format::Qcow2));
    if rng.below(8) == 0 {
        target.format = Format::Raw;
        return (target, "-O raw".to_owned());
    }
    target.cluster_size = 512 << rng.below(13);
    let mut words = format!("-O qcow2 -o cluster_size={}", target.cluster_size);
    if rng.below(4) == 0 {
        target.version = Version::V2;
        words.push_str(",compat=0.10");
    } else {
        target.refcount_bits = 1 << rng.below(7);
        words = format!("{words}{}", format_args!(",refcount_bits={}", target.refcount_bits));
        if target.cluster_size >= 16384 && rng.below(2) == 0 {
            target.extended_l2 = true;
            words.push_str(",extended_l2=on");
        }
    }
    let (preallocation, word) = *rng.pick(&[
        (Preallocation::Off, "off"),
        (Preallocation::Metadata, "metadata"),
        (Preallocation::Falloc, "falloc"),
        (Preallocation::Full, "full"),
    ]);
    target.preallocation = preallocation;
    words = format!("{words}{}", format_args!(",preallocation={word}"));
    if preallocation == Preallocation::Off && rng.below(4) == 0 {
        target.has_backing = true;
        words.push_str(",backing_file=base.img,backing_fmt=raw");
    }
    (target, words)
}

fn said(found: &Measurement) -> String {
    let mut text =
        format!("required size: {}\nfully allocated size: {}\n", found.required, found.fully_allocated);
    if let Some(bitmaps) = found.bitmaps {
        text = format!("{text}{}", format_args!("bitmaps size: {bitmaps}\n"));
    }
    text
}

#[test]
fn a_disk_of_any_size_is_measured_as_qemu_img_measures_it() {
    let mut rng = Rng::new("measure sizes");
    for _ in 0..250 {
        let (target, words) = draw_target(&mut rng);
        let size = rng.next() >> rng.between(16, 63);
        let words = format!("measure {words} --size {size}");
        let theirs = qemu_tools::img_answer(&words, &[]);
        let ours = job::measure(MeasureSource::Size(size), &target, &Control::default());
        match ours {
            Ok(found) => assert_eq!((said(&found), 0), (theirs.text, theirs.code), "{words}"),
            Err(error) => assert_eq!(theirs.code, 1, "{words}: {error}; {}", theirs.text),
        }
    }
}

#[test]
fn images_are_measured_as_qemu_img_measures_them() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let mut rng = Rng::new("measure images");
    let (raw, qcow2) = (folder.path().join("disk.raw"), folder.path().join("disk.qcow2"));
    let (overlay, old) = (folder.path().join("top.qcow2"), folder.path().join("old.qcow2"));
    qemu_tools::img("create -q -f raw", &[&raw, Path::new("5000192")]);
    qemu_tools::run(
        "qemu-io",
        &["-f", "raw", "-c", "write 20k 60k", "-c", "write 3M 700k", &raw.display().to_string()],
    );
    qemu_tools::img("convert -f raw -O qcow2 -o cluster_size=4k", &[&raw, &qcow2]);
    qemu_tools::io(&qcow2, &["write -z 1M 100k".into(), "write -c 2M 64k".into(), "write 33k 1k".into()]);
    qemu_tools::img("create -q -f qcow2 -F raw -b disk.raw", &[&overlay, Path::new("9M")]);
    qemu_tools::io(&overlay, &["write 7M 1M".into(), "write -z 3M 64k".into()]);
    for (name, granularity) in [("b0", "64k"), ("a longer name", "512"), ("c", "2M")] {
        let name = Path::new(name);
        qemu_tools::img(&format!("bitmap --add -g {granularity}"), &[&overlay, name]);
    }
    qemu_tools::img("create -q -f qcow2 -o compat=0.10", &[&old, Path::new("9M")]);
    let images = [(raw, Format::Raw), (qcow2, Format::Qcow2), (overlay, Format::Qcow2), (old, Format::Qcow2)];
    for (path, format) in images {
        let image = Image::options().format(format).open(&path).expect("the image opens");
        for _ in 0..25 {
            let (target, words) = draw_target(&mut rng);
            let theirs = qemu_tools::img(&format!("measure -f {format} {words}"), &[&path]);
            let ours = job::measure(MeasureSource::Image(&image), &target, &Control::default());
            assert_eq!(said(&ours.expect("the image is measured")), theirs, "{} {words}", path.display());
        }
    }
}
