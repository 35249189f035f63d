//! How much space a new image will take, without making it.

use crate::chain::{BitmapInfo, CreateOptions, Encryption, Image};
use crate::error::{Error, Result};
use crate::format::probe::Format;
use crate::format::qcow2::layout::{Preallocation, check_disk_size, full_size};
use crate::format::qcow2::{Geometry, Version};
use crate::progress::Control;
use crate::range::ByteRange;

/// What is to go into the new image.
#[derive(Debug, Clone, Copy)]
pub enum MeasureSource<'a> {
    /// Nothing yet: a disk of this many bytes.
    Size(u64),
    /// What a guest sees in this image.
    Image(&'a Image),
}

/// What the new image is like, as far as its size depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeasureTarget {
    /// Its format.
    pub format: Format,
    /// How much of the space is taken at once.
    pub preallocation: Preallocation,
    /// Whether it has a backing file. Nobody knows how much of the source that has, so all of it is counted.
    pub has_backing: bool,
    /// Version of the format, for qcow2.
    pub version: Version,
    /// Bytes in a cluster, for qcow2.
    pub cluster_size: u64,
    /// Width of a refcount, for qcow2.
    pub refcount_bits: u32,
    /// Whether L2 entries are extended, for qcow2.
    pub extended_l2: bool,
    /// Bytes that a LUKS header and its key material take, for luks and qcow2.
    pub luks_header_len: u64,
}

impl From<&CreateOptions> for MeasureTarget {
    fn from(options: &CreateOptions) -> MeasureTarget {
        MeasureTarget {
            format: options.format,
            preallocation: options.preallocation,
            has_backing: options.backing.is_some(),
            version: options.qcow2.version,
            cluster_size: options.qcow2.cluster_size,
            refcount_bits: options.qcow2.refcount_bits,
            extended_l2: options.qcow2.extended_l2,
            luks_header_len: match (&options.luks, &options.qcow2.encryption) {
                (Some(luks), _) if options.format == Format::Luks => luks.header_len(),
                (_, encryption) => encryption.as_ref().map_or(0, Encryption::header_len),
            },
        }
    }
}

/// Sizes of the new image's file, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Measurement {
    /// With what the source has now. Never too low; the tables are counted as if everything were written.
    pub required: u64,
    /// With everything written.
    pub fully_allocated: u64,
    /// What copies of the source's bitmaps take on top; none where one of the two images can have no bitmaps.
    pub bitmaps: Option<u64>,
}

/// Says how large the file of a new image gets. Reads the source's metadata only.
pub fn measure(
    source: MeasureSource<'_>,
    target: &MeasureTarget,
    control: &Control<'_>,
) -> Result<Measurement> {
    match target.format {
        Format::Raw => Ok(measure_raw(source)),
        Format::Luks => measure_luks(source, target),
        Format::Qcow2 => measure_qcow2(source, target, control),
        format => {
            Err(Error::unsupported(format!("{format} images cannot be made, so there is nothing to measure")))
        }
    }
}

fn measure_raw(source: MeasureSource<'_>) -> Measurement {
    let size = match source {
        MeasureSource::Size(size) => size.next_multiple_of(512),
        MeasureSource::Image(image) => image.size(),
    };
    Measurement { required: size, fully_allocated: size, bitmaps: None }
}

fn measure_luks(source: MeasureSource<'_>, target: &MeasureTarget) -> Result<Measurement> {
    let size = match source {
        MeasureSource::Size(size) => size,
        MeasureSource::Image(image) => image.size(),
    };
    let whole = size.checked_add(target.luks_header_len).filter(|&whole| whole <= ByteRange::MAX_END);
    let whole =
        whole.ok_or_else(|| Error::invalid(format!("the size {size} is larger than any disk can be")))?;
    Ok(Measurement { required: whole, fully_allocated: whole, bitmaps: None })
}

