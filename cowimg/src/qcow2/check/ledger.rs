//! What the walk over an image writes down: references to clusters, and findings.

use std::io;

use super::issue::{Finding, IssueLog};
use super::references::References;
use crate::error::{Error, Result};
use crate::format::qcow2::{Geometry, Header, Incompatible};
use crate::storage::{Storage, StorageExt, StorageExtentKind};

/// The image under check. Nothing in here changes while it is checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) storage: &'a dyn Storage,
    pub(super) header: &'a Header,
    pub(super) geometry: Geometry,
    pub(super) file_len: u64,
}

impl<'a> Subject<'a> {
    pub(super) fn new(storage: &'a dyn Storage, header: &'a Header) -> Result<Subject<'a>> {
        let file_len = storage.len().map_err(|e| Error::io("get the length of the image", e))?;
        Ok(Subject { storage, header, geometry: header.geometry(), file_len })
    }

    /// Whether guest data is in a file of its own, whose clusters have no refcounts.
    pub(super) fn has_data_file(&self) -> bool {
        self.header.incompatible.contains(Incompatible::DATA_FILE)
    }

    /// Reads, with zeroes past the end of the file.
    pub(super) fn read(&self, buf: &mut [u8], host: u64) -> io::Result<()> {
        self.storage.read_padded_at(buf, host)
    }

    /// Where the hole ends that starts at `at`, if one does: a table may be mostly hole, and the file may be longer
    /// than anybody wants to read. Entries are never cut.
    pub(super) fn hole_end(&self, at: u64) -> Option<u64> {
        let extent = self.storage.extent_at(at).ok().flatten()?;
        let end = extent.range.end() & !7;
        (extent.kind == StorageExtentKind::Hole && end > at).then_some(end)
    }
}

/// References and findings so far.
#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) references: References,
    pub(super) issues: IssueLog,
    /// Whether all references were seen: something that could not be read may refer to anything, so that nothing can
    /// be called leaked any more.
    pub(super) complete: bool,
    cluster_bits: u32,
    file_len: u64,
}

impl Ledger {
    pub(super) fn new(subject: &Subject<'_>) -> Result<Ledger> {
        let references = References::new(subject.geometry.clusters_for(subject.file_len))?;
        Ok(Ledger {
            references,
            issues: IssueLog::default(),
            complete: true,
            cluster_bits: subject.geometry.cluster_bits(),
            file_len: subject.file_len,
        })
    }

    /// Records a finding that counts once.
    pub(super) fn report(&mut self, finding: Finding) {
        self.issues.add(finding, 1);
    }

    /// Records that the host could not read something that may refer to clusters.
    pub(super) fn unreadable(&mut self, what: &'static str, host: u64, error: &io::Error) {
        self.complete = false;
        self.report(Finding::Unreadable { what, host, why: error.to_string() });
    }

    /// Counts `times` references to each cluster that the bytes touch. The last cluster of a file may be there in
    /// part; what begins in it or before may end in the cluster after it, and no further.
    pub(super) fn refer(&mut self, what: &'static str, host: u64, len: u64, times: u64) {
        if !self.within_file(what, host, len, times) {
            return;
        }
        for cluster in host >> self.cluster_bits..=(host + len - 1) >> self.cluster_bits {
            self.references.add(cluster, times);
        }
    }

    /// Whether the bytes may be counted; reports them where they lie past the end of the file. No bytes are nowhere.
    pub(super) fn within_file(&mut self, what: &'static str, host: u64, len: u64, times: u64) -> bool {
        if len == 0 {
            return false;
        }
        let limit = self.file_len.saturating_add(1 << self.cluster_bits);
        let within = host.checked_add(len).is_some_and(|end| end < limit);
        if !within {
            self.issues.add(Finding::PastEnd { what, host, len, file_len: self.file_len }, times);
        }
        within
    }
}
