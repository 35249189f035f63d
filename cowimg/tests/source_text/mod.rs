//! Rust sources as the style tests see them: comments and the insides of strings masked, test parts cut out.
//!
//! This is a scanner, not a parser. It knows comments, strings, characters and brackets, which is all that the
//! tests in `layers.rs` and `tidy.rs` ask. Masking keeps every line and column in its place, so that an offset
//! in the masked text is an offset in the file.
#![allow(dead_code, reason = "each test that includes this module needs a part of it")]

use std::fs;
use std::path::{Path, PathBuf};

/// One source file.
pub(crate) struct Source {
    /// Path from the top of the workspace, with `/` between its parts.
    pub(crate) path: String,
    /// The file as it is.
    pub(crate) text: String,
    /// Comments are blanks, the insides of strings and characters are `_`.
    pub(crate) code: String,
    /// `code` without what is compiled for tests only.
    pub(crate) production: String,
}

impl Source {
    /// Every `.rs` file under a folder of the workspace, in order of path.
    pub(crate) fn all_under(folder: &str) -> Vec<Source> {
        let top = workspace();
        let mut paths = Vec::new();
        collect_files(&top.join(folder), &mut paths);
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
        paths.sort();
        paths.iter().map(|path| Source::read(&top, path)).collect()
    }

    fn read(top: &Path, path: &Path) -> Source {
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let relative = path.strip_prefix(top).expect("the file is in the workspace");
        Source::new(&relative.to_string_lossy().replace('\\', "/"), text)
    }

    /// A source from its text.
    pub(crate) fn new(path: &str, text: String) -> Source {
        let code = mask(&text);
        let whole_file_is_test =
            path.ends_with("/tests.rs") || path.ends_with("_tests.rs") || path.contains("/tests/");
        let production = if whole_file_is_test { blank(&code) } else { without_tests(&code) };
        Source { path: path.to_owned(), text, code, production }
    }

    /// The number, from 1, of the line that holds the byte at `offset`.
    pub(crate) fn line_of(&self, offset: usize) -> usize {
        self.text[..offset].matches('\n').count() + 1
    }
}

/// The top folder of the workspace.
pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in a workspace").to_path_buf()
}

/// Every file under a folder, without what builds and fuzzers leave there.
pub(crate) fn collect_files(folder: &Path, found: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for entry in entries {
        let path = entry.expect("the folder can be listed").path();
        let is_left_by_tools = ["target", "corpus", "artifacts"].iter().any(|name| path.ends_with(name));
        if path.is_dir() && !is_left_by_tools {
            collect_files(&path, found);
        } else if path.is_file() {
            found.push(path);
        }
    }
}

/// Offsets at which `word` stands in `code`, not as a part of a longer identifier.
pub(crate) fn word_offsets<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(word).map(|(offset, _)| offset).filter(move |&offset| {
        let before = code[..offset].chars().next_back();
        let after = code[offset + word.len()..].chars().next();
        let starts = !word.starts_with(is_identifier) || !before.is_some_and(is_identifier);
        let ends = !word.ends_with(is_identifier) || !after.is_some_and(is_identifier);
        starts && ends
    })
}

/// Whether a character can be a part of a Rust identifier.
pub(crate) fn is_identifier(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// Offset one past the bracket that closes the one at `open`, or the end of the text.
pub(crate) fn end_of_group(code: &str, open: usize) -> usize {
    let mut depth = 0usize;
    for (offset, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return offset + 1;
                }
            }
            _ => {}
        }
    }
    code.len()
}

/// Blanks comments and fills strings and characters with `_`.
fn mask(text: &str) -> String {
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let previous = masked.chars().next_back();
        let (len, kind) = next_token(rest, previous);
        let (token, tail) = rest.split_at(len);
        match kind {
            Token::Code => masked.push_str(token),
            Token::Comment => masked.push_str(&fill(token, b' ')),
            Token::Literal => masked.push_str(&fill(token, b'_')),
        }
        rest = tail;
    }
    masked
}

#[derive(Clone, Copy)]
enum Token {
    Code,
    Comment,
    Literal,
}

