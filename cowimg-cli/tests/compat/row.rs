//! A row of a table: the command lines in it, and what its author says about them.
//!
//! ```text
//! info --output=json base.img
//! resize a.qcow2 2M ; info a.qcow2
//! check -r leaks leak.qcow2  # damaged
//! ! qemu-io -c 'write 0 64k' a.qcow2 ; check a.qcow2
//! ```
//!
//! Steps stand between ` ; `. A step is what follows `qemu-img` on the command line, quoted as for a shell, or after
//! `! ` a line for the shell, which is run in both folders alike. `@DIR@` stands for the folder. Behind two blanks
//! and `# ` stand the notes, each with its reason after a colon where it has one:
//!
//! * `since 10`: QEMU 7.2 says or does something else; the row is left out there.
//! * `damaged`: an image is broken on purpose, so that `qemu-img check` need not find it clean, only equal.
//! * `own words`: standard output is ours to write, such as a help text.
//! * `theirs changes: why`: qemu-img changes files although it refuses; ours must not.
//! * `both change: why`: the command fails after it has rightly done a part.
//! * `layout: why`: standard output tells of places in a file that we wrote; lengths and offsets are left out.
//! * `progress`: the steps between the first and the last line of progress are left out.

/// What the author of a row says about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Note {
    Since10,
    Damaged,
    OwnWords,
    TheirsChanges,
    BothChange,
    Layout,
    Progress,
}

/// One thing that is run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// The arguments of a `qemu-img`.
    Program(Vec<String>),
    /// A line for the shell, to prepare what the next step needs.
    Shell(String),
}

/// A line of a table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Row {
    /// As it stands in the table, without notes.
    pub(crate) text: String,
    pub(crate) steps: Vec<Step>,
    notes: Vec<Note>,
}

impl Row {
    pub(crate) fn parse(line: &str) -> Row {
        let (text, notes) = line.split_once("  # ").unwrap_or((line, ""));
        let text = text.trim().to_owned();
        let steps = text.split(" ; ").map(Step::parse).collect();
        let notes = notes.split("; ").filter(|note| !note.is_empty());
        Row { notes: notes.map(|note| Note::parse(note, line)).collect(), steps, text }
    }

    pub(crate) fn has(&self, note: Note) -> bool {
        self.notes.contains(&note)
    }

    /// How many command lines of `qemu-img` are in it.
    pub(crate) fn command_lines(&self) -> usize {
        self.steps.iter().filter(|step| matches!(step, Step::Program(_))).count()
    }
}

impl Note {
    fn parse(text: &str, line: &str) -> Note {
        let (name, reason) = text.trim().split_once(": ").unwrap_or((text.trim(), ""));
        let (note, needs_reason) = match name {
            "since 10" => (Note::Since10, false),
            "damaged" => (Note::Damaged, false),
            "own words" => (Note::OwnWords, false),
            "progress" => (Note::Progress, false),
            "theirs changes" => (Note::TheirsChanges, true),
            "both change" => (Note::BothChange, true),
            "layout" => (Note::Layout, true),
            _ => panic!("there is no note '{name}': {line}"),
        };
        assert!(!needs_reason || !reason.is_empty(), "the note '{name}' needs its reason: {line}");
        note
    }
}

impl Step {
    fn parse(text: &str) -> Step {
        match text.trim().strip_prefix("! ") {
            Some(line) => Step::Shell(line.to_owned()),
            None => Step::Program(words(text)),
        }
    }

    /// Whether it makes a snapshot, which carries the time of its making.
    pub(crate) fn makes_a_snapshot(&self) -> bool {
        match self {
            Step::Program(words) => {
                words.first().is_some_and(|word| word == "snapshot")
                    && words.iter().any(|word| word.starts_with("-c") || word.starts_with("--c"))
            }
            Step::Shell(_) => false,
        }
    }
}

/// The words of a line, with single quotes, double quotes and nothing else.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    for character in line.trim().chars() {
        match (quote, character) {
            (Some(open), _) if open == character => quote = None,
            (None, '\'' | '"') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None, ' ') => words.extend(word.take()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    assert!(quote.is_none(), "an open quote: {line}");
    words.extend(word);
    words
}

#[test]
fn a_row_has_steps_and_notes() {
    let row = Row::parse("rebase -b '' a ; ! cp a 'b c' ; check \"b c\"  # since 10; layout: it is ours");
    assert_eq!(
        row.steps,
        [
            Step::Program(["rebase", "-b", "", "a"].map(str::to_owned).to_vec()),
            Step::Shell("cp a 'b c'".to_owned()),
            Step::Program(["check", "b c"].map(str::to_owned).to_vec()),
        ]
    );
    assert_eq!(row.command_lines(), 2);
    assert!(row.has(Note::Since10) && row.has(Note::Layout) && !row.has(Note::Damaged));
}
