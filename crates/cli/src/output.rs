//! Words for whoever typed the command.
//!
//! Who reads may stop reading at any time (`wharf image ls | head`): then the rest is not said, and
//! the command does what it was told all the same. What cannot be written for another reason (a full
//! disk) ends the command, as its answer would be incomplete.

use std::fmt;
use std::io::{self, Write};

/// A line on standard output.
macro_rules! say {
    ($($part:tt)*) => { $crate::output::write(format_args!("{}\n", format_args!($($part)*))) };
}

/// A line on standard error, if anybody can read it.
macro_rules! complain {
    ($($part:tt)*) => { $crate::output::write_error(format_args!("{}\n", format_args!($($part)*))) };
}

pub(crate) use {complain, say};

/// Text on standard output.
pub(crate) fn write(text: fmt::Arguments<'_>) {
    let mut output = io::stdout().lock();
    let written = output.write_fmt(text).and_then(|()| output.flush());
    if let Err(error) = written
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        complain!("wharf: write to standard output: {error}");
        std::process::exit(1);
    }
}

/// Text on standard error, if anybody can read it.
pub(crate) fn write_error(text: fmt::Arguments<'_>) {
    let mut output = io::stderr().lock();
    // There is nobody left to tell.
    let _ = output.write_fmt(text).and_then(|()| output.flush());
}
