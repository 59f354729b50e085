//! `wharf reset`: stops everything and deletes what was stored.

use std::io::{BufRead, IsTerminal};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};

use super::{down, require_root};
use crate::output::{self, complain, say};
use crate::{Config, Instance, Locked, Misuse, Program, Refused, kubeconfig};

/// Everything that an instance keeps in its data directory. Nothing else is deleted.
const KEPT: [&str; 8] = [
    "store",
    "images",
    "run",
    "pods",
    "log",
    "pki",
    "settings.toml",
    "wharf.lock",
];

pub(super) fn run(program: &dyn Program, config: &Config, yes: bool) -> anyhow::Result<()> {
    require_root("reset the cluster")?;
    let directory = &config.instance.data_dir;
    if !directory.exists() {
        kubeconfig::remove(&config.kubeconfig, config.context())?;
        say!("There is nothing in {}.", directory.display());
        return Ok(());
    }
    if !directory.join("wharf.lock").exists() {
        bail!(
            "{} is no data directory of wharf (it has no wharf.lock); nothing was deleted",
            directory.display()
        );
    }
    if !yes {
        confirm(config)?;
    }
    // What they would save is deleted next.
    down::stop(program, config, Duration::ZERO)?;
    delete(&config.instance)?;
    kubeconfig::remove(&config.kubeconfig, config.context())?;
    say!("Everything in {} is gone.", directory.display());
    Ok(())
}

fn confirm(config: &Config) -> anyhow::Result<()> {
    if !std::io::stdin().is_terminal() {
        return Err(Misuse(
            "reset deletes the cluster and asks first; without a terminal, say --yes".into(),
        )
        .into());
    }
    output::write_error(format_args!(
        "This stops all containers and deletes every object, image, volume and log in {}. Type yes to go on: ",
        config.instance.data_dir.display()
    ));
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .context("read the answer")?;
    if answer.trim() == "yes" {
        return Ok(());
    }
    complain!("Nothing was deleted.");
    Err(Refused.into())
}

/// Deletes what is stored, with the lock on it: whoever restarts servers that end must not have one
/// begin on half of it.
fn delete(instance: &Instance) -> anyhow::Result<()> {
    let directory = &instance.data_dir;
    let Locked::Ours(_lock) = instance.lock()? else {
        bail!(
            "wharf was started again in {} meanwhile, and nothing was deleted; if it is a unit of systemd's, end it first: systemctl stop wharf",
            directory.display()
        );
    };
    refuse_mounts(directory)?;
    for name in KEPT {
        remove(&directory.join(name))?;
    }
    // Stays if somebody keeps something of their own in it.
    let _ = std::fs::remove_dir(directory);
    Ok(())
}

/// Deleting must never reach through a mount into what belongs to others.
fn refuse_mounts(directory: &Path) -> anyhow::Result<()> {
    let mounts = crate::read_to_string(Path::new("/proc/self/mountinfo"))?;
    let below = format!("{}/", directory.display());
    let mounted = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .find(|target| target.starts_with(&below));
    match mounted {
        Some(target) => {
            bail!("{target} is still mounted; unmount it, then run `wharf reset` again")
        }
        None => Ok(()),
    }
}

fn remove(path: &Path) -> anyhow::Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => Err(error),
    };
    removed.with_context(|| format!("delete {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_deleted_under_a_server_and_nothing_of_others_without_one() {
        let name = format!("wharf-reset-{}", std::process::id());
        let instance = Instance::at(std::env::temp_dir().join(name));
        instance.make_data_dir().expect("made");
        let (own, others) = (
            instance.log_file(),
            instance.data_dir.join("notes of somebody"),
        );
        for file in [&own, &others] {
            std::fs::write(file, "text").expect("written");
        }
        let server = instance.lock().expect("asked");
        let error = delete(&instance).expect_err("a server has it");
        assert!(
            error.to_string().contains("systemctl stop wharf"),
            "{error}"
        );
        assert!(own.exists() && others.exists());
        drop(server);
        delete(&instance).expect("deleted");
        assert!(!own.exists() && others.exists());
        std::fs::remove_file(&others).expect("removed");
        delete(&instance).expect("deleted");
        assert!(!instance.data_dir.exists());
    }
}
