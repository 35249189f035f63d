//! The program `cowimg`: what qemu-img does to raw and qcow2 images.
//!
//! [`cli`] parses the command line, one file of [`commands`] does the work with the library, [`output`] writes the
//! report, and [`failure`] says what went wrong. Nothing else prints or chooses an exit code.
#![forbid(unsafe_code)]

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

mod args;
mod cli;
mod commands;
mod exit_code;
mod failure;
mod interrupt;
mod output;
mod progress_bar;

use failure::Failure;

fn main() -> ExitCode {
    let mut out = BufWriter::new(io::stdout());
    let arguments: Vec<_> = std::env::args_os().collect();
    let result = cli::run(&arguments, &mut out);
    // What a command has reported is shown before its failure is, and an unread report changes no exit code.
    let flushed = out.flush();
    let unwritten =
        flushed.err().filter(|error| error.kind() != io::ErrorKind::BrokenPipe).map(Failure::from);
    match (result, unwritten) {
        (Err(failure), _) | (Ok(_), Some(failure)) => failure.report(),
        (Ok(code), None) => code.into(),
    }
}
