//! An image of the format LUKS whose first bytes are any: it opens with the passphrase or is refused, reads, takes writes
//! and loses a passphrase without a panic, in bounded memory and time. The input lies over the start of a sound image.

use std::sync::Arc;

use cowimg::encryption::{ErasedKeySlots, KeyLoss, KeySlotChange, Passphrase};
use cowimg::format::luks::LuksHeader;
use cowimg::storage::MemoryStorage;
use cowimg::{Access, AmendOptions, ErrorKind, Format, Image, Limits, Result};

use super::super::templates;
use super::read_all;

/// The most iterations of all keys together that there is time for.
const ITERATIONS: u64 = 20_000;

pub fn run(bytes: &[u8]) {
    let mut image = templates::luks().to_vec();
    let len = bytes.len().min(image.len());
    image[..len].copy_from_slice(&bytes[..len]);
    // A file may end anywhere.
    if let Some(&cut) = bytes.get(LuksHeader::LEN) {
        let kept = image.len() * usize::from(cut) / 255;
        image.truncate(kept);
    }
    let Ok(header) = LuksHeader::decode(&image) else {
        assert!(open(&image, b"", Access::ReadOnly).is_err(), "what is no header opens nothing");
        return;
    };
    let slots = header.slots.iter().filter(|slot| slot.active).map(|slot| u64::from(slot.iterations));
    let is_slow = slots.sum::<u64>() > ITERATIONS || u64::from(header.digest_iterations) > ITERATIONS;
    let refused = open(&image, templates::PASSPHRASE, Access::ReadOnly).err();
    let is_limited = refused.is_some_and(|error| matches!(error.kind(), ErrorKind::OverLimit { .. }));
    assert!(!is_limited || is_slow, "what is refused for its iterations has too many");
    if is_limited {
        return;
    }
    assert!(open(&image, b"wrong", Access::ReadOnly).is_err(), "another passphrase opens nothing");
    if let Ok(opened) = open(&image, templates::PASSPHRASE, Access::ReadOnly) {
        read_all(&opened);
    }
    if let Ok(mut opened) = open(&image, templates::PASSPHRASE, Access::ReadWrite) {
        let _ = change(&mut opened);
    }
}

fn open(bytes: &[u8], passphrase: &[u8], access: Access) -> Result<Image> {
    let limits = Limits::default().key_iterations(ITERATIONS);
    let options = Image::options().format(Format::Luks).access(access).limits(limits);
    let options = options.passphrase(Passphrase::new(passphrase));
    options.open_storage(Arc::new(MemoryStorage::with_bytes(bytes)))
}

fn change(image: &mut Image) -> Result<()> {
    let len = image.size().min(1024) as usize;
    let written = vec![0xa5; len];
    image.write_at(&written, 0)?;
    let mut read = vec![0; len];
    image.read_at(&mut read, 0)?;
    assert!(read == written, "a write is read back");
    image.flush()?;
    let erased = ErasedKeySlots::Holding(Passphrase::new(templates::PASSPHRASE));
    let key_slots = Some(KeySlotChange::Erase(erased));
    let all = AmendOptions { key_slots, key_loss: KeyLoss::Allow, ..AmendOptions::default() };
    image.amend(&all, &cowimg::progress::Control::default())
}
