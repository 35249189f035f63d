//! Key slots that come and go: another passphrase for a volume, or one fewer.
//!
//! The header passes a sector's end within slot 6, so that what makes a slot count, its state, is written apart from
//! the rest:
//!
//! | to fill a slot | to erase slots |
//! |---|---|
//! | 1. key material, and the header with the slot complete but free; sync | 1. the header with the slots free; sync |
//! | 2. the header with the slot in use; sync | 2. the header without their salts, noise over the material; sync |
//!
//! A power cut leaves each slot with its old content or its new one, or free. A slot in use that is to hold another
//! passphrase is erased and filled; while that lasts the new passphrase is in a free slot too, if there is one, so that the
//! volume always opens with one of the two.

use std::time::Duration;

use super::LuksPlace;
use crate::codec::crypt::Passphrase;
use crate::codec::crypt::volume::{DEFAULT_ITERATION_TIME, Volume, VolumeKey};
use crate::error::{Error, ErrorKind, Result};
use crate::format::luks::KEY_SLOTS;

/// What is to become of the key slots of a LUKS volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySlotChange {
    /// One more passphrase opens the volume.
    Add(NewKeySlot),
    /// What these slots hold opens it no longer.
    Erase(ErasedKeySlots),
}

/// A passphrase that is to open a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewKeySlot {
    /// The passphrase.
    pub passphrase: Passphrase,
    /// The slot that is to hold it, from 0 to 7; the first free one by default.
    pub slot: Option<u32>,
    /// How long deriving a key from it is to take, on this machine; two seconds by default.
    pub iteration_time: Duration,
}

impl NewKeySlot {
    /// This passphrase in the first free slot.
    pub fn new(passphrase: Passphrase) -> NewKeySlot {
        NewKeySlot { passphrase, slot: None, iteration_time: DEFAULT_ITERATION_TIME }
    }
}

/// Key slots that are to be erased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ErasedKeySlots {
    /// The slot of this number.
    Slot(u32),
    /// Every slot that this passphrase opens.
    Holding(Passphrase),
    /// The slot of this number, if this passphrase opens it.
    SlotHolding(u32, Passphrase),
}

/// Whether a change of key slots may take what somebody may need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KeyLoss {
    /// It may not: a slot in use is not filled anew, the last one not erased, nor one that is free already.
    #[default]
    Refuse,
    /// It may, to the last slot: what the volume holds is lost then, for good.
    Allow,
}

/// A change that has been judged: everything that it needs is known.
#[derive(Debug)]
pub(crate) struct PlannedKeys<'a> {
    volume: Volume,
    todo: Todo<'a>,
}

#[derive(Debug)]
enum Todo<'a> {
    Fill { slot: usize, new: &'a NewKeySlot, key: VolumeKey },
    Erase(Vec<usize>),
}

impl<'a> PlannedKeys<'a> {
    /// Judges a change of the volume at `place`, which `current` opens. Writes nothing.
    pub(crate) fn judge(
        place: LuksPlace<'_>,
        (change, loss): (&'a KeySlotChange, KeyLoss),
        current: Option<&Passphrase>,
    ) -> Result<PlannedKeys<'a>> {
        match change {
            KeySlotChange::Add(new) => {
                let slot = slot_to_fill(&place.read()?, new, loss)?;
                let current = current.ok_or_else(|| Error::new(ErrorKind::PassphraseNeeded))?;
                let (volume, key) = place.unlock(current)?;
                Ok(PlannedKeys { volume, todo: Todo::Fill { slot, new, key } })
            }
            KeySlotChange::Erase(slots) => {
                let volume = place.read()?;
                let slots = slots_to_erase(place, &volume, (slots, loss))?;
                Ok(PlannedKeys { volume, todo: Todo::Erase(slots) })
            }
        }
    }

    /// Carries it out; durable when it returns.
    pub(crate) fn carry_out(self, place: LuksPlace<'_>) -> Result<()> {
        let mut volume = self.volume;
        match self.todo {
            Todo::Erase(slots) => erase(place, &mut volume, &slots),
            Todo::Fill { slot, new, key } if volume.header().slots[slot].active => {
                let meanwhile = first_free(&volume);
                if let Some(meanwhile) = meanwhile {
                    fill(place, &mut volume, meanwhile, (new, &key))?;
                }
                erase(place, &mut volume, &[slot])?;
                fill(place, &mut volume, slot, (new, &key))?;
                meanwhile.map_or(Ok(()), |meanwhile| erase(place, &mut volume, &[meanwhile]))
            }
            Todo::Fill { slot, new, key } => fill(place, &mut volume, slot, (new, &key)),
        }
    }
}

