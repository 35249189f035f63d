//! An image's persistent dirty bitmaps: which parts of its disk were written since.

use super::image::Image;
use crate::error::{BitmapProblem, Error, ErrorKind, Result};
use crate::qcow2::{BitmapInfo, BitmapRanges, NewBitmap, Qcow2, Recording};

/// Dirty bitmaps are kept up to date while the image is written, and saved when it is closed. Nothing else saves them: a
/// writer that stops without [`Image::close`] leaves them marked in use, so that nobody trusts them again.
impl Image {
    /// The bitmaps that the image stores; none for a raw image.
    pub fn bitmaps(&self) -> Result<Vec<BitmapInfo>> {
        self.top.qcow2().map_or(Ok(Vec::new()), |qcow2| self.named(qcow2.bitmaps()))
    }

    /// Adds a bitmap with nothing dirty. Only for qcow2 images of version 3.
    pub fn add_bitmap(&self, name: impl AsRef<[u8]>, new: &NewBitmap) -> Result<()> {
        let engine = self.top.qcow2_or("cannot store bitmaps");
        self.named(engine.and_then(|qcow2| qcow2.add_bitmap(name.as_ref(), new)))
    }

    /// Removes a bitmap, also one that cannot be used.
    pub fn remove_bitmap(&self, name: impl AsRef<[u8]>) -> Result<()> {
        let name = name.as_ref();
        self.named(self.engine_with_bitmap(name).and_then(|qcow2| qcow2.remove_bitmap(name)))
    }

    /// Makes a bitmap call nothing dirty.
    pub fn clear_bitmap(&self, name: impl AsRef<[u8]>) -> Result<()> {
        let name = name.as_ref();
        self.named(self.engine_with_bitmap(name).and_then(|qcow2| qcow2.clear_bitmap(name)))
    }

    /// Makes a bitmap record what is written from now on.
    pub fn enable_bitmap(&self, name: impl AsRef<[u8]>) -> Result<()> {
        self.set_recording(name.as_ref(), Recording::On)
    }

    /// Makes a bitmap stay as it is, whatever is written from now on.
    pub fn disable_bitmap(&self, name: impl AsRef<[u8]>) -> Result<()> {
        self.set_recording(name.as_ref(), Recording::Off)
    }

    fn set_recording(&self, name: &[u8], recording: Recording) -> Result<()> {
        self.named(self.engine_with_bitmap(name).and_then(|qcow2| qcow2.set_recording(name, recording)))
    }

    /// Adds what the bitmap `source_name` of `source`, which may be this image, calls dirty to the bitmap `name`. Both
    /// disks must be of one size; the granularities may differ.
    pub fn merge_bitmap(
        &self,
        name: impl AsRef<[u8]>,
        source: &Image,
        source_name: impl AsRef<[u8]>,
    ) -> Result<()> {
        let (name, source_name) = (name.as_ref(), source_name.as_ref());
        let target = self.named(self.engine_with_bitmap(name))?;
        let from = source.named(source.engine_with_bitmap(source_name))?;
        self.named(target.merge_bitmap(name, from, source_name))
    }

    /// The parts of the disk that a bitmap calls dirty, in order.
    pub fn bitmap_ranges(&self, name: impl AsRef<[u8]>) -> Result<BitmapRanges<'_>> {
        let name = name.as_ref();
        self.named(self.engine_with_bitmap(name).and_then(|qcow2| qcow2.bitmap_ranges(name)))
    }

    /// The engine, where it may have a bitmap of that name.
    fn engine_with_bitmap(&self, name: &[u8]) -> Result<&Qcow2> {
        self.top.qcow2().map(|qcow2| &**qcow2).ok_or_else(|| {
            let name = String::from_utf8_lossy(name).into_owned();
            Error::new(ErrorKind::Bitmap { name, problem: BitmapProblem::NotFound })
        })
    }
}
