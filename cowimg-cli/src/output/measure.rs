//! What `measure` found.

use std::io::{self, Write};

use cowimg::job::Measurement;

use super::json::Json;

/// Writes the sizes for a person.
pub(crate) fn human(found: &Measurement, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "required size: {}", found.required)?;
    writeln!(out, "fully allocated size: {}", found.fully_allocated)?;
    match found.bitmaps {
        Some(bitmaps) => writeln!(out, "bitmaps size: {bitmaps}"),
        None => Ok(()),
    }
}

/// Writes the sizes as JSON.
pub(crate) fn json(found: &Measurement, out: &mut dyn Write) -> io::Result<()> {
    let bitmaps = found.bitmaps.map(|bytes| ("bitmaps", Json::from(bytes)));
    let sizes =
        [("required", Json::from(found.required)), ("fully-allocated", Json::from(found.fully_allocated))];
    Json::Object(bitmaps.into_iter().chain(sizes).collect()).write_document(out)
}
