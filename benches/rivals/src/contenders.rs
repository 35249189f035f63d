//! Who takes part, and how each is set to work: in a process of its own.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::sys::resource::{UsageWho, getrusage};

use crate::work::{Failure, Kind, Measured, Work, cpu_seconds};
use crate::{cowimg_blocking, imago_tokio, qcow2_rs_tasks};
use qcow2_rs_tasks::Engine;

/// The word that makes this program one of its own contenders.
pub(crate) const WORK: &str = "--work";
/// Seconds after which a contender is given up.
const PATIENCE: &str = "120";
/// The distance of two requests of `qemu-img bench`, which go around the disk: a little more than 1 MiB.
const STEP: u64 = (1 << 20) + 4096;

/// A library in one of the ways to run it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contender {
    Cowimg,
    Imago,
    ImagoSync,
    Qcow2RsUring,
    Qcow2RsCalls,
    QemuImg,
}

impl Contender {
    /// All of them, cowimg first.
    pub(crate) const ALL: [Contender; 6] = [
        Contender::Cowimg,
        Contender::Imago,
        Contender::ImagoSync,
        Contender::Qcow2RsUring,
        Contender::Qcow2RsCalls,
        Contender::QemuImg,
    ];

    /// Its name in the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Contender::Cowimg => "cowimg",
            Contender::Imago => "imago, tokio",
            Contender::ImagoSync => "imago, sync",
            Contender::Qcow2RsUring => "qcow2-rs, tokio-uring",
            Contender::Qcow2RsCalls => "qcow2-rs, pread",
            Contender::QemuImg => "qemu-img bench",
        }
    }

    /// Does the work in a process of its own in `folder`.
    pub(crate) fn measure(self, folder: &Path, work: &Work) -> Result<Measured, Failure> {
        match self {
            Contender::QemuImg => qemu_img(folder, work),
            Contender::ImagoSync => {
                let program = std::env::current_exe()?.with_file_name("imago-sync");
                answer(Command::new("timeout").arg(PATIENCE).arg(program), folder, work)
            }
            _ => {
                let program = std::env::current_exe()?;
                answer(
                    Command::new("timeout").arg(PATIENCE).arg(program).args([WORK, self.name()]),
                    folder,
                    work,
                )
            }
        }
    }
}

/// What a process is that was started by [`Contender::measure`].
pub(crate) fn work(mut args: impl Iterator<Item = String>) -> Result<Measured, Failure> {
    let name = args.next().ok_or("a contender is missing")?;
    let work = Work::parse(args)?;
    work.keep_to_processors()?;
    match Contender::ALL.into_iter().find(|contender| contender.name() == name) {
        Some(Contender::Cowimg) => cowimg_blocking::run(&work),
        Some(Contender::Imago) => imago_tokio::run(&work),
        Some(Contender::Qcow2RsUring) => qcow2_rs_tasks::run(&work, Engine::Uring),
        Some(Contender::Qcow2RsCalls) => qcow2_rs_tasks::run(&work, Engine::Calls),
        _ => Err(format!("{name} does not work here").into()),
    }
}

fn answer(program: &mut Command, folder: &Path, work: &Work) -> Result<Measured, Failure> {
    let output = program.args(work.words()).current_dir(folder).stdin(Stdio::null()).output()?;
    Measured::parse(&text_of(&output)?)
}

/// The nearest that there is: requests at a fixed distance, sent by one thread.
fn qemu_img(folder: &Path, work: &Work) -> Result<Measured, Failure> {
    if work.threads > 1 || work.kind == Kind::Open {
        return Err("-".into());
    }
    let Work { count, depth, image, .. } = work;
    let write = if work.kind == Kind::Write { "-w" } else { "-q" };
    let before = cpu_of_children()?;
    let output = Command::new("taskset")
        .args(["-c", "0", "timeout", PATIENCE, "qemu-img", "bench", write, "-f", "qcow2", "-t", "unsafe"])
        .args([
            "-c",
            &count.to_string(),
            "-d",
            &depth.to_string(),
            "-s",
            "4096",
            "-S",
            &STEP.to_string(),
            image,
        ])
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()?;
    let text = text_of(&output)?;
    let seconds = text
        .lines()
        .find_map(|line| line.strip_prefix("Run completed in ")?.strip_suffix(" seconds."))
        .ok_or("qemu-img bench told no time")?;
    let cpu_seconds = cpu_of_children()? - before;
    Ok(Measured { seconds: seconds.parse()?, cpu_seconds, peak_bytes: 0.0, sum: 0 })
}

/// Seconds of the processor that the processes have taken that were started here and have ended.
fn cpu_of_children() -> Result<f64, Failure> {
    Ok(cpu_seconds(&getrusage(UsageWho::RUSAGE_CHILDREN)?))
}

/// What a process has printed, or why it failed.
fn text_of(output: &Output) -> Result<String, Failure> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let said = errors.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    match output.status.code() {
        Some(124) => Err(format!("no end within {PATIENCE} s").into()),
        _ if errors.contains("panicked") => Err("panicked".into()),
        _ => Err(said.to_owned().into()),
    }
}
