//! The progress of work in several walks over an image, as that of one.

use crate::progress::{Control, Progress};

/// A part of the work.
pub(super) struct Phase<'a> {
    inner: Option<&'a dyn Progress>,
    nth: u64,
    of: u64,
}

impl<'a> Phase<'a> {
    /// The `nth` of `of` phases, counted from 0; those past the last one are heard of as its end.
    pub(super) fn new(control: &Control<'a>, nth: u64, of: u64) -> Phase<'a> {
        Phase { inner: control.progress, nth, of }
    }

    /// What the phase is given; it cannot be cancelled.
    pub(super) fn control(&self) -> Control<'_> {
        Control { progress: Some(self), cancel: None }
    }
}

impl Progress for Phase<'_> {
    fn advanced(&self, done: u64, total: u64) {
        let Some(inner) = self.inner else { return };
        let all = total.saturating_mul(self.of);
        inner.advanced(total.saturating_mul(self.nth).saturating_add(done).min(all), all);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    struct Heard(Mutex<Vec<(u64, u64)>>);

    impl Progress for Heard {
        fn advanced(&self, done: u64, total: u64) {
            self.0.lock().unwrap().push((done, total));
        }
    }

    #[test]
    fn phases_follow_each_other_and_never_pass_the_end() {
        let heard = Heard(Mutex::new(Vec::new()));
        let control = Control { progress: Some(&heard), cancel: None };
        for nth in 0..4 {
            Phase::new(&control, nth, 3).control().report(5, 10);
        }
        assert_eq!(*heard.0.lock().unwrap(), [(5, 30), (15, 30), (25, 30), (30, 30)]);
    }
}
