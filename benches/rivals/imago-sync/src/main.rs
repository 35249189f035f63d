//! imago built with its feature `sync`, which its README advises where nothing else is asynchronous.

#[path = "../../src/blocking.rs"]
mod blocking;
#[path = "../../src/work.rs"]
#[allow(dead_code, reason = "the program that starts this one uses the rest")]
mod work;

use std::process::ExitCode;

use blocking::Disk;
use imago::file::File;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate};
use work::{Failure, Kind, Measured, Work};

struct Opened(FormatAccess<File>);

impl Disk for Opened {
    fn read(&self, buf: &mut [u8], offset: u64) -> Result<(), Failure> {
        Ok(self.0.read(buf, offset)?)
    }

    fn write(&self, buf: &[u8], offset: u64) -> Result<(), Failure> {
        Ok(self.0.write(buf, offset)?)
    }

    fn flush(&self) -> Result<(), Failure> {
        Ok(self.0.flush()?)
    }
}

fn run() -> Result<Measured, Failure> {
    let work = Work::parse(std::env::args().skip(1))?;
    work.keep_to_processors()?;
    blocking::run(&work, || {
        let builder = Qcow2::<File>::builder_path(&work.image).write(work.kind == Kind::Write);
        Ok(Opened(FormatAccess::new(builder.open(PermissiveImplicitOpenGate::default())?)))
    })
}

fn main() -> ExitCode {
    match run() {
        Ok(measured) => {
            println!("{}", measured.line());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
