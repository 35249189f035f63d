//! The options of `amend -o` that change which passphrases open a LUKS volume. A qcow2 image has them with `encrypt.` before
//! the key.

use std::time::Duration;

use cowimg::encryption::{ErasedKeySlots, KeySlotChange, NewKeySlot};

use crate::args::format_options::not_a_choice;
use crate::args::key_values::KeyValues;
use crate::args::object;
use crate::args::size::parse_number;
use crate::failure::Failure;

/// Key, kind of value and purpose of each option, in the order in which help lists them.
pub(crate) const KEY_SLOT_OPTIONS: [(&str, &str, &str); 5] = [
    ("iter-time", "num", "milliseconds that deriving a key from the new passphrase takes (default 2000)"),
    (
        "keyslot",
        "num",
        "the key slot, from 0 to 7 (default: the first free one, or all that old-secret opens)",
    ),
    ("new-secret", "str", "id of the --object secret that is to open the image"),
    ("old-secret", "str", "id of the --object secret whose key slots are to be erased"),
    ("state", "str", "active fills a key slot, inactive erases key slots"),
];

/// What the options say, with numbers as numbers.
#[derive(Debug)]
pub(crate) struct KeySlotWords {
    state: Option<String>,
    slot: Option<u32>,
    iteration_time: Option<Duration>,
    new_secret: Option<String>,
    old_secret: Option<String>,
}

impl KeySlotWords {
    /// Picks them from all options, if there are any; `prefix` is before each key.
    pub(crate) fn of(given: &KeyValues, prefix: &str) -> Result<Option<KeySlotWords>, Failure> {
        let get = |key: &str| given.get(&format!("{prefix}{key}"));
        if !KEY_SLOT_OPTIONS.iter().any(|(key, ..)| get(key).is_some()) {
            return Ok(None);
        }
        let number = |key: &str| {
            let parsed = get(key).map(parse_number).transpose();
            parsed.map_err(|why| Failure::usage(format!("{prefix}{key}: {why}")))
        };
        let owned = |key: &str| get(key).map(str::to_owned);
        Ok(Some(KeySlotWords {
            state: owned("state"),
            // One that is too large for any slot stays so.
            slot: number("keyslot")?.map(|slot| u32::try_from(slot).unwrap_or(u32::MAX)),
            iteration_time: number("iter-time")?
                .map(|millis| Duration::from_millis(u64::try_from(millis).unwrap_or(0))),
            new_secret: owned("new-secret"),
            old_secret: owned("old-secret"),
        }))
    }

    /// The change that they ask for, with passphrases from their secrets.
    pub(crate) fn change(&self) -> Result<KeySlotChange, Failure> {
        match self.state.as_deref() {
            Some("active") => self.added().map(KeySlotChange::Add),
            Some("inactive") => self.erased().map(KeySlotChange::Erase),
            Some(word) => Err(not_a_choice("state", word, "active or inactive")),
            None => Err(Failure::usage("what is to become of the key slots is not said")
                .hint("state=active fills one, state=inactive erases")),
        }
    }

    fn added(&self) -> Result<NewKeySlot, Failure> {
        if self.old_secret.is_some() {
            return Err(Failure::usage("old-secret goes with state=inactive only")
                .hint("The image is opened with its present secret, which fills the slot"));
        }
        let Some(id) = &self.new_secret else {
            return Err(Failure::usage("a key slot is filled with a new-secret, and none is named"));
        };
        let new = NewKeySlot::new(object::passphrase(id)?);
        let iteration_time = self.iteration_time.unwrap_or(new.iteration_time);
        Ok(NewKeySlot { slot: self.slot, iteration_time, ..new })
    }

    fn erased(&self) -> Result<ErasedKeySlots, Failure> {
        let filling =
            [("new-secret", self.new_secret.is_some()), ("iter-time", self.iteration_time.is_some())];
        if let Some((key, _)) = filling.iter().find(|(_, is_given)| *is_given) {
            return Err(Failure::usage(format!("{key} goes with state=active only")));
        }
        let old = self.old_secret.as_deref().map(object::passphrase).transpose()?;
        match (self.slot, old) {
            (Some(slot), Some(old)) => Ok(ErasedKeySlots::SlotHolding(slot, old)),
            (Some(slot), None) => Ok(ErasedKeySlots::Slot(slot)),
            (None, Some(old)) => Ok(ErasedKeySlots::Holding(old)),
            (None, None) => Err(Failure::usage("which key slots are to be erased?")
                .hint("Name one (keyslot=) or the secret that opens them (old-secret=)")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(list: &str) -> String {
        let given = KeyValues::parse(&[list]).unwrap();
        let words = KeySlotWords::of(&given, "").and_then(|words| words.expect("key slot options").change());
        words.unwrap_err().to_string()
    }

    #[test]
    fn slots_are_erased_by_number() {
        let given = KeyValues::parse(&["encrypt.state=inactive,encrypt.keyslot=0x3,compat=v3"]).unwrap();
        let words = KeySlotWords::of(&given, "encrypt.").unwrap().unwrap();
        assert_eq!(words.change().unwrap(), KeySlotChange::Erase(ErasedKeySlots::Slot(3)));
        assert!(KeySlotWords::of(&given, "").unwrap().is_none());
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (list, why) in [
            ("keyslot=1", "is not said"),
            ("state=perhaps", "active or inactive"),
            ("state=active", "new-secret"),
            ("state=active,new-secret=nobody", "no secret"),
            ("state=active,new-secret=a,old-secret=b", "state=inactive only"),
            ("state=active,iter-time=x", "iter-time"),
            ("state=inactive", "which key slots"),
            ("state=inactive,keyslot=1,new-secret=a", "state=active only"),
            ("state=inactive,keyslot=1,iter-time=1", "state=active only"),
        ] {
            let refusal = refusal(list);
            assert!(refusal.contains(why), "{list}: {refusal}");
        }
    }
}
