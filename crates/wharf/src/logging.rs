//! What the server says, on standard error.

use anyhow::Context;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

/// Lines for people; `WHARF_LOG` chooses (`info`, `debug`, `apiserver=debug,info`).
pub(crate) fn start() -> anyhow::Result<()> {
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
        .with_writer(std::io::stderr)
        .init();
    Ok(())
}
