//! The command line: its grammar, its help, and what it says about a line that makes no sense.

use std::ffi::OsString;
use std::io::Write;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::args::size::mark_negative_sizes;
use crate::commands::{
    amend, bench, bitmap, check, clone, commit, compare, completions, convert, create, dd, discard, info,
    man, map, measure, read, rebase, resize, snapshot, write, zero,
};
use crate::console::Console;
use crate::exit_code::ExitCode;
use crate::failure::{Failure, warn};
use crate::manner::Manner;
use crate::trust::{self, Follow, Trust};

/// The help heading of options that qemu-img does not have; called as qemu-img, the program does not know them.
pub(crate) const OURS: &str = "Options that qemu-img does not have";

/// The release of qemu-img whose command line and output the strict manner has.
const QEMU_IMG: &str = "10.0.2";

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
struct General {
    /// Accepted for scripts: there is nothing here that could be traced
    #[arg(short = 'T', long, value_name = "SPEC")]
    trace: Option<String>,

    /// Treat the images as a stranger's: no file that one of them names is opened, and a file is a raw image only if that
    /// is stated
    #[arg(long, global = true, help_heading = OURS)]
    untrusted: bool,

    /// Which files are opened that an image names: none, those in its folder or below it, or all. Unless this is said, convert,
    /// dd and read keep to the folder, and the others open all
    #[arg(long, global = true, value_name = "WHAT", value_enum, hide_possible_values = true, help_heading = OURS)]
    follow: Option<Follow>,
}

/// The commands, in the order of the help: the kind of the parsed arguments, and the module that has them.
macro_rules! commands {
    ($($command:ident $module:ident),+ $(,)?) => {
        #[derive(Debug, Subcommand)]
        enum Command {
            $($command($module::Args),)+
        }

        /// `general` with the command of this name and no other, which takes a fraction of the time that all take.
        fn with_one(general: clap::Command, name: &str) -> Option<clap::Command> {
            match name {
                $(stringify!($module) => {
                    let command = clap::Command::new(stringify!($module));
                    Some(general.subcommand(<$module::Args as clap::Args>::augment_args(command)))
                })+
                _ => None,
            }
        }
    };
}

commands! {
    Amend amend,
    Bitmap bitmap,
    Create create,
    Clone clone,
    Info info,
    Check check,
    Compare compare,
    Measure measure,
    Dd dd,
    Bench bench,
    Map map,
    Convert convert,
    Commit commit,
    Rebase rebase,
    Resize resize,
    Snapshot snapshot,
    Read read,
    Write write,
    Zero zero,
    Discard discard,
    Completions completions,
    Man man,
}

/// The commands that qemu-img does not have.
const OUR_COMMANDS: [&str; 7] = ["clone", "read", "write", "zero", "discard", "completions", "man"];

impl Command {
    /// Whether it gives what it reads from a disk to another place, where somebody else may see it.
    fn hands_content_on(&self) -> bool {
        matches!(self, Command::Convert(_) | Command::Dd(_) | Command::Read(_))
    }
}

/// Parses a command line, the program's name first, and runs the command.
pub(crate) fn run(arguments: &[OsString], console: &mut Console) -> Result<ExitCode, Failure> {
    let (General { trace, untrusted, follow }, command) = match parse(arguments, console.manner) {
        Ok(line) => line,
        Err(error) => return explain(&error, arguments, console),
    };
    let hands_on = !console.manner.is_strict() && command.hands_content_on();
    trust::adopt(Trust { untrusted, follow, hands_on });
    if let Some(trace) = trace {
        check_trace(&trace)?;
        warn(&format!("-T {trace} has no effect: there is nothing here that could be traced"));
    }
    match command {
        Command::Amend(args) => amend::run(&args, console),
        Command::Bitmap(args) => bitmap::run(&args, console),
        Command::Create(args) => create::run(&args, console),
        Command::Clone(args) => clone::run(&args, console),
        Command::Info(args) => info::run(&args, console),
        Command::Check(args) => check::run(&args, console),
        Command::Compare(args) => compare::run(&args, console),
        Command::Measure(args) => measure::run(&args, console),
        Command::Dd(args) => dd::run(&args, console),
        Command::Bench(args) => bench::run(&args, console),
        Command::Map(args) => map::run(&args, console),
        Command::Convert(args) => convert::run(&args, console),
        Command::Commit(args) => commit::run(&args, console),
        Command::Rebase(args) => rebase::run(&args, console),
        Command::Resize(args) => resize::run(&args, console),
        Command::Snapshot(args) => snapshot::run(&args, console),
        Command::Read(args) => read::run(&args, console),
        Command::Write(args) => write::run(&args, console),
        Command::Zero(args) => zero::run(&args, console),
        Command::Discard(args) => discard::run(&args, console),
        Command::Completions(args) => completions::run(&args, grammar(Manner::Cowimg), console),
        Command::Man(args) => man::run(&args, grammar(Manner::Cowimg), console),
    }
}

/// What a line says. The grammar of the one command that it names is enough for a line that makes sense; whatever is
/// to be said of another is said by the whole.
fn parse(arguments: &[OsString], manner: Manner) -> Result<(General, Command), clap::Error> {
    let words = mark_negative_sizes(arguments);
    let read = |mut grammar: clap::Command| {
        let mut matches = grammar.try_get_matches_from_mut(&words)?;
        let line =
            (General::from_arg_matches_mut(&mut matches)?, Command::from_arg_matches_mut(&mut matches)?);
        // The process ends with it, and taking it apart takes longer than the parsing.
        std::mem::forget((grammar, matches));
        Ok(line)
    };
    let named = arguments.get(1).and_then(|name| name.to_str());
    match named.and_then(|name| grammar_of_one(manner, name)).map(read) {
        Some(Ok(line)) => Ok(line),
        _ => read(grammar(manner)),
    }
}

