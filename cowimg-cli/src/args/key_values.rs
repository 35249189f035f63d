//! Lists of `key=value` as `-o` takes them, and the nearest known word for one that is not known.
//!
//! ```text
//! list = pair { "," pair }        pair = key [ "=" value ]        ",," within a value is one comma
//! ```
//!
//! A key alone is `key=on`. A key that comes twice has its last value.

use std::fmt;

/// Why a list was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KeyValuesError {
    /// `-o ""`, `-o a=1,` and the like.
    EmptyPair(String),
}

impl fmt::Display for KeyValuesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyValuesError::EmptyPair(list) => {
                write!(
                    f,
                    "'{list}' has an empty option in it; write key=value, with commas only between options"
                )
            }
        }
    }
}

impl std::error::Error for KeyValuesError {}

/// Options in the order in which their keys came first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct KeyValues {
    pairs: Vec<(String, String)>,
}

impl KeyValues {
    /// Parses every list and joins them.
    pub(crate) fn parse<S: AsRef<str>>(lists: &[S]) -> Result<KeyValues, KeyValuesError> {
        let mut parsed = KeyValues::default();
        for list in lists {
            let list = list.as_ref();
            for pair in split_pairs(list) {
                let (key, value) = match pair.split_once('=') {
                    Some((key, value)) => (key.to_owned(), value.to_owned()),
                    None => (pair, "on".to_owned()),
                };
                if key.is_empty() {
                    return Err(KeyValuesError::EmptyPair(list.to_owned()));
                }
                parsed.set(key, value);
            }
        }
        Ok(parsed)
    }

    /// Gives a key its value, in place of the one that it had.
    fn set(&mut self, key: String, value: String) {
        match self.pairs.iter_mut().find(|(known, _)| *known == key) {
            Some((_, old)) => *old = value,
            None => self.pairs.push((key, value)),
        }
    }

    /// The pairs.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// The value of a key.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.iter().find(|(known, _)| *known == key).map(|(_, value)| value)
    }

    /// Whether the user asks which options there are.
    pub(crate) fn asks_for_help(&self) -> bool {
        self.iter().any(|(key, value)| matches!(key, "help" | "?") && value == "on")
    }
}

/// Splits at single commas; a doubled one stands for itself.
fn split_pairs(list: &str) -> Vec<String> {
    let mut pairs = vec![String::new()];
    let mut characters = list.chars().peekable();
    while let Some(character) = characters.next() {
        if character == ',' && characters.next_if_eq(&',').is_none() {
            pairs.push(String::new());
        } else if let Some(last) = pairs.last_mut() {
            last.push(character);
        }
    }
    pairs
}

/// The word that the user may have meant, if one is near: at most two edits away, and fewer than the word has letters.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (edits(word, candidate), candidate))
        .filter(|&(distance, candidate)| distance <= 2 && distance < candidate.len().min(word.len()))
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// Letters to insert, delete or replace to make one word of the other (Levenshtein's distance).
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, letter) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, other) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(lists: &[&str]) -> Vec<(String, String)> {
        KeyValues::parse(lists).unwrap().pairs
    }

    fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn lists_join_and_the_last_value_of_a_key_counts() {
        assert_eq!(pairs(&["a=1,b", "c=x=y", "a=2"]), owned(&[("a", "2"), ("b", "on"), ("c", "x=y")]));
        assert_eq!(pairs(&["compat="]), owned(&[("compat", "")]));
    }

    #[test]
    fn a_doubled_comma_is_one_comma_of_the_value() {
        assert_eq!(pairs(&["f=a,,b,g=1"]), owned(&[("f", "a,b"), ("g", "1")]));
        assert_eq!(pairs(&["f=a,,,g=1"]), owned(&[("f", "a,"), ("g", "1")]));
    }

    #[test]
    fn an_empty_pair_is_refused() {
        for list in ["", ",", "a=1,", ",a=1", "=1"] {
            assert_eq!(
                KeyValues::parse(&[list]),
                Err(KeyValuesError::EmptyPair(list.to_owned())),
                "{list:?}"
            );
        }
    }

    #[test]
    fn the_nearest_word_is_found_and_a_far_one_is_not() {
        let known = ["cluster_size", "compat", "size"];
        assert_eq!(nearest("cluster_sise", known), Some("cluster_size"));
        assert_eq!(nearest("clustersize", known), Some("cluster_size"));
        assert_eq!(nearest("siz", known), Some("size"));
        assert_eq!(nearest("banana", known), None);
        assert_eq!(nearest("ab", known), None);
    }
}
