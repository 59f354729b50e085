//! `wharf version`

use crate::Program;
use crate::args::Format;
use crate::output::say;

pub(super) fn run(program: &dyn Program, format: Format) -> anyhow::Result<()> {
    let version = program.version();
    match format {
        Format::Text => say!(
            "wharf {}\nKubernetes API {}",
            version.wharf,
            version.kubernetes
        ),
        Format::Json => say!("{}", serde_json::to_string_pretty(&version)?),
    }
    Ok(())
}
