//! How far a job is: a bar on a terminal, qemu-img's lines for `-p`, or nothing.

use std::io::{self, Write};
use std::sync::Mutex;

use cowimg::progress::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What the user wants to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Nothing (`-q`).
    Nothing,
    /// A bar on standard error, if that is a terminal.
    Bar,
    /// Lines on standard output (`-p`).
    Lines,
}

/// Shows a job's progress until it is dropped.
#[derive(Debug)]
pub(crate) enum Display {
    /// Shows nothing.
    Hidden,
    /// A bar with rate and time left.
    Bar(ProgressBar),
    /// `    (12.34/100%)` and a carriage return, at most once per per cent.
    Lines(Mutex<Lines>),
}

/// What has been printed.
#[derive(Debug)]
pub(crate) struct Lines {
    /// The last number, in hundredths of a per cent.
    shown: u64,
}

/// Hundredths of a per cent in the whole.
const WHOLE: u64 = 10_000;
/// Hundredths of a per cent between two lines.
const STEP: u64 = 100;

impl Display {
    /// Starts to show.
    pub(crate) fn start(wanted: Wanted) -> Display {
        match wanted {
            Wanted::Nothing => Display::Hidden,
            Wanted::Lines => {
                print_percent(0);
                Display::Lines(Mutex::new(Lines { shown: 0 }))
            }
            Wanted::Bar => {
                let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
                let template = "{percent:>3}% [{bar:40}] {bytes}/{total_bytes} {bytes_per_sec}, {eta} left";
                if let Ok(style) = ProgressStyle::with_template(template) {
                    bar.set_style(style.progress_chars("=> "));
                }
                Display::Bar(bar)
            }
        }
    }

    /// Ends the display of a job that is done.
    pub(crate) fn finish(&self) {
        match self {
            Display::Hidden => {}
            Display::Bar(bar) => bar.finish_and_clear(),
            Display::Lines(_) => {
                print_percent(WHOLE);
                let _ = io::stdout().write_all(b"\n");
            }
        }
    }
}

impl Progress for Display {
    fn advanced(&self, done: u64, total: u64) {
        match self {
            Display::Hidden => {}
            Display::Bar(bar) => {
                bar.set_length(total);
                bar.set_position(done);
            }
            Display::Lines(lines) => {
                let now = hundredths(done, total);
                // Another thread is printing, and what it prints is as good.
                let Ok(mut lines) = lines.try_lock() else { return };
                if now >= lines.shown + STEP || (now == WHOLE && lines.shown < WHOLE) {
                    lines.shown = now;
                    print_percent(now);
                }
            }
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        // A bar that is still there belongs to a job that failed; the message comes in its place.
        if let Display::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// `done` of `total` in hundredths of a per cent; a job without work is done.
fn hundredths(done: u64, total: u64) -> u64 {
    match total {
        0 => WHOLE,
        _ => (u128::from(done.min(total)) * u128::from(WHOLE) / u128::from(total)) as u64,
    }
}

fn print_percent(hundredths: u64) {
    let mut out = io::stdout();
    // Progress that nobody can see is no reason to stop the job.
    let _ = write!(out, "    ({}.{:02}/100%)\r", hundredths / 100, hundredths % 100);
    let _ = out.flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_never_more_than_the_whole() {
        assert_eq!(hundredths(0, 3), 0);
        assert_eq!(hundredths(2, 3), 6666);
        assert_eq!(hundredths(3, 3), WHOLE);
        assert_eq!(hundredths(9, 3), WHOLE);
        assert_eq!(hundredths(0, 0), WHOLE);
        assert_eq!(hundredths(u64::MAX, u64::MAX), WHOLE);
    }
}
