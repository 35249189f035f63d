//! Persistent bitmaps of any bytes: a directory decodes or is refused, and what decodes, encodes to the same; the bitmaps of
//! an image are listed, read, changed and stored without a panic, and none that records forgets a write.

use std::sync::Arc;

use cowimg::format::qcow2::BitmapEntry;
use cowimg::storage::MemoryStorage;
use cowimg::{Access, BitmapInfo, Format, Image, NewBitmap, Result};

use super::{copy, repair};

/// So many ranges of a bitmap are looked at.
const RANGES: usize = 200;

/// The input is an image, or else the number of entries in a directory and the directory.
pub fn run(bytes: &[u8]) {
    if bytes.starts_with(b"QFI\xfb") {
        use_image(bytes);
    } else if let Some((&count, directory)) = bytes.split_first() {
        decode(directory, u32::from(count));
    }
}

fn decode(directory: &[u8], count: u32) {
    let Ok(entries) = BitmapEntry::decode_directory(directory, count) else { return };
    assert_eq!(entries.len(), count as usize);
    let Ok(encoded) = BitmapEntry::encode_directory(&entries) else { return };
    assert_eq!(BitmapEntry::decode_directory(&encoded, count), Ok(entries), "what was encoded decodes");
}

fn use_image(bytes: &[u8]) {
    let original = Arc::new(MemoryStorage::with_bytes(bytes));
    if let Ok(image) = open(&original, Access::ReadOnly) {
        let _ = read(&image);
    }
    for change in [record, edit] {
        let storage = copy(&original);
        let _ = change(&storage);
    }
    let _ = repair::repaired(&original);
}

fn open(storage: &Arc<MemoryStorage>, access: Access) -> Result<Image> {
    Image::options().format(Format::Qcow2).no_backing().access(access).open_storage(storage.clone())
}

fn read(image: &Image) -> Result<()> {
    for bitmap in image.bitmaps()? {
        let Ok(ranges) = image.bitmap_ranges(&bitmap.name) else { continue };
        let mut end = 0;
        for range in ranges.take(RANGES).map_while(Result::ok) {
            assert!(range.start() >= end && !range.is_empty() && range.end() <= image.size(), "{range:?}");
            end = range.end();
        }
    }
    Ok(())
}

/// Writes, and looks whether the bitmaps know of it when the image is opened again.
fn record(storage: &Arc<MemoryStorage>) -> Result<()> {
    let image = open(storage, Access::ReadWrite)?;
    let places = [0, image.size() / 2, image.size().saturating_sub(1)];
    for at in places {
        image.write_at(&[0xa5], at)?;
    }
    let recording: Vec<BitmapInfo> = image.bitmaps()?.into_iter().filter(|it| it.auto).collect();
    image.close()?;
    let image = open(storage, Access::ReadOnly)?;
    for bitmap in recording {
        let Ok(ranges) = image.bitmap_ranges(&bitmap.name) else { continue };
        let ranges: Vec<_> = ranges.take(RANGES).collect::<Result<_>>()?;
        if ranges.len() == RANGES {
            continue;
        }
        for at in places {
            let is_known = ranges.iter().any(|range| range.start() <= at && at < range.end());
            assert!(is_known, "the bitmap {:?} has missed a write at {at}", bitmap.name);
        }
    }
    Ok(())
}

fn edit(storage: &Arc<MemoryStorage>) -> Result<()> {
    let image = open(storage, Access::ReadWrite)?;
    image.add_bitmap("new", &NewBitmap::default())?;
    for (nth, bitmap) in image.bitmaps()?.into_iter().take(8).enumerate() {
        let name = &bitmap.name;
        // What one bitmap refuses is asked of the next all the same.
        let _ = match nth % 4 {
            0 => image.merge_bitmap("new", &image, name),
            1 => image.clear_bitmap(name),
            2 => image.disable_bitmap(name).and_then(|()| image.enable_bitmap(name)),
            _ => image.remove_bitmap(name),
        };
    }
    read(&image)?;
    image.close()?;
    read(&open(storage, Access::ReadOnly)?)
}
