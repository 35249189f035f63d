//! `cowimg completions`

use std::io::Write;

use clap_complete::Shell;

use crate::console::Console;
use crate::exit_code::ExitCode;
use crate::failure::Failure;

/// Print the completions of a shell: what it offers when you press the tabulator key
///
/// For bash: cowimg completions bash > ~/.local/share/bash-completion/completions/cowimg. For zsh: into a file called
/// _cowimg in a folder of $fpath. For fish: into ~/.config/fish/completions/cowimg.fish.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The shell
    #[arg(value_name = "SHELL", value_enum)]
    shell: Shell,
}

/// Runs the command; `grammar` is what is completed.
pub(crate) fn run(
    args: &Args,
    mut grammar: clap::Command,
    console: &mut Console,
) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut grammar, "cowimg", &mut script);
    console.write_all(&script)?;
    Ok(ExitCode::Success)
}
