//! `--object`: secrets that encrypted images ask for by id.
//!
//! ```text
//! object = "secret,id=" id ",data=" text | "secret,id=" id ",file=" path     [",format=raw" | ",format=base64"]
//! ```
//!
//! A secret that no image asks for does nothing; one that is not valid stops the command.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use cowimg::encryption::Passphrase;

use crate::args::option_tree::OptionTree;
use crate::failure::{Failure, os_message};

/// The objects of a command line.
#[derive(Debug, clap::Args)]
pub(crate) struct Objects {
    /// A secret that an encrypted image asks for: secret,id=ID,data=TEXT or secret,id=ID,file=PATH; format=base64 where
    /// the text is so encoded
    #[arg(long = "object", value_name = "OBJDEF")]
    given: Vec<String>,
}

/// Secrets by their ids.
#[derive(Default)]
struct Secrets {
    by_id: BTreeMap<String, Vec<u8>>,
}

/// The secrets of this process's command line: every option and every image may name one.
static REGISTERED: OnceLock<Secrets> = OnceLock::new();

/// The passphrase that the secret of this id is.
pub(crate) fn passphrase(id: &str) -> Result<Passphrase, Failure> {
    match REGISTERED.get().and_then(|secrets| secrets.by_id.get(id)) {
        Some(secret) => Ok(Passphrase::new(secret.as_slice())),
        None => Err(Failure::usage(format!("there is no secret with the id '{id}'"))
            .hint(format!("Define it with --object secret,id={id},file=PATH"))),
    }
}

impl Objects {
    /// Reads every object, for the whole command to ask for.
    pub(crate) fn register(&self) -> Result<(), Failure> {
        if self.given.iter().any(|given| given == "help" || given == "?") {
            return Err(Failure::answered("Objects that have a use here:\n  secret\n"));
        }
        let _registered_before = REGISTERED.set(self.secrets()?);
        Ok(())
    }

    fn secrets(&self) -> Result<Secrets, Failure> {
        let mut secrets = Secrets::default();
        for given in &self.given {
            let (id, secret) =
                parse(given).map_err(|why| Failure::usage(format!("--object: {why}")).hint(FORM))?;
            if secrets.by_id.insert(id.clone(), secret).is_some() {
                return Err(Failure::usage(format!("--object: there are two objects with the id '{id}'")));
            }
        }
        Ok(secrets)
    }
}

const FORM: &str = "Write secret,id=ID,data=TEXT or secret,id=ID,file=PATH";

/// The id and the bytes of one secret.
fn parse(given: &str) -> Result<(String, Vec<u8>), String> {
    let sentence = |failure: Failure| failure.to_string();
    let mut tree = if given.starts_with('{') {
        OptionTree::from_json(given).map_err(sentence)?
    } else {
        let given =
            if given.starts_with("qom-type=") { given.to_owned() } else { format!("qom-type={given}") };
        OptionTree::from_pairs(&given).map_err(sentence)?
    };
    let mut take = |key: &str| tree.take_text(key).map_err(sentence);
    match take("qom-type")?.as_deref() {
        Some("secret") => {}
        Some(other) => return Err(format!("an object of type '{other}' has no use here; there is 'secret'")),
        None => return Err("the object's type is not said".to_owned()),
    }
    let id = take("id")?.ok_or("the object has no id")?;
    let mut letters = id.bytes();
    let starts_well = letters.next().is_some_and(|byte| byte.is_ascii_alphabetic());
    if !starts_well || !letters.all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)) {
        return Err(format!("'{id}' is no id: a letter, then letters, digits, '-', '.' and '_'"));
    }
    let bytes = match (take("data")?, take("file")?) {
        (Some(data), None) => data.into_bytes(),
        (None, Some(file)) => {
            std::fs::read(&file).map_err(|error| format!("could not read {file}: {}", os_message(&error)))?
        }
        (Some(_), Some(_)) => return Err("a secret has data= or file=, not both".to_owned()),
        (None, None) => return Err("a secret has data= or file=, and here is neither".to_owned()),
    };
    let format = take("format")?;
    if take("keyid")?.is_some() || take("iv")?.is_some() {
        return Err("secrets that are encrypted by another one (keyid=) are not handled".to_owned());
    }
    tree.finish().map_err(sentence)?;
    match format.as_deref() {
        None | Some("raw") => Ok((id, bytes)),
        Some("base64") => {
            Ok((id, decode_base64(&bytes).ok_or("the secret is said to be base64, and is not")?))
        }
        Some(word) => Err(format!("format is '{word}'; it must be raw or base64")),
    }
}

/// Decodes base64; white space between the characters is skipped.
fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    let text: Vec<u8> = text.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let padding = text.iter().rev().take_while(|&&byte| byte == b'=').count();
    if !text.len().is_multiple_of(4) || padding > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0);
    for &letter in &text[..text.len() - padding] {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(given: &str) -> Result<Vec<u8>, String> {
        parse(given).map(|(_, secret)| secret)
    }

    #[test]
    fn a_secret_is_what_it_says_it_is() {
        assert_eq!(secret("secret,id=a,data=x,,y").unwrap(), b"x,y");
        assert_eq!(secret("qom-type=secret,id=a-1._,data=x,format=raw").unwrap(), b"x");
        assert_eq!(secret(r#"{"qom-type":"secret","id":"a","data":"x"}"#).unwrap(), b"x");
        assert_eq!(secret("secret,id=a,format=base64,data=aGVsbG8=").unwrap(), b"hello");
        assert_eq!(secret("secret,id=a,format=base64,data=").unwrap(), b"");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"aGVs\nbG8h\n").unwrap();
        let named = format!("secret,id=a,file={},format=base64", file.path().display());
        assert_eq!(secret(&named).unwrap(), b"hello!");
    }

    #[test]
    fn an_object_that_is_not_valid_is_refused() {
        for given in [
            "secret",
            "secret,id=a",
            "secret,data=x",
            "secret,id=1a,data=x",
            "secret,id=a,data=x,file=y",
            "secret,id=a,data=x,format=hex",
            "secret,id=a,data=%%,format=base64",
            "secret,id=a,data=abc,format=base64",
            "secret,id=a,data=x,foo=y",
            "secret,id=a,file=/nonexistent/secret",
            "secret,id=a,data=x,keyid=b",
            "iothread,id=a",
            "nosuch,id=a",
            r#"{"id":"a","data":"x"}"#,
        ] {
            assert!(secret(given).is_err(), "{given}");
        }
        let twice = Objects { given: vec!["secret,id=a,data=x".to_owned(); 2] };
        assert!(twice.secrets().is_err());
    }
}
