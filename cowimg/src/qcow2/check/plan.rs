//! What a repair would do, told without doing it.

use foldhash::HashMap;

use super::area::Area;
use super::bitmap_mend::SoundBitmaps;
use super::header_damage::{self, HeaderDamage};
use super::issue::{CheckIssue, Finding};
use super::l1_search::{self, FoundL1};
use super::mend::{Mender, Words};
use super::moves::Moves;
use super::remedy::Remedy;
use super::repair::{Repair, fitting_l1, is_marked, lost_l1, needs_tables};
use super::sites::{L1Problem, L2Problem, L2Site, Structure};
use super::snapshot_mend::{MendedSnapshots, is_about_snapshots};
use super::{CheckReport, Examined, examine};
use crate::error::Result;
use crate::format::qcow2::Incompatible;
use crate::limits::Limits;
use crate::progress::Control;
use crate::storage::Storage;

/// A finding, and what a repair would do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedStep {
    /// What is wrong, where, and how bad it is.
    pub issue: CheckIssue,
    /// What would be done.
    pub remedy: Remedy,
}

/// What a repair would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepairPlan {
    /// The check.
    pub report: CheckReport,
    /// One step for each finding that the report lists.
    pub steps: Vec<PlannedStep>,
    /// Whether the image is marked dirty or corrupt, which a repair ends that leaves no contradiction.
    pub is_marked: bool,
}

impl CheckIssue {
    /// What a repair of the image that it was found in would do about it.
    fn remedy(&self, planner: &mut Planner<'_>) -> Remedy {
        match planner.repair {
            Repair::Leaks => planner.about_leaks(&self.finding),
            Repair::Refcounts if !planner.is_accounting(&self.finding) => {
                Remedy::Leave { why: "this repair changes refcounts and copied flags, and no more" }
            }
            _ if lost_l1(planner.examined) => planner.about_lost(&self.finding),
            Repair::Refcounts | Repair::All => planner.about_all(&self.finding),
        }
    }
}

/// Checks the qcow2 image in `storage` and says what [`super::repair_storage`] would do. Nothing is changed. Fails where
/// the image cannot be checked.
pub fn plan_storage(storage: &dyn Storage, repair: Repair) -> Result<RepairPlan> {
    plan_storage_with(storage, repair, &Limits::default(), &Control::default())
}

/// The same for a caller who wants to hear how far it is, in bytes of tables, who may cancel it, and who says how much the
/// image may ask for: more fails with [`ErrorKind::OverLimit`](crate::ErrorKind::OverLimit).
pub fn plan_storage_with(
    storage: &dyn Storage,
    repair: Repair,
    limits: &Limits,
    control: &Control<'_>,
) -> Result<RepairPlan> {
    let (header, damage) = header_damage::read(storage)?;
    let examined = examine(storage, &header, &damage, (limits, control))?;
    match l1_search::find(&examined)? {
        Some(found) if repair == Repair::All => plan_with_l1(&examined, &found),
        Some(_) => Ok(plan_without_l1(&examined)),
        None => plan(&examined, repair),
    }
}

/// The plan of a repair that finds the L1 table first. What goes with that needs nothing else.
fn plan_with_l1(examined: &Examined<'_>, found: &FoundL1) -> Result<RepairPlan> {
    let damage = HeaderDamage::default();
    let subject = &examined.subject;
    let control = Control { progress: None, cancel: subject.control.cancel };
    let limits = subject.limits;
    let rest = plan(&examine(subject.storage, &found.header, &damage, (limits, &control))?, Repair::All)?;
    let left: HashMap<&CheckIssue, Remedy> =
        rest.steps.iter().map(|step| (&step.issue, step.remedy)).collect();
    let step = |issue: &CheckIssue| PlannedStep {
        issue: issue.clone(),
        remedy: left.get(issue).copied().unwrap_or(found.remedy),
    };
    Ok(RepairPlan {
        steps: examined.report.issues.iter().map(step).collect(),
        report: examined.report.clone(),
        is_marked: rest.is_marked,
    })
}

/// The plan of a repair that may not touch the L1 table: nothing, for what looks leaked is what belongs to the disk.
fn plan_without_l1(examined: &Examined<'_>) -> RepairPlan {
    let why = "the header is wrong about the L1 table, which a repair of everything mends";
    let issues = examined.report.issues.iter();
    RepairPlan {
        steps: issues
            .map(|issue| PlannedStep { issue: issue.clone(), remedy: Remedy::Leave { why } })
            .collect(),
        report: examined.report.clone(),
        is_marked: is_marked(examined.subject.header),
    }
}

fn plan(examined: &Examined<'_>, repair: Repair) -> Result<RepairPlan> {
    let mut area = Area::new(examined);
    let mends_tables = repair == Repair::All;
    let moves = mends_tables.then(|| Moves::plan(&examined.ledger, &mut area)).flatten().unwrap_or_default();
    let snapshots = if mends_tables { MendedSnapshots::plan(examined, &mut area, &moves)? } else { None };
    let mut planner = Planner {
        repair,
        examined,
        is_rebuilt: needs_tables(examined, repair)
            && (examined.ledger.needs_rebuild || !area.is_empty() || snapshots.is_some()),
        snapshots,
        keeps_bitmaps: SoundBitmaps::find(examined).is_some(),
        mender: Mender::new(examined, &moves),
    };
    let issues = examined.report.issues.iter();
    let steps = issues
        .map(|issue| PlannedStep { issue: issue.clone(), remedy: issue.remedy(&mut planner) })
        .collect();
    Ok(RepairPlan { report: examined.report.clone(), steps, is_marked: is_marked(examined.subject.header) })
}

