//! JSON in the layout that qemu-img prints, byte for byte: four blanks per level, keys in a fixed order, a line
//! break even inside an empty list.
//!
//! Text may be any bytes, because file names are. Everything outside printable ASCII is escaped; bytes that are no
//! character become U+FFFD, one per broken sequence.

use std::io::{self, Write};

/// A JSON value. Objects keep the order of their keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Json {
    /// `true` or `false`.
    Bool(bool),
    /// A number; sizes and counts are never negative.
    Number(u64),
    /// Text, as bytes.
    Text(Vec<u8>),
    /// `[...]`
    List(Vec<Json>),
    /// `{...}`
    Object(Vec<(&'static str, Json)>),
}

impl From<bool> for Json {
    fn from(value: bool) -> Json {
        Json::Bool(value)
    }
}

impl From<u64> for Json {
    fn from(value: u64) -> Json {
        Json::Number(value)
    }
}

impl From<u32> for Json {
    fn from(value: u32) -> Json {
        Json::Number(value.into())
    }
}

impl From<&str> for Json {
    fn from(text: &str) -> Json {
        Json::Text(text.as_bytes().to_vec())
    }
}

impl From<&[u8]> for Json {
    fn from(text: &[u8]) -> Json {
        Json::Text(text.to_vec())
    }
}

impl Json {
    /// Writes the value and a line break.
    pub(crate) fn write_document(&self, out: &mut dyn Write) -> io::Result<()> {
        self.write(out, 0)?;
        out.write_all(b"\n")
    }

    fn write(&self, out: &mut dyn Write, level: usize) -> io::Result<()> {
        match self {
            Json::Bool(value) => write!(out, "{value}"),
            Json::Number(value) => write!(out, "{value}"),
            Json::Text(text) => out.write_all(quoted(text).as_bytes()),
            Json::List(values) => {
                out.write_all(b"[")?;
                for (index, value) in values.iter().enumerate() {
                    start_line(out, level + 1, index)?;
                    value.write(out, level + 1)?;
                }
                end_lines(out, level, b"]")
            }
            Json::Object(fields) => {
                out.write_all(b"{")?;
                for (index, (key, value)) in fields.iter().enumerate() {
                    start_line(out, level + 1, index)?;
                    write!(out, "\"{key}\": ")?;
                    value.write(out, level + 1)?;
                }
                end_lines(out, level, b"}")
            }
        }
    }
}

/// Starts the line of an element, after the comma that its predecessor needs.
fn start_line(out: &mut dyn Write, level: usize, index: usize) -> io::Result<()> {
    let comma = if index == 0 { "" } else { "," };
    write!(out, "{comma}\n{:width$}", "", width = 4 * level)
}

/// Closes a list or an object on a line of its own.
fn end_lines(out: &mut dyn Write, level: usize, bracket: &[u8]) -> io::Result<()> {
    write!(out, "\n{:width$}", "", width = 4 * level)?;
    out.write_all(bracket)
}

/// The text between quotes, escaped.
pub(crate) fn quoted(text: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut result = String::with_capacity(text.len() + 2);
    result.push('"');
    let mut rest = text;
    while let Some(&first) = rest.first() {
        let used = match first {
            b'"' => push(&mut result, "\\\""),
            b'\\' => push(&mut result, "\\\\"),
            b'\n' => push(&mut result, "\\n"),
            b'\r' => push(&mut result, "\\r"),
            b'\t' => push(&mut result, "\\t"),
            0x08 => push(&mut result, "\\b"),
            0x0c => push(&mut result, "\\f"),
            0x20..=0x7e => {
                result.push(char::from(first));
                1
            }
            _ => {
                let (character, used) = next_character(rest);
                for unit in character.encode_utf16(&mut [0; 2]) {
                    // Writing into a String cannot fail.
                    let _ = write!(result, "\\u{unit:04X}");
                }
                used
            }
        };
        rest = &rest[used..];
    }
    result.push('"');
    result
}

/// Appends the escape of a one-byte character, and says that one byte is used up.
fn push(result: &mut String, escape: &str) -> usize {
    result.push_str(escape);
    1
}

/// The character at the start of `bytes` (not empty) and its length in bytes.
///
/// A broken sequence is as long as its first byte promises, or ends before the first byte that cannot continue it.
/// Surrogates, overlong forms and the code points that are no characters count as broken; the two-byte form of
/// U+0000 does not, so that the same reports come out as from qemu-img.
fn next_character(bytes: &[u8]) -> (char, usize) {
    let (promised, bits) = match bytes[0] {
        byte @ 0x00..=0x7f => return (char::from(byte), 1),
        0x80..=0xbf | 0xfe | 0xff => return (char::REPLACEMENT_CHARACTER, 1),
        byte @ 0xc0..=0xdf => (2, byte & 0x1f),
        byte @ 0xe0..=0xef => (3, byte & 0x0f),
        byte @ 0xf0..=0xf7 => (4, byte & 0x07),
        byte @ 0xf8..=0xfb => (5, byte & 0x03),
        byte @ 0xfc..=0xfd => (6, byte & 0x01),
    };
    let following = bytes[1..].iter().take(promised - 1).take_while(|&&byte| byte & 0xc0 == 0x80);
    let (code, length) = following
        .fold((u32::from(bits), 1), |(code, length), byte| (code << 6 | u32::from(byte & 0x3f), length + 1));
    let smallest = [0, 0, 0x80, 0x800, 0x10000, 0x200000, 0x4000000][promised];
    let overlong = code < smallest && !(code == 0 && promised == 2);
    let no_character = (0xfdd0..=0xfdef).contains(&code) || code & 0xfffe == 0xfffe;
    let whole = length == promised && !overlong && !no_character;
    let character = if whole { char::from_u32(code) } else { None };
    (character.unwrap_or(char::REPLACEMENT_CHARACTER), length)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What qemu-img 10.0 printed for files with these names.
    #[test]
    fn names_are_escaped_as_qemu_img_escapes_them() {
        for (name, escaped) in [
            (&b"plain /name~"[..], "plain /name~"),
            (b"q\"'b\\", "q\\\"'b\\\\"),
            (b"\x01\n\t\r\x08\x0c\x7f<>&", "\\u0001\\n\\t\\r\\b\\f\\u007F<>&"),
            ("ä€😀\u{2028}\u{80}".as_bytes(), "\\u00E4\\u20AC\\uD83D\\uDE00\\u2028\\u0080"),
            (b"\xff\xfe", "\\uFFFD\\uFFFD"),
            (b"\xe2\x82x", "\\uFFFDx"),
            (b"\xc0\x80", "\\u0000"),
            (b"\xed\xa0\x80", "\\uFFFD"),
            (b"\xf4\x90\x80\x80", "\\uFFFD"),
            (b"\xe2(\xa1", "\\uFFFD(\\uFFFD"),
            (b"\xf0\x80\x80\xaf", "\\uFFFD"),
            (b"\xc1\xbf", "\\uFFFD"),
            (b"\x80\x80", "\\uFFFD\\uFFFD"),
            (b"\xf0\x9f\x98", "\\uFFFD"),
            (b"\xf0\x9f\x98y", "\\uFFFDy"),
            (b"\xef\xbf\xbe", "\\uFFFD"),
            (b"\xef\xb7\x90", "\\uFFFD"),
            (b"\xf8\x88\x80\x80\x80", "\\uFFFD"),
            (b"\xfc\x84\x80\x80\x80\x80", "\\uFFFD"),
            (b"\xe2\xe2\x82\xac", "\\uFFFD\\u20AC"),
            (b"\xf4\x8f\xbf\xbd", "\\uDBFF\\uDFFD"),
            (b"\xf4\x8f\xbf\xbf", "\\uFFFD"),
        ] {
            assert_eq!(quoted(name), format!("\"{escaped}\""), "{name:?}");
        }
    }

    #[test]
    fn an_empty_list_takes_two_lines() {
        let json = Json::Object(vec![
            ("children", Json::List(vec![])),
            ("data", Json::Object(vec![])),
            ("list", Json::List(vec![1_u64.into(), true.into()])),
        ]);
        let mut text = Vec::new();
        json.write_document(&mut text).unwrap();
        let expected = "{\n    \"children\": [\n    ],\n    \"data\": {\n    },\n    \"list\": [\n        1,\n        \
                        true\n    ]\n}\n";
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }
}
