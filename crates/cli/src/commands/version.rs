//! `wharf version`

use crate::Program;
use crate::args::Format;

pub(super) fn run(program: &dyn Program, format: Format) -> anyhow::Result<()> {
    let version = program.version();
    match format {
        Format::Text => println!(
            "wharf {}\nKubernetes API {}",
            version.wharf, version.kubernetes
        ),
        Format::Json => println!("{}", serde_json::to_string_pretty(&version)?),
    }
    Ok(())
}
