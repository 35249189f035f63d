//! cowimg beside the other Rust crates for qcow2, in process, on the same images, in turn.
//!
//! ```sh
//! make bench-rivals
//! rivals [--rounds N] [--folder FOLDER] [WORD ...]
//! ```
//!
//! Runs the rows whose names contain one of the words, or all, and prints a table in Markdown. Each contender works in a
//! process of its own, kept to one processor for each of its threads, and times itself once its image is open. The first
//! round does not count: what is read in it is summed up and compared, and what is written is compared and checked. A
//! contender that gets something wrong has that in its cell instead of a figure.

mod blocking;
mod contenders;
mod cowimg_blocking;
mod images;
mod imago_tokio;
mod qcow2_rs_tasks;
mod rows;
mod table;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;

use work::Failure;

/// What the command line asks for.
struct Wish {
    rounds: usize,
    folder: PathBuf,
    words: Vec<String>,
}

impl Wish {
    fn of(mut args: impl Iterator<Item = String>) -> Result<Wish, Failure> {
        let mut wish = Wish { rounds: 5, folder: std::env::temp_dir(), words: Vec::new() };
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} wants a value"));
            match arg.as_str() {
                "--rounds" => {
                    let text = value()?;
                    let rounds = text.parse().ok().filter(|rounds| *rounds > 0);
                    wish.rounds = rounds.ok_or_else(|| format!("--rounds {text}: not a number above 0"))?;
                }
                "--folder" => wish.folder = value()?.into(),
                option if option.starts_with('-') => {
                    return Err(format!("there is no option {option}").into());
                }
                _ => wish.words.push(arg),
            }
        }
        Ok(wish)
    }
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1).peekable();
    let done = match args.next_if(|arg| arg == contenders::WORK) {
        Some(_) => contenders::work(args).map(|measured| println!("{}", measured.line())),
        None => Wish::of(args).and_then(|wish| {
            let folder = tempfile::tempdir_in(&wish.folder)?;
            table::print(folder.path(), wish.rounds, &wish.words)
        }),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
