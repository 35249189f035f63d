//! Operations as commands of `qemu-io`.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::Path;

use cowimg::{ByteRange, ZeroMode};
use tempfile::TempDir;

use crate::model::{Fill, Model, Operation};
use crate::qemu_tools;

/// Commands that one `qemu-io` is to run, and the files that they read.
#[derive(Debug)]
pub(crate) struct Script {
    commands: Vec<String>,
    patterns: TempDir,
    cluster: u64,
}

impl Script {
    /// No command yet; the image has clusters of `cluster` bytes.
    pub(crate) fn new(cluster: u64) -> Script {
        let patterns = tempfile::tempdir().expect("a temporary folder can be made");
        Script { commands: Vec::new(), patterns, cluster }
    }

    /// Adds `operation`, and does the same to `model`.
    pub(crate) fn add(&mut self, operation: Operation, model: &mut Model) {
        match operation {
            Operation::Write(range, fill) => self.write("write -q", range, fill, model),
            Operation::Zeroes(range, mode) => {
                let option = match mode {
                    ZeroMode::KeepSpace => "",
                    ZeroMode::Unmap => "-u ",
                };
                self.push(format!("write -q -z {option}{}", numbers(range)));
                model.zero(range);
            }
            Operation::Discard(range) => self.discard(range, model),
            Operation::Read(range) => self.push(format!("read -q {}", numbers(range))),
            Operation::Flush => self.push("flush".to_string()),
        }
    }

    /// Adds a compressed write; the range is made of whole clusters that nothing was written to.
    pub(crate) fn add_compressed(&mut self, range: ByteRange, fill: Fill, model: &mut Model) {
        self.write("write -q -c", range, fill, model);
    }

    /// Runs all of it.
    pub(crate) fn run(self, image: &Path) {
        if !self.commands.is_empty() {
            qemu_tools::io(image, &self.commands);
        }
    }

    /// Runs all of it on the image that `name`, an option string, describes; `before` are words for qemu-io.
    pub(crate) fn run_on(self, before: &[&str], name: &str) {
        if self.commands.is_empty() {
            return;
        }
        let mut arguments: Vec<&str> = before.to_vec();
        arguments.extend(["--image-opts", "-d", "unmap", "-t", "unsafe"]);
        for command in &self.commands {
            arguments.extend(["-c", command]);
        }
        arguments.push(name);
        let text = qemu_tools::run("qemu-io", &arguments);
        assert!(!text.contains("failed"), "qemu-io on {name}: {text}");
    }

    fn write(&mut self, verb: &str, range: ByteRange, fill: Fill, model: &mut Model) {
        let bytes = fill.bytes(range.len());
        let source = match fill {
            Fill::Byte(byte) => format!("-P {byte}"),
            Fill::Noise(_) => {
                let pattern = self.patterns.path().join(self.commands.len().to_string());
                std::fs::write(&pattern, &bytes).expect("the pattern can be written");
                format!("-s {}", pattern.display())
            }
        };
        self.push(format!("{verb} {source} {}", numbers(range)));
        model.write(range.start(), &bytes);
    }

    /// QEMU discards whole clusters only, and the last one of the disk counts as whole.
    fn discard(&mut self, range: ByteRange, model: &mut Model) {
        let end = if range.end() == model.size() { range.end() } else { range.end() & !(self.cluster - 1) };
        let whole = ByteRange::between(range.start().next_multiple_of(self.cluster), end);
        if !whole.is_empty() {
            self.push(format!("discard -q {}", numbers(whole)));
            model.zero(whole);
        }
    }

    fn push(&mut self, command: String) {
        self.commands.push(command);
    }
}

fn numbers(range: ByteRange) -> String {
    format!("{} {}", range.start(), range.len())
}
