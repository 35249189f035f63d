//! Colours: only for a person who sees them and has not asked for none.

use std::env;
use std::io::{self, IsTerminal};

use crate::manner::{Manner, manner};

/// What a colour is to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// The command has failed.
    Failure,
    /// The command goes on, and something is to be known.
    Warning,
    /// All is well.
    Success,
}

/// `text` for standard error in the colour of its meaning, or as it is: where standard error is no terminal, where `NO_COLOR` is set to
/// anything, and in the strict manner.
pub(crate) fn painted(text: &str, meaning: Meaning) -> String {
    let has_colours =
        manner() == Manner::Cowimg && io::stderr().is_terminal() && is_wanted(|key| env::var(key).ok());
    if has_colours { paint(text, meaning) } else { text.to_owned() }
}

/// The same for standard output.
pub(crate) fn painted_on_stdout(text: &str, meaning: Meaning) -> String {
    let has_colours =
        manner() == Manner::Cowimg && io::stdout().is_terminal() && is_wanted(|key| env::var(key).ok());
    if has_colours { paint(text, meaning) } else { text.to_owned() }
}

/// Whether the environment allows colours.
fn is_wanted(variable: impl Fn(&str) -> Option<String>) -> bool {
    variable("NO_COLOR").is_none_or(|value| value.is_empty())
        && variable("TERM").is_some_and(|term| term != "dumb")
}

fn paint(text: &str, meaning: Meaning) -> String {
    let code = match meaning {
        Meaning::Failure => "1;31",
        Meaning::Warning => "1;33",
        Meaning::Success => "1;32",
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_can_ask_for_no_colours() {
        let with = |pairs: &'static [(&str, &str)]| {
            is_wanted(|key| pairs.iter().find(|(name, _)| *name == key).map(|(_, value)| (*value).to_owned()))
        };
        assert!(with(&[("TERM", "xterm")]));
        assert!(with(&[("TERM", "xterm"), ("NO_COLOR", "")]));
        assert!(!with(&[("TERM", "xterm"), ("NO_COLOR", "1")]));
        assert!(!with(&[("TERM", "dumb")]));
        assert!(!with(&[]));
    }

    #[test]
    fn what_is_painted_ends_its_colour() {
        assert_eq!(paint("x", Meaning::Failure), "\x1b[1;31mx\x1b[0m");
    }
}
