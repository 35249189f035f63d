//! An image described by options instead of a name: `driver=qcow2,file.filename=x`, or the same as JSON.
//!
//! ```text
//! text = pair { "," pair }             as -o has it; keys are paths: "backing.file.filename"
//! json = an object; objects within it are further parts of the path; strings may have single quotes
//! ```
//!
//! Both become one flat list of paths with values, from which the reader takes what it knows. What is left in the end
//! is an option that does not exist.

use std::collections::BTreeMap;

use crate::args::key_values::KeyValues;
use crate::args::size::parse_size;
use crate::failure::Failure;

/// The most parts of a path. Each is a node at most, and who reads the nodes goes down one by one.
const MAX_PARTS: usize = 64;

/// A value of an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    /// A word, or a number or switch as a word.
    Text(String),
    /// A number of JSON, which reports repeat without quotes.
    Number(String),
    /// `null`: the thing is not to be there.
    Null,
}

impl Value {
    /// The value as a word; none for `null`.
    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Value::Text(text) | Value::Number(text) => Some(text),
            Value::Null => None,
        }
    }
}

/// Options by their paths.
#[derive(Debug, Default)]
pub(crate) struct OptionTree {
    values: BTreeMap<String, Value>,
}

impl OptionTree {
    /// Parses the form of `--image-opts`.
    pub(crate) fn from_pairs(text: &str) -> Result<OptionTree, Failure> {
        let first = text.split(',').next().unwrap_or_default();
        if !first.contains('=') {
            return Err(Failure::usage(format!("'{text}' is a name where options are expected")).hint(
                "With --image-opts write driver=qcow2,file.filename=NAME, or leave --image-opts away",
            ));
        }
        let pairs = KeyValues::parse(&[text]).map_err(|error| Failure::usage(error.to_string()))?;
        let values: BTreeMap<String, Value> =
            pairs.iter().map(|(key, value)| (key.to_owned(), Value::Text(value.to_owned()))).collect();
        values.keys().try_for_each(|path| check_depth(path))?;
        Ok(OptionTree { values })
    }

    /// Parses an object of JSON.
    pub(crate) fn from_json(text: &str) -> Result<OptionTree, Failure> {
        let parsed: serde_json::Value = serde_json::from_str(&double_quoted(text))
            .map_err(|error| Failure::usage(format!("the name is no valid JSON: {error}")))?;
        let serde_json::Value::Object(_) = parsed else {
            return Err(Failure::usage("the name is JSON and no object; write json:{...}"));
        };
        let mut tree = OptionTree::default();
        tree.flatten("", parsed)?;
        Ok(tree)
    }

    fn flatten(&mut self, path: &str, value: serde_json::Value) -> Result<(), Failure> {
        let value = match value {
            serde_json::Value::Object(fields) => {
                for (key, field) in fields {
                    let path = if path.is_empty() { key } else { format!("{path}.{key}") };
                    self.flatten(&path, field)?;
                }
                return Ok(());
            }
            serde_json::Value::Array(_) => {
                return Err(Failure::usage(format!("option '{path}' is a list, and there is none that is")));
            }
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(switch) => Value::Text(if switch { "on" } else { "off" }.to_owned()),
            serde_json::Value::Number(number) => Value::Number(number.to_string()),
            serde_json::Value::String(text) => Value::Text(text),
        };
        check_depth(path)?;
        if self.values.insert(path.to_owned(), value).is_some() {
            return Err(Failure::usage(format!("option '{path}' is there twice")));
        }
        Ok(())
    }

    /// Takes an option out.
    pub(crate) fn take(&mut self, path: &str) -> Option<Value> {
        self.values.remove(path)
    }

    /// Takes an option out that must have a value.
    pub(crate) fn take_text(&mut self, path: &str) -> Result<Option<String>, Failure> {
        match self.take(path) {
            None => Ok(None),
            Some(value) => match value.text() {
                Some(text) => Ok(Some(text.to_owned())),
                None => Err(Failure::usage(format!("option '{path}' is null, and must have a value"))),
            },
        }
    }

    /// Takes a switch out.
    pub(crate) fn take_switch(&mut self, path: &str) -> Result<Option<bool>, Failure> {
        match self.take_text(path)?.as_deref() {
            None => Ok(None),
            Some("on" | "yes" | "true" | "y") => Ok(Some(true)),
            Some("off" | "no" | "false" | "n") => Ok(Some(false)),
            Some(word) => Err(Failure::usage(format!("option '{path}' is '{word}'; it must be on or off"))),
        }
    }

    /// Takes an option out that is one of a few words, and returns its place among them.
    pub(crate) fn take_word(&mut self, path: &str, words: &[&str]) -> Result<Option<usize>, Failure> {
        let Some(given) = self.take_text(path)? else { return Ok(None) };
        let place = words.iter().position(|word| *word == given);
        let choices = || words.join(", ");
        let refused =
            || Failure::usage(format!("option '{path}' is '{given}'; it must be one of {}", choices()));
        place.map(Some).ok_or_else(refused)
    }

