//! The order in which a new image and its data file get their names: each whole on the disk before, and the data file's name
//! before the image's, so that no power cut leaves an image without its data. Watched by strace; where there is none these
//! tests say so and pass.
#![allow(clippy::unwrap_used, reason = "what cannot fail here is part of what is tested")]

use std::fs;

use crate::failed_calls::has_strace;
use crate::workbench::Workbench;

/// What the program does to the disk and to names, in order: `sync` of a file by its name, or without one, and `name`.
fn steps(bench: &Workbench, line: &str) -> Vec<String> {
    let mut command = bench.command("strace");
    command.args(["-f", "-y", "-qq", "-o", "trace", "-e", "trace=fsync,fdatasync,linkat"]);
    command.arg(env!("CARGO_BIN_EXE_cowimg")).args(line.split_whitespace());
    assert!(command.status().unwrap().success(), "{line}");
    let folder = fs::canonicalize(bench.folder()).unwrap();
    let trace = fs::read_to_string(bench.path("trace")).unwrap();
    let step = |line: &str| {
        if line.contains("linkat(") {
            // linkat(folder, "/proc/self/fd/3", folder, "name", ...)
            return Some(format!("name {}", line.split('"').nth(3)?));
        }
        // fsync(3</folder/name>), or fsync(3</folder/#123>(deleted)) where the file has no name.
        let (_, rest) = line.split_once('<')?;
        let (path, _) = rest.split_once('>')?;
        let path = path.strip_prefix(folder.to_str()?)?;
        match path.rsplit_once("/#") {
            Some((apart, _)) if line.contains("(deleted)") => Some(format!("sync {apart}/nameless")),
            _ => Some(format!("sync {path}")),
        }
    };
    trace.lines().filter_map(step).collect()
}

#[test]
fn a_data_file_is_there_before_the_image_that_names_it() {
    if !has_strace() {
        return;
    }
    let bench = Workbench::new();
    fs::create_dir(bench.path("apart")).unwrap();
    bench.qemu_img("create -q -f qcow2 base.qcow2 1M");
    bench.qemu_io("base.qcow2", &["write -q -P 1 0 64k"]);
    for line in [
        "create -q -o data_file=apart/data new.qcow2 1M",
        "convert -q -t writeback -O qcow2 -o data_file=apart/other base.qcow2 converted.qcow2",
    ] {
        let steps = steps(&bench, line);
        if !steps.iter().any(|step| step.contains("nameless")) {
            eprintln!("the file system has no files without a name: not tried");
            return;
        }
        let names: Vec<&String> = steps.iter().filter(|step| step.starts_with("name ")).collect();
        let [data_name, image_name] = names[..] else { panic!("`{line}`: {steps:?}") };
        assert!(data_name.contains("apart/") && !image_name.contains("apart/"), "`{line}`: {steps:?}");
        let at = |wanted: &str| {
            steps.iter().position(|step| step == wanted).unwrap_or_else(|| panic!("no `{wanted}`: {steps:?}"))
        };
        let in_order = [
            at("sync /apart/nameless"),
            at("sync /nameless"),
            at(data_name),
            at("sync /apart"),
            at(image_name),
            at("sync "),
        ];
        assert!(in_order.is_sorted(), "`{line}`: {steps:?}");
    }
}
