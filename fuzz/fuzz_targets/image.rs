//! A whole image of any bytes: it opens or is refused, reads, checks and takes writes without a panic, in bounded
//! memory and time. Where `check` finds it sound, what was written is what is read.
#![no_main]

use std::sync::Arc;

use cowimg::storage::MemoryStorage;
use cowimg::{Access, ByteRange, FilePolicy, Format, Image, ResizeOptions, Result, ZeroMode};
use libfuzzer_sys::fuzz_target;

/// A hostile image may be exabytes long: so many of its extents are looked at, and so many bytes of each.
const EXTENTS: usize = 64;
const BYTES: usize = 16 << 10;

fuzz_target!(|bytes: &[u8]| {
    let Ok(image) = open(bytes, Access::ReadOnly) else { return };
    read_all(&image);
    // In a damaged image two parts of the disk may share their bytes, or share them with a table.
    let is_sound = image.check().is_ok_and(|report| report.corruptions == 0 && report.check_errors == 0);
    if let Ok(image) = open(bytes, Access::ReadWrite) {
        let _ = change(&image, is_sound);
        let _ = image.close();
    }
});

fn open(bytes: &[u8], access: Access) -> Result<Image> {
    let options = Image::options().format(Format::Qcow2).backing(FilePolicy::DenyAll).access(access);
    options.open_storage(Arc::new(MemoryStorage::with_bytes(bytes)))
}

fn read_all(image: &Image) {
    let mut buffer = [0; BYTES];
    for extent in image.extents(ByteRange::between(0, image.size())).take(EXTENTS).map_while(Result::ok) {
        let len = extent.range.len().min(BYTES as u64) as usize;
        let _ = image.read_at(&mut buffer[..len], extent.range.start());
    }
}

/// Changes the first bytes of the disk and its last. An error ends it: a damaged image may refuse any of these.
fn change(image: &Image, is_sound: bool) -> Result<()> {
    let len = image.size().min(BYTES as u64);
    for start in [0, image.size() - len] {
        let range = ByteRange::between(start, start + len);
        let written = vec![0xa5; len as usize];
        image.write_at(&written, start)?;
        let mut read = vec![0; len as usize];
        image.read_at(&mut read, start)?;
        assert!(!is_sound || read == written, "a write is read back");
        image.write_zeroes(range, ZeroMode::Unmap)?;
        image.read_at(&mut read, start)?;
        assert!(!is_sound || read.iter().all(|&byte| byte == 0), "zeroes are read back");
        image.discard(range)?;
        image.flush()?;
    }
    image.resize(image.size().saturating_add(1 << 20), &ResizeOptions::default())?;
    image.flush()
}
