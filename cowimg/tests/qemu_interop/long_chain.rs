//! A chain of ten layers of differing sizes, cluster sizes and writers reads as one disk, and no layer under the
//! one that is written ever changes.

use std::path::{Path, PathBuf};

use cowimg::{BackingOptions, CreateOptions, Format};

use crate::model::{Model, Operations};
use crate::qemu_tools::{self, assert_same_bytes};
use crate::script::Script;
use crate::seeded::noise;
use crate::subject::{self, Discarded};

/// Cluster size and size of each overlay, from the one over the base up: children are larger and smaller than
/// their parents.
const OVERLAYS: [(u64, u64); 9] = [
    (65536, 2 * 1024 * 1024),
    (512, 1_000_448),
    (4096, 3 * 1024 * 1024 + 512),
    (2097152, 5 * 1024 * 1024),
    (65536, 1_500_160),
    (4096, 4 * 1024 * 1024 + 1536),
    (1024, 2 * 1024 * 1024 + 1024),
    (65536, 2 * 1024 * 1024 + 512),
    (65536, 3_500_032),
];

const BASE_LEN: usize = 1_234_567;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writer {
    Us,
    Qemu,
}

struct Layer {
    path: PathBuf,
    model: Model,
}

/// The name and format of the layer below overlay `index`.
fn below(index: usize) -> (String, Format) {
    match index {
        0 => ("base.raw".to_string(), Format::Raw),
        _ => (format!("layer{}.qcow2", index - 1), Format::Qcow2),
    }
}

fn create_by_us(path: &Path, index: usize) {
    let (cluster_size, size) = OVERLAYS[index];
    let (name, format) = below(index);
    let backing = BackingOptions { format: Some(format), ..BackingOptions::new(name) };
    let mut options = CreateOptions { backing: Some(backing), ..CreateOptions::qcow2(size) };
    options.qcow2.cluster_size = cluster_size;
    cowimg::create(path, &options).expect("the overlay is created");
}

fn create_by_qemu(path: &Path, index: usize) {
    let (cluster, size) = OVERLAYS[index];
    let (name, format) = below(index);
    let words = format!("create -q -f qcow2 -F {format} -b {name} -o cluster_size={cluster}");
    qemu_tools::img(&words, &[path, Path::new(&size.to_string())]);
}

fn write(layer: &mut Layer, operations: &mut Operations, writer: Writer, cluster: u64) {
    match writer {
        Writer::Us => {
            let image = subject::open_writable(&layer.path);
            for _ in 0..25 {
                subject::apply(&image, &mut layer.model, operations.next(), (Discarded::Zero, cluster));
            }
            image.close().expect("the image closes");
        }
        Writer::Qemu => {
            let mut script = Script::new(cluster);
            for _ in 0..25 {
                script.add(operations.next(), &mut layer.model);
            }
            script.run(&layer.path);
        }
    }
}

#[test]
fn ten_layers_read_as_one_disk() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let base = noise(1, BASE_LEN);
    let base_path = folder.path().join("base.raw");
    std::fs::write(&base_path, &base).expect("the base can be written");

    let mut model = Model::holding(base.clone());
    let mut layers: Vec<Layer> = Vec::new();
    for (index, (cluster, size)) in OVERLAYS.into_iter().enumerate() {
        let path = folder.path().join(format!("layer{index}.qcow2"));
        // Makers alternate, and so do writers, at another pace: each writes what the other made too.
        match index % 2 {
            0 => create_by_us(&path, index),
            _ => create_by_qemu(&path, index),
        }
        let writer = if index % 4 < 2 { Writer::Us } else { Writer::Qemu };
        let mut operations = Operations::new(format!("long chain, layer {index}"), size, cluster);
        let mut layer = Layer { path, model: model.overlay(size) };
        write(&mut layer, &mut operations, writer, cluster);
        model = layer.model.clone();
        layers.push(layer);
    }

    for layer in &layers {
        subject::assert_agreement(&layer.path, &layer.model);
    }
    assert_same_bytes(&std::fs::read(&base_path).expect("the base can be read"), &base, "the base");
    let top = subject::open(&layers.last().expect("there are layers").path);
    assert_eq!(top.layers().len(), OVERLAYS.len() + 1);
}
