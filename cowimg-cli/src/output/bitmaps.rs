//! The list of an image's bitmaps, which qemu-img prints as a part of `info` only.

use std::io::{self, Write};

use cowimg::BitmapInfo;

use super::human_size::human_size;
use super::info;
use super::json::Json;

/// A bitmap, and how many bytes of the disk it calls dirty; none for one that cannot be used.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) info: BitmapInfo,
    pub(crate) dirty: Option<u64>,
}

/// For a person: a line for each.
pub(crate) fn human(rows: &[Row], out: &mut dyn Write) -> io::Result<()> {
    if rows.is_empty() {
        return writeln!(out, "The image has no bitmaps.");
    }
    writeln!(out, "{:>12}  {:>12}  {:<13}NAME", "GRANULARITY", "DIRTY", "STATE")?;
    for Row { info, dirty } in rows {
        let state = match (info.in_use, dirty, info.auto) {
            (true, ..) => "inconsistent",
            (_, None, _) => "unusable",
            (_, _, true) => "records",
            (_, _, false) => "disabled",
        };
        let dirty = dirty.map_or_else(|| "?".to_owned(), human_size);
        write!(out, "{:>12}  {dirty:>12}  {state:<13}", human_size(info.granularity))?;
        out.write_all(&info.name)?;
        writeln!(out)?;
    }
    Ok(())
}

/// For a program: a list of what `info` has for each, and the number of dirty bytes where it is known.
pub(crate) fn json(rows: &[Row]) -> Json {
    let row = |Row { info, dirty }: &Row| match (info::bitmap(info), dirty) {
        (Json::Object(mut fields), Some(dirty)) => {
            fields.push(("dirty-bytes", (*dirty).into()));
            Json::Object(fields)
        }
        (fields, _) => fields,
    };
    Json::List(rows.iter().map(row).collect())
}
