//! Copying persistent dirty bitmaps beside a disk's content, as a conversion does on request.

use crate::chain::Image;
use crate::error::{BitmapProblem, Error, ErrorKind, Result};
use crate::format::qcow2::Version;
use crate::qcow2::{NewBitmap, Recording};

/// What becomes of bitmaps that are inconsistent because their writer died.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum BrokenBitmaps {
    /// The copy is refused.
    #[default]
    Refuse,
    /// They are left out.
    Skip,
}

/// Refuses what [`copy_bitmaps`] could not do, before anything is written: a source that has no bitmaps by its format, and
/// inconsistent bitmaps unless they are to be left out.
pub fn check_bitmaps(source: &Image, broken: BrokenBitmaps) -> Result<()> {
    let version = source.info()?.qcow2.map(|qcow2| qcow2.version);
    if version != Some(Version::V3) {
        return Err(named(
            source,
            Error::unsupported(
                "the source cannot have bitmaps: only qcow2 images of version 3 (compat=1.1) can",
            ),
        ));
    }
    if broken == BrokenBitmaps::Refuse
        && let Some(bitmap) = source.bitmaps()?.into_iter().find(|bitmap| bitmap.in_use)
    {
        let name = String::from_utf8_lossy(&bitmap.name).into_owned();
        return Err(named(
            source,
            Error::new(ErrorKind::Bitmap { name, problem: BitmapProblem::Inconsistent }),
        ));
    }
    Ok(())
}

/// Adds the bitmaps of `source` to `target`, whose disk has the same size: names, granularities, bits, and whether they
/// record. They are saved when the target is closed. Gives the names of those that were left out.
///
/// To be called when the content has been written: a bitmap that records would record that too.
pub fn copy_bitmaps(source: &Image, target: &Image, broken: BrokenBitmaps) -> Result<Vec<Vec<u8>>> {
    check_bitmaps(source, broken)?;
    let mut skipped = Vec::new();
    for bitmap in source.bitmaps()? {
        if bitmap.in_use {
            skipped.push(bitmap.name);
            continue;
        }
        let recording = if bitmap.auto { Recording::On } else { Recording::Off };
        target.add_bitmap(&bitmap.name, &NewBitmap { granularity: Some(bitmap.granularity), recording })?;
        if let Err(error) = target.merge_bitmap(&bitmap.name, source, &bitmap.name) {
            // An empty bitmap would say that nothing has changed.
            target.remove_bitmap(&bitmap.name)?;
            return Err(error);
        }
    }
    Ok(skipped)
}

fn named(image: &Image, error: Error) -> Error {
    match image.layers().first().and_then(|layer| layer.path()) {
        Some(path) => error.at_path(path),
        None => error,
    }
}
