//! What work costs as images grow: the same scattered clusters on larger and larger disks, and longer and longer chains.
//!
//! Each figure is the median time of a whole command, its start included, and the most memory that it had.

use std::fmt::Write as _;

use super::caller;
use super::images::write;
use super::median;
use super::run::{Failed, Run};

/// Virtual sizes.
const SIZES: [(&str, u64); 4] =
    [("1 GiB", 1 << 30), ("64 GiB", 64 << 30), ("1 TiB", 1 << 40), ("64 TiB", 64 << 40)];
/// Layers of a chain. More than [`LIMIT`] are opened by a caller that says so.
const DEPTHS: [usize; 5] = [1, 8, 64, 256, 1000];
/// The most layers that are opened unless a caller says otherwise (`Limits::chain_depth`).
const LIMIT: usize = 256;
/// Clusters that a disk holds, spread evenly.
const CLUSTERS: u64 = 1000;
/// Requests of a run of reads or writes.
pub(crate) const REQUESTS: u64 = 10_000;
/// The largest distance of two requests that `bench` takes.
const LONGEST_STEP: u64 = (1 << 31) - 4096;
/// The disk of a chain.
const CHAIN_SIZE: u64 = 256 << 20;

/// A command whose cost is looked at. It works on `out`, a copy of the image, in which the chain below is named.
struct Work {
    name: &'static str,
    command: String,
    /// The command of a [`caller`] for the same.
    by_caller: String,
}

/// Prints both tables.
pub(crate) fn print(run: &Run, samples: usize) -> Result<(), Failed> {
    println!("{CLUSTERS} clusters of 64 KiB, spread evenly over the disk:\n");
    let images = SIZES.map(|(title, size)| (title.to_owned(), format!("disk{size}.qcow2"), size));
    for (_, image, size) in &images {
        run.quietly(&format!("qemu-img create -q -f qcow2 {image} {size}"))?;
        let distance = aligned(size / CLUSTERS, 64 << 10);
        write(run, image, (0..CLUSTERS).map(|nth| (nth * distance, 64 << 10)))?;
    }
    table(run, "virtual size", &images, samples)?;
    println!("\nLayers of {} MiB, each with 16 clusters of its own:\n", CHAIN_SIZE >> 20);
    chain(run)?;
    let images = DEPTHS.map(|depth| (depth.to_string(), format!("depth{depth}.qcow2"), CHAIN_SIZE));
    table(run, "layers", &images, samples)
}

fn table(run: &Run, what: &str, images: &[(String, String, u64)], samples: usize) -> Result<(), Failed> {
    let names: Vec<&str> = work(0).iter().map(|work| work.name).collect();
    println!("| {what} | {} |", names.join(" | "));
    println!("|---|{}", "---|".repeat(names.len()));
    for (title, image, size) in images {
        let mut line = format!("| {title} |");
        let is_long = title.parse().is_ok_and(|layers: usize| layers > LIMIT);
        for Work { command, by_caller, .. } in work(*size) {
            let command = if is_long { by_caller } else { command };
            let mut taken = Vec::with_capacity(samples);
            let mut peak: f64 = 0.0;
            for _ in 0..=samples {
                run.quietly(&format!("cp --sparse=always {image} out"))?;
                let sample = run.time(&command)?;
                taken.push(sample.seconds * 1e3);
                peak = peak.max(sample.peak_bytes);
            }
            // The first fills caches.
            let taken = median(taken.split_off(1));
            // Writing to a string does not fail.
            _ = write!(line, " {taken:.1} ms, {:.1} MB |", peak / 1e6);
        }
        println!("{line}");
    }
    run.remove_results()
}

fn work(size: u64) -> Vec<Work> {
    // Not a multiple of the clusters' distance, so that requests come to all places.
    let step = aligned((size / 997).min(LONGEST_STEP), 4096).max(4096);
    let requests = format!("-t unsafe -f qcow2 -c {REQUESTS} -d 1 -s 4096 -S {step} out");
    let work = |name, command: String, word| {
        let by_caller = format!("side_by_side {} {word} out {step}", caller::WORD);
        Work { name, command, by_caller }
    };
    vec![
        work("open", String::from("cowimg bench -q -f qcow2 -c 1 -d 1 -s 4096 out"), "open"),
        work("10,000 reads", format!("cowimg bench -q {requests}"), "reads"),
        work("10,000 writes", format!("cowimg bench -q -w {requests}"), "writes"),
        work("check", String::from("cowimg check -q out"), "check"),
        work("snapshot", String::from("cowimg snapshot -c name out"), "snapshot"),
        work("map", String::from("cowimg map --output=json out"), "map"),
    ]
}

fn aligned(offset: u64, to: u64) -> u64 {
    offset / to * to
}

/// The layers of a chain as long as the longest of [`DEPTHS`], those of that depth under names of their own.
fn chain(run: &Run) -> Result<(), Failed> {
    let longest = DEPTHS[DEPTHS.len() - 1];
    for depth in 1..=longest {
        let image = format!("depth{depth}.qcow2");
        if depth == 1 {
            run.quietly(&format!("cowimg create -q -f qcow2 {image} {CHAIN_SIZE}"))?;
            write(run, &image, (0..CHAIN_SIZE >> 22).map(|nth| (nth << 22, 4 << 20)))?;
            continue;
        }
        // A new layer is written without its chain, whose opening is not what this is about.
        run.quietly(&format!("cowimg create -q -f qcow2 {image} {CHAIN_SIZE}"))?;
        let place = |nth: u64| aligned((nth * 251 + depth as u64 * 17) * (64 << 10) % CHAIN_SIZE, 64 << 10);
        write(run, &image, (0..16).map(|nth| (place(nth), 64 << 10)))?;
        let below = depth - 1;
        run.quietly(&format!("cowimg rebase -u -b depth{below}.qcow2 -F qcow2 {image}"))?;
    }
    Ok(())
}
