//! What the fuzz targets have found interesting, run again by every compiler: the kept inputs (`fuzz/corpus`), and images of
//! which fields were changed as the fuzzer changes them. `COWIMG_FUZZED` sets how many of the latter, `COWIMG_TEST_SEED` which.
//! A crash that the fuzzer has left is run by putting its file into that folder, where it stays.

#[path = "../../fuzz/src/lib.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "the fuzz targets use all of it, and have their own rules"
)]
mod fuzz;

use std::fs;
use std::panic;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fuzz::{mutation, targets, templates};

/// What a target does with an input.
type Target = fn(&[u8]);

/// No input may take longer, on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(10);

const TARGETS: [(&str, Target); 8] = [
    ("header", targets::header::run),
    ("l2_entry", targets::l2_entry::run),
    ("snapshot_table", targets::snapshot_table::run),
    ("bitmaps", targets::bitmaps::run),
    ("luks_header", targets::luks_header::run),
    ("luks", targets::luks::run),
    ("image", targets::image::run),
    ("qcow1", targets::qcow1::run),
];

/// The inputs that are kept for a target, in order.
fn kept(target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let Ok(entries) = fs::read_dir(&folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.expect("the folder can be listed").path()).collect();
    paths.sort();
    paths
}

/// Gives an input to a target; says which it was where that does not end well.
fn run(name: &str, what: &str, target: Target, bytes: &[u8]) {
    let start = Instant::now();
    let outcome = panic::catch_unwind(|| target(bytes));
    assert!(outcome.is_ok(), "{name}: {what}");
    assert!(start.elapsed() < PATIENCE, "{name}: {what} took {:?}", start.elapsed());
}

fn replay(name: &str) {
    let (_, target) = TARGETS.into_iter().find(|(known, _)| *known == name).expect("a target of that name");
    let inputs = kept(name);
    assert!(!inputs.is_empty(), "fuzz/corpus/{name} has no inputs");
    for path in inputs {
        let bytes = fs::read(&path).expect("the input can be read");
        run(name, &path.display().to_string(), target, &bytes);
    }
}

#[test]
fn headers() {
    replay("header");
}

#[test]
fn l2_entries() {
    replay("l2_entry");
}

#[test]
fn snapshot_tables() {
    replay("snapshot_table");
}

#[test]
fn bitmaps() {
    replay("bitmaps");
}

#[test]
fn luks_headers() {
    replay("luks_header");
}

#[test]
fn luks_images() {
    replay("luks");
}

#[test]
fn images() {
    replay("image");
}

#[test]
fn images_of_version_1() {
    replay("qcow1");
}

fn setting(name: &str, usual: u32) -> u32 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(usual)
}

/// Chains of changes, each starting from a valid image, as the fuzzer goes without looking where it gets.
fn changed(name: &str, images: &[Vec<u8>]) {
    let (_, target) = TARGETS.into_iter().find(|(known, _)| *known == name).expect("a target of that name");
    let seed = setting("COWIMG_TEST_SEED", 0);
    let mut data = vec![0; 40 << 10];
    let mut len = 0;
    for nth in 0..setting("COWIMG_FUZZED", 120) {
        let draw = seed.wrapping_mul(1_000_003).wrapping_add(nth);
        if nth % 4 == 0 {
            len = 0;
        }
        len = mutation::change_image(&mut data, len, draw, (images, &|_, len| len));
        let input = &data[..len];
        let result = panic::catch_unwind(|| target(input));
        if result.is_err() {
            let path = std::env::temp_dir().join(format!("cowimg-fuzzed-{name}-{draw}"));
            fs::write(&path, input).expect("the input can be kept");
            panic!("{name}: change {nth} of seed {seed}; the input is {}", path.display());
        }
    }
}

#[test]
fn changed_images() {
    changed("image", templates::qcow2());
}

#[test]
fn changed_images_with_bitmaps() {
    changed("bitmaps", templates::with_bitmaps());
}
