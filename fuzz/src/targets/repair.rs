//! Repairs of an image of any bytes: a plan is of the same check and changes nothing, a repair is followed by a check that
//! says what the repair has said, and where nothing is left to find, nothing is left to do.

use std::sync::Arc;

use cowimg::check::{Repair, check_storage, plan_storage, repair_storage};
use cowimg::storage::{MemoryStorage, Storage};

use super::{COMPARED, bytes_of, copy};

/// Repairs copies of `original` in every way; the one in which nothing is left to find, if there is one.
pub fn repaired(original: &MemoryStorage) -> Option<Arc<MemoryStorage>> {
    let mut clean = None;
    for kind in [Repair::Leaks, Repair::Refcounts, Repair::All] {
        let storage = copy(original);
        let Ok(plan) = plan_storage(&*storage, kind) else { return None };
        assert!(plan.steps.iter().all(|step| !step.remedy.to_string().is_empty()));
        let Ok(report) = repair_storage(&*storage, kind) else { continue };
        assert!(report.before == plan.report, "the plan is of the same check");
        let again = check_storage(&*storage).expect("what was repaired can be checked");
        assert!(again == report.after, "a second check says what the repair has said");
        if kind == Repair::All && report.after.is_clean() {
            repair_again(&storage);
            clean = Some(storage);
        }
    }
    clean
}

fn repair_again(storage: &MemoryStorage) {
    let (len, once) = (storage.len().expect("memory tells its length"), bytes_of(storage));
    let again = copy(storage);
    let report = repair_storage(&*again, Repair::All).expect("what was repaired can be repaired");
    assert!(report.before.is_clean() && report.after.is_clean(), "clean stays clean");
    let is_same = again.len().expect("memory tells its length") == len && bytes_of(&again) == once;
    assert!(is_same || len > COMPARED, "a second repair has nothing to do");
}
