//! Runs the rows of a table with both programs and tells every difference at once.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use crate::bench_folder::{BenchFolder, Side};
use crate::outcome;
use crate::row::{Note, Row, Step};
use crate::spoken::{LeftOut, comparable, difference};

/// What a program said to one command line.
struct Answer {
    code: Option<i32>,
    stdout: Vec<u8>,
    stderr: String,
}

/// Command lines on the same images.
pub(crate) struct Table {
    /// Scripts that make the images, one after the other; see `images` and `bench_folder` for their words.
    pub(crate) images: &'static [&'static str],
    /// One row on each line; see `row`. Lines that begin with `#` and empty ones are for the reader.
    pub(crate) rows: &'static str,
}

impl Table {
    fn parsed(&self) -> Vec<Row> {
        let lines = self.rows.lines().map(str::trim);
        lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(Row::parse).collect()
    }

    /// How many command lines of `qemu-img` are in it.
    pub(crate) fn command_lines(&self) -> usize {
        self.parsed().iter().map(Row::command_lines).sum()
    }

    /// Runs every row; panics with all differences.
    pub(crate) fn prove(&self) {
        let bench = BenchFolder::new(&self.images.concat());
        let rows = self.parsed();
        let (left_out, run): (Vec<_>, Vec<_>) =
            rows.iter().partition(|row| row.has(Note::Since10) && !reference_is_10());
        if !left_out.is_empty() {
            let lines: Vec<_> = left_out.iter().map(|row| format!("    {}\n", row.text)).collect();
            eprintln!(
                "LEFT OUT: {} of {} rows need qemu-img 10, and here is {}:\n{}",
                left_out.len(),
                rows.len(),
                version(),
                lines.concat()
            );
        }
        let mut report = String::new();
        let mut differing = 0;
        for row in &run {
            let found = prove_row(&bench, row);
            if !found.is_empty() {
                differing += 1;
                let _ = writeln!(report, "DIFFERS {}\n    {}", row.text, found.join("\n    "));
            }
        }
        if !reference_is_10() {
            // An older release is no judge of what differs.
            eprintln!(
                "LEFT OUT: {differing} of {} rows, which {} answers otherwise:\n{report}",
                run.len(),
                version()
            );
            return;
        }
        assert!(differing == 0, "{differing} of {} rows differ:\n{report}", run.len());
    }
}

fn prove_row(bench: &BenchFolder, row: &Row) -> Vec<String> {
    bench.reset();
    let mut found = Vec::new();
    for (number, step) in row.steps.iter().enumerate() {
        match step {
            Step::Shell(line) => [Side::Theirs, Side::Ours].iter().for_each(|side| bench.shell(*side, line)),
            Step::Program(words) => {
                let differences = prove_step(bench, row, words);
                found.extend(differences.iter().map(|what| format!("[{}] {what}", number + 1)));
            }
        }
    }
    if !row.has(Note::TheirsChanges) {
        found.extend(outcome::compare(bench, row));
    }
    found
}

fn prove_step(bench: &BenchFolder, row: &Row, words: &[String]) -> Vec<String> {
    let before = bench.state(Side::Ours);
    let run = |side: Side| {
        Answer::of(bench.qemu_img(side).args(words.iter().map(|word| {
            // Within the row a folder has no name, so that the same words fit both.
            word.replace("@DIR@", &bench.folder(side).display().to_string())
        })))
    };
    let (theirs, ours) = (run(Side::Theirs), run(Side::Ours));
    let mut found = Vec::new();
    if theirs.code != ours.code {
        let [theirs, ours] = [&theirs, &ours].map(|answer| (answer.code, answer.stderr.trim()));
        found.push(format!("exit code: qemu-img {theirs:?}, ours {ours:?}"));
    }
    let left_out = LeftOut {
        dates: row.steps.iter().any(Step::makes_a_snapshot),
        layout: row.has(Note::Layout),
        progress: row.has(Note::Progress),
    };
    let said = |answer: &Answer, side: Side| comparable(&answer.stdout, &bench.folder(side), left_out);
    let (their_words, our_words) = (said(&theirs, Side::Theirs), said(&ours, Side::Ours));
    if their_words != our_words && !row.has(Note::OwnWords) {
        found.push(format!("standard output:\n{}", difference(&their_words, &our_words)));
    }
    if was_refused(words, ours.code) {
        if !ours.stderr.starts_with("qemu-img: ") && !tables_are_proven() {
            found.push(format!("the refusal does not begin with 'qemu-img: ': {:?}", ours.stderr));
        }
        if !row.has(Note::BothChange) && !tables_are_proven() && bench.state(Side::Ours) != before {
            found.push(format!("a refused command changed files: {}", ours.stderr));
        }
    }
    found
}

/// Whether the exit code says that the command was not done. A comparison that found a difference and a check that found
/// damage are answers.
fn was_refused(words: &[String], code: Option<i32>) -> bool {
    let answers: &[i32] = match words.first().map(String::as_str) {
        Some("compare") => &[0, 1],
        Some("check") => &[0, 2, 3],
        _ => &[0],
    };
    !code.is_some_and(|code| answers.contains(&code))
}

impl Answer {
    fn of(command: &mut Command) -> Answer {
        let output =
            command.output().expect("timeout and qemu-img are installed: packages coreutils, qemu-utils");
        Answer {
            code: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Whether a real qemu-img stands in the place of our program, whose refusals name it with its path.
fn tables_are_proven() -> bool {
    std::env::var_os("COWIMG_COMPAT_PROGRAM").is_some()
}

/// The first line of `qemu-img --version`.
fn version() -> &'static str {
    static VERSION: OnceLock<String> = OnceLock::new();
    VERSION.get_or_init(|| {
        let answer = Answer::of(Command::new(PathBuf::from("qemu-img")).arg("--version"));
        String::from_utf8_lossy(&answer.stdout).lines().next().unwrap_or_default().to_owned()
    })
}

/// Whether the installed qemu-img is of the version that this program follows.
pub(crate) fn reference_is_10() -> bool {
    version().starts_with("qemu-img version 10.")
}
