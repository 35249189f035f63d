//! What the fuzz target `names` calls: the grammars of the command line. There is no such module in the program.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::args::image_name::{ImageForm, ImageName};
use crate::args::key_values::{KeyValues, nearest};
use crate::args::size::parse_size;

/// Parses the rest of `input` as what its first byte chooses: a name, a description, a list of options, a size.
pub fn names(input: &[u8]) {
    let Some((&choice, rest)) = input.split_first() else { return };
    match choice % 4 {
        0 => name(rest, false),
        1 => name(rest, true),
        2 => {
            let text = String::from_utf8_lossy(rest);
            let _judged = KeyValues::parse(&[&*text]).map(|pairs| pairs.asks_for_help());
            let _near = nearest(&text, ["cluster_size", "compat", "size"]);
        }
        _ => {
            let _judged = parse_size(&String::from_utf8_lossy(rest));
        }
    }
}

fn name(text: &[u8], image_opts: bool) {
    let form = ImageForm { image_opts, ..ImageForm::default() };
    if let Ok(image) = ImageName::parse(OsStr::from_bytes(text), form) {
        assert!(!image.path.as_os_str().is_empty(), "what is understood names a file");
        let _judged = (image.is_nested(), image.options_to_write().is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_fuzzer_kept_is_understood_or_refused() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/names");
        let mut count = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            names(&std::fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "{folder} has no inputs");
    }
}
