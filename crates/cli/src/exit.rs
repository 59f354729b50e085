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

/// Says what went wrong and turns it into an exit code.
pub(crate) fn code_of(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    if error.is::<Refused>() {
        return ExitCode::FAILURE;
    }
    complain!("wharf: {error:#}");
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
