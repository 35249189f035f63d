//! The library's extents say the same as `qemu-img map`: which layer answers for each sector, whether it is known to
//! be zero, and where in that layer's file it is.

use std::path::Path;

use cowimg::{ByteRange, Extent, ExtentKind};

use crate::model::{Model, Operations};
use crate::qemu_tools;
use crate::script::Script;
use crate::seeded::noise;
use crate::subject;

/// What is compared, for one sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sector {
    /// The layer that answers; none where no layer does.
    depth: Option<u64>,
    zero: bool,
    /// Older releases of QEMU do not say.
    compressed: Option<bool>,
    host: Option<u64>,
}

const SIZE: u64 = 3 * 1024 * 1024 + 512;

/// The value of `"name": value` in one of the objects that `qemu-img map` prints.
fn field<'a>(object: &'a str, name: &str) -> Option<&'a str> {
    let start = object.find(&format!("\"{name}\": "))? + name.len() + 4;
    object[start..].split([',', '}']).next().map(str::trim)
}

fn number(object: &str, name: &str) -> Option<u64> {
    field(object, name).map(|text| text.parse().expect("a number"))
}

fn sectors_by_qemu(path: &Path) -> Vec<Sector> {
    let text = qemu_tools::img("map -f qcow2 --output=json", &[path]);
    let mut sectors = Vec::new();
    for object in text.lines() {
        let (start, len) =
            (number(object, "start").expect("a start"), number(object, "length").expect("a length"));
        let host = number(object, "offset");
        for offset in (0..len).step_by(512) {
            assert_eq!(sectors.len() as u64 * 512, start + offset, "QEMU's map has a gap");
            sectors.push(Sector {
                depth: (field(object, "present") == Some("true"))
                    .then(|| number(object, "depth").expect("a depth")),
                zero: field(object, "zero") == Some("true"),
                compressed: field(object, "compressed").map(|text| text == "true"),
                host: host.map(|host| host + offset),
            });
        }
    }
    sectors
}

fn sector_of(extent: &Extent, offset: u64) -> Sector {
    Sector {
        depth: (extent.kind != ExtentKind::Unallocated).then_some(extent.depth as u64),
        zero: extent.is_zero(),
        compressed: Some(extent.kind == ExtentKind::Compressed),
        host: extent.host.map(|host| host + offset),
    }
}

fn sectors_by_us(path: &Path) -> Vec<Sector> {
    let image = subject::open(path);
    let mut sectors = Vec::new();
    for extent in image.extents(ByteRange::between(0, image.size())) {
        let extent = extent.expect("the mapping can be read");
        for offset in (0..extent.range.len()).step_by(512) {
            sectors.push(sector_of(&extent, offset));
        }
    }
    sectors
}

fn assert_same_mapping(path: &Path) {
    let (ours, theirs) = (sectors_by_us(path), sectors_by_qemu(path));
    let as_told = |ours: &Sector, theirs: &Sector| {
        let compressed = ours.compressed.filter(|_| theirs.compressed.is_some());
        Sector { compressed, ..*ours }
    };
    let differs = ours.iter().zip(&theirs).position(|(ours, theirs)| as_told(ours, theirs) != *theirs);
    if let Some(sector) = differs {
        panic!("sector {sector}: {:?}, QEMU says {:?}", ours[sector], theirs[sector]);
    }
    assert_eq!(ours.len(), theirs.len());
}

#[test]
fn extents_agree_with_qemus_map() {
    for cluster in [512, 4096, 65536] {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let (raw, base, top) =
            (folder.path().join("a.raw"), folder.path().join("b.qcow2"), folder.path().join("c.qcow2"));
        let mut bytes = noise(2, 2_000_384);
        bytes[300_000..1_000_000].fill(0);
        std::fs::write(&raw, &bytes).expect("the base can be written");
        qemu_tools::img("convert -c -f raw -O qcow2 -o cluster_size=16k", &[&raw, &base]);
        let words = format!("create -q -f qcow2 -F qcow2 -b b.qcow2 -o cluster_size={cluster}");
        qemu_tools::img(&words, &[&top, Path::new(&SIZE.to_string())]);
        assert_same_mapping(&base);
        assert_same_mapping(&top);
        let mut operations = Operations::new(format!("mapping {cluster}"), SIZE, cluster);
        let mut model = Model::holding(bytes).overlay(SIZE);
        for _ in 0..5 {
            let mut script = Script::new(cluster);
            for _ in 0..6 {
                script.add(operations.next_change(), &mut model);
            }
            script.run(&top);
            assert_same_mapping(&top);
        }
    }
}
