//! `--object`: secrets that encrypted images ask for by id.
//!
//! ```text
//! object = "secret,id=" id ",data=" text | "secret,id=" id ",file=" path     [",format=raw" | ",format=base64"]
//! ```
//!
//! With `keyid=ID,iv=BASE64` the secret is encrypted: with AES in blocks that are chained, under the 32 bytes of the secret ID,
//! which stands before it on the command line.
//!
//! A secret that no image asks for does nothing; one that is not valid stops the command.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use cowimg::encryption::Passphrase;

use crate::args::option_tree::OptionTree;
use crate::args::secret_cipher;
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
        Some(secret) if std::str::from_utf8(secret).is_err() => {
            Err(Failure::usage(format!("the secret '{id}' is no text (UTF-8), as a passphrase must be")))
        }
        Some(secret) => {
            // As in QEMU, where a passphrase is a text of C.
            let end = secret.iter().position(|&byte| byte == 0).unwrap_or(secret.len());
            Ok(Passphrase::new(&secret[..end]))
        }
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
            let (id, secret) = parse(given, &secrets)
                .map_err(|why| Failure::usage(format!("--object: {why}")).hint(FORM))?;
            if secrets.by_id.insert(id.clone(), secret).is_some() {
                return Err(Failure::usage(format!("--object: there are two objects with the id '{id}'")));
            }
        }
        Ok(secrets)
    }
}

const FORM: &str = "Write secret,id=ID,data=TEXT or secret,id=ID,file=PATH";

/// The id and the bytes of one secret.
fn parse(given: &str, before: &Secrets) -> Result<(String, Vec<u8>), String> {
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
    let (key, vector) = (take("keyid")?, take("iv")?);
    tree.finish().map_err(sentence)?;
    let bytes = match format.as_deref() {
        None | Some("raw") => bytes,
        Some("base64") => decode_base64(&bytes).ok_or("the secret is said to be base64, and is not")?,
        Some(word) => return Err(format!("format is '{word}'; it must be raw or base64")),
    };
    let Some(key) = key else { return Ok((id, bytes)) };
    let Some(key) = before.by_id.get(&key) else {
        return Err(format!("there is no secret '{key}' before this one, to decrypt it with"));
    };
    let vector = vector.ok_or("a secret with keyid= has iv=, too")?;
    let vector = decode_base64(vector.as_bytes()).ok_or("iv is not base64")?;
    Ok((id, secret_cipher::decrypt(key, &vector, bytes)?))
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
        parse(given, &Secrets::default()).map(|(_, secret)| secret)
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
    fn a_secret_is_decrypted_with_the_one_before_it() {
        let encrypted = "secret,id=a,data=NJSVveuKCf6TT8TrKSSfEg==,format=base64,keyid=k";
        let iv = "iv=dnZ2dnZ2dnZ2dnZ2dnZ2dg==";
        let objects = |given: &[String]| Objects { given: given.to_vec() }.secrets();
        let key = format!("secret,id=k,data={}", "k".repeat(32));
        let secrets =
            objects(&[key.clone(), format!("{encrypted},{iv}")]).map_err(|failure| failure.to_string());
        assert_eq!(secrets.unwrap().by_id["a"], b"open sesame");
        for refused in [
            [format!("{encrypted},{iv}"), key.clone()],
            [key.clone(), encrypted.to_owned()],
            [key.clone(), format!("{encrypted},iv=%%")],
            [key.clone(), format!("{encrypted},iv=dnY=")],
            ["secret,id=k,data=short".to_owned(), format!("{encrypted},{iv}")],
        ] {
            assert!(objects(&refused).is_err(), "{refused:?}");
        }
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
