//! Work on backing chains: commit, rebase, another backing file's name, emptying. A power cut can leave any combination
//! of what the files were on their way to; the disk on top reads the same in each.

use std::sync::Arc;

use cowimg::format::qcow2::layout::BackingName;
use cowimg::job::{Afterwards, CommitOptions, Compression, NewBacking, RebaseOptions, commit, rebase};
use cowimg::progress::Control;
use cowimg::storage::{MemoryStorage, Storage};
use cowimg::{
    Access, BackingOptions, ByteRange, CreateOptions, Format, Image, LayerChoice, NewSnapshot, OpenOptions,
    Qcow2CreateOptions, Verification, Version, ZeroMode,
};

use crate::files::Cuts;
use crate::job::{Job, Met, shared};
use crate::lab::{Dice, SECTOR, sectors_of};
use crate::subject::check_ours;

/// Sectors of a disk here.
const SECTORS: u64 = 60;

/// What an image is made like, and filled with by a seed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layer {
    pub(crate) format: Format,
    pub(crate) version: Version,
    pub(crate) cluster_size: u64,
    pub(crate) sectors: u64,
    pub(crate) seed: u64,
}

pub(crate) const SMALL: Layer =
    Layer { format: Format::Qcow2, version: Version::V3, cluster_size: 512, sectors: SECTORS, seed: 1 };

