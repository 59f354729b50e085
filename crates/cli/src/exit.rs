//! Exit codes and the last words before them.

use std::fmt;
use std::process::ExitCode;

use crate::output::complain;

/// The command line or settings ask for what cannot be: exit code 64 (sysexits.h, `EX_USAGE`).
#[derive(Debug)]
pub struct Misuse(pub String);

/// The thing was said already, or the answer is the code alone: exit code 1 without a message.
#[derive(Debug)]
pub struct Refused;

impl fmt::Display for Misuse {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("refused")
    }
}

impl std::error::Error for Misuse {}
impl std::error::Error for Refused {}

/// An error and its causes in one line for people: what a cause repeats of what was said already is
/// left out, and so are characters that a terminal would obey.
pub fn in_words(error: &anyhow::Error) -> String {
    let mut words = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if words.contains(&cause) {
            continue;
        }
        if !words.is_empty() {
            words.push_str(": ");
        }
        words.push_str(&cause);
    }
    let obeyed = |letter: char| letter.is_control() && letter != '\n' && letter != '\t';
    words.replace(obeyed, "\u{fffd}")
}

/// Says what went wrong and turns it into an exit code.
pub(crate) fn code_of(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    if error.is::<Refused>() {
        return ExitCode::FAILURE;
    }
    complain!("wharf: {}", in_words(&error));
    if error.is::<Misuse>() {
        ExitCode::from(64)
    } else {
        ExitCode::FAILURE
    }
}

/// Help and version are answers; everything else is misuse.
pub(crate) fn of_parse_error(error: &clap::Error) -> ExitCode {
    // Printing fails only when nobody reads.
    let _ = error.print();
    if error.use_stderr() {
        ExitCode::from(64)
    } else {
        ExitCode::SUCCESS
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn errors_are_said_once_and_without_what_terminals_obey() {
        let check = |error: anyhow::Error, expected: &str| assert_eq!(in_words(&error), expected);
        check(anyhow!("alone"), "alone");
        let cause = || anyhow!("no space").context("write x: no space");
        check(cause().context("load"), "load: write x: no space");
        check(anyhow!("a\x1b[2Jb\nc\td\0"), "a\u{fffd}[2Jb\nc\td\u{fffd}");
        let nested = Err::<(), _>(anyhow!("inner")).context("outer");
        check(nested.expect_err("an error"), "outer: inner");
    }
}
