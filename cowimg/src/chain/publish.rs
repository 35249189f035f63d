//! Giving new images their names: all of them, or none.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::staged::{NamedImage, StagedImage};
use super::staged_file::sync_folder;
use crate::error::Result;
use crate::progress::Control;

/// Whether images and names are to survive a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durability {
    Synced,
    LeftToTheHost,
}

/// Gives all their names. Durably: what is in the images is synced before the first name is given, and their folders when
/// all have theirs. Until one has replaced a file, a failure takes all of them back.
pub(super) fn publish(images: Vec<StagedImage>, durability: Durability, control: &Control<'_>) -> Result<()> {
    if durability == Durability::Synced {
        sync_all(&images, control)?;
    }
    let mut named = Vec::with_capacity(images.len());
    let done = images.into_iter().try_for_each(|image| {
        named.push(image.give_names(durability)?);
        Ok(())
    });
    let done = match durability {
        Durability::Synced => done.and_then(|()| sync_folders(&named)),
        Durability::LeftToTheHost => done,
    };
    done.inspect_err(|_| {
        if !named.iter().any(NamedImage::has_replaced) {
            named.iter().for_each(NamedImage::take_back);
        }
    })
}

fn sync_folders(named: &[NamedImage]) -> Result<()> {
    let folders: BTreeSet<_> = named.iter().map(NamedImage::folder).collect();
    folders.into_iter().try_for_each(sync_folder)
}

/// Syncs the images from several threads, for a host that makes one of syncs at the same time.
fn sync_all(staged: &[StagedImage], control: &Control<'_>) -> Result<()> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        while let Some(image) = staged.get(next.fetch_add(1, Ordering::Relaxed)) {
            control.check()?;
            image.sync()?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (1..SYNCS.min(staged.len())).map(|_| scope.spawn(work)).collect();
        let first = work();
        threads.into_iter().fold(first, |first, thread| {
            let other = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            first.and(other)
        })
    })
}

/// Syncs at the same time.
const SYNCS: usize = 16;
