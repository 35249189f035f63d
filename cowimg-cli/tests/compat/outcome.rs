//! What a row left behind: the files of both folders against each other, judged by the real qemu-img.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bench_folder::{BenchFolder, FileState, Side};
use crate::row::{Note, Row};
use crate::spoken::{self, LeftOut};
use crate::stored_bitmaps;

/// Compares all files of both folders; gives one paragraph for each thing that is not the same.
pub(crate) fn compare(bench: &BenchFolder, row: &Row) -> Vec<String> {
    let (theirs, ours) = (bench.state(Side::Theirs), bench.state(Side::Ours));
    if theirs.keys().ne(ours.keys()) {
        let missing: Vec<_> = theirs.keys().filter(|name| !ours.contains_key(*name)).collect();
        let surplus: Vec<_> = ours.keys().filter(|name| !theirs.contains_key(*name)).collect();
        return vec![format!("files: missing {missing:?}, too many {surplus:?}")];
    }
    let before = bench.state_before();
    if theirs == *before && ours == *before {
        return Vec::new();
    }
    let judge = Judge { bench, row };
    let files = theirs.iter().map(|(name, theirs)| (name, theirs, &ours[name]));
    // A disk can change through its base, so that every overlay counts as soon as one file has changed.
    let counts = |name: &PathBuf, theirs: &FileState, ours: &FileState| {
        theirs != ours || before.get(name) != Some(theirs) || theirs.has_base()
    };
    let counting = files.filter(|(name, theirs, ours)| counts(name, theirs, ours));
    counting.flat_map(|(name, theirs, ours)| judge.file(name, theirs, ours)).collect()
}

/// Two files of one name, as qemu-img sees them.
struct Judge<'a> {
    bench: &'a BenchFolder,
    row: &'a Row,
}

