//! The layers of the library hold: a module uses itself and lower layers, only the chain opens files, `format/`
//! is pure, and `unsafe` is confined.
//!
//! The order is the one of `cowimg/docs/architecture.md`. A module that has to move is moved in [`LAYERS`], with
//! the reason in that document; an exception is not added here.

mod source_text;

use source_text::{Source, end_of_group, is_identifier, word_offsets};

/// Lowest first. Modules of one row are peers: they may not use each other, save in the first row, whose words
/// belong together.
const LAYERS: &[&[&str]] = &[
    &["error", "corruption", "extent", "limits", "progress", "range", "zero_scan"],
    &["format"],
    &["codec"],
    &["storage"],
    &["disk"],
    &["raw", "qcow1"],
    &["luks"],
    &["qcow2"],
    &["chain"],
    &["job"],
    &["export"],
];

/// The one exception: a damaged header is a kind of error, so the vocabulary knows the header's.
const EXCEPTION: (&[&str], &str) = (&["error", "corruption"], "crate::format::qcow2::HeaderError");

/// A path as it stands in the code: `a::b::c`, with the groups of `use` spread out.
struct PathUse {
    offset: usize,
    path: String,
}

#[test]
fn a_module_uses_only_itself_and_lower_layers() {
    let mut offences = Vec::new();
    for source in library() {
        let module = top_module(&source);
        if module == "lib" {
            continue;
        }
        let Some(layer) = layer_of(&module) else {
            offences.push(format!("{}: add `{module}` to LAYERS, where it belongs", source.path));
            continue;
        };
        for PathUse { offset, path } in paths_in(&source.production) {
            let Some(used) = used_module(&source, &path) else { continue };
            let is_exception = EXCEPTION.0.contains(&module.as_str()) && path == EXCEPTION.1;
            if let Some(why) = objection(&module, layer, &used).filter(|_| !is_exception) {
                offences.push(format!("{}:{}: `{path}`: {why}", source.path, source.line_of(offset)));
            }
        }
    }
    report(&offences);
}

#[test]
fn only_the_chain_and_the_file_storages_open_files() {
    let may_open = |path: &str| {
        path.starts_with("cowimg/src/chain/")
            || ["cowimg/src/storage/file.rs", "cowimg/src/storage/mapped.rs"].contains(&path)
            // Reads what the host tells about processes, never an image.
            || path == "cowimg/src/storage/lock_holder.rs"
    };
    let openers = [
        "std::fs::OpenOptions",
        "fs::OpenOptions",
        "File::open",
        "File::create",
        "File::options",
        "fs::read",
        "fs::read_to_string",
        "fs::write",
        "fs::open",
        "fs::openat",
        "libc::open",
        "libc::openat",
    ];
    let mut offences = Vec::new();
    for source in library().iter().filter(|source| !may_open(&source.path)) {
        for PathUse { offset, path } in paths_in(&source.production) {
            if openers.iter().any(|opener| path == *opener || path.ends_with(&format!("::{opener}"))) {
                offences.push(format!(
                    "{}:{}: `{path}` opens a file: take a `Storage` or a `Disk`, and let chain/ open it",
                    source.path,
                    source.line_of(offset)
                ));
            }
        }
    }
    report(&offences);
}

#[test]
fn format_has_no_io_no_locks_and_no_clock() {
    let banned = ["std::io", "std::fs", "std::sync", "std::time", "std::thread", "std::env", "std::net"];
    let mut offences = Vec::new();
    for source in library().iter().filter(|source| top_module(source) == "format") {
        for PathUse { offset, path } in paths_in(&source.production) {
            if banned.iter().any(|name| path == *name || path.starts_with(&format!("{name}::"))) {
                offences.push(format!(
                    "{}:{}: `{path}`: format/ turns bytes into values and back, and does nothing else",
                    source.path,
                    source.line_of(offset)
                ));
            }
        }
    }
    report(&offences);
}

#[test]
fn unsafe_stands_in_storage_and_at_most_one_more_file() {
    let outside: Vec<String> = library()
        .iter()
        .filter(|source| top_module(source) != "storage")
        .filter_map(|source| {
            let offset = word_offsets(&source.production, "unsafe").next()?;
            Some(format!("{}:{}: `unsafe`", source.path, source.line_of(offset)))
        })
        .collect();
    assert!(
        outside.len() <= 1,
        "keep `unsafe` behind a safe function in storage/, or in one file besides:\n{}",
        outside.join("\n")
    );
}

