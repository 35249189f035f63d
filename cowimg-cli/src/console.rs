//! Standard output as a command sees it, and the manner in which the command is to act.

use std::io::{self, BufWriter, Stdout, Write};

use cowimg::Overwrite;

use crate::manner::Manner;

/// Bytes that the strict manner holds back, so that errors come before reports in a log that joins both.
const HELD_BACK: usize = 1 << 20;

/// Where a command's report goes, and whose habits it follows.
#[derive(Debug)]
pub(crate) struct Console {
    /// Whose habits.
    pub(crate) manner: Manner,
    out: BufWriter<Stdout>,
}

impl Console {
    /// The console of a program that acts in this manner.
    pub(crate) fn new(manner: Manner) -> Console {
        let out = match manner {
            Manner::Cowimg => BufWriter::new(io::stdout()),
            Manner::QemuImg => BufWriter::with_capacity(HELD_BACK, io::stdout()),
        };
        Console { manner, out }
    }

    /// What becomes of a target that exists: in the strict manner it is always written over where it is, else it is
    /// replaced only if `force` says so.
    pub(crate) fn overwrite(&self, force: bool) -> Overwrite {
        match self.manner {
            Manner::QemuImg => Overwrite::InPlace,
            Manner::Cowimg if force => Overwrite::Replace,
            Manner::Cowimg => Overwrite::Refuse,
        }
    }

    /// Shows what has been written so far, before work that takes its time.
    pub(crate) fn flush_now(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Write for Console {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.out.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
