//! Running a command and measuring it.

use std::cell::Cell;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::rows::Row;

/// Why there is no figure.
#[derive(Debug)]
pub(crate) struct Failed(pub(crate) String);

/// What one run of a command took.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sample {
    pub(crate) seconds: f64,
    /// Of the processor, in the program and in the kernel for it.
    pub(crate) cpu_seconds: f64,
    /// The most memory that was resident.
    pub(crate) peak_bytes: f64,
}

/// Where commands run, and what `cowimg`, `side_by_side` and `{pair}` mean in them.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) cowimg: PathBuf,
    pub(crate) itself: PathBuf,
    pub(crate) folder: PathBuf,
    /// The number of the pair: for results that are not to be in the place of those before.
    pub(crate) pair: Cell<usize>,
}

impl Run {
    /// The command, its words parted by spaces. No shell stands between: starting one costs as much as some rows.
    fn command(&self, line: &str) -> Command {
        let line = line.replace("{pair}", &self.pair.get().to_string());
        let mut words = line.split(' ').filter(|word| !word.is_empty());
        let program = words.next().unwrap_or_default();
        let mut command = match program {
            "cowimg" => Command::new(&self.cowimg),
            "side_by_side" => Command::new(&self.itself),
            _ => Command::new(program),
        };
        command.args(words).current_dir(&self.folder).stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// Runs a command whose time does not count.
    pub(crate) fn quietly(&self, line: &str) -> Result<(), Failed> {
        let status = self.command(line).status().map_err(|error| Failed(format!("{line}: {error}")))?;
        if status.success() { Ok(()) } else { Err(Failed(format!("{line}: {status}"))) }
    }

    pub(crate) fn prepare(&self, row: &Row) -> Result<(), Failed> {
        row.prepare.iter().try_for_each(|line| self.quietly(line))
    }

    pub(crate) fn time(&self, line: &str) -> Result<Sample, Failed> {
        let mut command = self.command(line);
        let start = Instant::now();
        let child = command.spawn().map_err(|error| Failed(format!("{line}: {error}")))?;
        let usage = wait(&child).map_err(|why| Failed(format!("{line}: {why}")))?;
        let seconds = start.elapsed().as_secs_f64();
        let of = |time: libc::timeval| number(time.tv_sec) + number(time.tv_usec) / 1e6;
        Ok(Sample {
            seconds,
            cpu_seconds: of(usage.ru_utime) + of(usage.ru_stime),
            peak_bytes: number(usage.ru_maxrss) * 1024.0,
        })
    }

    /// The same command several times, `{n}` in it being the number of the run, as one figure.
    pub(crate) fn time_repeated(&self, line: &str, times: usize) -> Result<Sample, Failed> {
        let mut sum = Sample::default();
        for nth in 0..times {
            let one = self.time(&line.replace("{n}", &nth.to_string()))?;
            sum.seconds += one.seconds;
            sum.cpu_seconds += one.cpu_seconds;
            sum.peak_bytes = sum.peak_bytes.max(one.peak_bytes);
        }
        Ok(sum)
    }

    /// Removes what a row has made: everything whose name starts with `out`.
    pub(crate) fn remove_results(&self) -> Result<(), Failed> {
        let entries = std::fs::read_dir(&self.folder).map_err(|error| Failed(error.to_string()))?;
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with("out") {
                std::fs::remove_file(entry.path()).map_err(|error| Failed(error.to_string()))?;
            }
        }
        Ok(())
    }
}

#[allow(clippy::cast_precision_loss, reason = "seconds, microseconds and KiB are far below 2^53")]
fn number(value: i64) -> f64 {
    value as f64
}

/// Waits for the end of a child, and what it used.
#[allow(unsafe_code, reason = "no safe wrapper of wait4 gives the usage of one child")]
fn wait(child: &Child) -> Result<libc::rusage, String> {
    let pid = libc::pid_t::try_from(child.id()).map_err(|error| error.to_string())?;
    let mut status = 0;
    // SAFETY: a `rusage` is numbers, for which zeroes are values.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to values of their types that outlive the call; nobody else waits for the child.
    let waited = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
    if waited != pid {
        return Err(std::io::Error::last_os_error().to_string());
    }
    if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0 {
        Ok(usage)
    } else {
        Err(format!("ended with status {status:#x}"))
    }
}
