//! The program `cowimg`: what qemu-img does to raw and qcow2 images. A library so that its grammar can be fuzzed; nothing but
//! the program and the fuzz targets uses it, and it promises nothing.
//!
//! [`cli`] parses the command line, one file of [`commands`] does the work with the library, [`output`] writes the
//! report, and [`failure`] says what went wrong. Nothing else prints or chooses an exit code.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::process::ExitCode;

mod args;
mod cli;
mod colour;
mod commands;
mod console;
mod exit_code;
mod failure;
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
mod interrupt;
mod manner;
mod output;
mod progress_bar;
mod trust;

use console::Console;
use failure::Failure;
use manner::Manner;

/// Does what the command line says.
pub fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    let manner = Manner::of_program(arguments.first().map(AsRef::as_ref));
    manner.adopt();
    interrupt::survive_file_size_limit();
    let mut console = Console::new(manner);
    let result = cli::run(&arguments, &mut console);
    if manner.is_strict() {
        let code = report(result);
        // Held back until now: what a command has said comes after its failure.
        return shown(console.flush()).unwrap_or(code);
    }
    // What a command has reported is shown before its failure is, and an unread report changes no exit code.
    let unwritten = shown(console.flush());
    match (result, unwritten) {
        (Ok(_), Some(code)) => code,
        (result, _) => report(result),
    }
}

/// The exit code of a command that has ended, after its failure has been told.
fn report(result: Result<exit_code::ExitCode, Failure>) -> ExitCode {
    match result {
        Ok(code) => code.into(),
        Err(failure) => failure.report(),
    }
}

/// The exit code of a program whose report could not be written; nobody reading it is no failure.
fn shown(flushed: io::Result<()>) -> Option<ExitCode> {
    let error = flushed.err().filter(|error| error.kind() != io::ErrorKind::BrokenPipe)?;
    Some(Failure::from(error).report())
}
