//! What `compare` answers.

use std::io::{self, Write};

use cowimg::job::{Comparison, Difference};

/// Whether the reader knows already that the disks have different sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SizeWarning {
    /// The reader does not.
    Due,
    /// The reader does.
    Given,
}

/// Writes the answer: the first difference, or that there is none.
pub(crate) fn human(answer: &Comparison, warning: SizeWarning, out: &mut dyn Write) -> io::Result<()> {
    let [first, second] = answer.sizes;
    let content_end = match answer.difference {
        Some(Difference::Content { offset }) => offset,
        None => first.max(second),
        Some(_) => 0,
    };
    if warning == SizeWarning::Due && first != second && content_end >= first.min(second) {
        size_warning(out)?;
    }
    match answer.difference {
        None => writeln!(out, "Images are identical."),
        Some(Difference::Content { offset }) => writeln!(out, "Content mismatch at offset {offset}!"),
        Some(Difference::Mapping { offset }) => {
            writeln!(out, "Strict mode: Offset {offset} block status mismatch!")
        }
        Some(_) => writeln!(out, "Strict mode: Image size mismatch!"),
    }
}

/// Writes that the disks have different sizes, which comes once all that both have is the same.
pub(crate) fn size_warning(out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "Warning: Image size mismatch!")
}
