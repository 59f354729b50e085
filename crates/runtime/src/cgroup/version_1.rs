//! Version 1: one tree per controller (Documentation/admin-guide/cgroup-v1).

use std::fs;
use std::path::Path;

use super::{CgroupError, make_directory, maximum, write};
use crate::spec::Resources;

/// Makes a directory with all above it. In the cpuset hierarchy a new directory has no CPUs, and
/// nothing can join it until it has its parent's; one that exists may have been made by somebody
/// who has not come to that yet.
pub(super) fn make_directories(directory: &Path) -> Result<(), CgroupError> {
    if !directory.exists() {
        if let Some(parent) = directory.parent() {
            make_directories(parent)?;
        }
        make_directory(directory)?;
    }
    inherit_cpus(directory)
}

fn inherit_cpus(directory: &Path) -> Result<(), CgroupError> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own_file = directory.join(file);
        // Not the cpuset hierarchy.
        let Ok(own) = fs::read_to_string(&own_file) else {
            return Ok(());
        };
        if !own.trim().is_empty() {
            continue;
        }
        if let Some(parent) = directory.parent() {
            inherit_cpus(parent)?;
            if let Ok(inherited) = fs::read_to_string(parent.join(file)) {
                write(&own_file, inherited.trim())?;
            }
        }
    }
    Ok(())
}

/// Controller, file and value of each limit.
pub(super) fn limits(resources: &Resources) -> Vec<(&'static str, &'static str, String)> {
    let mut limits = Vec::new();
    if let Some(shares) = resources.cpu_shares {
        limits.push(("cpu", "cpu.shares", shares.clamp(2, 262_144).to_string()));
    }
    if let Some(quota) = resources.cpu_quota {
        let period = resources.cpu_period.unwrap_or(100_000);
        limits.push(("cpu", "cpu.cfs_period_us", period.to_string()));
        limits.push(("cpu", "cpu.cfs_quota_us", quota.to_string()));
    }
    if let Some(limit) = resources.memory_limit {
        limits.push(("memory", "memory.limit_in_bytes", limit.to_string()));
    }
    if let Some(limit) = resources.pids_limit {
        limits.push(("pids", "pids.max", maximum(limit)));
    }
    limits
}
