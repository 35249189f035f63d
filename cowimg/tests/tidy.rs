//! Style that a reader would otherwise have to ask for, as a test. Each message says what to do instead.
//!
//! Limits only go down. A rule that turns out wrong is changed here, for every file; there is no list of files
//! that it does not hold for.

mod source_text;

use std::fs;
use std::path::PathBuf;

use source_text::{Source, collect_files, end_of_group, word_offsets, workspace};

/// Code lines of a file, without blank lines, comments and tests.
const MAX_FILE_LINES: usize = 500;
/// Code lines of a function, from its signature to its closing bracket.
const MAX_FUNCTION_LINES: usize = 70;

/// Every folder with Rust sources.
const CODE_FOLDERS: &[&str] = &["cowimg", "cowimg-cli", "benches", "fuzz"];

/// Names that say nothing about what is inside.
const BANNED_NAMES: &[&str] = &["util", "utils", "helper", "helpers", "common", "misc", "stuff", "shared"];

/// Where a banned word counts.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// Anywhere in a Rust file, comments included.
    Text,
    /// In code, tests included.
    Code,
    /// In the library's code, tests left out.
    Library,
}

/// A word, where it is banned, and what to write instead. The words are taken apart, or this file would offend.
const BANNED_WORDS: &[(&str, Place, &str)] = &[
    (concat!("todo", "!"), Place::Code, "write it, or leave the option out"),
    (concat!("unimplemented", "!"), Place::Code, "write it, or leave the option out"),
    (concat!("dbg", "!"), Place::Code, "assert on the value, or return it"),
    (concat!("FIX", "ME"), Place::Text, "fix it now, or state the limit in the documentation"),
    (concat!("X", "XX"), Place::Text, "fix it now, or state the limit in the documentation"),
    (concat!("TO", "DO"), Place::Text, "do it now, or state the limit in the documentation"),
    (
        concat!("#[", "ignore"),
        Place::Code,
        "a test that does not run tests nothing: make it quick, or a `make soak`",
    ),
    (concat!("super::", "super::super"), Place::Code, "name the module from the root: `crate::...`"),
    ("println!", Place::Library, "return the value: the program prints, the library never does"),
    ("eprintln!", Place::Library, "return an `Error`: the program prints, the library never does"),
    ("print!", Place::Library, "return the value: the program prints, the library never does"),
    ("eprint!", Place::Library, "return an `Error`: the program prints, the library never does"),
    ("process::exit", Place::Library, "return an `Error`: the caller decides how the process ends"),
    ("process::abort", Place::Library, "return an `Error`: the caller decides how the process ends"),
    ("env::var", Place::Library, "take an option: the library does not read the environment"),
    ("env::var_os", Place::Library, "take an option: the library does not read the environment"),
    ("env::args", Place::Library, "take an option: the library does not know the command line"),
    ("SystemTime::now", Place::Library, "take the time as an argument, so that a test can say what it is"),
    (
        concat!("bs", "->"),
        Place::Text,
        "say it in this project's words: the specification's, not another program's",
    ),
    (
        concat!("BDR", "V_"),
        Place::Text,
        "say it in this project's words: the specification's, not another program's",
    ),
    (concat!("Block", "DriverState"), Place::Text, "say it in this project's words, not another program's"),
    (
        concat!("/ro", "ot/"),
        Place::Text,
        "a path of one machine: take it from the environment or a temporary folder",
    ),
    (
        concat!("/ho", "me/"),
        Place::Text,
        "a path of one machine: take it from the environment or a temporary folder",
    ),
];

#[test]
fn no_file_is_longer_than_a_person_reads_at_once() {
    report(sources().iter().filter_map(|source| {
        let is_test = source.path.contains("/tests/");
        let lines = code_lines(if is_test { &source.code } else { &source.production });
        (lines > MAX_FILE_LINES).then(|| {
            format!(
                "{}: {lines} code lines, at most {MAX_FILE_LINES}: find the two things in it",
                source.path
            )
        })
    }));
}