/// Fills a free slot.
fn fill(
    place: LuksPlace<'_>,
    volume: &mut Volume,
    slot: usize,
    (new, key): (&NewKeySlot, &VolumeKey),
) -> Result<()> {
    let material = volume.fill_slot(slot, key, new.passphrase.bytes(), new.iteration_time)?;
    place.write_material(&volume.header().slots[slot], &material)?;
    let mut complete_but_free = volume.header().clone();
    complete_but_free.slots[slot].active = false;
    place.write_header(&complete_but_free)?;
    place.sync()?;
    place.write_header(volume.header())?;
    place.sync()
}

/// Makes slots free, and overwrites what they held.
fn erase(place: LuksPlace<'_>, volume: &mut Volume, slots: &[usize]) -> Result<()> {
    let mut free = volume.header().clone();
    for &slot in slots {
        free.slots[slot].active = false;
        volume.clear_slot(slot);
    }
    place.write_header(&free)?;
    place.sync()?;
    place.write_header(volume.header())?;
    for &slot in slots {
        place.write_noise(volume, &volume.header().slots[slot])?;
    }
    place.sync()
}

fn slot_to_fill(volume: &Volume, new: &NewKeySlot, loss: KeyLoss) -> Result<usize> {
    let Some(number) = new.slot else {
        return first_free(volume)
            .ok_or_else(|| Error::invalid(format!("all {KEY_SLOTS} key slots are in use: erase one first")));
    };
    let slot = known_slot(number)?;
    if volume.header().slots[slot].active && loss == KeyLoss::Refuse {
        return Err(Error::invalid(format!(
            "key slot {slot} is in use, and what opens it would open the image no longer: erase it first"
        )));
    }
    Ok(slot)
}

fn slots_to_erase(
    place: LuksPlace<'_>,
    volume: &Volume,
    (wanted, loss): (&ErasedKeySlots, KeyLoss),
) -> Result<Vec<usize>> {
    let opens = |slot: usize, passphrase: &Passphrase| {
        let slot = &volume.header().slots[slot];
        let key = volume.try_slot(slot, passphrase.bytes(), place.material(volume, slot)?)?;
        Ok::<bool, Error>(key.is_some())
    };
    let slots = match wanted {
        ErasedKeySlots::Slot(number) => vec![known_slot(*number)?],
        ErasedKeySlots::SlotHolding(number, passphrase) => {
            let slot = known_slot(*number)?;
            if !volume.header().slots[slot].active || !opens(slot, passphrase)? {
                return Err(Error::invalid(format!("the old passphrase does not open key slot {slot}")));
            }
            vec![slot]
        }
        ErasedKeySlots::Holding(passphrase) => {
            let mut slots = Vec::new();
            for slot in active(volume) {
                if opens(slot, passphrase)? {
                    slots.push(slot);
                }
            }
            if slots.is_empty() {
                return Err(Error::invalid("the old passphrase opens none of the key slots"));
            }
            slots
        }
    };
    if loss == KeyLoss::Allow {
        return Ok(slots);
    }
    if let Some(slot) = slots.iter().find(|&&slot| !volume.header().slots[slot].active) {
        return Err(Error::invalid(format!("key slot {slot} is free already")));
    }
    if active(volume).all(|slot| slots.contains(&slot)) {
        return Err(Error::invalid(
            "nothing would open the image any more, and what it holds would be lost for good: no other key slot is in \
             use",
        ));
    }
    Ok(slots)
}

fn known_slot(number: u32) -> Result<usize> {
    let slot = usize::try_from(number).ok().filter(|&slot| slot < KEY_SLOTS);
    slot.ok_or_else(|| Error::invalid(format!("there is no key slot {number}: they are 0 to 7")))
}

/// The slots in use.
fn active(volume: &Volume) -> impl Iterator<Item = usize> {
    let slots = volume.header().slots.iter().enumerate();
    slots.filter(|(_, slot)| slot.active).map(|(number, _)| number)
}

