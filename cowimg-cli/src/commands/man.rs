//! `cowimg man`

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap_mangen::Man;

use crate::console::Console;
use crate::exit_code::ExitCode;
use crate::failure::{Failure, os_message};

/// Print the manual page, or write the pages of all commands to a folder
///
/// Read one with: man -l cowimg.1
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Write cowimg.1 and a page for each command to this folder, which exists
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

/// Runs the command; `grammar` is what the pages describe.
pub(crate) fn run(args: &Args, grammar: clap::Command, console: &mut Console) -> Result<ExitCode, Failure> {
    let Some(folder) = &args.folder else {
        let mut page = Vec::new();
        Man::new(grammar).render(&mut page)?;
        console.write_all(&page)?;
        return Ok(ExitCode::Success);
    };
    let mut grammar = grammar;
    grammar.build();
    for command in grammar.get_subcommands().filter(|command| !command.is_hide_set()) {
        let name = format!("cowimg-{}", command.get_name());
        write_page(&folder.join(format!("{name}.1")), command.clone().name(name))?;
    }
    write_page(&folder.join("cowimg.1"), grammar)?;
    Ok(ExitCode::Success)
}

fn write_page(path: &Path, command: clap::Command) -> Result<(), Failure> {
    let mut page = Vec::new();
    Man::new(command).render(&mut page)?;
    fs::write(path, page)
        .map_err(|error| Failure::new(format!("{}: could not write: {}", path.display(), os_message(&error))))
}
