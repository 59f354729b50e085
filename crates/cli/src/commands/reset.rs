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
    // The kernel lists mounts under their true paths.
    let true_path = directory
        .canonicalize()
        .with_context(|| format!("look at {}", directory.display()))?;
    let mounted = mounts::below(&true_path).context("list what is mounted")?;
    // The directory itself may be a disk of its own.
    let below = mounted.iter().find(|target| **target != true_path);
    match below {
        Some(target) => bail!(
            "{} is still mounted; unmount it, then run `wharf reset` again",
            target.display()
        ),
        None => Ok(()),
    }
}

/// Removes whatever is there. Something that is mounted meanwhile is an error, never emptied.
fn remove(path: &Path) -> anyhow::Result<()> {
    tree::remove_path(path).with_context(|| format!("delete {}", path.display()))
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

    /// Below a link, and with a blank in its name: neither is so in the kernel's list.
    #[test]
    fn a_mount_is_seen_whatever_it_is_called() {
        let place = std::env::temp_dir().join(format!("wharf-reset-mount-{}", std::process::id()));
        let (real, precious) = (place.join("a disk"), place.join("precious"));
        for directory in [&real, &precious] {
            std::fs::create_dir_all(directory).expect("made");
        }
        let link = place.join("link");
        std::os::unix::fs::symlink(&real, &link).expect("made");
        let instance = Instance::at(link);
        instance.make_data_dir().expect("made");
        let (mounted, file) = (real.join("pods/my volume"), precious.join("file"));
        std::fs::create_dir_all(&mounted).expect("made");
        std::fs::write(&file, "text").expect("written");
        rustix::mount::mount_bind(&precious, &mounted).expect("mounted");
        let refused = delete(&instance);
        let flags = rustix::mount::UnmountFlags::DETACH;
        rustix::mount::unmount(&mounted, flags).expect("unmounted");
        assert!(file.exists());
        let refused = refused.expect_err("something is mounted").to_string();
        assert!(
            refused.contains("pods/my volume is still mounted"),
            "{refused}"
        );
        delete(&instance).expect("deleted");
        std::fs::remove_dir_all(place).expect("removed");
    }
}
