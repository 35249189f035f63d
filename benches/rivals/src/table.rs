//! Rounds of all contenders in turn, and the table of what they took.

use std::fmt::Write as _;
use std::path::Path;

use crate::contenders::Contender;
use crate::images::{self, Images};
use crate::rows::{ROWS, Row};
use crate::work::{Failure, Kind, Measured, Work};

/// What a contender took, a value for each round, or what it got wrong.
type Outcome = Result<Vec<Measured>, String>;

/// Prints the rows whose names contain one of the words, or all.
pub(crate) fn print(folder: &Path, rounds: usize, words: &[String]) -> Result<(), Failure> {
    println!("| work | {} |", Contender::ALL.map(Contender::name).join(" | "));
    println!("|---|{}", "---|".repeat(Contender::ALL.len()));
    let mut images = Images::new(folder);
    let wanted = |row: &&Row| words.is_empty() || words.iter().any(|word| row.name.contains(word.as_str()));
    for row in ROWS.iter().filter(wanted) {
        images.make(row.start)?;
        println!(
            "| {} | {} |",
            row.name,
            cells(&measure(folder, &images, row, rounds)?, row.count).join(" | ")
        );
    }
    Ok(())
}

fn measure(folder: &Path, images: &Images<'_>, row: &Row, rounds: usize) -> Result<Vec<Outcome>, Failure> {
    let mut outcomes = vec![Outcome::Ok(Vec::new()); Contender::ALL.len()];
    for round in 0..=rounds {
        // Another seed in each round.
        let work = work(row, round);
        if round == 0 && row.kind == Kind::Write {
            images.expect(row.start, &work)?;
        }
        for (contender, outcome) in Contender::ALL.into_iter().zip(&mut outcomes) {
            let Ok(samples) = outcome else { continue };
            if row.kind == Kind::Write {
                images::run(folder, &format!("cp {} out.qcow2", row.start.image()))?;
            }
            match contender.measure(folder, &work).and_then(|measured| {
                if round == 0 && contender != Contender::QemuImg {
                    verify(images, row, &work, measured)?;
                }
                Ok(measured)
            }) {
                Ok(measured) if round > 0 => samples.push(measured),
                Ok(_) => {}
                Err(error) => *outcome = Err(error.to_string()),
            }
        }
    }
    Ok(outcomes)
}

fn work(row: &Row, round: usize) -> Work {
    Work {
        kind: row.kind,
        image: if row.kind == Kind::Write { "out.qcow2".to_owned() } else { row.start.image() },
        size: row.start.size(),
        count: row.count,
        depth: row.depth,
        threads: row.threads,
        seed: round as u64 * 1_000_003,
        summed: round == 0,
    }
}

/// That a contender has read what is there, or written what it was told.
fn verify(images: &Images<'_>, row: &Row, work: &Work, measured: Measured) -> Result<(), Failure> {
    match row.kind {
        Kind::Write => images.judge(),
        _ if measured.sum == images.sum(row.start, work)? => Ok(()),
        _ => Err("**read wrong bytes**".into()),
    }
}

/// The medians of a contender's time of a request and of its memory, and those of cowimg's time and processor time by its,
/// round by round.
fn cells(outcomes: &[Outcome], requests: u64) -> Vec<String> {
    let ours = outcomes.first().and_then(|ours| ours.as_ref().ok());
    let cell = |(nth, outcome): (usize, &Outcome)| {
        let samples = match outcome {
            Ok(samples) => samples,
            Err(why) => return why.clone(),
        };
        let seconds = median(samples.iter().map(|sample| sample.seconds));
        // Writing to a string does not fail.
        let mut cell = time(seconds / requests as f64);
        let peak = median(samples.iter().map(|sample| sample.peak_bytes));
        if peak > 0.0 {
            _ = write!(cell, ", {:.1} MB", peak / 1e6);
        }
        if let (1.., Some(ours)) = (nth, ours) {
            let ratio = |of: fn(&Measured) -> f64| {
                median(ours.iter().zip(samples).map(|(ours, theirs)| of(ours) / of(theirs)))
            };
            let (time, cpu) = (ratio(|taken| taken.seconds), ratio(|taken| taken.cpu_seconds));
            _ = write!(cell, ", **{time:.2}**, CPU {cpu:.2}");
        }
        cell
    };
    outcomes.iter().enumerate().map(cell).collect()
}

fn time(seconds: f64) -> String {
    if seconds < 1e-3 { format!("{:.2} us", seconds * 1e6) } else { format!("{:.2} ms", seconds * 1e3) }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        len if len.is_multiple_of(2) => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}
