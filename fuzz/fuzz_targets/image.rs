//! A whole image of any bytes: it opens or is refused, reads, checks, is repaired and takes writes without a panic, in
//! bounded memory and time. Where `check` finds it sound, what was written is what is read. A plan of a repair changes
//! nothing, and a repair that leaves nothing to find leaves nothing to do.
#![no_main]

use std::sync::Arc;

use cowimg::check::{Repair, plan_storage, repair_storage};
use cowimg::storage::MemoryStorage;
use cowimg::{Access, ByteRange, FilePolicy, Format, Image, ResizeOptions, Result, ZeroMode};
use libfuzzer_sys::fuzz_target;

/// A hostile image may be exabytes long: so many of its extents are looked at, and so many bytes of each.
const EXTENTS: usize = 64;
const BYTES: usize = 16 << 10;

fuzz_target!(|bytes: &[u8]| {
    repair(bytes);
    let Ok(image) = open(bytes, Access::ReadOnly) else { return };
    read_all(&image);
    // In a damaged image two parts of the disk may share their bytes, or share them with a table.
    let is_sound = image.check().is_ok_and(|report| report.corruptions == 0 && report.check_errors == 0);
    if let Ok(image) = open(bytes, Access::ReadWrite) {
        let _ = change(&image, is_sound);
        let _ = image.close();
    }
});

fn repair(bytes: &[u8]) {
    for kind in [Repair::Leaks, Repair::Refcounts, Repair::All] {
        let storage = MemoryStorage::with_bytes(bytes);
        let Ok(plan) = plan_storage(&storage, kind) else { return };
        assert!(plan.steps.iter().all(|step| !step.remedy.to_string().is_empty()));
        let Ok(report) = repair_storage(&storage, kind) else { continue };
        assert!(report.before == plan.report, "the plan is of the same check");
        if kind == Repair::All && report.after.is_clean() {
            let repaired = storage.to_vec();
            let _ = repair_storage(&storage, kind);
            assert!(storage.to_vec() == repaired, "a second repair has nothing to do");
        }
    }
}

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
