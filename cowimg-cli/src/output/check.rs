//! The report of `check`.

use std::io::{self, Write};

use crate::output::json::Json;

/// What a check has counted. `None` and 0 are left out of the reports where qemu-img leaves them out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CheckSummary {
    /// The image's name as given.
    pub(crate) filename: Vec<u8>,
    /// Its format.
    pub(crate) format: &'static str,
    /// Contradictions that can cost data.
    pub(crate) corruptions: u64,
    /// Clusters that nothing uses and that count as used.
    pub(crate) leaks: u64,
    /// Things that could not be looked at.
    pub(crate) check_errors: u64,
    /// Clusters that a repair has given back.
    pub(crate) leaks_fixed: u64,
    /// Contradictions that a repair has resolved.
    pub(crate) corruptions_fixed: u64,
    /// Where the used part of the file ends, in bytes.
    pub(crate) image_end_offset: u64,
    /// Clusters of the disk.
    pub(crate) total_clusters: u64,
    /// Those that take space in this image.
    pub(crate) allocated_clusters: u64,
    /// Those of them that do not follow their predecessor in the file.
    pub(crate) fragmented_clusters: u64,
    /// Those of them that are compressed.
    pub(crate) compressed_clusters: u64,
}

/// The report for a person.
pub(crate) fn human(summary: &CheckSummary, out: &mut dyn Write) -> io::Result<()> {
    if summary.leaks_fixed + summary.corruptions_fixed > 0 {
        writeln!(out, "The following inconsistencies were found and repaired:\n")?;
        writeln!(out, "    {} leaked clusters", summary.leaks_fixed)?;
        writeln!(out, "    {} corruptions\n", summary.corruptions_fixed)?;
        writeln!(out, "Double checking the fixed image now...")?;
    }
    if summary.corruptions == 0 && summary.leaks == 0 && summary.check_errors == 0 {
        writeln!(out, "No errors were found on the image.")?;
    }
    if summary.corruptions > 0 {
        writeln!(out, "\n{} errors were found on the image.", summary.corruptions)?;
        writeln!(out, "Data may be corrupted, or further writes to the image may corrupt it.")?;
    }
    if summary.leaks > 0 {
        writeln!(out, "\n{} leaked clusters were found on the image.", summary.leaks)?;
        writeln!(out, "This means waste of disk space, but no harm to data.")?;
    }
    if summary.check_errors > 0 {
        writeln!(out, "\n{} internal errors have occurred during the check.", summary.check_errors)?;
    }
    let allocated = summary.allocated_clusters;
    if allocated > 0 && summary.total_clusters > 0 {
        writeln!(
            out,
            "{allocated}/{} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters",
            summary.total_clusters,
            percent(allocated, summary.total_clusters),
            percent(summary.fragmented_clusters, allocated),
            percent(summary.compressed_clusters, allocated),
        )?;
    }
    if summary.image_end_offset > 0 {
        writeln!(out, "Image end offset: {}", summary.image_end_offset)?;
    }
    Ok(())
}

/// The report for a program.
pub(crate) fn json(summary: &CheckSummary) -> Json {
    let counted = |key, count: u64| (count > 0).then(|| (key, Json::from(count)));
    let always = |key, count: u64| Some((key, Json::from(count)));
    let fields = [
        counted("image-end-offset", summary.image_end_offset),
        counted("compressed-clusters", summary.compressed_clusters),
        counted("total-clusters", summary.total_clusters),
        counted("corruptions", summary.corruptions),
        counted("corruptions-fixed", summary.corruptions_fixed),
        always("check-errors", summary.check_errors),
        counted("leaks", summary.leaks),
        counted("leaks-fixed", summary.leaks_fixed),
        counted("allocated-clusters", summary.allocated_clusters),
        Some(("filename", summary.filename.as_slice().into())),
        Some(("format", summary.format.into())),
        counted("fragmented-clusters", summary.fragmented_clusters),
    ];
    Json::Object(fields.into_iter().flatten().collect())
}

/// `part` of `whole`, in per cent; `whole` is above 0.
#[allow(clippy::cast_precision_loss, reason = "two decimals are printed")]
fn percent(part: u64, whole: u64) -> f64 {
    part as f64 * 100.0 / whole as f64
}