fn first_free(volume: &Volume) -> Option<usize> {
    volume.header().slots.iter().position(|slot| !slot.active)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::crypt::volume::VolumeOptions;
    use crate::format::luks::{LuksHeader, SECTOR_SIZE};
    use crate::storage::{MemoryStorage, Storage, StorageExt};

    const QUICK: Duration = Duration::from_millis(1);
    /// The volume is in the middle of something else.
    const START: u64 = 4096;

    fn volume() -> MemoryStorage {
        let storage = MemoryStorage::new();
        let options = VolumeOptions { iteration_time: QUICK, ..VolumeOptions::default() };
        LuksPlace::new(&storage, START).write_new(&options, &Passphrase::new("one")).expect("a volume");
        storage
    }

    fn change(storage: &MemoryStorage, change: &KeySlotChange, loss: KeyLoss) -> Result<()> {
        let place = LuksPlace::new(storage, START);
        PlannedKeys::judge(place, (change, loss), Some(&Passphrase::new("one")))?.carry_out(place)
    }

    fn add(text: &str, slot: Option<u32>) -> KeySlotChange {
        KeySlotChange::Add(NewKeySlot {
            slot,
            iteration_time: QUICK,
            ..NewKeySlot::new(Passphrase::new(text))
        })
    }

    fn erase(slot: u32) -> KeySlotChange {
        KeySlotChange::Erase(ErasedKeySlots::Slot(slot))
    }

    #[test]
    fn what_an_erased_slot_held_is_gone() {
        let storage = volume();
        change(&storage, &add("two", None), KeyLoss::Refuse).expect("a second slot");
        let place = LuksPlace::new(&storage, START);
        let two = Passphrase::new("two");
        let (before, _) = place.unlock(&two).expect("the second passphrase");
        let slot = before.header().slots[1];
        let material = place.material(&before, &slot).expect("read");
        change(&storage, &erase(1), KeyLoss::Refuse).expect("erased");

        let after = place.read().expect("a sound header");
        assert_eq!(after.header().slots[1].salt, [0; LuksHeader::SALT_LEN]);
        let left = place.material(&after, &slot).expect("read");
        let same = material.chunks(16).zip(left.chunks(16)).filter(|(old, new)| old == new).count();
        assert_eq!(same, 0, "blocks of the key material are left");
        // Not even the old header helps.
        storage.write_all_at(&before.header().encode(), START).expect("written");
        assert!(place.unlock(&two).is_err());
        place.unlock(&Passphrase::new("one")).expect("the first passphrase");
        // Nothing around the volume was touched.
        let mut around = vec![1; START as usize];
        storage.read_exact_at(&mut around, 0).expect("read");
        assert!(around.iter().all(|&byte| byte == 0));
        let end = START + before.header().payload_start();
        assert!(storage.len().expect("a length") <= end.next_multiple_of(SECTOR_SIZE));
    }

    #[test]
    fn what_loses_a_passphrase_wants_leave() {
        let storage = volume();
        let refused = |wanted: &KeySlotChange| {
            change(&storage, wanted, KeyLoss::Refuse).expect_err("it must be refused").to_string()
        };
        let holding = |text: &str| KeySlotChange::Erase(ErasedKeySlots::Holding(Passphrase::new(text)));
        assert!(refused(&erase(0)).contains("lost for good"));
        assert!(refused(&holding("one")).contains("lost for good"));
        assert!(refused(&holding("two")).contains("none of the key slots"));
        assert!(refused(&erase(3)).contains("free already"));
        assert!(refused(&erase(8)).contains("no key slot 8"));
        assert!(refused(&add("two", Some(0))).contains("in use"));
        assert!(refused(&add("two", Some(u32::MAX))).contains("no key slot"));
        let other = KeySlotChange::Erase(ErasedKeySlots::SlotHolding(0, Passphrase::new("two")));
        assert!(refused(&other).contains("does not open"));
        for _ in 1..KEY_SLOTS {
            change(&storage, &add("one", None), KeyLoss::Refuse).expect("a slot is free");
        }
        assert!(refused(&add("two", None)).contains("all 8"));
        change(&storage, &erase(3), KeyLoss::Refuse).expect("others are left");
        assert!(refused(&holding("one")).contains("lost for good"));
        change(&storage, &holding("one"), KeyLoss::Allow).expect("it was allowed");
        let volume = LuksPlace::new(&storage, START).read().expect("a sound header");
        assert!(volume.header().slots.iter().all(|slot| !slot.active));
    }
}
