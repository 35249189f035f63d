//! Memory that stays this machine's while the rows run.
//!
//! A virtual machine whose host takes back what is free pays for pages that are new to it, up to 2 s for a GiB: more than a
//! conversion takes, and by chance. Linux tells its host of free memory in blocks of 2 MiB. So a process of its own keeps one page
//! of each block of as much memory as rows fill and let go: what is freed between the runs is never a whole block. In a
//! process of its own, for what this one ever had would count as its children's.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};

use memmap2::{Advice, MmapMut};

use super::run::Failed;

/// The first word of the command line of the process that holds.
pub(crate) const WORD: &str = "--hold";
/// The most that it goes through, in bytes: more than all images and results take in the host's cache.
const WANTED: u64 = 16 << 30;
/// Memory that the host is told of at once.
const BLOCK: usize = 2 << 20;
const PAGE: usize = 4096;

/// The process, which ends when this is dropped, or with this one.
#[derive(Debug)]
pub(crate) struct Held(Child);

impl Held {
    /// Starts the process, and waits until it holds what it is to hold.
    pub(crate) fn start() -> Result<Held, Failed> {
        let failed = |error: std::io::Error| Failed(format!("holding memory: {error}"));
        let itself = std::env::current_exe().map_err(failed)?;
        let mut command = Command::new(itself);
        let child = command.arg(WORD).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(failed)?;
        let mut held = Held(child);
        let mut line = String::new();
        if let Some(stdout) = held.0.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).map_err(failed)?;
        }
        if line.is_empty() {
            Err(Failed("the process that holds memory has ended".to_owned()))
        } else {
            Ok(held)
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ended = self.0.wait();
    }
}

/// Goes through memory, keeps a page of each block, says so, and waits for the end of its input.
pub(crate) fn hold() -> Result<(), Failed> {
    let failed = |error: std::io::Error| Failed(format!("holding memory: {error}"));
    let blocks = usize::try_from(WANTED.min(available()? / 4 * 3)).unwrap_or(usize::MAX) / BLOCK;
    let (mut kept, mut passed) = (mapped(blocks * PAGE)?, mapped(blocks * BLOCK)?);
    // The host gives pages in the order in which they are touched.
    for (page, block) in kept.chunks_mut(PAGE).zip(passed.chunks_mut(BLOCK)) {
        page[0] = 1;
        block.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
    }
    drop(passed);
    writeln!(std::io::stdout(), "held").map_err(failed)?;
    std::io::stdin().read_to_end(&mut Vec::new()).map_err(failed)?;
    drop(kept);
    Ok(())
}

fn mapped(bytes: usize) -> Result<MmapMut, Failed> {
    let failed = |error: std::io::Error| Failed(format!("taking memory: {error}"));
    let map = MmapMut::map_anon(bytes.max(PAGE)).map_err(failed)?;
    // Page by page. A kernel without large pages does not know the word.
    let _known = map.advise(Advice::NoHugePage);
    Ok(map)
}

/// Memory that can be had without swapping, in bytes.
fn available() -> Result<u64, Failed> {
    let told = std::fs::read_to_string("/proc/meminfo").map_err(|error| Failed(error.to_string()))?;
    let line = told.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: Option<u64> = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| Failed("/proc/meminfo says nothing of MemAvailable".to_owned()))
}
