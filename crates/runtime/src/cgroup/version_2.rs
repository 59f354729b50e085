//! Version 2: one tree, whose controllers are handed down level by level
//! (Documentation/admin-guide/cgroup-v2.rst).
//!
//! ```text
//! /sys/fs/cgroup                cgroup.subtree_control: cpu memory pids …
//! ├── system.slice/wharf.service   the server, where systemd put it: its cgroup stays systemd's
//! └── wharf                     one subtree of the instance's own, beside systemd's
//!     ├── keepers               out of every limit
//!     └── pods/burstable/pod…/CONTAINER
//! ```
//!
//! A cgroup with processes cannot hand controllers down ("no internal processes"); only the root of
//! the machine may. In a container that has its own view of the tree (cgroup_namespaces(7)), the root
//! that it sees is an ordinary cgroup, with the container's processes in it. As other container
//! programs that run in containers do, these are moved down into a cgroup `init` first.

use std::fs;
use std::io;
use std::path::Path;

use super::{CgroupError, make_directory, maximum, write};
use crate::spec::Resources;

/// Without these a sandbox cannot be limited and counted. Memory comes first: a cgroup with processes
/// refuses it, but would hand the others down, to threads, and be of no use for anything else then.
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// Handed down where they are there.
const CONTROLLERS_OPTIONAL: [&str; 2] = ["io", "cpuset"];

/// How often processes that are forking meanwhile are moved.
const MOVES_MAX: usize = 16;

/// Lets the tree at `mount` hand its controllers to `path` and below.
pub(super) fn prepare(mount: &Path, path: &str) -> Result<(), CgroupError> {
    let offered = fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
    let offered: Vec<&str> = offered.split_whitespace().collect();
    let missing: Vec<&str> = CONTROLLERS
        .into_iter()
        .filter(|name| !offered.contains(name))
        .collect();
    if !missing.is_empty() {
        return Err(CgroupError::NotOffered {
            controllers: missing.join(", "),
            mount: mount.to_owned(),
        });
    }
    let handed_down = CONTROLLERS
        .iter()
        .try_for_each(|name| hand_down(mount, name));
    match handed_down {
        // The second where somebody has handed others down to threads before.
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EOPNOTSUPP))
                && is_inside(mount) =>
        {
            make_room(mount)?;
        }
        Err(source) => {
            return Err(CgroupError::File {
                step: "hand controllers down from",
                path: mount.to_owned(),
                source,
            });
        }
        Ok(()) => {}
    }
    make(mount, &format!("{path}/keepers"))
}

/// Makes a directory with all above it, and lets the controllers through on the way.
pub(super) fn make(mount: &Path, path: &str) -> Result<(), CgroupError> {
    let mut directory = mount.to_owned();
    for part in path.trim_start_matches('/').split('/') {
        // One by one: a controller that is not there must not keep the others out.
        for controller in CONTROLLERS.iter().chain(&CONTROLLERS_OPTIONAL) {
            let _ = hand_down(&directory, controller);
        }
        directory.push(part);
        make_directory(&directory)?;
    }
    Ok(())
}

fn hand_down(directory: &Path, controller: &str) -> io::Result<()> {
    let file = directory.join("cgroup.subtree_control");
    fs::write(file, format!("+{controller}"))
}

/// Whether this process is in the cgroup that is seen as the root.
fn is_inside(mount: &Path) -> bool {
    let own = std::process::id().to_string();
    fs::read_to_string(mount.join("cgroup.procs"))
        .is_ok_and(|processes| processes.lines().any(|process| process == own))
}

/// Moves the processes of a container's root cgroup down, so that it may hand controllers out.
fn make_room(mount: &Path) -> Result<(), CgroupError> {
    let place = mount.join("init");
    make_directory(&place)?;
    let list = mount.join("cgroup.procs");
    for _ in 0..MOVES_MAX {
        let processes = fs::read_to_string(&list).unwrap_or_default();
        for process in processes.lines() {
            // It may have ended, or be the kernel's.
            let _ = fs::write(place.join("cgroup.procs"), process);
        }
        if CONTROLLERS
            .iter()
            .all(|name| hand_down(mount, name).is_ok())
        {
            return Ok(());
        }
    }
    Err(CgroupError::Occupied(mount.to_owned()))
}

/// File and value of each limit of any cgroup.
pub(super) fn limits(resources: &Resources) -> Vec<(&'static str, String)> {
    let mut limits = Vec::new();
    if let Some(shares) = resources.cpu_shares {
        limits.push(("cpu.weight", weight(shares).to_string()));
    }
    if let Some(quota) = resources.cpu_quota {
        let period = resources.cpu_period.unwrap_or(100_000);
        limits.push(("cpu.max", format!("{} {period}", maximum(quota))));
    }
    if let Some(limit) = resources.memory_limit {
        limits.push(("memory.max", maximum(limit)));
    }
    if let Some(limit) = resources.pids_limit {
        limits.push(("pids.max", maximum(limit)));
    }
    limits
}

/// What holds for every container, as kubelet has it: it does not swap, and when it runs out of
/// memory it ends whole, instead of going on without one of its processes.
pub(super) fn limit_container(directory: &Path) -> Result<(), CgroupError> {
    for (file, value) in [("memory.swap.max", "0"), ("memory.oom.group", "1")] {
        let file = directory.join(file);
        // A kernel without swap, or without accounting for it, has nothing to forbid.
        if file.exists() {
            write(&file, value)?;
        }
    }
    Ok(())
}

/// The weight for shares, 2…262144 to 1…10000 with 1024 to 100, as runc converts since 1.3.2 and crun
/// since 1.23: 10^((l² + 125 l) / 612 − 7/34) for l = log₂(shares), rounded up.
fn weight(shares: u64) -> u64 {
    match shares {
        ..=2 => 1,
        262_144.. => 10_000,
        shares => {
            #[expect(clippy::cast_precision_loss, reason = "shares are below 2^18")]
            let logarithm = (shares as f64).log2();
            let exponent = (logarithm * logarithm + 125.0 * logarithm) / 612.0 - 7.0 / 34.0;
            let weight = 10_f64.powf(exponent).ceil().clamp(1.0, 10_000.0);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "between 1 and 10,000"
            )]
            let weight = weight as u64;
            weight
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights_as_under_runc() {
        for (shares, expected) in [
            (0, 1),
            (2, 1),
            (102, 17),
            (512, 59),
            (1024, 100),
            (2000, 170),
            (2048, 174),
            (22_000, 1204),
            (262_144, 10_000),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(weight(shares), expected, "{shares}");
        }
    }

    #[test]
    fn a_tree_without_controllers_says_what_is_missing() {
        let mount = tempfile::tempdir().expect("a temporary directory can be made");
        fs::write(mount.path().join("cgroup.controllers"), "cpuset cpu pids\n").expect("written");
        let error = prepare(mount.path(), "/wharf").expect_err("there is no memory controller");
        let text = error.to_string();
        assert!(text.contains("offers no memory controller"), "{text}");
    }
}
