//! Ctrl-C as a flag: a long job looks at it, cleans up and says what it has left behind. And a signal that is none.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;

use crate::failure::{Failure, os_message};

/// Signals that ask a process to end.
const SIGNALS: [i32; 3] = [SIGINT, SIGTERM, SIGHUP];

/// Makes a write past the limit on the size of files an error of that write; its signal would end the process, and leave
/// behind what it was about to clean up.
pub(crate) fn survive_file_size_limit() {
    // Nobody looks at the flag. Where it cannot be put up, the signal does what it does.
    let _unregistered = flag::register(SIGXFSZ, Arc::default());
}

/// Turns signals into a flag from its making to the end of the process. The second signal ends the process at once, so
/// that a job that hangs can still be ended.
#[derive(Debug)]
pub(crate) struct Interrupt {
    cancel: Arc<AtomicBool>,
    signal: Arc<AtomicUsize>,
}

impl Interrupt {
    /// Starts to listen.
    pub(crate) fn listen() -> Result<Interrupt, Failure> {
        Interrupt::registered()
            .map_err(|error| Failure::new(format!("could not listen for signals: {}", os_message(&error))))
    }

    fn registered() -> io::Result<Interrupt> {
        let interrupt = Interrupt { cancel: Arc::default(), signal: Arc::default() };
        for signal in SIGNALS {
            // The order counts: on the first signal the flag is still down when this one looks at it.
            flag::register_conditional_default(signal, Arc::clone(&interrupt.cancel))?;
            flag::register_usize(signal, Arc::clone(&interrupt.signal), signal.unsigned_abs() as usize)?;
            flag::register(signal, Arc::clone(&interrupt.cancel))?;
        }
        Ok(interrupt)
    }

    /// The flag: up once a signal has come.
    pub(crate) fn cancel(&self) -> &AtomicBool {
        &self.cancel
    }

    /// The signal that came last, if any.
    pub(crate) fn signal(&self) -> Option<i32> {
        match self.signal.load(Ordering::Relaxed) {
            0 => None,
            signal => i32::try_from(signal).ok(),
        }
    }
}
