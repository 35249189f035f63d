//! Whole commands of cowimg beside the same commands of qemu-img, on the same images, in turn.
//!
//! ```sh
//! cargo run --release -p cowimg-benches --bin side_by_side -- [--pairs N] [--folder FOLDER] [--growth | WORD ...]
//! ```
//!
//! Runs the rows whose names contain one of the words, or all. [`rows`] says what is compared, [`images`] makes what
//! they work on, [`run`] measures. The report is a table in Markdown. A row whose results differ, or whose command fails,
//! ends the run: a figure of something that went wrong is worth nothing. With `--growth` there are other tables: what work
//! costs as images grow ([`growth`]), where the longest chain is opened by a program that uses the library ([`caller`]).

mod caller;
mod growth;
mod held;
mod images;
mod rows;
mod run;
mod sharing;

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tempfile::TempDir;

use held::Held;
use images::Images;
use rows::{ROWS, Row};
use run::{Failed, Run, Sample};

/// What the command line asks for.
struct Wish {
    pairs: Option<usize>,
    folder: PathBuf,
    growth: bool,
    words: Vec<String>,
}

impl Wish {
    fn of(mut args: impl Iterator<Item = String>) -> Result<Wish, Failed> {
        let mut wish = Wish { pairs: None, folder: std::env::temp_dir(), growth: false, words: Vec::new() };
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| Failed(format!("{arg} wants a value")));
            match arg.as_str() {
                "--pairs" => {
                    let text = value()?;
                    let pairs = text.parse().ok().filter(|pairs| *pairs > 0);
                    wish.pairs =
                        Some(pairs.ok_or_else(|| Failed(format!("--pairs {text}: not a number above 0")))?);
                }
                "--folder" => wish.folder = value()?.into(),
                "--growth" => wish.growth = true,
                option if option.starts_with('-') => {
                    return Err(Failed(format!("there is no option {option}")));
                }
                _ => wish.words.push(arg),
            }
        }
        Ok(wish)
    }

    fn takes(&self, row: &Row) -> bool {
        self.words.is_empty() || self.words.iter().any(|word| row.name.contains(word))
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.split_first() {
        Some((word, words)) if word == caller::WORD => caller::work(words),
        Some((word, _)) if word == held::WORD => held::hold(),
        _ => Wish::of(args.into_iter()).and_then(|wish| compare(&wish)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failed(why)) => {
            eprintln!("side_by_side: {why}");
            ExitCode::FAILURE
        }
    }
}

fn compare(wish: &Wish) -> Result<(), Failed> {
    let (_installation, cowimg) = installed()?;
    let folder = tempfile::tempdir_in(&wish.folder)
        .map_err(|error| Failed(format!("{}: {error}", wish.folder.display())))?;
    let itself = std::env::current_exe().map_err(|error| Failed(error.to_string()))?;
    let run = Run { cowimg, itself, folder: folder.path().to_owned(), pair: Cell::new(0) };
    let _held = Held::start()?;
    if wish.growth {
        return growth::print(&run, wish.pairs.unwrap_or(5));
    }
    let mut images = Images::new(&run);
    println!("| work | ratio | target | least-most | CPU | cowimg | qemu-img | peak memory |");
    println!("|---|---|---|---|---|---|---|---|");
    for row in ROWS.iter().filter(|row| wish.takes(row)) {
        if let Some(why) = row.needs.iter().find_map(|image| images.lacks(*image)) {
            println!("| {} | - | {} | not measured: {why} | | | | |", row.name, row.target);
            continue;
        }
        for image in row.needs {
            images.make(*image)?;
        }
        println!("{}", line(row, &measure(&run, row, wish.pairs.unwrap_or(row.pairs))?));
        run.remove_results()?;
    }
    Ok(())
}

/// The program to measure: the release build that stands beside this one, copied as an installation does it. A linker writes
/// through a map, so that the host's cache has the program page by page, and starting it takes a quarter longer than when it
/// has been written, or read from the disk, in larger pieces.
fn installed() -> Result<(TempDir, PathBuf), Failed> {
    let here = std::env::current_exe().map_err(|error| Failed(error.to_string()))?;
    let built = here.parent().unwrap_or(Path::new("")).join("cowimg");
    if !built.exists() {
        return Err(Failed(format!(
            "{} is not there: run cargo build --release -p cowimg-cli first",
            built.display()
        )));
    }
    let failed = |error: std::io::Error| Failed(format!("copying {}: {error}", built.display()));
    // Beside it, where programs may be run.
    let folder = tempfile::tempdir_in(here.parent().unwrap_or(Path::new("."))).map_err(failed)?;
    let program = folder.path().join("cowimg");
    std::fs::copy(&built, &program).map_err(failed)?;
    Ok((folder, program))
}

/// Ours and theirs in turn, now one first and now the other. The first
/// pair fills caches, is verified and does not count.
fn measure(run: &Run, row: &Row, pairs: usize) -> Result<Vec<(Sample, Sample)>, Failed> {
    let mut samples = Vec::with_capacity(pairs);
    for pair in 0..=pairs {
        run.pair.set(pair);
        run.remove_results()?;
        run.prepare(row)?;
        let ours = || run.time(row.ours);
        let theirs = || run.time_repeated(row.theirs, row.times);
        let (ours, theirs) = if pair % 2 == 0 {
            let ours = ours()?;
            (ours, theirs()?)
        } else {
            let theirs = theirs()?;
            (ours()?, theirs)
        };
        if pair == 0 {
            for command in row.verify {
                run.quietly(command)?;
            }
        } else {
            samples.push((ours, theirs));
        }
    }
    Ok(samples)
}

fn line(row: &Row, samples: &[(Sample, Sample)]) -> String {
    let of_pairs = |value: fn(&(Sample, Sample)) -> f64| median(samples.iter().map(value).collect());
    let ratios: Vec<f64> = samples.iter().map(|(ours, theirs)| ours.seconds / theirs.seconds).collect();
    let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let most = ratios.iter().copied().fold(0.0, f64::max);
    format!(
        "| {} | **{}** | {} | {}-{} | {} | {} | {} | {:.1} / {:.1} MB |",
        row.name,
        ratio(median(ratios)),
        row.target,
        ratio(least),
        ratio(most),
        ratio(of_pairs(|(ours, theirs)| ours.cpu_seconds / theirs.cpu_seconds)),
        milliseconds(of_pairs(|(ours, _)| ours.seconds)),
        milliseconds(of_pairs(|(_, theirs)| theirs.seconds)),
        of_pairs(|(ours, _)| ours.peak_bytes) / 1e6,
        of_pairs(|(_, theirs)| theirs.peak_bytes) / 1e6,
    )
}

/// A small one to the thousandth, for some targets are hundredths.
fn ratio(value: f64) -> String {
    if value < 0.095 { format!("{value:.3}") } else { format!("{value:.2}") }
}

fn milliseconds(seconds: f64) -> String {
    if seconds < 0.1 { format!("{:.1} ms", seconds * 1e3) } else { format!("{:.0} ms", seconds * 1e3) }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        len if len.is_multiple_of(2) => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}