#[test]
fn the_scanner_finds_what_it_is_asked_for() {
    let text = r#"
        use crate::{chain::Image, error::{Error, Result}};
        // crate::job::convert in a comment
        fn f<'a>(x: &'a str) -> char { let _ = "crate::export"; super::disk::g(); '{' }
        #[cfg(test)]
        mod tests { use crate::job; }
        fn after() { $crate::raw::h() }
    "#;
    let source = Source::new("cowimg/src/raw.rs", text.to_owned());
    let used: Vec<_> =
        paths_in(&source.production).iter().filter_map(|used| used_module(&source, &used.path)).collect();
    assert_eq!(used, ["chain", "error", "error", "disk", "raw"]);
    assert!(objection("raw", layer_of("raw").expect("a layer"), "chain").is_some());
    assert!(objection("raw", layer_of("raw").expect("a layer"), "qcow2").is_some());
    assert!(objection("raw", layer_of("raw").expect("a layer"), "disk").is_none());
    assert!(objection("extent", 0, "range").is_none());
}

fn library() -> Vec<Source> {
    Source::all_under("cowimg/src")
}

fn report(offences: &[String]) {
    assert!(offences.is_empty(), "{} places break the layers:\n{}\n", offences.len(), offences.join("\n"));
}

/// The module right under the crate's root that a file belongs to; `lib` for the root itself.
fn top_module(source: &Source) -> String {
    module_path(source).first().cloned().unwrap_or_else(|| "lib".to_owned())
}

/// `cowimg/src/format/qcow2/header.rs` is `format`, `qcow2`, `header`; the crate's root is nothing.
fn module_path(source: &Source) -> Vec<String> {
    let inside = source.path.trim_start_matches("cowimg/src/").trim_end_matches(".rs");
    inside.split('/').filter(|part| !["mod", "lib"].contains(part)).map(str::to_owned).collect()
}

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// Why `module`, in `layer`, may not use `used`.
fn objection(module: &str, layer: usize, used: &str) -> Option<String> {
    match layer_of(used) {
        _ if used == module => None,
        None => Some("name the module that defines it: what the root exports has no layer".to_owned()),
        Some(lower) if lower < layer || (layer == 0 && lower == 0) => None,
        Some(same) if same == layer => {
            Some(format!("`{module}` and `{used}` are peers: neither may know the other"))
        }
        Some(_) => Some(format!("`{used}` is above `{module}`: pass in what is needed, or move it down")),
    }
}

/// The module right under the root that a path leads to, when it goes through the root.
fn used_module(source: &Source, path: &str) -> Option<String> {
    let mut parts = path.split("::").peekable();
    let mut climbed = 0;
    match parts.next()? {
        "crate" => return parts.next().map(str::to_owned),
        "super" => climbed += 1,
        _ => return None,
    }
    while parts.next_if_eq(&"super").is_some() {
        climbed += 1;
    }
    // The file's own module is one level; climbing out of it and of all that hold it leads to the root.
    (climbed >= module_path(source).len()).then(|| parts.next().map(str::to_owned)).flatten()
}

/// Every path of two or more parts in the code, in order.
fn paths_in(code: &str) -> Vec<PathUse> {
    let mut found = Vec::new();
    let mut offset = 0;
    while let Some(start) = code[offset..].find(is_identifier).map(|start| offset + start) {
        offset = read_path(code, start, "", &mut found);
    }
    found
}

/// Reads the path at `start`, spreads out a group at its end, and returns where it ends.
fn read_path(code: &str, start: usize, prefix: &str, found: &mut Vec<PathUse>) -> usize {
    let mut path = prefix.to_owned();
    let mut offset = start;
    loop {
        let len = code[offset..].find(|character| !is_identifier(character)).unwrap_or(code.len() - offset);
        path.push_str(&code[offset..offset + len]);
        offset += len;
        let Some(after) = code[offset..].strip_prefix("::") else { break };
        offset += 2;
        if after.starts_with('{') {
            let end = end_of_group(code, offset);
            read_group(code, offset + 1..end - 1, &format!("{path}::"), found);
            return end;
        }
        if !after.starts_with(is_identifier) {
            break;
        }
        path.push_str("::");
    }
    if path.contains("::") {
        found.push(PathUse { offset: start, path });
    }
    offset
}

/// The members of the group of a `use`, each with the path before the group.
fn read_group(code: &str, group: std::ops::Range<usize>, prefix: &str, found: &mut Vec<PathUse>) {
    let mut offset = group.start;
    while let Some(start) = code[offset..group.end].find(is_identifier).map(|start| offset + start) {
        offset = read_path(code, start, prefix, found);
        // Past `as Name`, to the next member.
        offset = code[offset..group.end].find(',').map_or(group.end, |comma| offset + comma + 1);
    }
}