fn measure_qcow2(
    source: MeasureSource<'_>,
    target: &MeasureTarget,
    control: &Control<'_>,
) -> Result<Measurement> {
    let geometry = geometry_of(target)?;
    let cluster_size = geometry.cluster_size();
    let (size, data, bitmaps) = match source {
        MeasureSource::Size(size) => {
            check_disk_size(geometry, size).map_err(|error| Error::invalid(error.to_string()))?;
            (size, 0, None)
        }
        MeasureSource::Image(image) => {
            let data = if target.has_backing {
                image.size().next_multiple_of(cluster_size)
            } else {
                data_bytes(image, cluster_size, control)?
            };
            (image.size(), data, bitmap_bytes(image, target.version, cluster_size)?)
        }
    };
    let whole = size.next_multiple_of(cluster_size);
    let data = match target.preallocation {
        Preallocation::Off | Preallocation::Metadata => data,
        Preallocation::Falloc | Preallocation::Full => whole,
    };
    let luks = target.luks_header_len.next_multiple_of(cluster_size);
    let fully_allocated = full_size(geometry, size)
        .and_then(|full| full.checked_add(luks))
        .ok_or_else(|| Error::invalid(format!("the size {size} is larger than any disk can be")))?;
    Ok(Measurement { required: fully_allocated - whole + data, fully_allocated, bitmaps })
}

fn geometry_of(target: &MeasureTarget) -> Result<Geometry> {
    let powers = target.cluster_size.is_power_of_two() && target.refcount_bits.is_power_of_two();
    let geometry = powers.then(|| Geometry::new(target.cluster_size.ilog2(), target.refcount_bits.ilog2()));
    match geometry {
        Some(Ok(geometry)) => Ok(geometry.with_extended_l2(target.extended_l2)),
        Some(Err(error)) => Err(Error::invalid(error.to_string())),
        None => Err(Error::invalid("cluster size and refcount width must be powers of two")),
    }
}

/// Bytes of the target's clusters that the source has data in.
fn data_bytes(image: &Image, cluster_size: u64, control: &Control<'_>) -> Result<u64> {
    let mut bytes = 0;
    let mut counted_to = 0;
    for extent in image.extents(ByteRange::between(0, image.size())) {
        control.check()?;
        let extent = extent?;
        if extent.is_zero() {
            continue;
        }
        let start = (extent.range.start() / cluster_size * cluster_size).max(counted_to);
        let end = extent.range.end().next_multiple_of(cluster_size);
        bytes += end.saturating_sub(start);
        counted_to = end;
    }
    Ok(bytes)
}

/// What copies of the image's bitmaps take in an image of this version and cluster size.
fn bitmap_bytes(image: &Image, version: Version, cluster_size: u64) -> Result<Option<u64>> {
    let info = image.info()?;
    let Some(source) = info.qcow2 else { return Ok(None) };
    if version != Version::V3 || source.version != Version::V3 {
        return Ok(None);
    }
    // As in QEMU those count too that are inconsistent, and which no copy would have.
    let bitmaps = || source.bitmaps.iter();
    let directory: u64 = bitmaps().map(directory_entry_bytes).sum();
    let contents: u64 = bitmaps().map(|bitmap| content_bytes(bitmap, image.size(), cluster_size)).sum();
    Ok(Some(contents + directory.next_multiple_of(cluster_size)))
}

/// An entry of the bitmap directory: 24 bytes and the name, filled up to a multiple of 8.
fn directory_entry_bytes(bitmap: &BitmapInfo) -> u64 {
    (24 + bitmap.name.len() as u64).next_multiple_of(8)
}

/// All clusters of a bitmap, and those of its table.
fn content_bytes(bitmap: &BitmapInfo, size: u64, cluster_size: u64) -> u64 {
    let bytes = size.div_ceil(bitmap.granularity.max(1)).div_ceil(8);
    let clusters = bytes.div_ceil(cluster_size);
    clusters * cluster_size + (clusters * 8).next_multiple_of(cluster_size)
}
