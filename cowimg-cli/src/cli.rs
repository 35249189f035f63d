//! The command line: its grammar, its help, and what it says about a line that makes no sense.

use std::ffi::OsString;
use std::io::Write;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use crate::commands::{check, convert, create, discard, info, map, read, resize, write, zero};
use crate::exit_code::ExitCode;
use crate::failure::Failure;

/// Creates, inspects, checks, converts and edits disk images.
///
/// Commands and options are qemu-img's where qemu-img has them. FILE is a raw or qcow2 image; its format is found
/// by looking at its first bytes unless an option names it.
#[derive(Debug, Parser)]
#[command(
    name = "cowimg",
    version = concat!("version ", env!("CARGO_PKG_VERSION")),
    infer_long_args = true,
    args_override_self = true,
    subcommand_required = true,
    arg_required_else_help = false,
    disable_help_subcommand = true,
    max_term_width = 100
)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Create(create::Args),
    Info(info::Args),
    Check(check::Args),
    Map(map::Args),
    Convert(convert::Args),
    Resize(resize::Args),
    Read(read::Args),
    Write(write::Args),
    Zero(zero::Args),
    Discard(discard::Args),
}

/// Parses a command line, the program's name first, and runs the command. Reports go to `out`.
pub(crate) fn run(arguments: &[OsString], out: &mut dyn Write) -> Result<ExitCode, Failure> {
    let command = match CommandLine::try_parse_from(arguments) {
        Ok(line) => line.command,
        Err(error) => return explain(&error, arguments, out),
    };
    match command {
        Command::Create(args) => create::run(&args, out),
        Command::Info(args) => info::run(&args, out),
        Command::Check(args) => check::run(&args, out),
        Command::Map(args) => map::run(&args, out),
        Command::Convert(args) => convert::run(&args, out),
        Command::Resize(args) => resize::run(&args, out),
        Command::Read(args) => read::run(&args, out),
        Command::Write(args) => write::run(&args),
        Command::Zero(args) => zero::run(&args),
        Command::Discard(args) => discard::run(&args),
    }
}

/// Help and version go to `out`; everything else is a failure, with the command to ask for more.
fn explain(error: &clap::Error, arguments: &[OsString], out: &mut dyn Write) -> Result<ExitCode, Failure> {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            write!(out, "{}", error.render())?;
            Ok(ExitCode::Success)
        }
        ErrorKind::MissingSubcommand => Err(Failure::usage(
            "which command? There are create, info, check, map, convert, resize, read, write, zero \
                 and discard",
        )
        .hint("Try 'cowimg --help' for more info")),
        _ => Err(Failure::usage(sentence(&error.render().to_string())).hint(try_help(arguments))),
    }
}

/// What clap found wrong, without its frame of title, usage and pointer to the help.
fn sentence(rendered: &str) -> String {
    let lines =
        rendered.lines().take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"));
    let text: Vec<&str> = lines.map(str::trim).filter(|line| !line.is_empty()).collect();
    let text = text.join("\n  ");
    text.strip_prefix("error: ").map_or(text.clone(), str::to_owned)
}

/// Where to read on: the help of the command, if the line got as far as one.
fn try_help(arguments: &[OsString]) -> String {
    use clap::CommandFactory;
    let given = arguments.get(1).and_then(|name| name.to_str()).unwrap_or("");
    match CommandLine::command().find_subcommand(given) {
        Some(command) => format!("Try 'cowimg {} --help' for more info", command.get_name()),
        None => "Try 'cowimg --help' for more info".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_grammar_contradicts_itself_nowhere() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn the_frame_around_a_sentence_is_taken_away() {
        let rendered = "error: unexpected argument '--x' found\n\n  tip: try '--y'\n\nUsage: cowimg info\n\nFor more \
                        information, try '--help'.\n";
        assert_eq!(sentence(rendered), "unexpected argument '--x' found\n  tip: try '--y'");
    }
}