struct Planner<'p> {
    repair: Repair,
    examined: &'p Examined<'p>,
    is_rebuilt: bool,
    snapshots: Option<MendedSnapshots>,
    /// Whether bitmaps stay that are sound.
    keeps_bitmaps: bool,
    mender: Mender<'p>,
}

impl Planner<'_> {
    /// Whether a finding is one of refcounts and copied flags.
    fn is_accounting(&self, finding: &Finding) -> bool {
        match finding {
            Finding::Leaked { .. } => self.examined.ledger.issues.is_accounting(),
            Finding::RefcountTooLow { .. }
            | Finding::RefcountsUnknown { .. }
            | Finding::RefcountTableEntry { .. }
            | Finding::SharedRefcountBlock { .. }
            | Finding::PastEnd { what: Structure::RefcountTable, .. }
            | Finding::HeaderField { table: Structure::RefcountTable, .. } => true,
            finding => finding.is_about_copied(),
        }
    }

    fn about_leaks(&self, finding: &Finding) -> Remedy {
        let issues = &self.examined.ledger.issues;
        match finding {
            Finding::Leaked { references, .. } if issues.is_accounting() => {
                Remedy::SetRefcount { refcount: *references }
            }
            Finding::Leaked { .. } => {
                Remedy::Leave { why: "tables are damaged, and it may be what a damaged entry refers to" }
            }
            finding
                if finding.is_about_copied()
                    && issues.check_errors == 0
                    && issues.corruptions == issues.copied =>
            {
                Remedy::CorrectCopied
            }
            _ => Remedy::Leave { why: "this repair gives leaked clusters back, and no more" },
        }
    }

    /// About an image without its L1 table: refcounts and flags that are wrong where they stand.
    fn about_lost(&mut self, finding: &Finding) -> Remedy {
        match finding {
            Finding::RefcountTooLow { references, .. } if !self.examined.ledger.needs_rebuild => {
                Remedy::SetRefcount { refcount: *references }
            }
            finding if finding.is_about_copied() => Remedy::CorrectCopied,
            _ => Remedy::Leave { why: "the L1 table is lost, and with it what belongs to the disk" },
        }
    }

    fn about_all(&mut self, finding: &Finding) -> Remedy {
        let max = self.examined.subject.geometry.refcount_max();
        match finding {
            Finding::Leaked { references: refcount, .. } => Remedy::SetRefcount { refcount: *refcount },
            Finding::RefcountTooLow { cluster, references, .. } => self.about_low(*cluster, *references, max),
            Finding::RefcountsUnknown { .. }
            | Finding::RefcountTableEntry { .. }
            | Finding::SharedRefcountBlock { .. }
            | Finding::PastEnd { what: Structure::RefcountTable, .. }
            | Finding::HeaderField { table: Structure::RefcountTable, .. } => Remedy::RebuildRefcounts,
            Finding::L1Entry { problem: L1Problem::Copied { .. }, .. }
            | Finding::L2Entry { problem: L2Problem::Copied { .. }, .. } => Remedy::CorrectCopied,
            Finding::PastEnd { what: Structure::L1Table, .. } => {
                fitting_l1(self.examined).map_or(LEFT, |_| Remedy::FitL1)
            }
            Finding::L1Entry { problem: L1Problem::TableOfAnother, .. } => Remedy::Unmap,
            Finding::L1Entry { site, .. } => self.mender.l1(site.entry).map_or(LEFT, |(_, remedy)| remedy),
            Finding::L2Entry { site, .. } => self.about_l2(site),
            Finding::Snapshot { index, .. } => {
                self.snapshots.as_ref().map_or(LEFT, |snapshots| snapshots.remedy(*index))
            }
            finding if is_about_snapshots(finding) => {
                self.snapshots.as_ref().map_or(LEFT, |_| Remedy::RewriteSnapshots)
            }
            Finding::BitmapDirectory { .. }
            | Finding::Bitmap { .. }
            | Finding::PastEnd { what: Structure::BitmapDirectory | Structure::BitmapTable, .. }
            | Finding::HeaderField { table: Structure::BitmapDirectory, .. } => {
                if self.keeps_bitmaps {
                    Remedy::RewriteBitmaps
                } else {
                    Remedy::DropBitmaps
                }
            }
            Finding::BitmapTableEntry { .. } => Remedy::MarkDirty,
            Finding::TooManyReferences { .. } => {
                Remedy::Leave { why: "refcounts of this width cannot say it; amend the image to wider ones" }
            }
            Finding::Unreadable { .. } => Remedy::Leave { why: "the host cannot read it" },
            _ => LEFT,
        }
    }

    fn about_low(&self, cluster: u64, references: u64, max: u64) -> Remedy {
        let moves = self.mender.moves;
        if moves.table(cluster).is_some() || moves.data(cluster).is_some() {
            Remedy::Copy
        } else if self.is_rebuilt {
            Remedy::RebuildRefcounts
        } else {
            Remedy::SetRefcount { refcount: references.min(max) }
        }
    }

    fn about_l2(&mut self, site: &L2Site) -> Remedy {
        let subject = &self.examined.subject;
        let mut subclusters = [0; 8];
        if subject.header.incompatible.contains(Incompatible::EXTENDED_L2) {
            let at = site.table + site.index * 16 + 8;
            if subject.read(&mut subclusters, at).is_err() {
                return LEFT;
            }
        }
        let entry = Words { raw: site.entry, subclusters: u64::from_be_bytes(subclusters) };
        self.mender.l2(entry, site.guest).map_or(LEFT, |(_, remedy)| remedy)
    }
}

const LEFT: Remedy = Remedy::Leave { why: "there is nothing to make it right from" };