impl Judge<'_> {
    fn file(&self, name: &Path, theirs: &FileState, ours: &FileState) -> Vec<String> {
        let is_special = |state: &FileState| matches!(state, FileState::Special(_));
        if is_special(theirs) || is_special(ours) {
            let what = format!("{}: only one is a file", name.display());
            return if theirs == ours { Vec::new() } else { vec![what] };
        }
        let their_path = self.bench.folder(Side::Theirs).join(name);
        let our_path = self.bench.folder(Side::Ours).join(name);
        let is_qcow2 = theirs.is_qcow2(&their_path);
        if is_qcow2 != ours.is_qcow2(&our_path) {
            return vec![format!("{}: only one is a qcow2 image", name.display())];
        }
        if theirs.is_luks() || ours.is_luks() {
            let found = self.volume(&their_path, &our_path, (theirs, ours));
            return found.iter().map(|what| format!("{}: {what}", name.display())).collect();
        }
        let mut found = Vec::new();
        found.extend(Judge::content(&their_path, &our_path, is_qcow2));
        let is_untouched = theirs == ours && self.bench.state_before().get(name) == Some(theirs);
        if is_qcow2 && !is_untouched {
            found.extend(self.soundness(&their_path, &our_path));
            found.extend(self.information(&their_path, &our_path));
            found.extend(Judge::snapshots(&their_path, &our_path));
        }
        if let (true, FileState::Small(theirs), FileState::Small(ours)) = (is_qcow2, theirs, ours) {
            let (theirs, ours) = (stored_bitmaps::read(theirs), stored_bitmaps::read(ours));
            if theirs != ours {
                found.push(format!("bitmaps: qemu-img {theirs:?}\n      ours {ours:?}"));
            }
        }
        found.iter().map(|what| format!("{}: {what}", name.display())).collect()
    }

    /// Two LUKS images have keys of their own, so that no byte is the same: the rows read their content themselves.
    fn volume(
        &self,
        theirs: &Path,
        ours: &Path,
        (their_state, our_state): (&FileState, &FileState),
    ) -> Option<String> {
        let info = |path: &Path, side: Side| {
            let (code, words) = answer_of(Command::new("qemu-img").args(["info", "-f", "luks"]).arg(path));
            (code, spoken::comparable(words.as_bytes(), &self.bench.folder(side), LeftOut::default()))
        };
        let (theirs, ours) = (info(theirs, Side::Theirs), info(ours, Side::Ours));
        let is_as_long = their_state.len() == our_state.len();
        (theirs != ours || !is_as_long)
            .then(|| format!("luks: {} and {}\n{}", theirs.0, ours.0, spoken::difference(&theirs.1, &ours.1)))
    }

    /// The disks are equal. Which zeroes are stored and which are not is each program's own affair.
    fn content(theirs: &Path, ours: &Path, is_qcow2: bool) -> Option<String> {
        let format = if is_qcow2 { "qcow2" } else { "raw" };
        let compare = |one: &Path, other: &Path| {
            let mut command = Command::new("qemu-img");
            command.args(["compare", "-U", "-f", format, "-F", format]).arg(one).arg(other);
            answer_of(&mut command)
        };
        let (code, words) = compare(theirs, ours);
        // What qemu-img cannot open on its own side, such as an image whose base is gone, is no finding.
        let cannot_be_read = code > 1 && compare(theirs, theirs).0 > 1;
        (code != 0 && !cannot_be_read).then(|| format!("qemu-img compare: {words}"))
    }

    /// qemu-img finds our image as clean as its own.
    fn soundness(&self, theirs: &Path, ours: &Path) -> Option<String> {
        let check =
            |path: &Path| answer_of(Command::new("qemu-img").args(["check", "-U", "-f", "qcow2"]).arg(path));
        let (our_code, words) = check(ours);
        if our_code == 0 {
            return None;
        }
        let (their_code, their_words) = check(theirs);
        let is_expected = self.row.has(Note::Damaged) || our_code == 1;
        (our_code != their_code || !is_expected).then(|| {
            format!("qemu-img check: {our_code}, qemu-img's own: {their_code}: {words} | {their_words}")
        })
    }

    /// The header says the same: size, base, features, snapshots, bitmaps.
    fn information(&self, theirs: &Path, ours: &Path) -> Option<String> {
        let left_out = LeftOut {
            dates: self.row.steps.iter().any(crate::row::Step::makes_a_snapshot),
            ..LeftOut::default()
        };
        let info = |path: &Path, side: Side| {
            let (code, words) = answer_of(
                Command::new("qemu-img").args(["info", "-U", "-f", "qcow2", "--output=json"]).arg(path),
            );
            let words = without_children(&words);
            (code, spoken::comparable(words.as_bytes(), &self.bench.folder(side), left_out))
        };
        let (theirs, ours) = (info(theirs, Side::Theirs), info(ours, Side::Ours));
        (theirs != ours).then(|| {
            format!("qemu-img info: {} and {}\n{}", theirs.0, ours.0, spoken::difference(&theirs.1, &ours.1))
        })
    }

    /// Every snapshot holds the same disk.
    fn snapshots(theirs: &Path, ours: &Path) -> Option<String> {
        let (_, report) = answer_of(
            Command::new("qemu-img").args(["info", "-U", "-f", "qcow2", "--output=json"]).arg(theirs),
        );
        let ids = report.lines().filter_map(|line| line.trim().strip_prefix("\"id\": \"")?.split('"').next());
        let folder = tempfile::tempdir().expect("a folder for the disks of snapshots");
        for id in ids {
            let copies = [theirs, ours].map(|image| {
                let copy = folder.path().join(if image == theirs { "theirs" } else { "ours" });
                let mut command = Command::new("qemu-img");
                command.args(["convert", "-U", "-f", "qcow2", "-O", "qcow2", "-l"]);
                command.arg(format!("snapshot.id={id}")).arg(image).arg(&copy);
                (answer_of(&mut command), copy)
            });
            let [((their_code, _), their_copy), ((our_code, words), our_copy)] = copies;
            if their_code != our_code {
                return Some(format!(
                    "snapshot {id}: convert: {our_code}, qemu-img's own {their_code}: {words}"
                ));
            }
            let mut command = Command::new("qemu-img");
            let (code, words) = answer_of(command.arg("compare").arg(&their_copy).arg(&our_copy));
            if their_code == 0 && code != 0 {
                return Some(format!("snapshot {id}: {words}"));
            }
        }
        None
    }
}

/// Exit code and all words.
fn answer_of(command: &mut Command) -> (i32, String) {
    let output =
        command.env("LC_ALL", "C.UTF-8").output().expect("qemu-img is installed: package qemu-utils");
    let words = [output.stdout, output.stderr].map(|words| String::from_utf8_lossy(&words).trim().to_owned());
    (output.status.code().unwrap_or(-1), words.join(" ").trim().to_owned())
}

/// The report without what it says of the file below: its length follows from where things lie in it.
fn without_children(report: &str) -> String {
    let mut is_child = false;
    let kept = report.lines().filter(|line| {
        is_child |= line.starts_with("    \"children\": [");
        let is_kept = !is_child;
        is_child &= !line.starts_with("    ],");
        is_kept
    });
    kept.collect::<Vec<_>>().join("\n")
}