impl Layer {
    /// Such an image, over `below` if there is one, which it calls by this name.
    pub(crate) fn make(self, below: Option<(&Layer, &MemoryStorage, &str)>) -> MemoryStorage {
        let size = self.sectors * SECTOR;
        if self.format == Format::Raw {
            let mut dice = Dice(self.seed * 77 + 1);
            let bytes = (0..self.sectors)
                .flat_map(|_| vec![dice.roll(3) as u8 * 50; SECTOR as usize])
                .collect::<Vec<_>>();
            return MemoryStorage::with_bytes(bytes);
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let options = CreateOptions::qcow2(size);
        let backing = below.map(|(layer, _, name)| BackingOptions {
            format: Some(layer.format),
            verification: Verification::Trust,
            ..BackingOptions::new(name)
        });
        let qcow2 = Qcow2CreateOptions {
            version: self.version,
            cluster_size: self.cluster_size,
            ..options.qcow2.clone()
        };
        cowimg::create(&path, &CreateOptions { backing, qcow2, ..options }).unwrap();
        let storage = Arc::new(MemoryStorage::with_bytes(std::fs::read(&path).unwrap()));
        let options = Image::options().access(Access::ReadWrite);
        let image = match below {
            Some((layer, bytes, _)) => on(options, layer, Arc::new(bytes.clone())),
            None => options,
        };
        let image = image.format(Format::Qcow2).open_storage(storage.clone()).unwrap();
        self.fill(&image);
        image.close().unwrap();
        MemoryStorage::clone(&storage)
    }

    fn fill(self, image: &Image) {
        let mut dice = Dice(self.seed * 77 + 1);
        for nth in 0..6 {
            let start = dice.roll(self.sectors);
            let end = (start + 1 + dice.roll(8)).min(self.sectors);
            let range = ByteRange::between(start * SECTOR, end * SECTOR);
            let byte = (self.seed % 11 * 20 + nth) as u8 + 1;
            match nth {
                4 => image.write_zeroes(range, ZeroMode::Unmap).unwrap(),
                _ => image.write_at(&vec![byte; range.len() as usize], range.start()).unwrap(),
            }
        }
    }
}

/// Opens something on this layer.
pub(crate) fn on(options: OpenOptions, layer: &Layer, storage: Arc<dyn Storage>) -> OpenOptions {
    options.backing_storage(storage, Image::options().format(layer.format).cache_size(8192))
}

fn top() -> OpenOptions {
    Image::options().format(Format::Qcow2).cache_size(8192)
}

/// What a disk reads as, without an end beyond another's size.
fn read_alone(layer: &Layer, storage: &Arc<dyn Storage>, sectors: usize) -> Vec<u8> {
    let image = Image::options().format(layer.format).open_storage(storage.clone()).unwrap();
    let mut found = sectors_of(&image);
    found.truncate(sectors);
    found
}

fn check_layer(layer: &Layer, file: &MemoryStorage, context: &str) {
    if layer.format == Format::Qcow2 {
        check_ours(file, context);
    }
}

/// A commit of an image into its base.
fn commit_job(name: &str, (base, over): (Layer, Layer), prepare: fn(&Image), afterwards: Afterwards) -> Job {
    let base_file = base.make(None);
    let file = over.make(Some((&base, &base_file, "base")));
    let opened = move |files: &[Arc<dyn Storage>], options: OpenOptions| {
        on(options, &base, files[1].clone()).open_storage(files[0].clone())
    };
    let files = vec![file, base_file];
    let start = shared(&files);
    let image = opened(&start, top().access(Access::ReadWrite)).unwrap();
    prepare(&image);
    image.close().unwrap();
    let expected = sectors_of(&opened(&start, top()).unwrap());
    let before = read_alone(&base, &start[1], expected.len());
    let files: Vec<MemoryStorage> =
        start.iter().map(|file| MemoryStorage::copy_of(&**file).unwrap()).collect();
    let run = move |files: &[Arc<dyn Storage>]| {
        let options = top().access(Access::ReadWrite).writable_layer(LayerChoice::Below);
        let image = opened(files, options)?;
        commit(
            &image,
            &CommitOptions { afterwards, threads: 1, ..CommitOptions::default() },
            &Control::default(),
        )?;
        image.close()
    };
    let judge = move |files: &[MemoryStorage], met: Met, context: &str| {
        check_layer(&over, &files[0], context);
        check_layer(&base, &files[1], context);
        let files = shared(files);
        let below = read_alone(&base, &files[1], expected.len());
        for (sector, value) in below.iter().enumerate() {
            let known = [before.get(sector), expected.get(sector), Some(&0)].contains(&Some(value));
            assert!(known, "{context}: sector {sector} of the base holds {value}");
        }
        assert!(met == Met::Midway || below == expected, "{context}: the base is not what was committed");
        assert_eq!(sectors_of(&opened(&files, top()).unwrap()), expected, "{context}: the disk");
        run(&files).unwrap_or_else(|error| panic!("{context}: again: {error}"));
        assert_eq!(read_alone(&base, &files[1], expected.len()), expected, "{context}: the base, again");
        assert_eq!(sectors_of(&opened(&files, top()).unwrap()), expected, "{context}: the disk, again");
        check_ours(&*files[0], &format!("{context}, again"));
    };
    Job { name: name.into(), files, run: Box::new(run), judge: Box::new(judge) }
}

/// The name of the backing file that an image has.
fn backing_name(file: &Arc<dyn Storage>) -> cowimg::Result<Option<String>> {
    let info = top().no_backing().open_storage(file.clone())?.info()?;
    Ok(info.backing.map(|backing| String::from_utf8_lossy(backing.name.as_encoded_bytes()).into_owned()))
}

/// An image that is put on another base, or on none.
fn rebase_job(name: &str, layers: [Layer; 3], to: Option<&'static str>, compression: Compression) -> Job {
    let [old, new, over] = layers;
    let (old_file, new_file) = (old.make(None), new.make(None));
    let file = over.make(Some((&old, &old_file, "old")));
    let files = vec![file, old_file, new_file];
    let opened = move |files: &[Arc<dyn Storage>], options: OpenOptions| {
        let options = match backing_name(&files[0])?.as_deref() {
            Some("old") => on(options, &old, files[1].clone()),
            Some(name) => {
                assert_eq!(Some(name), to, "the name of the backing file");
                on(options, &new, files[2].clone())
            }
            None => options,
        };
        options.open_storage(files[0].clone())
    };
    let expected = sectors_of(&opened(&shared(&files), top()).unwrap());
    let run = move |files: &[Arc<dyn Storage>]| {
        if backing_name(&files[0])?.as_deref() == to {
            return Ok(());
        }
        let image = opened(files, top().access(Access::ReadWrite))?;
        let below = Image::options().format(new.format).open_storage(files[2].clone())?;
        let format = Some(new.format.as_str().as_bytes().to_vec());
        let name = to.map(|to| BackingName { name: to.as_bytes().to_vec(), format });
        let backing = name.as_ref().map(|name| NewBacking { name, image: &below });
        let options = RebaseOptions { compression, threads: 1 };
        rebase(image, backing, &options, &Control::default()).map(drop)
    };
    let judge = move |files: &[MemoryStorage], met: Met, context: &str| {
        check_ours(&files[0], context);
        let files = shared(files);
        let name = backing_name(&files[0]).unwrap();
        let is_done = name.as_deref() == to;
        assert!(is_done || name.as_deref() == Some("old"), "{context}: the backing file is called {name:?}");
        assert!(met == Met::Midway || is_done, "{context}: the backing file is still {name:?}");
        assert_eq!(sectors_of(&opened(&files, top()).unwrap()), expected, "{context}: the disk");
        run(&files).unwrap_or_else(|error| panic!("{context}: again: {error}"));
        assert_eq!(sectors_of(&opened(&files, top()).unwrap()), expected, "{context}: the disk, again");
        check_ours(&*files[0], &format!("{context}, again"));
    };
    Job { name: name.into(), files, run: Box::new(run), judge: Box::new(judge) }
}

/// An image that is told another name of its backing file, and no more.
fn rename_job(name: &str, over: Layer, to: &'static str) -> Job {
    let base_file = SMALL.make(None);
    let files = vec![over.make(Some((&SMALL, &base_file, "old")))];
    let alone =
        |files: &[Arc<dyn Storage>]| sectors_of(&top().no_backing().open_storage(files[0].clone()).unwrap());
    let expected = alone(&shared(&files));
    let run = move |files: &[Arc<dyn Storage>]| {
        let image = top().no_backing().access(Access::ReadWrite).open_storage(files[0].clone())?;
        let name = BackingName { name: to.as_bytes().to_vec(), format: Some(b"raw".to_vec()) };
        image.set_backing(Some(&name), Verification::Trust)?;
        image.close()
    };
    let judge = move |files: &[MemoryStorage], met: Met, context: &str| {
        check_ours(&files[0], context);
        let files = shared(files);
        let name = backing_name(&files[0]).unwrap();
        assert!([Some("old"), Some(to)].contains(&name.as_deref()), "{context}: called {name:?}");
        assert!(met == Met::Midway || name.as_deref() == Some(to), "{context}: still called {name:?}");
        assert_eq!(alone(&files), expected, "{context}: what the image has");
        run(&files).unwrap_or_else(|error| panic!("{context}: again: {error}"));
        assert_eq!(backing_name(&files[0]).unwrap().as_deref(), Some(to), "{context}: again");
        assert_eq!(alone(&files), expected, "{context}: what the image has, again");
    };
    Job { name: name.into(), files, run: Box::new(run), judge: Box::new(judge) }
}

const LONG_NAME: &str = concat!(
    "a/folder/of/some/length/a/folder/of/some/length/a/folder/of/some/length/a/folder/of/some/length/",
    "a/folder/of/some/length/a/folder/of/some/length/a/folder/of/some/length/a/folder/of/some/length/",
    "a/folder/of/some/length/a/folder/of/some/length/a/folder/of/some/length/a/folder/of/some/length/",
    "a/folder/of/some/length/a/folder/of/some/length/a/folder/of/some/length/a/folder/of/some/length/base",
);

fn nothing(_: &Image) {}

fn take_snapshot(image: &Image) {
    image.create_snapshot(&NewSnapshot { name: b"kept".to_vec(), ..NewSnapshot::default() }).unwrap();
    image.write_at(&[99; 1024], 2048).unwrap();
}

/// Every piece of work on chains; the seed decides what the images hold.
pub(crate) fn jobs(seed: u64) -> Vec<Job> {
    let base = Layer { seed: seed * 3, ..SMALL };
    let over = Layer { seed: seed * 3 + 1, ..SMALL };
    let other = Layer { seed: seed * 3 + 2, ..SMALL };
    let raw = |layer: Layer| Layer { format: Format::Raw, ..layer };
    let old_version = |layer: Layer| Layer { version: Version::V2, ..layer };
    let larger = |layer: Layer| Layer { cluster_size: 4096, ..layer };
    let shorter = |layer: Layer| Layer { sectors: SECTORS - 23, ..layer };
    let (empty, keep) = (Afterwards::Empty, Afterwards::Keep);
    let (off, packed) = (Compression::Off, Compression::On);
    vec![
        commit_job("commit", (base, over), nothing, empty),
        commit_job("commit, kept", (base, over), nothing, keep),
        commit_job("commit to raw", (raw(base), over), nothing, empty),
        commit_job("commit to a shorter base", (shorter(base), over), nothing, empty),
        commit_job("commit to a shorter raw base", (raw(shorter(base)), over), nothing, empty),
        commit_job("commit of version 2", (old_version(base), old_version(over)), nothing, empty),
        commit_job("commit of large clusters", (base, larger(over)), nothing, empty),
        commit_job("commit beside a snapshot", (base, over), take_snapshot, empty),
        rebase_job("rebase", [base, other, over], Some("new"), off),
        rebase_job("rebase to raw", [base, raw(other), larger(over)], Some("new"), off),
        rebase_job("rebase to a shorter base", [base, shorter(other), over], Some("new"), off),
        rebase_job("rebase from a shorter base", [shorter(base), other, over], Some("new"), off),
        rebase_job("rebase to nothing", [base, other, over], None, off),
        rebase_job("rebase to nothing, version 2", [base, other, old_version(over)], None, off),
        rebase_job("rebase, compressed", [base, other, larger(over)], Some("new"), packed),
        rename_job("a new name", over, "new"),
        rename_job("a long name", larger(over), LONG_NAME),
    ]
}

#[test]
fn work_on_chains_keeps_every_disk_whenever_the_power_fails() {
    let mut states = 0;
    for job in jobs(1) {
        let of_job = job.try_cuts(5, Cuts::Exhaustive);
        println!("{}: {of_job}", job.name);
        states += of_job;
    }
    println!("{states} states after a crash, none lost, none corrupt");
    assert!(states > 3_000, "only {states} states were tried");
}

#[test]
fn work_on_chains_survives_failing_files() {
    let failures: usize = jobs(2).iter().map(Job::try_faults).sum();
    println!("{failures} failures, none lost, none corrupt");
    assert!(failures > 1_500, "only {failures} failures were met");
}
