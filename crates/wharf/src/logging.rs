//! What the server says, on standard error.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::log_file::LogFile;

/// Lines for people; `WHARF_LOG` chooses (`info`, `debug`, `apiserver=debug,info`). If they go to
/// `log_file`, that is kept bounded.
pub(crate) fn start(log_file: &Path) -> anyhow::Result<()> {
    let filter = match std::env::var("WHARF_LOG") {
        Ok(directives) => EnvFilter::try_new(&directives).with_context(|| {
            format!("WHARF_LOG={directives}: name levels like info or apiserver=debug")
        })?,
        Err(_) => EnvFilter::new("info"),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_span_events(FmtSpan::NONE)
        .with_ansi(false)
        // Complaining of a log that cannot be written (its disk is full) would be a panic.
        .log_internal_errors(false)
        .with_writer(match LogFile::of_standard_error(log_file) {
            Some(file) => BoxMakeWriter::new(Arc::new(file)),
            None => BoxMakeWriter::new(std::io::stderr),
        })
        .init();
    Ok(())
}
