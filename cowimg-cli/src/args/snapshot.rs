//! Which internal snapshot a command line means.
//!
//! ```text
//! selector = "snapshot." list      snapshot.id=ID, snapshot.name=NAME or both: what has all that is stated
//!          | text                  the snapshot with this id or, where there is none, the first with this name
//! ```

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use cowimg::SnapshotSelector;

use super::key_values::{KeyValues, nearest};

/// What starts a list, and every key in it.
const PREFIX: &str = "snapshot.";
const ID: &str = "snapshot.id";
const NAME: &str = "snapshot.name";

/// The snapshot that `text` means, as `convert -l` takes it.
pub(crate) fn parse_selector(text: &OsStr) -> Result<SnapshotSelector, String> {
    if !text.as_bytes().starts_with(PREFIX.as_bytes()) {
        return Ok(SnapshotSelector::IdOrName(text.as_bytes().to_vec()));
    }
    let list = text.to_str().ok_or("a list of snapshot.id and snapshot.name must be UTF-8")?;
    let pairs = KeyValues::parse(&[list]).map_err(|error| error.to_string())?;
    if let Some((unknown, _)) = pairs.iter().find(|(key, _)| ![ID, NAME].contains(key)) {
        let meant =
            nearest(unknown, [ID, NAME]).map_or(String::new(), |key| format!("; did you mean '{key}'?"));
        return Err(format!("'{unknown}' is not a way to choose a snapshot: {ID} and {NAME} are{meant}"));
    }
    let value = |key| pairs.get(key).map(|value| value.as_bytes().to_vec());
    match (value(ID), value(NAME)) {
        (Some(id), Some(name)) => Ok(SnapshotSelector::IdAndName { id, name }),
        (Some(id), None) => Ok(SnapshotSelector::Id(id)),
        (None, Some(name)) => Ok(SnapshotSelector::Name(name)),
        (None, None) => Err(format!("'{list}' chooses no snapshot: give {ID} or {NAME}")),
    }
}

/// The same for clap.
#[allow(dead_code, reason = "commands that read a snapshot take it from here")]
pub(crate) fn selector_parser() -> impl clap::builder::TypedValueParser<Value = SnapshotSelector> {
    use clap::builder::TypedValueParser;
    clap::builder::OsStringValueParser::new().try_map(|text| parse_selector(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<SnapshotSelector, String> {
        parse_selector(OsStr::new(text))
    }

    #[test]
    fn a_plain_word_is_an_id_or_a_name() {
        for word in ["1", "before update", "", "snapshot", "a.id=1"] {
            assert_eq!(parsed(word), Ok(SnapshotSelector::IdOrName(word.into())));
        }
        let bytes = OsStr::from_bytes(b"\xff\xfe");
        assert_eq!(parse_selector(bytes), Ok(SnapshotSelector::IdOrName(vec![0xff, 0xfe])));
    }

    #[test]
    fn a_list_says_which_of_both() {
        assert_eq!(parsed("snapshot.id=7"), Ok(SnapshotSelector::Id(b"7".to_vec())));
        assert_eq!(parsed("snapshot.name=a,,b"), Ok(SnapshotSelector::Name(b"a,b".to_vec())));
        let (id, name) = (b"7".to_vec(), b"x=y".to_vec());
        assert_eq!(parsed("snapshot.name=x=y,snapshot.id=7"), Ok(SnapshotSelector::IdAndName { id, name }));
    }

    #[test]
    fn what_is_no_way_to_choose_is_refused() {
        assert!(parsed("snapshot.nam=x").unwrap_err().contains("did you mean 'snapshot.name'"));
        assert!(parsed("snapshot.id=1,format=raw").unwrap_err().contains("'format'"));
        assert!(parsed("snapshot.").is_err());
        assert!(parsed("snapshot.id=1,").is_err());
        assert!(parse_selector(OsStr::from_bytes(b"snapshot.id=\xff")).is_err());
    }
}
