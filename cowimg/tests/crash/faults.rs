//! Files that fail: one operation after the other, for a while or for good. The call that meets it says so, nothing that
//! was durable is gone, and the image is consistent, as it stands and after a power cut on top.

use std::io;

use cowimg::storage::{CrashChoice, Fault, OperationKind};
use cowimg::{Access, ErrorKind};

use crate::files::Files;
use crate::history::{Done, History, judge, run};
use crate::lab::{Call, State, carry_out, sectors_of};
use crate::subject::Subject;

/// How a file fails.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Trouble {
    /// One operation fails, of whatever kind.
    Once(io::ErrorKind),
    /// From one change on every change fails.
    ForGood(io::ErrorKind),
    /// So many changes fail for want of space; then there is space again.
    FullFor(u64),
}

impl Trouble {
    /// The kinds of operations that it picks.
    pub(crate) fn kinds(self) -> &'static [OperationKind] {
        match self {
            Trouble::Once(_) => &OperationKind::ALL,
            Trouble::ForGood(_) | Trouble::FullFor(_) => &OperationKind::CHANGES,
        }
    }

    /// Makes the `nth` operation of a file fail, and those that go with it.
    pub(crate) fn arm(self, files: &Files, which: usize, nth: u64) {
        let fault = |kind| Fault::error(kind).on(self.kinds());
        match self {
            Trouble::Once(kind) => files.inject(which, fault(kind).after(nth)),
            Trouble::ForGood(kind) => files.inject(which, fault(kind).after(nth).forever()),
            Trouble::FullFor(count) => {
                for more in 0..count {
                    files.inject(which, fault(io::ErrorKind::StorageFull).after(nth + more));
                }
            }
        }
    }

    /// Whether a file has come as far as to operation `nth`.
    pub(crate) fn was_met(self, files: &Files, which: usize, nth: u64) -> bool {
        files.count(which, self.kinds()) > nth
    }
}

/// Fails every operation of a workload in turn; returns how many failures that were.
pub(crate) fn fail_every_operation(name: &str, subject: &Subject, calls: &[Call], trouble: Trouble) -> u64 {
    let mut failures = 0;
    for which in 0..subject.files.len() {
        for nth in 0.. {
            let context = format!("{name}, {trouble:?}, operation {nth} of file {which}");
            let files = Files::new(&subject.files);
            let history = run_in_trouble(subject, &files, calls, (trouble, which, nth), &context);
            if !trouble.was_met(&files, which, nth) {
                break;
            }
            failures += 1;
            files.clear_faults();
            for choice in [CrashChoice::Synced, CrashChoice::All] {
                let context = format!("{context}, {choice:?}");
                judge(subject, files.crash_now(choice), &history, (files.now(), &context));
            }
        }
    }
    failures
}

/// Lets no read or write do more than so many bytes at once: no call fails, and nothing is lost.
pub(crate) fn shorten_every_transfer(name: &str, subject: &Subject, calls: &[Call], bytes: usize) {
    let files = Files::new(&subject.files);
    (0..subject.files.len()).for_each(|which| files.inject(which, Fault::short(bytes).forever()));
    let history = run(subject, &files, calls);
    files.clear_faults();
    let context = format!("{name}, {bytes} bytes at once");
    judge(subject, files.crash_now(CrashChoice::Synced), &history, (files.now(), &context));
}

/// [`fail_every_operation`] for one file and a fault that happens once; the name that older workloads call it by.
pub(crate) fn fail_every_change(
    name: &str,
    start: impl Into<Subject>,
    calls: &[Call],
    kind: io::ErrorKind,
) -> u64 {
    fail_every_operation(name, &start.into(), calls, Trouble::Once(kind))
}

fn run_in_trouble(
    subject: &Subject,
    files: &Files,
    calls: &[Call],
    (trouble, which, nth): (Trouble, usize, u64),
    context: &str,
) -> History {
    let shared = files.shared();
    let image = subject.open(&shared, Access::ReadWrite).unwrap();
    let mut history = History::new(files.calmly(|| subject.state(&image, &shared)));
    trouble.arm(files, which, nth);
    for call in calls {
        let expected = history.last().after(*call);
        let done = carry_out(&image, *call);
        if let Err(error) = &done {
            let known = matches!(error.kind(), ErrorKind::Io { .. } | ErrorKind::Failed { .. });
            assert!(known, "{context}: {call:?}: {error}");
        }
        // A call that failed on the way may have done a part of its work, and one that changes the whole disk all.
        let durable = done.is_ok() && call.is_durable();
        let sectors = files.calmly(|| sectors_of(&image));
        let mut now = State { sectors, ..history.last().clone() };
        let mut states = Vec::new();
        if durable {
            now.snapshots = expected.snapshots;
        } else if call.is_durable() {
            states.extend(history.last().during(*call));
            states.push(expected);
        }
        states.push(now);
        history.done.push(Done { end: files.now(), durable, states });
    }
    // Whether this succeeds depends on how long the trouble lasts.
    let _closed = image.close();
    history
}
