//! What the walk over an image writes down: references to clusters, and findings.

use std::fmt::Display;
use std::io;

use super::issue::{Finding, IssueLog};
use super::past_end::PastEnd;
use super::references::References;
use super::sites::Structure;
use crate::error::{Error, Result};
use crate::format::qcow2::{Geometry, Header, Incompatible};
use crate::limits::Limits;
use crate::progress::Control;
use crate::storage::{Storage, StorageExt, StorageExtentKind};

/// The image under check. Nothing in here changes while it is checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) storage: &'a dyn Storage,
    pub(super) header: &'a Header,
    pub(super) geometry: Geometry,
    pub(super) file_len: u64,
    /// How much the image may ask for.
    pub(super) limits: &'a Limits,
    /// Who wants to know how far the check is, and may end it.
    pub(super) control: &'a Control<'a>,
}

impl<'a> Subject<'a> {
    pub(super) fn new(
        storage: &'a dyn Storage,
        header: &'a Header,
        limits: &'a Limits,
        control: &'a Control<'a>,
    ) -> Result<Subject<'a>> {
        let file_len = storage.len().map_err(|e| Error::io("get the length of the image", e))?;
        Ok(Subject { storage, header, geometry: header.geometry(), file_len, limits, control })
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

/// What refers to clusters, as far as it matters for who may share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Something that is changed in place and belongs to one alone: the header, L1 tables, the snapshot table, the
    /// encryption header, everything of bitmaps.
    Fixed,
    /// The refcount table and its blocks.
    Refcounts,
    /// L2 tables; several L1 entries may share one.
    L2Table,
    /// Guest data; several L2 entries may share it.
    Data,
}

/// References and findings so far.
#[derive(Debug)]
pub(super) struct Ledger {
    /// All references.
    pub(super) references: References,
    /// Those of [`Role::Fixed`].
    pub(super) fixed: References,
    /// Those of [`Role::Refcounts`].
    pub(super) refcounts: References,
    /// Those of [`Role::L2Table`] at cluster boundaries.
    pub(super) l2_tables: References,
    pub(super) issues: IssueLog,
    /// Whether all references were seen: something that could not be read may refer to anything, so that nothing can
    /// be called leaked any more.
    pub(super) complete: bool,
    /// Whether refcounts have no place to stand in, so that they must be built anew.
    pub(super) needs_rebuild: bool,
    /// Clusters past the end of the file that something refers to.
    pub(super) past_end: PastEnd,
    /// Whether the caller has ended the check: what was found is not all.
    pub(super) is_cancelled: bool,
    /// Bytes of tables that have been read, and those that are known to be there.
    read: u64,
    to_read: u64,
    cluster_bits: u32,
    file_len: u64,
}

/// How many sets of counts a ledger has.
const SETS: u64 = 4;

impl Ledger {
    pub(super) fn new(subject: &Subject<'_>) -> Result<Ledger> {
        let limit = subject.limits.count_bytes() / SETS;
        let none = || References::new(subject.geometry.clusters_for(subject.file_len), limit);
        let ledger = Ledger {
            references: none()?,
            fixed: none()?,
            refcounts: none()?,
            l2_tables: none()?,
            issues: IssueLog::default(),
            complete: true,
            needs_rebuild: false,
            past_end: PastEnd::new(),
            is_cancelled: false,
            read: 0,
            to_read: 0,
            cluster_bits: subject.geometry.cluster_bits(),
            file_len: subject.file_len,
        };
        ledger.check_counts(subject)?;
        Ok(ledger)
    }

    /// Fails where counting has come to its limit: what was found is not all.
    pub(super) fn check_counts(&self, subject: &Subject<'_>) -> Result<()> {
        // The others have no page where the first has none.
        subject.limits.check_counts(self.references.bytes().saturating_mul(SETS))
    }

    /// Says that so many bytes of tables are still to be read.
    pub(super) fn expect(&mut self, bytes: u64) {
        self.to_read = self.to_read.saturating_add(bytes);
    }

    /// Tells the caller that so many bytes of tables have been read; false once the check is to end, as the
    /// caller wants it or as a limit does.
    pub(super) fn advance(&mut self, subject: &Subject<'_>, bytes: u64) -> bool {
        self.read = self.read.saturating_add(bytes);
        subject.control.report(self.read.min(self.to_read), self.to_read);
        self.is_cancelled |= subject.control.check().is_err();
        !self.is_cancelled && self.check_counts(subject).is_ok()
    }

    /// Records a finding that counts once.
    pub(super) fn report(&mut self, finding: Finding) {
        self.issues.add(finding, 1);
    }

    /// Records that the host could not read something that may refer to clusters.
    pub(super) fn unreadable(&mut self, what: impl Display, host: u64, error: &io::Error) {
        self.complete = false;
        self.report(Finding::Unreadable { what: what.to_string(), host, why: error.to_string() });
    }

    /// Counts a reference to each cluster that a structure touches; reports one that lies past the end of the file.
    pub(super) fn refer(&mut self, what: Structure, host: u64, len: u64) {
        let role = if what == Structure::RefcountTable { Role::Refcounts } else { Role::Fixed };
        if !self.count(role, host, len, 1) && len > 0 {
            self.report(Finding::PastEnd { what, host, len, file_len: self.file_len });
        }
    }

    /// Counts `times` references to each cluster that the bytes touch, and says whether there are such.
    #[must_use]
    pub(super) fn count(&mut self, role: Role, host: u64, len: u64, times: u64) -> bool {
        if !self.is_within_file(host, len) {
            self.remember_past_end(host, len);
            return false;
        }
        for cluster in host >> self.cluster_bits..=(host + len - 1) >> self.cluster_bits {
            self.add(role, cluster, times);
        }
        true
    }

    /// Counts `times` references to a cluster of the file.
    pub(super) fn add(&mut self, role: Role, cluster: u64, times: u64) {
        self.references.add(cluster, times);
        match role {
            Role::Fixed => self.fixed.add(cluster, times),
            Role::Refcounts => self.refcounts.add(cluster, times),
            Role::L2Table => self.l2_tables.add(cluster, times),
            Role::Data => {}
        }
    }

    /// Whether the file has the bytes. Its last cluster may be there in part: what begins in it or before may end in the
    /// cluster after it, and no further. No bytes are nowhere.
    pub(super) fn is_within_file(&self, host: u64, len: u64) -> bool {
        let limit = self.file_len.saturating_add(1 << self.cluster_bits);
        len > 0 && host.checked_add(len).is_some_and(|end| end < limit)
    }

    /// Remembers that something refers to clusters past the end of the file.
    pub(super) fn remember_past_end(&mut self, host: u64, len: u64) {
        let last = host.saturating_add(len.saturating_sub(1)) >> self.cluster_bits;
        self.past_end.add(host >> self.cluster_bits, last);
    }
}