/// Refuses what says nothing about tracing.
fn check_trace(spec: &str) -> Result<(), Failure> {
    const KEYS: [&str; 3] = ["enable", "events", "file"];
    let mut keys = spec.split(',').filter_map(|part| Some(part.split_once('=')?.0));
    match keys.find(|key| !KEYS.contains(key)) {
        Some(key) => Err(Failure::usage(format!("-T has no option '{key}'; there are {}", KEYS.join(", ")))),
        None => Ok(()),
    }
}

/// The grammar of the command line in this manner.
fn grammar(manner: Manner) -> clap::Command {
    let grammar = Command::augment_subcommands(General::command());
    if manner == Manner::Cowimg { grammar } else { strict_grammar(grammar) }
}

/// The same with one command, if it is one that qemu-img has, too.
fn grammar_of_one(manner: Manner, name: &str) -> Option<clap::Command> {
    let grammar = with_one(General::command(), name)?;
    match manner {
        Manner::Cowimg => Some(grammar),
        Manner::QemuImg if OUR_COMMANDS.contains(&name) => None,
        Manner::QemuImg => Some(strict_grammar(grammar)),
    }
}

/// A grammar as the strict manner has it.
fn strict_grammar(grammar: clap::Command) -> clap::Command {
    let version = format!("version {QEMU_IMG} (cowimg {})", env!("CARGO_PKG_VERSION"));
    let names: Vec<String> = grammar.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    let mut strict = grammar.mut_args(strict_argument).name("qemu-img").bin_name("qemu-img").version(version);
    for name in names {
        strict = strict.mut_subcommand(&name, |command| {
            if OUR_COMMANDS.contains(&name.as_str()) {
                // A name that nobody can type: clap has no way to take a command out.
                return command.name(format!("\0{name}")).hide(true);
            }
            command.mut_args(strict_argument)
        });
    }
    strict
}

/// An option as the strict manner has it.
fn strict_argument(argument: clap::Arg) -> clap::Arg {
    if argument.get_help_heading() == Some(OURS) {
        let long = format!("\0{}", argument.get_id());
        return argument.long(long).short(None).hide(true);
    }
    // Whatever follows an option that takes a value is the value, as getopt has it.
    let has_word = argument.get_num_args().is_none_or(|words| words.takes_values());
    let takes_value = has_word && argument.get_action().takes_values() && !argument.is_positional();
    if takes_value { argument.allow_hyphen_values(true) } else { argument }
}

/// Help and version go to the report; everything else is a failure, with the command to ask for more.
fn explain(error: &clap::Error, arguments: &[OsString], console: &mut Console) -> Result<ExitCode, Failure> {
    let manner = console.manner;
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            write!(console, "{}", error.render())?;
            Ok(ExitCode::Success)
        }
        ErrorKind::MissingSubcommand => {
            let names = grammar(manner);
            let names: Vec<&str> = names
                .get_subcommands()
                .filter(|command| !command.is_hide_set())
                .map(clap::Command::get_name)
                .collect();
            Err(Failure::usage(format!("which command? There are {}", names.join(", ")))
                .hint(format!("Try '{} --help' for more info", manner.program())))
        }
        _ => Err(Failure::usage(sentence(&error.render().to_string())).hint(try_help(arguments, manner))),
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
fn try_help(arguments: &[OsString], manner: Manner) -> String {
    let given = arguments.get(1).and_then(|name| name.to_str()).unwrap_or("");
    match grammar(manner).find_subcommand(given) {
        Some(command) => format!("Try '{} {} --help' for more info", manner.program(), command.get_name()),
        None => format!("Try '{} --help' for more info", manner.program()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_contradicts_itself_nowhere() {
        grammar(Manner::Cowimg).debug_assert();
        grammar(Manner::QemuImg).debug_assert();
    }

    #[test]
    fn a_command_alone_is_the_same_as_among_all() {
        for manner in [Manner::Cowimg, Manner::QemuImg] {
            let mut all = grammar(manner);
            all.build();
            let names = all.get_subcommands().filter(|command| !command.is_hide_set());
            for name in names.map(clap::Command::get_name) {
                let mut one = grammar_of_one(manner, name).expect("a command of this name");
                one.build();
                let [one, among_all] = [&one, &all].map(|grammar| {
                    let mut command = grammar.find_subcommand(name).cloned().expect("it has been added");
                    let arguments: Vec<String> =
                        command.get_arguments().map(|argument| format!("{argument:?}")).collect();
                    (command.render_long_help().to_string(), arguments)
                });
                assert_eq!(one, among_all);
            }
        }
    }

    #[test]
    fn the_strict_manner_knows_nothing_that_qemu_img_does_not_have() {
        let parses = |manner, line: &str| grammar(manner).try_get_matches_from(line.split(' ')).is_ok();
        for line in ["x info --json a", "x create --force a 1M", "x read a 0 1"] {
            assert!(parses(Manner::Cowimg, line), "{line}");
            assert!(!parses(Manner::QemuImg, line), "{line}");
        }
        assert!(parses(Manner::QemuImg, "x info --output=json a"));
        assert!(parses(Manner::QemuImg, "x create --fo raw a 1M"));
    }

    #[test]
    fn the_frame_around_a_sentence_is_taken_away() {
        let rendered = "error: unexpected argument '--x' found\n\n  tip: try '--y'\n\nUsage: cowimg info\n\nFor more \
                        information, try '--help'.\n";
        assert_eq!(sentence(rendered), "unexpected argument '--x' found\n  tip: try '--y'");
    }
}
