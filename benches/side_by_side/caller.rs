//! The work of the growth tables done by a program that uses the library and raises its limits, as any caller may: chains that
//! are longer than the program `cowimg` opens.

use std::path::Path;

use cowimg::{Access, ByteRange, CacheMode, Format, Image, NewSnapshot, OpenOptions, SnapshotNames};

use super::growth::REQUESTS;
use super::run::Failed;

/// The first word of a command line that makes this program such a caller.
pub(crate) const WORD: &str = "--caller";
/// Layers that it opens.
const LAYERS: usize = 4096;
/// Bytes of a request.
const REQUEST: u64 = 4096;

/// Does the work that `words` name: what, the image, and the distance of requests in bytes.
pub(crate) fn work(words: &[String]) -> Result<(), Failed> {
    let [what, image, step] = words else { return Err(Failed(String::from("three words are wanted"))) };
    let step = step.parse().map_err(|error| Failed(format!("{step}: {error}")))?;
    let options = Image::options().format(Format::Qcow2).cache_mode(CacheMode::Unsafe).max_depth(LAYERS);
    done(what, &options, Path::new(image), step).map_err(|error| Failed(format!("{what} {image}: {error}")))
}

fn done(what: &str, options: &OpenOptions, path: &Path, step: u64) -> cowimg::Result<()> {
    let changed = || options.clone().access(Access::ReadWrite).open(path);
    let mut buf = vec![0; REQUEST as usize];
    match what {
        "reads" => {
            let image = options.open(path)?;
            (0..REQUESTS).try_for_each(|nth| image.read_at(&mut buf, place(&image, nth, step)))
        }
        "writes" => {
            let image = changed()?;
            (0..REQUESTS).try_for_each(|nth| image.write_at(&buf, place(&image, nth, step)))?;
            image.close()
        }
        "check" => options.open(path)?.check().map(drop),
        "snapshot" => {
            let image = changed()?;
            let (name, names) = (b"name".to_vec(), SnapshotNames::Unique);
            image.create_snapshot(&NewSnapshot {
                name,
                names,
                date_sec: 0,
                date_nsec: 0,
                vm_clock_nsec: 0,
            })?;
            image.close()
        }
        "map" => {
            let image = options.open(path)?;
            image.extents(ByteRange::between(0, image.size())).try_for_each(|extent| extent.map(drop))
        }
        _ => options.open(path)?.read_at(&mut buf, 0),
    }
}

/// Where a request starts: they go around the disk.
fn place(image: &Image, nth: u64, step: u64) -> u64 {
    nth * step % image.size().saturating_sub(REQUEST).max(1)
}