/// Length and kind of what `rest` starts with.
fn next_token(rest: &str, previous: Option<char>) -> (usize, Token) {
    let first = rest.chars().next().expect("the caller has text left");
    if rest.starts_with("//") {
        return (rest.find('\n').unwrap_or(rest.len()), Token::Comment);
    }
    if rest.starts_with("/*") {
        return (block_comment_len(rest), Token::Comment);
    }
    if first == '"' {
        return (string_len(rest), Token::Literal);
    }
    if first == '\'' {
        return character_len(rest).map_or((1, Token::Code), |len| (len, Token::Literal));
    }
    let starts_identifier = !previous.is_some_and(is_identifier);
    if starts_identifier && let Some(len) = raw_string_len(rest) {
        return (len, Token::Literal);
    }
    (first.len_utf8(), Token::Code)
}

fn block_comment_len(rest: &str) -> usize {
    let mut depth = 0usize;
    let mut offset = 0;
    while offset < rest.len() {
        if rest.as_bytes()[offset..].starts_with(b"/*") {
            depth += 1;
            offset += 2;
        } else if rest.as_bytes()[offset..].starts_with(b"*/") {
            depth -= 1;
            offset += 2;
            if depth == 0 {
                return offset;
            }
        } else {
            offset += 1;
        }
    }
    rest.len()
}

fn string_len(rest: &str) -> usize {
    let mut escaped = false;
    for (offset, byte) in rest.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return offset + 1,
            _ => {}
        }
    }
    rest.len()
}

/// `r"..."`, `r#"..."#`, `br"..."`; `None` for anything else, such as an identifier that starts with `r`.
fn raw_string_len(rest: &str) -> Option<usize> {
    let after_prefix = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'))?;
    let body = after_prefix.trim_start_matches('#').strip_prefix('"')?;
    let hashes = after_prefix.len() - body.len() - 1;
    let close = format!("\"{}", "#".repeat(hashes));
    let start = rest.len() - body.len();
    Some(body.find(&close).map_or(rest.len(), |end| start + end + close.len()))
}

/// The length of a character literal, or `None` for a lifetime.
fn character_len(rest: &str) -> Option<usize> {
    let inside = &rest[1..];
    if inside.starts_with('\\') {
        let close = inside.char_indices().skip(2).find(|&(_, character)| character == '\'')?.0;
        return Some(close + 2);
    }
    let len = inside.chars().next()?.len_utf8();
    inside[len..].starts_with('\'').then_some(len + 2)
}

/// `filler` in place of every byte that does not end a line.
fn fill(token: &str, filler: u8) -> String {
    token.bytes().map(|byte| if byte == b'\n' { '\n' } else { char::from(filler) }).collect()
}

fn blank(code: &str) -> String {
    fill(code, b' ')
}

/// Blanks every item under a `#[cfg(test)]`, and `#[cfg(all(test, ...))]`.
fn without_tests(code: &str) -> String {
    let mut production = code.to_owned();
    for (start, _) in code.match_indices("#[cfg(") {
        let attribute_end = end_of_group(code, start + 1);
        let condition = &code[start..attribute_end];
        if word_offsets(condition, "test").next().is_none() || condition.contains("not(test") {
            continue;
        }
        let end = end_of_item(code, attribute_end);
        production.replace_range(start..end, &blank(&code[start..end]));
    }
    production
}

/// Offset one past the item that starts at `start`: its `;`, the bracket that closes its `{`, or the `,` after a
/// field or variant.
fn end_of_item(code: &str, start: usize) -> usize {
    let mut offset = start;
    while offset < code.len() {
        let before = &code[start..offset];
        let has_generics = ["fn", "impl", "struct", "enum", "trait", "type"]
            .iter()
            .any(|keyword| word_offsets(before, keyword).next().is_some());
        match code.as_bytes()[offset] {
            b'{' => return end_of_group(code, offset),
            b'(' | b'[' => offset = end_of_group(code, offset),
            b';' => return offset + 1,
            b',' if !has_generics => return offset + 1,
            _ => offset += 1,
        }
    }
    code.len()
}
