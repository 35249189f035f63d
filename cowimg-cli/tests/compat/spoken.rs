//! What a program said, without the parts that are never the same twice.

use std::path::Path;

/// What is left out of a report because it cannot be the same.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct LeftOut {
    /// Dates: a snapshot was made on the way.
    pub(crate) dates: bool,
    /// Lengths and offsets of files that each program lays out in its way.
    pub(crate) layout: bool,
    /// What stands between the first and the last line of progress.
    pub(crate) progress: bool,
}

/// The report as it is compared: as it is, but for the folder's name and for what cannot be the same.
pub(crate) fn comparable(report: &[u8], folder: &Path, left_out: LeftOut) -> String {
    // Bytes that are no text stay visible and different.
    let text: String = match std::str::from_utf8(report) {
        Ok(text) => text.to_owned(),
        Err(_) => report.escape_ascii().to_string().replace("\\n", "\n"),
    };
    let text = text.replace(&folder.display().to_string(), "@DIR@");
    let text = if left_out.progress { without_steps(&text) } else { text };
    let lines = text.split('\n').map(|line| comparable_line(line, left_out));
    lines.collect::<Vec<_>>().join("\n")
}

fn comparable_line(line: &str, left_out: LeftOut) -> String {
    let mut line = line.to_owned();
    // Blocks that a file takes are the file system's business.
    // How many iterations take the time that was asked for depends on the moment, and each volume has a UUID of its own.
    for label in [
        "disk size: ",
        "\"actual-size\": ",
        "iters: ",
        "\"iters\": ",
        "master key iters: ",
        "\"master-key-iters\": ",
        "uuid: ",
        "\"uuid\": ",
    ] {
        line = after(&line, label, |rest| rest.ends_with(','));
    }
    if line.starts_with("Run completed in ") {
        "Run completed in * seconds.".clone_into(&mut line);
    }
    if left_out.dates {
        for label in ["\"date-sec\": ", "\"date-nsec\": "] {
            line = after(&line, label, |rest| rest.ends_with(','));
        }
        line = without_date(&line);
    }
    if left_out.layout {
        for label in ["file length: ", "Image end offset: ", "\"image-end-offset\": "] {
            line = after(&line, label, |rest| rest.ends_with(','));
        }
    }
    line
}

/// The line with what follows the label replaced; a comma at its end stays.
fn after(line: &str, label: &str, keeps_comma: impl Fn(&str) -> bool) -> String {
    match line.find(label) {
        Some(at) if line[..at].trim().is_empty() => {
            let end = if keeps_comma(line) { "," } else { "" };
            format!("{}{label}*{end}", &line[..at])
        }
        _ => line.to_owned(),
    }
}

/// Replaces every `2026-11-21 01:17:34`.
fn without_date(line: &str) -> String {
    const PATTERN: &[u8] = b"0000-00-00 00:00:00";
    let mut bytes = line.as_bytes().to_vec();
    let mut at = 0;
    while at + PATTERN.len() <= bytes.len() {
        let fits = PATTERN.iter().zip(&bytes[at..]).all(|(pattern, found)| match pattern {
            b'0' => found.is_ascii_digit(),
            _ => pattern == found,
        });
        if fits {
            bytes[at..at + PATTERN.len()].copy_from_slice(PATTERN);
        }
        at += 1;
    }
    String::from_utf8(bytes).expect("digits were replaced by digits")
}

/// Leaves out every line of progress but the first and the last: the steps follow the size of a request.
fn without_steps(text: &str) -> String {
    let (start, end) = ("    (", "/100%)\r");
    let mut kept = String::new();
    let mut rest = text;
    let mut last = "";
    let mut steps = 0;
    while let Some(at) = rest.find(end) {
        let (step, after) = rest.split_at(at + end.len());
        let begin = step.rfind(start).unwrap_or(0);
        if steps == 0 || begin > 0 {
            kept.push_str(step);
        }
        steps += 1;
        last = if steps > 1 { &step[begin..] } else { "" };
        rest = after;
    }
    kept.push_str(last);
    kept.push_str(rest);
    kept
}

/// The lines that differ, those of qemu-img with `-` and ours with `+`.
pub(crate) fn difference(theirs: &str, ours: &str) -> String {
    const SHOWN: usize = 12;
    let (theirs, ours): (Vec<_>, Vec<_>) = (theirs.split('\n').collect(), ours.split('\n').collect());
    let start = theirs.iter().zip(&ours).take_while(|(a, b)| a == b).count();
    let (theirs, ours) = (&theirs[start..], &ours[start..]);
    let end = theirs.iter().rev().zip(ours.iter().rev()).take_while(|(a, b)| a == b).count();
    let lines = |sign: char, lines: &[&str]| -> String {
        let shown = lines.iter().take(SHOWN).map(|line| format!("        {sign} {}\n", line.escape_debug()));
        shown.collect()
    };
    lines('-', &theirs[..theirs.len() - end]) + &lines('+', &ours[..ours.len() - end])
}

#[test]
fn only_what_cannot_be_the_same_is_left_out() {
    let all = LeftOut { dates: true, layout: true, progress: true };
    let text = b"disk size: 4 KiB\n  \"actual-size\": 512,\nRun completed in 1.000 seconds.\n1 a 2026-01-02 03:04:05 0000:00\n";
    let left = comparable(text, Path::new("/nowhere"), all);
    assert_eq!(
        left,
        "disk size: *\n  \"actual-size\": *,\nRun completed in * seconds.\n1 a 0000-00-00 00:00:00 0000:00\n"
    );
    let kept = comparable(b"date: 2026-01-02 03:04:05 in /a/b/c", Path::new("/a/b"), LeftOut::default());
    assert_eq!(kept, "date: 2026-01-02 03:04:05 in @DIR@/c");
}

#[test]
fn progress_keeps_its_first_and_last_line() {
    let text = "x\n    (0.00/100%)\r    (3.00/100%)\r    (99.00/100%)\r    (100.00/100%)\r\ny";
    assert_eq!(without_steps(text), "x\n    (0.00/100%)\r    (100.00/100%)\r\ny");
    assert_eq!(without_steps("nothing"), "nothing");
}

#[test]
fn a_difference_shows_both_sides() {
    assert_eq!(difference("a\nb\nc", "a\nx\nc"), "        - b\n        + x\n");
}
