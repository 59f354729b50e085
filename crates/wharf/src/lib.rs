//! One program: the whole container platform.
//!
//! The roof is the only crate that knows everyone. It turns a checked configuration into parts,
//! hands each part a client or a handle, runs them, and takes them down in the opposite order. A part
//! that could live on another machine gets a `kube::Client` and nothing else, so that only this crate
//! knows that it does not.
//!
//! What the parts do is left to them; what people type to `cli`.

mod addresses;
mod control;
mod dns_probe;
mod kubeconfig;
mod local_node;
mod log_file;
mod logging;
mod parts;
mod progress;
mod server;
mod service_manager;
mod serving;

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use cli::{Config, Lock, Locked, Program, Version};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The level of the Kubernetes API, with this program's version as build metadata.
const KUBERNETES: &str = concat!("v1.36.3+wharf.", env!("CARGO_PKG_VERSION"));

/// Enough for what a fresh cluster writes before it is ready.
const FREE_BYTES_MIN: u64 = 3 << 20;

/// The program, as the commands see it.
#[derive(Clone, Copy, Debug)]
pub struct Wharf;

impl Program for Wharf {
    fn version(&self) -> Version {
        version()
    }

    fn serve(&self, config: Config) -> anyhow::Result<()> {
        if config.progress {
            // Away from the terminal of whoever typed `wharf up`. Being a session's leader already is as good.
            let _ = rustix::process::setsid();
        }
        let teller = progress::Teller::new(config.progress);
        // A shell's soft limit is for programs that use select(2).
        let files = getrlimit(Resource::Nofile);
        let raised = Rlimit {
            current: files.maximum,
            ..files
        };
        // What cannot be raised is enough for a small cluster.
        let _ = setrlimit(Resource::Nofile, raised);
        match prepare(&config) {
            Ok(lock) => runtime()?.block_on(serving::run(config, lock, teller)),
            Err(error) => {
                teller.failed(&error);
                Err(error)
            }
        }
    }

    fn tear_down(&self, config: &Config, _lock: &Lock, limit: Duration) -> anyhow::Result<bool> {
        runtime()?.block_on(async {
            let ground = parts::Ground::open_to_take_down(config).await?;
            ground.take_down(limit).await
        })
    }
}

fn version() -> Version {
    Version {
        wharf: env!("CARGO_PKG_VERSION").into(),
        kubernetes: KUBERNETES.into(),
    }
}

/// What must hold before anything is opened.
fn prepare(config: &Config) -> anyhow::Result<Lock> {
    logging::start(&config.instance.log_file())?;
    config.instance.make_data_dir()?;
    refuse_full_disk(&config.instance.data_dir)?;
    match config.instance.lock()? {
        Locked::Ours(lock) => Ok(lock),
        Locked::Taken => anyhow::bail!(
            "another wharf is using {}; stop it with `wharf down --data-dir {0}`, or choose another with --data-dir",
            config.instance.data_dir.display()
        ),
    }
}

/// With a full disk the database cannot even be opened, and says so in words of its own.
fn refuse_full_disk(directory: &Path) -> anyhow::Result<()> {
    let found = rustix::fs::statvfs(directory)
        .with_context(|| format!("look at the disk of {}", directory.display()))?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    anyhow::ensure!(
        free >= FREE_BYTES_MIN,
        "the disk of {} is full: {} KiB are free, and {} are needed to start; make room, or choose another place with --data-dir",
        directory.display(),
        free >> 10,
        FREE_BYTES_MIN >> 10
    );
    Ok(())
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("wharf")
        .build()
        .context("start the runtime")
}
