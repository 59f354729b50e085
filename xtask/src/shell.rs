//! Running programs, with messages that name them.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().map(PathBuf::from).unwrap_or(manifest)
}

/// A program to run.
pub(crate) fn command(program: &str) -> Command {
    Command::new(program)
}

/// `cargo`, the one that runs this.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()))
}

/// Runs to the end, or says which program failed.
pub(crate) trait Run {
    /// Shows its output as it comes.
    fn run(&mut self) -> anyhow::Result<()>;
    /// Returns its standard output.
    fn read(&mut self) -> anyhow::Result<String>;
}

impl Run for Command {
    fn run(&mut self) -> anyhow::Result<()> {
        let shown = format!("{self:?}");
        let status = self.status().with_context(|| format!("start {shown}"))?;
        if !status.success() {
            bail!("{shown}: {status}");
        }
        Ok(())
    }

    fn read(&mut self) -> anyhow::Result<String> {
        let shown = format!("{self:?}");
        let output = self
            .stderr(std::process::Stdio::inherit())
            .output()
            .with_context(|| format!("start {shown}"))?;
        if !output.status.success() {
            bail!("{shown}: {}", output.status);
        }
        String::from_utf8(output.stdout).with_context(|| format!("output of {shown}"))
    }
}
