//! One file per command.

mod doctor;
mod down;
mod image;
mod reset;
mod status;
mod up;
mod version;

use std::time::Duration;

use anyhow::Context;

use crate::args::{Arguments, Command, SettingsArguments, print_completion};
use crate::{Config, Misuse, Program};

pub(crate) fn run(program: &dyn Program, arguments: Arguments) -> anyhow::Result<()> {
    match arguments.command {
        Command::Up(settings) => up::run(&Config::resolve(&settings)?),
        Command::Down(down) => {
            let config = Config::resolve(&down.settings)?.as_made();
            down::run(program, &config, Duration::from_secs(down.timeout.into()))
        }
        Command::Status(status) => status::run(&Config::resolve(&status.settings)?, status.output),
        Command::Reset(reset) => {
            let config = Config::resolve(&reset.settings)?.as_made();
            reset::run(program, &config, reset.yes)
        }
        Command::Server(server) => {
            let mut config = Config::resolve(&server.settings)?;
            config.progress = server.progress;
            require_root("run the server")?;
            config.refuse_changes()?;
            program.serve(config)
        }
        Command::Version(version) => version::run(program, version.output),
        Command::Doctor(doctor) => doctor::run(&Config::resolve(&doctor.settings)?, doctor.output),
        Command::Image(image) => image::run(&image_config(&image.settings)?, image.command),
        Command::Completion { shell } => {
            print_completion(shell);
            Ok(())
        }
    }
}

fn image_config(settings: &SettingsArguments) -> anyhow::Result<Config> {
    require_root("work with images")?;
    Config::resolve(settings)
}

/// Only root can make namespaces, mounts and rules.
fn require_root(purpose: &str) -> Result<(), Misuse> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Misuse(format!(
        "only root can {purpose}; run it again with sudo"
    )))
}

/// A small runtime for one command.
fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start")?
        .block_on(future)
}