#[test]
fn every_function_fits_on_a_screen() {
    report(sources().iter().flat_map(|source| {
        functions(&source.code).filter_map(|(start, end)| {
            let lines = code_lines(&source.code[start..end]);
            let line = source.line_of(start);
            (lines > MAX_FUNCTION_LINES).then(|| {
                format!("{}:{line}: a function of {lines} lines, at most {MAX_FUNCTION_LINES}", source.path)
            })
        })
    }));
}

#[test]
fn files_are_named_for_what_is_in_them() {
    report(sources().iter().filter_map(|source| {
        let inside = source.path.trim_end_matches(".rs");
        let name = inside.split('/').find(|part| BANNED_NAMES.contains(part))?;
        Some(format!("{}: `{name}` says nothing: name the noun of the domain that is in it", source.path))
    }));
}

#[test]
fn no_banned_word_stands_in_the_code() {
    report(sources().iter().flat_map(|source| {
        BANNED_WORDS.iter().flat_map(|&(word, place, instead)| {
            let is_library = source.path.starts_with("cowimg/src/");
            let searched = match place {
                Place::Text => source.text.as_str(),
                Place::Code => source.code.as_str(),
                Place::Library if is_library => source.production.as_str(),
                Place::Library => "",
            };
            word_offsets(searched, word)
                .map(|offset| format!("{}:{}: `{word}`: {instead}", source.path, source.line_of(offset)))
                .collect::<Vec<_>>()
        })
    }));
}

#[test]
fn every_file_starts_with_what_it_is_for() {
    report(sources().iter().filter(|source| !source.text.starts_with("//!")).map(|source| {
        format!("{}: start with `//!` and say what the file is for and what it must not know", source.path)
    }));
}

#[test]
fn glob_imports_of_the_parent_are_for_tests() {
    report(sources().iter().flat_map(|source| {
        source.production.match_indices("use super::*").map(|(offset, _)| {
            format!("{}:{}: name what is used instead of `use super::*`", source.path, source.line_of(offset))
        })
    }));
}

#[test]
fn an_allowed_lint_carries_its_reason() {
    report(sources().iter().flat_map(|source| {
        ["#[allow(", "#![allow(", "#[expect(", "#![expect("].into_iter().flat_map(|attribute| {
            source.code.match_indices(attribute).filter_map(|(start, _)| {
                let end = end_of_group(&source.code, start + attribute.len() - 1);
                let line = source.line_of(start);
                let is_explained =
                    source.code[start..end].contains("reason =") || follows_comment(source, line);
                (!is_explained).then(|| format!("{}:{line}: say why, with `reason = \"...\"`", source.path))
            })
        })
    }));
}

#[test]
fn the_top_level_holds_the_promised_folders_and_no_others() {
    let promised = ["cowimg", "cowimg-cli", "fuzz", "testdata", "benches", "target"];
    let entries = fs::read_dir(workspace()).expect("the workspace can be listed");
    let folders =
        entries.map(|entry| entry.expect("an entry can be read")).filter(|entry| entry.path().is_dir());
    report(folders.filter_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_expected = name.starts_with('.') || promised.contains(&name.as_str());
        (!is_expected)
            .then(|| format!("{name}/: the folders at the top are fixed: find it a place in one of them"))
    }));
}

#[test]
fn links_in_the_documents_lead_somewhere() {
    let top = workspace();
    let mut files = vec![top.join("README.md"), top.join("CHANGELOG.md")];
    for folder in ["cowimg", "cowimg-cli", "benches", "fuzz", "testdata"] {
        collect_files(&top.join(folder), &mut files);
    }
    files.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    report(files.iter().flat_map(|file| {
        let text = fs::read_to_string(file).expect("a document is text");
        let folder = file.parent().expect("a file is in a folder").to_path_buf();
        relative_links(&text)
            .filter(|link| !folder.join(link).exists())
            .map(|link| format!("{}: the link `{link}` leads nowhere", file.display()))
            .collect::<Vec<_>>()
    }));
}

