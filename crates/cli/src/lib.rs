//! The commands that people type.
//!
//! What was typed ([`args`]) is resolved into what is meant ([`Config`]) before anything is touched;
//! each command is one file. The commands are outsiders: they reach the running program through its
//! control socket ([`control`]) and the cluster through its API, like anybody. The two things that
//! only the program itself can do, being the server and taking everything down without one, come in
//! through [`Program`].
//!
//! What the server does is left to the roof.

pub mod args;
mod commands;
mod config;
pub mod control;
mod exit;
mod instance;
mod kubeconfig;
mod output;
pub mod presence;
mod table;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

pub use config::{AddressRange, Config, ListenAddress, Settings};
pub use exit::{Misuse, Refused, in_words};
pub use instance::{Instance, Lock, Locked};

/// What only the whole program can do.
pub trait Program {
    /// Versions, for `wharf version`.
    fn version(&self) -> Version;
    /// Is the server, in the foreground, until it is told to stop.
    fn serve(&self, config: Config) -> anyhow::Result<()>;
    /// Ends what an earlier server left running, without a server: containers, links, rules, cgroups.
    /// Pods end as they asked to, but no later than after `limit`; zero kills them at once.
    /// Whether there were containers.
    fn tear_down(&self, config: &Config, lock: &Lock, limit: Duration) -> anyhow::Result<bool>;
}

/// What this program is.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Version {
    /// Of the program.
    pub wharf: String,
    /// Level of the Kubernetes API, as the API server says it.
    pub kubernetes: String,
}

/// Parses the command line of this process and does what it says.
pub fn run(program: &dyn Program) -> ExitCode {
    match args::parse() {
        Ok(arguments) => exit::code_of(commands::run(program, arguments)),
        Err(error) => exit::of_parse_error(&error),
    }
}

/// Reads a file, with a message that names it.
pub(crate) fn read_to_string(path: &Path) -> anyhow::Result<String> {
    use anyhow::Context;
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}
