//! How far a job is: a bar on a terminal, qemu-img's lines for `-p`, or nothing.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cowimg::progress::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use signal_hook::consts::SIGUSR1;
use signal_hook::flag;

use crate::failure::note_plain;

/// What the user wants to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Nothing (`-q`).
    Nothing,
    /// A bar on standard error, if that is a terminal.
    Bar,
    /// Lines on standard output (`-p`).
    Lines,
    /// The same for `amend`, which tells the beginning of its work once more.
    Steps,
    /// The same for `compare`, which adds up the shares of what it has compared, and ends the lines by itself.
    Shares,
}

/// Shows a job's progress until it is dropped; a SIGUSR1 has it told on standard error, whatever is shown else.
#[derive(Debug)]
pub(crate) struct Display {
    shown: Shown,
    /// Up when somebody has asked how far the job is.
    asked: Arc<AtomicBool>,
}

#[derive(Debug)]
enum Shown {
    /// Shows nothing.
    Hidden,
    /// A bar with rate and time left.
    Bar(ProgressBar),
    /// `    (12.34/100%)` and a carriage return, at most once per per cent.
    Lines(Mutex<Lines>),
}

/// What has been printed, in per cent. Numbers are as wide as qemu-img's, and so are rounded alike.
#[derive(Debug)]
struct Lines {
    now: f32,
    shown: f32,
    /// What must have been done since the last line before there is another one.
    step: f32,
    /// Bytes that had been done at the last call, where shares are added up.
    adds_up: Option<u64>,
    /// Whether the beginning that the job tells has a line of its own.
    tells_beginning: bool,
    is_finished: bool,
}

impl Lines {
    fn new(step: f32, adds_up: Option<u64>) -> Lines {
        Lines { now: 0.0, shown: 0.0, step, adds_up, tells_beginning: adds_up.is_some(), is_finished: false }
    }

    /// The line that is due after this much work, if one is.
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "a share of the work")]
    fn advance(&mut self, done: u64, total: u64) -> Option<f32> {
        let now = match (&mut self.adds_up, total) {
            (_, 0) => 0.0,
            (Some(before), _) => {
                let share = done.saturating_sub(*before) as f32 / total as f32 * 100.0;
                *before = done;
                self.now + share
            }
            (None, _) => (100.0 * done as f64 / total as f64) as f32,
        };
        self.now = now.min(100.0);
        let is_end = self.now <= 0.0 || self.now >= 100.0;
        let is_due = is_end || self.now > self.shown + self.step || self.now < self.shown - self.step;
        is_due.then(|| {
            self.shown = self.now;
            self.now
        })
    }
}

impl Shown {
    fn start(wanted: Wanted) -> Shown {
        match wanted {
            Wanted::Nothing => Shown::Hidden,
            Wanted::Lines => {
                print_percent(0.0);
                Shown::Lines(Mutex::new(Lines::new(1.0, None)))
            }
            Wanted::Steps => {
                print_percent(0.0);
                Shown::Lines(Mutex::new(Lines { tells_beginning: true, ..Lines::new(1.0, None) }))
            }
            Wanted::Shares => Shown::Lines(Mutex::new(Lines::new(2.0, Some(0)))),
            Wanted::Bar => {
                let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
                let template = "{percent:>3}% [{bar:40}] {bytes}/{total_bytes} {bytes_per_sec}, {eta} left";
                if let Ok(style) = ProgressStyle::with_template(template) {
                    bar.set_style(style.progress_chars("=> "));
                }
                Shown::Bar(bar)
            }
        }
    }
}

impl Display {
    /// Starts to show.
    pub(crate) fn start(wanted: Wanted) -> Display {
        let asked = Arc::new(AtomicBool::new(false));
        // Without it the question ends the job, as it does in programs that do not know it.
        let _unanswered = flag::register(SIGUSR1, Arc::clone(&asked));
        Display { shown: Shown::start(wanted), asked }
    }

    /// Whether lines are printed on standard output.
    pub(crate) fn prints_lines(&self) -> bool {
        matches!(self.shown, Shown::Lines(_))
    }

    /// Ends the display of a job that is done.
    pub(crate) fn finish(&self) {
        match &self.shown {
            Shown::Hidden => {}
            Shown::Bar(bar) => bar.finish_and_clear(),
            Shown::Lines(lines) => {
                print_percent(100.0);
                let _ = io::stdout().write_all(b"\n");
                lines.lock().unwrap_or_else(PoisonError::into_inner).is_finished = true;
            }
        }
    }
}

impl Display {
    /// Tells somebody who has asked.
    #[allow(clippy::cast_precision_loss, reason = "two decimals are printed")]
    fn answer(&self, done: u64, total: u64) {
        let percent = if total == 0 { 100.0 } else { (done as f64 * 100.0 / total as f64).min(100.0) };
        let line = format!("    ({percent:.2}/100%)");
        match &self.shown {
            Shown::Bar(bar) => bar.suspend(|| note_plain(&line)),
            Shown::Hidden | Shown::Lines(_) => note_plain(&line),
        }
    }
}

impl Progress for Display {
    fn advanced(&self, done: u64, total: u64) {
        if self.asked.load(Ordering::Relaxed) && self.asked.swap(false, Ordering::Relaxed) {
            self.answer(done, total);
        }
        match &self.shown {
            Shown::Hidden => {}
            Shown::Bar(bar) => {
                bar.set_length(total);
                bar.set_position(done);
            }
            // The job tells its beginning too; the line for that stands already, unless shares are added up.
            Shown::Lines(lines) => {
                let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                if done == 0 && !lines.tells_beginning {
                    return;
                }
                // The end is told by the last piece and again by the job; the second is `finish`'s.
                if done == total && lines.adds_up.is_none() && lines.now >= 100.0 {
                    return;
                }
                if let Some(percent) = lines.advance(done, total) {
                    print_percent(percent);
                }
            }
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        match &mut self.shown {
            Shown::Hidden => {}
            // A bar that is still there belongs to a job that failed; the message comes in its place.
            Shown::Bar(bar) => bar.finish_and_clear(),
            Shown::Lines(lines) => {
                let lines = lines.get_mut().unwrap_or_else(PoisonError::into_inner);
                if !lines.is_finished && lines.adds_up.is_none() {
                    let _ = io::stdout().write_all(b"\n");
                }
            }
        }
    }
}

fn print_percent(percent: f32) {
    let mut out = io::stdout();
    // Progress that nobody can see is no reason to stop the job.
    let _ = write!(out, "    ({percent:.2}/100%)\r");
    let _ = out.flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_never_more_than_the_whole() {
        let mut lines = Lines::new(1.0, None);
        assert_eq!(lines.advance(1, 300), None);
        assert_eq!(lines.advance(2, 3).map(|percent| format!("{percent:.2}")).as_deref(), Some("66.67"));
        assert_eq!(lines.advance(9, 3), Some(100.0));
        assert_eq!(lines.advance(u64::MAX, u64::MAX), Some(100.0));
    }

    /// What qemu-img 10.0 printed while it compared 16 MiB.
    #[test]
    fn shares_add_up() {
        let mut lines = Lines::new(2.0, Some(0));
        let told = [0, 2, 4, 6, 8, 10, 12, 14, 15, 16].map(|mebibytes| lines.advance(mebibytes, 16));
        let shown: Vec<String> = told.iter().flatten().map(|percent| format!("{percent:.2}")).collect();
        let expected =
            ["0.00", "12.50", "25.00", "37.50", "50.00", "62.50", "75.00", "87.50", "93.75", "100.00"];
        assert_eq!(shown, expected);
    }
}