#[test]
fn every_place_in_the_readmes_table_exists() {
    let top = workspace();
    let readme = fs::read_to_string(top.join("README.md")).expect("there is a README");
    let section = readme.split("\n## ").find(|section| section.starts_with("Where things are"));
    let section = section.expect("the README has a section \"Where things are\"");
    let places: Vec<PathBuf> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .map(|place| top.join(place))
        .collect();
    assert!(
        places.len() >= 5,
        "the table of places in the README has at least five rows that start with a path"
    );
    report(places.iter().filter(|place| !place.exists()).map(|place| {
        format!("README.md: \"Where things are\" names {}, which does not exist", place.display())
    }));
}

#[test]
fn the_rules_see_what_they_are_for() {
    let text = "//! Doc.\n\nfn one() {\n    // \u{e9}\n    let _ = \"}\";\n}\n\n#[cfg(test)]\nmod tests {\n    fn two() {}\n}\n";
    let source = Source::new("cowimg/src/example.rs", text.to_owned());
    assert_eq!(code_lines(&source.production), 3);
    assert_eq!(code_lines(&source.code), 7);
    let lengths: Vec<_> =
        functions(&source.code).map(|(start, end)| code_lines(&source.code[start..end])).collect();
    assert_eq!(lengths, [3, 1]);
    let links: Vec<_> = relative_links("[a](b.md#c) [d](https://e) [f](#g) `[h](i)`").collect();
    assert_eq!(links, ["b.md"]);
}

fn sources() -> Vec<Source> {
    CODE_FOLDERS.iter().flat_map(|folder| Source::all_under(folder)).collect()
}

fn report(offences: impl Iterator<Item = String>) {
    let offences: Vec<String> = offences.collect();
    assert!(offences.is_empty(), "{} offences:\n{}\n", offences.len(), offences.join("\n"));
}

/// Whether the line above `line`, which counts from 1, is a comment.
fn follows_comment(source: &Source, line: usize) -> bool {
    line >= 2 && source.text.lines().nth(line - 2).is_some_and(|above| above.trim_start().starts_with("//"))
}

fn code_lines(code: &str) -> usize {
    code.lines().filter(|line| !line.trim().is_empty()).count()
}

/// Start and end of every function that has a body, nested ones as well.
fn functions(code: &str) -> impl Iterator<Item = (usize, usize)> {
    word_offsets(code, "fn").filter_map(move |start| {
        let mut offset = start;
        loop {
            match code.as_bytes().get(offset)? {
                b'{' => return Some((start, end_of_group(code, offset))),
                b'(' | b'[' => offset = end_of_group(code, offset),
                // A declaration, or the type of a function.
                b';' | b',' | b'=' | b')' | b'}' if !in_signature(&code[start..offset]) => return None,
                _ => offset += 1,
            }
        }
    })
}

/// Whether the text since `fn` is still a signature with generics or a `where` clause open.
fn in_signature(text: &str) -> bool {
    let angles = |character| text.matches(character).count();
    let arrows = text.matches("->").count();
    angles('<') > angles('>').saturating_sub(arrows) || word_offsets(text, "where").next().is_some()
}

/// Targets of the Markdown links that are paths, without their anchors; code spans are left out.
fn relative_links(markdown: &str) -> impl Iterator<Item = &str> {
    markdown
        .split('`')
        .step_by(2)
        .flat_map(|prose| prose.split("](").skip(1))
        .filter_map(|tail| tail.split(')').next())
        .filter(|link| !link.contains("://") && !link.starts_with('#') && !link.starts_with("mailto:"))
        .filter_map(|link| link.split('#').next())
}
