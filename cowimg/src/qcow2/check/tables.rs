//! Tables of 8-byte entries, some of which may overlap.
//!
//! A snapshot table can name 65536 L1 tables of 32 MiB each in one and the same place. As spans of the file, with the
//! number of tables that claim them, each byte of theirs is read once, and what its entries refer to is counted that
//! many times.

use super::ledger::{Ledger, Role, Subject};
use super::sites::Structure;

/// Bytes of a table that are read at a time.
const PIECE: u64 = 256 << 10;

/// Tables of one kind.
#[derive(Debug)]
pub(super) struct Tables {
    /// What they are.
    pub(super) what: Structure,
    /// Start and length of each in bytes; they start at cluster boundaries.
    pub(super) places: Vec<(u64, u64)>,
}

/// Consecutive entries of a table.
#[derive(Debug, Clone, Copy)]
pub(super) struct TablePart {
    pub(super) what: Structure,
    pub(super) start: u64,
    pub(super) end: u64,
}

/// Counts the tables' own clusters, and calls `visit` with each entry that is not zero: its place in the file, its
/// value, and how many tables have it.
pub(super) fn for_each_entry(
    subject: &Subject<'_>,
    ledger: &mut Ledger,
    tables: &Tables,
    mut visit: impl FnMut(&mut Ledger, u64, u64, u64),
) {
    let (mut clusters, mut entries) = (SpanSet::default(), SpanSet::default());
    let cluster_bits = subject.geometry.cluster_bits();
    for &(start, len) in &tables.places {
        entries.add(start, start.saturating_add(len));
        if ledger.is_within_file(start, len) {
            clusters.add(start >> cluster_bits, subject.geometry.clusters_for(start + len));
        } else {
            // Reports it.
            ledger.refer(tables.what, start, len);
        }
    }
    for span in clusters.into_spans() {
        (span.start..span.end).for_each(|cluster| ledger.add(Role::Fixed, cluster, span.times));
    }
    for span in entries.into_spans() {
        let part = TablePart { what: tables.what, start: span.start, end: span.end };
        for_each_entry_of(subject, ledger, &part, |ledger, host, raw| visit(ledger, host, raw, span.times));
    }
}

/// Calls `visit` with the place and value of each entry that is not zero, in order.
pub(super) fn for_each_entry_of(
    subject: &Subject<'_>,
    ledger: &mut Ledger,
    part: &TablePart,
    mut visit: impl FnMut(&mut Ledger, u64, u64),
) {
    let end = part.end.min(subject.file_len.next_multiple_of(8));
    let mut at = part.start;
    let mut buf = Vec::new();
    while at < end {
        if let Some(hole_end) = subject.hole_end(at) {
            at = hole_end;
            continue;
        }
        buf.resize((end - at).min(PIECE) as usize, 0);
        match subject.read(&mut buf, at) {
            Ok(()) => {
                for (raw, host) in buf.chunks_exact(8).zip((at..).step_by(8)) {
                    let raw = u64::from_be_bytes(raw.try_into().expect("chunks of eight"));
                    if raw != 0 {
                        visit(ledger, host, raw);
                    }
                }
            }
            Err(error) => ledger.unreadable(part.what, at, &error),
        }
        at += buf.len() as u64;
    }
}

/// A span of the file that `times` tables claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    start: u64,
    end: u64,
    times: u64,
}

/// Spans that may overlap.
#[derive(Debug, Default)]
struct SpanSet {
    /// Where a span starts (`false`) or ends (`true`).
    edges: Vec<(u64, bool)>,
}

impl SpanSet {
    /// Adds the span from `start` to `end`.
    fn add(&mut self, start: u64, end: u64) {
        if start < end {
            self.edges.push((start, false));
            self.edges.push((end, true));
        }
    }

    /// What the spans cover, in order and without overlaps.
    fn into_spans(mut self) -> Vec<Span> {
        self.edges.sort_unstable();
        let mut spans = Vec::new();
        let (mut times, mut start) = (0_u64, 0);
        for (at, is_end) in self.edges {
            if times > 0 && start < at {
                spans.push(Span { start, end: at, times });
            }
            times = if is_end { times - 1 } else { times + 1 };
            start = at;
        }
        spans
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_tables_become_spans_that_say_how_often() {
        let mut set = SpanSet::default();
        for (start, end) in [(0, 8), (16, 64), (32, 48), (16, 64), (64, 72), (5, 5)] {
            set.add(start, end);
        }
        let spans = set.into_spans().into_iter().map(|s| (s.start, s.end, s.times)).collect::<Vec<_>>();
        assert_eq!(spans, [(0, 8, 1), (16, 32, 2), (32, 48, 3), (48, 64, 2), (64, 72, 1)]);
    }

    #[test]
    fn no_tables_claim_nothing() {
        assert!(SpanSet::default().into_spans().is_empty());
    }
}