    /// Takes a size out.
    pub(crate) fn take_size(&mut self, path: &str) -> Result<Option<u64>, Failure> {
        let Some(text) = self.take_text(path)? else { return Ok(None) };
        parse_size(&text).map(Some).map_err(|why| Failure::usage(format!("option '{path}': {why}")))
    }

    /// Looks at an option.
    pub(crate) fn get(&self, path: &str) -> Option<&Value> {
        self.values.get(path)
    }

    /// Whether there is an option below this path.
    pub(crate) fn has_below(&self, path: &str) -> bool {
        let prefix = format!("{path}.");
        self.values.range(prefix.clone()..).next().is_some_and(|(key, _)| key.starts_with(&prefix))
    }

    /// Refuses what nobody has taken.
    pub(crate) fn finish(self) -> Result<(), Failure> {
        match self.values.keys().next() {
            None => Ok(()),
            Some(path) => {
                Err(Failure::usage(format!("there is no option '{path}' for an image of this kind")))
            }
        }
    }
}

/// Refuses a path that leads deeper than any image is described.
fn check_depth(path: &str) -> Result<(), Failure> {
    if path.split('.').count() <= MAX_PARTS {
        return Ok(());
    }
    let start: String = path.chars().take(40).collect();
    Err(Failure::usage(format!("option '{start}...' has more than {MAX_PARTS} parts"))
        .hint("Describe the top of the chain only; what is below it stands in the images"))
}

/// The same JSON with double quotes around every string.
fn double_quoted(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut characters = text.chars();
    let mut quote = None;
    while let Some(character) = characters.next() {
        match (character, quote) {
            ('\'' | '"', None) => {
                quote = Some(character);
                result.push('"');
            }
            (character, Some(open)) if character == open => {
                quote = None;
                result.push('"');
            }
            ('"', Some(_)) => result.push_str("\\\""),
            ('\\', Some(_)) => match characters.next() {
                Some('\'') => result.push('\''),
                Some(escaped) => result.extend(['\\', escaped]),
                None => result.push('\\'),
            },
            (character, _) => result.push(character),
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_say_the_same() {
        let mut pairs =
            OptionTree::from_pairs("driver=raw,file.filename=a,,b,offset=1k,read-only=on").unwrap();
        let json = r#"{"driver":"raw","file":{"filename":"a,b"},"offset":1024,"read-only":true}"#;
        let mut json = OptionTree::from_json(json).unwrap();
        for tree in [&mut pairs, &mut json] {
            assert_eq!(tree.take_text("driver").unwrap().as_deref(), Some("raw"));
            assert!(tree.has_below("file") && !tree.has_below("fil"));
            assert_eq!(tree.take_text("file.filename").unwrap().as_deref(), Some("a,b"));
            assert_eq!(tree.take_size("offset").unwrap(), Some(1024));
            assert_eq!(tree.take_switch("read-only").unwrap(), Some(true));
        }
        pairs.finish().unwrap();
    }

    #[test]
    fn json_may_have_single_quotes() {
        let mut tree = OptionTree::from_json(r#"{'driver':'ra"w','file.filename':'it\'s'}"#).unwrap();
        assert_eq!(tree.take_text("driver").unwrap().as_deref(), Some("ra\"w"));
        assert_eq!(tree.take_text("file.filename").unwrap().as_deref(), Some("it's"));
    }

    /// Found by fuzzing: each part of a path was a call within a call, until the stack was full.
    #[test]
    fn a_path_of_thousands_of_parts_is_refused() {
        let path = |parts: usize| vec!["backing"; parts].join(".");
        assert!(OptionTree::from_pairs(&format!("{}=x", path(MAX_PARTS))).is_ok());
        for parts in [MAX_PARTS + 1, 100_000] {
            assert!(OptionTree::from_pairs(&format!("{}=x", path(parts))).is_err());
            assert!(OptionTree::from_json(&format!("{{\"{}\":1}}", path(parts))).is_err());
        }
        let nested = format!("{}1{}", "{\"backing\":".repeat(100), "}".repeat(100));
        assert!(OptionTree::from_json(&nested).is_err());
        assert!(OptionTree::from_json(&"{\"a\":".repeat(100_000)).is_err());
    }

    #[test]
    fn what_is_no_object_or_not_understood_is_refused() {
        for json in ["[]", "{", "1", "", r#"{"a":[1]}"#, r#"{"a":{"b":1},"a.b":2}"#] {
            assert!(OptionTree::from_json(json).is_err(), "{json}");
        }
        assert!(OptionTree::from_pairs("top.qcow2").is_err());
        assert!(OptionTree::from_pairs("").is_err());
        let mut tree = OptionTree::from_pairs("a=maybe,b=x,c=1").unwrap();
        assert!(tree.take_switch("a").is_err());
        assert!(tree.take_word("b", &["y", "z"]).is_err());
        assert!(tree.finish().is_err());
    }
}
