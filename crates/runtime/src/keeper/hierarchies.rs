//! What a container sees of its cgroup on version 1: of each hierarchy its own cgroup and what is
//! below it, nothing above, and nothing that systemd keeps for itself.
//!
//! libcontainer would mount them for writing, and with them the limits that they are to hold.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::mount::{MsFlags, mount};

use crate::cgroup::{CgroupError, Cgroups};

/// Why there is nothing to be seen.
#[derive(Debug, thiserror::Error)]
pub(super) enum HierarchiesError {
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error("show the cgroup: {0}")]
    Mount(io::Error),
}

/// Lays the hierarchies down below `target`, in this mount namespace, each by the name that it has on
/// the machine and by those of its controllers.
pub(super) fn place(
    cgroups: &Cgroups,
    cgroup: &str,
    target: &Path,
) -> Result<(), HierarchiesError> {
    let directories = cgroups.version_1_directories(cgroup)?;
    let failed = HierarchiesError::Mount;
    fs::create_dir_all(target).map_err(failed)?;
    super::launch::keep_mounts_private(target);
    mount(
        Some("tmpfs"),
        target,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=755,size=64k"),
    )
    .map_err(|error| failed(error.into()))?;
    for (directory, controllers) in directories {
        let names: Vec<&str> = controllers.iter().map(String::as_str).collect();
        // As everybody names them: cpu,cpuacct
        let name = names.join(",");
        let place = target.join(&name);
        fs::create_dir(&place).map_err(failed)?;
        const NONE: Option<&str> = None;
        mount(Some(&directory), &place, NONE, MsFlags::MS_BIND, NONE)
            // Nobody else hears of what the container mounts there.
            .and_then(|()| mount(NONE, &place, NONE, MsFlags::MS_PRIVATE, NONE))
            .map_err(|error| failed(error.into()))?;
        for link in names.into_iter().filter(|_| controllers.len() > 1) {
            symlink(&name, target.join(link)).map_err(failed)?;
        }
    }
    Ok(())
}
