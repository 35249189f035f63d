//! Which clusters must not be shared as they are, and where the copies go.
//!
//! Clusters of data may be shared, and so may L2 tables: their refcounts say so, and whoever writes copies them first. What
//! is changed in place may not be shared with anything. So a cluster that is such a structure and something else, or
//! an L2 table and data, is copied: the structure stays, or the data do, and the other claims move to the copy.

use std::collections::BTreeMap;

use super::area::Area;
use super::ledger::Ledger;

/// Copies of clusters, for those that refer to them in one role.
#[derive(Debug, Default)]
pub(super) struct Moves {
    tables: BTreeMap<u64, u64>,
    data: BTreeMap<u64, u64>,
}

impl Moves {
    /// Finds what is shared and must not be, and takes clusters for the copies; `None` where there is no room for them.
    pub(super) fn plan(ledger: &Ledger, area: &mut Area) -> Option<Moves> {
        let mut moves = Moves::default();
        let all = 0..ledger.references.clusters();
        for cluster in ledger.fixed.counted(all.clone()) {
            let structures = ledger.fixed.get(cluster) + ledger.refcounts.get(cluster);
            let tables = ledger.l2_tables.get(cluster);
            let data = ledger.references.get(cluster).saturating_sub(structures).saturating_sub(tables);
            if tables > 0 {
                moves.tables.insert(cluster, area.copy_of_table(cluster, tables)?);
            }
            if data > 0 {
                moves.data.insert(cluster, area.copy_of_data(cluster, data)?);
            }
        }
        for cluster in ledger.l2_tables.counted(all) {
            let tables = ledger.l2_tables.get(cluster);
            let others = ledger.references.get(cluster).saturating_sub(ledger.refcounts.get(cluster));
            if ledger.fixed.get(cluster) == 0 && others > tables {
                moves.tables.insert(cluster, area.copy_of_table(cluster, tables)?);
            }
        }
        Some(moves)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tables.is_empty() && self.data.is_empty()
    }

    /// The cluster that L1 entries are to refer to in place of `cluster`.
    pub(super) fn table(&self, cluster: u64) -> Option<u64> {
        self.tables.get(&cluster).copied()
    }

    /// The cluster that L2 entries are to refer to in place of `cluster`.
    pub(super) fn data(&self, cluster: u64) -> Option<u64> {
        self.data.get(&cluster).copied()
    }
}
