//! The report of `check --dry-run`: what a repair would do.

use std::io::{self, Write};

use cowimg::check::RepairPlan;

use crate::output::json::Json;

/// The report for a person.
pub(crate) fn human(plan: &RepairPlan, out: &mut dyn Write) -> io::Result<()> {
    for step in &plan.steps {
        writeln!(out, "{}\n    {}", step.issue, step.remedy)?;
    }
    let listed: u64 = plan.steps.iter().map(|step| step.issue.times).sum();
    let more =
        (plan.report.leaks + plan.report.corruptions + plan.report.check_errors).saturating_sub(listed);
    if more > 0 {
        writeln!(out, "{more} more findings are not listed")?;
    }
    if plan.is_marked {
        writeln!(
            out,
            "The image is marked dirty or corrupt\n    clear the mark if nothing contradicts afterwards"
        )?;
    }
    let changed = plan.steps.iter().filter(|step| step.remedy.changes()).count();
    let given_up = plan.steps.iter().filter(|step| step.remedy.gives_up()).count();
    if plan.steps.is_empty() && !plan.is_marked {
        return writeln!(out, "There is nothing to repair.");
    }
    writeln!(
        out,
        "{} findings: {changed} would be repaired, {} left; data that cannot be read would be given up {given_up} times",
        plan.steps.len(),
        plan.steps.len() - changed,
    )
}

/// The report for a program.
pub(crate) fn json(plan: &RepairPlan, filename: &[u8]) -> Json {
    let steps = plan.steps.iter().map(|step| {
        Json::Object(vec![
            ("severity", step.issue.severity.to_string().as_str().into()),
            ("finding", step.issue.to_string().as_str().into()),
            ("times", Json::from(step.issue.times)),
            ("remedy", step.remedy.to_string().as_str().into()),
            ("changes", Json::Bool(step.remedy.changes())),
            ("gives-up-data", Json::Bool(step.remedy.gives_up())),
        ])
    });
    Json::Object(vec![
        ("filename", filename.into()),
        ("leaks", Json::from(plan.report.leaks)),
        ("corruptions", Json::from(plan.report.corruptions)),
        ("check-errors", Json::from(plan.report.check_errors)),
        ("marked", Json::Bool(plan.is_marked)),
        ("steps", Json::List(steps.collect())),
    ])
}
