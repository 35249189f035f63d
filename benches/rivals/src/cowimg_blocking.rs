//! cowimg, which has blocking calls and nothing else.

use cowimg::{Access, CacheMode, Format, Image};

use crate::blocking::{self, Disk};
use crate::work::{Failure, Kind, Measured, Work};

struct Opened(Image);

impl Disk for Opened {
    fn read(&self, buf: &mut [u8], offset: u64) -> Result<(), Failure> {
        Ok(self.0.read_at(buf, offset)?)
    }

    fn write(&self, buf: &[u8], offset: u64) -> Result<(), Failure> {
        Ok(self.0.write_at(buf, offset)?)
    }

    fn flush(&self) -> Result<(), Failure> {
        Ok(self.0.flush()?)
    }
}

/// Does the work. Nothing is synced: no contender does.
pub(crate) fn run(work: &Work) -> Result<Measured, Failure> {
    let access = if work.kind == Kind::Write { Access::ReadWrite } else { Access::ReadOnly };
    let options = Image::options().access(access).format(Format::Qcow2).cache_mode(CacheMode::Unsafe);
    blocking::run(work, || Ok(Opened(options.open(&work.image)?)))
}
