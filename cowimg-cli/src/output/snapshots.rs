//! The table of internal snapshots.

use std::io::{self, Write};

use chrono::{DateTime, Local};
use cowimg::format::qcow2::Snapshot;

use crate::output::human_size::human_size;
use crate::output::json::Json;

const NANOSECONDS: u64 = 1_000_000_000;

/// The table for a person, with its title.
pub(crate) fn human(snapshots: &[Snapshot], out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "Snapshot list:")?;
    writeln!(
        out,
        "{:<7} {:<16} {:>8}{:>20} {:>15} {:>10}",
        "ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT"
    )?;
    for snapshot in snapshots {
        // Ids and names are bytes, and are padded by their number of bytes.
        write_padded(out, &snapshot.id, 7)?;
        out.write_all(b" ")?;
        write_padded(out, &snapshot.name, 16)?;
        writeln!(
            out,
            " {:>8}{:>20} {:>15} {:>10}",
            human_size(snapshot.vm_state_size()),
            local_date(snapshot.date_sec),
            clock(snapshot.vm_clock_nsec),
            icount(snapshot).map_or(String::new(), |icount| icount.to_string()),
        )?;
    }
    Ok(())
}

/// The list for a program.
pub(crate) fn json(snapshots: &[Snapshot]) -> Json {
    Json::List(snapshots.iter().map(one_json).collect())
}

fn one_json(snapshot: &Snapshot) -> Json {
    let mut fields = Vec::new();
    if let Some(icount) = icount(snapshot) {
        fields.push(("icount", icount.into()));
    }
    fields.extend([
        ("vm-clock-nsec", (snapshot.vm_clock_nsec % NANOSECONDS).into()),
        ("name", snapshot.name.as_slice().into()),
        ("date-sec", snapshot.date_sec.into()),
        ("date-nsec", snapshot.date_nsec.into()),
        ("vm-clock-sec", (snapshot.vm_clock_nsec / NANOSECONDS).into()),
        ("id", snapshot.id.as_slice().into()),
        ("vm-state-size", snapshot.vm_state_size().into()),
    ]);
    Json::Object(fields)
}

/// Instructions that the machine had executed, if it counted them.
fn icount(snapshot: &Snapshot) -> Option<u64> {
    snapshot.extra.icount.filter(|&icount| icount != u64::MAX)
}

fn write_padded(out: &mut dyn Write, text: &[u8], width: usize) -> io::Result<()> {
    out.write_all(text)?;
    write!(out, "{:width$}", "", width = width.saturating_sub(text.len()))
}

/// A date in the time zone of the machine.
fn local_date(seconds: u32) -> String {
    DateTime::from_timestamp(i64::from(seconds), 0)
        .map_or(String::new(), |date| date.with_timezone(&Local).format("%Y-%m-%d %H:%M:%S").to_string())
}

/// The time that a guest's clock has run: hours, minutes, seconds, milliseconds.
fn clock(nanoseconds: u64) -> String {
    let seconds = nanoseconds / NANOSECONDS;
    format!(
        "{:04}:{:02}:{:02}.{:03}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        nanoseconds / 1_000_000 % 1000
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_counts_hours_without_end() {
        assert_eq!(clock(0), "0000:00:00.000");
        assert_eq!(clock(3_723_004_999_999), "0001:02:03.004");
        assert_eq!(clock(u64::MAX), "5124095:34:33.709");
    }
}
