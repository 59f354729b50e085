//! Control groups of this machine: version 2, or version 1 with its many hierarchies.
//!
//! Both layouts are real: version 2 is what most machines have, version 1 (also "hybrid", where a
//! version 2 hierarchy without controllers is mounted beside it) is what older ones and some
//! sandboxes have. A cgroup is named by one absolute path, `/wharf/pods/burstable/pod…`, and stands
//! at that path in every hierarchy. Nobody else's cgroups are looked at, written or removed.
//!
//! All limits are written here; libcontainer only puts a container's first process into its cgroup
//! and, on version 1, says which devices it may use.

mod devices;
mod hierarchy;
mod version_1;
mod version_2;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) use devices::{DEFAULT as DEFAULT_DEVICES, Rule as DeviceRule, restrict_devices};
use hierarchy::parse_mounts;

use crate::spec::Resources;

/// Why a cgroup could not be made, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No cgroup file system is mounted where mounts are listed.
    #[error(
        "no cgroup hierarchy is mounted (see /proc/self/mountinfo); mount cgroup2 on /sys/fs/cgroup"
    )]
    NotMounted,
    /// A file or directory of a hierarchy.
    #[error("{step} {path}: {source}")]
    File {
        /// What was being done.
        step: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel, or whoever made this container, keeps them back.
    #[error(
        "cgroup v2 at {mount} offers no {controllers} controller: enable it on the kernel's command \
         line (cgroup_enable=memory, for example), or, in a container, have it delegated"
    )]
    NotOffered {
        /// Which.
        controllers: String,
        /// By which tree.
        mount: PathBuf,
    },
    /// Processes in a container's root cgroup that cannot be moved out of the way.
    #[error(
        "the processes in {0} keep its controllers from being handed down, and cannot be moved: \
         start in a cgroup below it"
    )]
    Occupied(PathBuf),
    /// The path is not absolute, or climbs.
    #[error("{0:?} is not a cgroup path: it must begin with / and have no empty, . or .. part")]
    Path(String),
}

impl CgroupError {
    /// Whether the kernel still holds something in it, as it does for a moment after a process's end.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self, CgroupError::File { source, .. } if source.kind() == io::ErrorKind::ResourceBusy)
    }
}

/// Use of resources by one cgroup and all below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time.
    pub cpu: Duration,
    /// Bytes, with cache.
    pub memory: u64,
    /// Bytes, without inactive file cache.
    pub memory_working_set: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// One mounted hierarchy of version 1.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    controllers: BTreeSet<String>,
}

/// The layout of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroups {
    version_1: Vec<Hierarchy>,
    version_2: Option<PathBuf>,
}

impl Cgroups {
    /// Finds out what is mounted.
    pub fn detect() -> Result<Self, CgroupError> {
        let path = PathBuf::from("/proc/self/mountinfo");
        let text = fs::read_to_string(&path).map_err(|source| CgroupError::File {
            step: "read",
            path,
            source,
        })?;
        let found = parse_mounts(&text);
        if found.version_1.is_empty() && found.version_2.is_none() {
            return Err(CgroupError::NotMounted);
        }
        Ok(found)
    }

    /// Whether version 2 is in charge: no controller is mounted as version 1.
    pub fn is_version_2(&self) -> bool {
        self.version_1.is_empty()
    }

    /// The directory of the version 2 hierarchy, which in the hybrid layout has no controllers.
    pub(crate) fn version_2_directory(&self, path: &str) -> Option<PathBuf> {
        self.version_2.as_ref().map(|mount| below(mount, path))
    }

    /// Makes the cgroup below which everything of an instance will be, so that it can be limited.
    ///
    /// # Errors
    /// On version 2, when the machine does not let its controllers through.
    pub fn prepare(&self, path: &str) -> Result<(), CgroupError> {
        check_path(path)?;
        match &self.version_2 {
            Some(mount) if self.is_version_2() => version_2::prepare(mount, path),
            _ => Ok(()),
        }
    }

    /// Makes a container's cgroup: as [`Cgroups::create`], and with what holds for every container.
    pub(crate) fn create_container(
        &self,
        path: &str,
        resources: &Resources,
    ) -> Result<(), CgroupError> {
        self.create(path, resources)?;
        match &self.version_2 {
            Some(mount) if self.is_version_2() => version_2::limit_container(&below(mount, path)),
            _ => Ok(()),
        }
    }

    /// Makes a cgroup with limits, or changes its limits; an absent limit leaves the kernel's.
    pub fn create(&self, path: &str, resources: &Resources) -> Result<(), CgroupError> {
        check_path(path)?;
        if self.is_version_2() {
            let mount = self.version_2.as_ref().ok_or(CgroupError::NotMounted)?;
            version_2::make(mount, path)?;
            for (file, value) in version_2::limits(resources) {
                write(&below(mount, path).join(file), &value)?;
            }
            return Ok(());
        }
        // Here and not by whoever comes first below: containers that begin side by side would find
        // each other's directories without CPUs.
        if let Some(hierarchy) = self.controller("cpuset") {
            version_1::make_directories(&below(&hierarchy.mount, path))?;
        }
        for (controller, file, value) in version_1::limits(resources) {
            let Some(hierarchy) = self.controller(controller) else {
                continue;
            };
            let directory = below(&hierarchy.mount, path);
            version_1::make_directories(&directory)?;
            write(&directory.join(file), &value)?;
        }
        Ok(())
    }

    /// A cgroup's directory in every hierarchy of version 1 that has controllers, made if absent, with
    /// the names of these.
    pub(crate) fn version_1_directories(
        &self,
        path: &str,
    ) -> Result<Vec<(PathBuf, &BTreeSet<String>)>, CgroupError> {
        check_path(path)?;
        let with_controllers = |hierarchy: &&Hierarchy| {
            let is_named = |name: &String| name.starts_with("name=");
            !hierarchy.controllers.iter().all(is_named)
        };
        self.version_1
            .iter()
            .filter(with_controllers)
            .map(|hierarchy| {
                let directory = below(&hierarchy.mount, path);
                version_1::make_directories(&directory)?;
                Ok((directory, &hierarchy.controllers))
            })
            .collect()
    }

    /// Moves the calling process (all its threads) into a cgroup of every hierarchy, made if absent.
    pub fn join(&self, path: &str) -> Result<(), CgroupError> {
        check_path(path)?;
        for directory in self.directories(path) {
            self.make(&directory, path)?;
            write(&directory.join("cgroup.procs"), "0")?;
        }
        Ok(())
    }

    /// The processes in a cgroup and all below it.
    pub fn processes(&self, path: &str) -> BTreeSet<i32> {
        let mut found = BTreeSet::new();
        for directory in self.directories(path) {
            for_each_below(&directory, &mut |directory| {
                let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
                found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
            });
        }
        // 0 stands for a process of another process namespace; kill(0) would reach ourselves.
        found.remove(&0);
        found
    }

    /// Kills every process in a cgroup and all below it, those that are just being forked too.
    pub fn kill(&self, path: &str) {
        if self.is_version_2()
            && let Some(mount) = &self.version_2
            && fs::write(below(mount, path).join("cgroup.kill"), "1").is_ok()
        {
            return;
        }
        // Without cgroup.kill a process may fork between our reading and our killing: look again,
        // but not forever, as zombies that nobody reaps may stay listed.
        let mut before = BTreeSet::new();
        for _ in 0..16 {
            let processes = self.processes(path);
            if processes.is_subset(&before) {
                return;
            }
            for &process in &processes {
                if let Some(process) = rustix::process::Pid::from_raw(process) {
                    // It may have ended meanwhile.
                    let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
                }
            }
            self.thaw(path);
            before.extend(processes);
        }
    }

    /// Lets what is frozen in a cgroup and all below it go on: on version 1 nobody who is frozen dies.
    pub(crate) fn thaw(&self, path: &str) {
        if let Some(freezer) = self.controller("freezer") {
            for_each_below(&below(&freezer.mount, path), &mut |directory| {
                // It may be gone.
                let _ = fs::write(directory.join("freezer.state"), "THAWED");
            });
        }
    }

    /// What a cgroup has used; absent counters are 0.
    pub fn usage(&self, path: &str) -> Result<Usage, CgroupError> {
        check_path(path)?;
        if self.is_version_2() {
            let mount = self.version_2.as_ref().ok_or(CgroupError::NotMounted)?;
            let directory = below(mount, path);
            let memory = read_number(&directory.join("memory.current"))?;
            return Ok(Usage {
                cpu: Duration::from_micros(
                    read_field(&directory.join("cpu.stat"), "usage_usec").unwrap_or_default(),
                ),
                memory,
                memory_working_set: memory.saturating_sub(
                    read_field(&directory.join("memory.stat"), "inactive_file").unwrap_or_default(),
                ),
                pids: read_number(&directory.join("pids.current")).unwrap_or_default(),
            });
        }
        let read = |controller: &str, file: &str| match self.controller(controller) {
            Some(hierarchy) => read_number(&below(&hierarchy.mount, path).join(file)),
            None => Ok(0),
        };
        let memory = read("memory", "memory.usage_in_bytes")?;
        let inactive = self.controller("memory").and_then(|hierarchy| {
            read_field(
                &below(&hierarchy.mount, path).join("memory.stat"),
                "total_inactive_file",
            )
        });
        Ok(Usage {
            cpu: Duration::from_nanos(read("cpuacct", "cpuacct.usage")?),
            memory,
            memory_working_set: memory.saturating_sub(inactive.unwrap_or_default()),
            pids: read("pids", "pids.current").unwrap_or_default(),
        })
    }

    /// How many processes of a cgroup the kernel has killed for want of memory.
    pub fn oom_kills(&self, path: &str) -> u64 {
        let file = if self.is_version_2() {
            self.version_2
                .as_ref()
                .map(|mount| below(mount, path).join("memory.events"))
        } else {
            self.controller("memory")
                .map(|hierarchy| below(&hierarchy.mount, path).join("memory.oom_control"))
        };
        file.and_then(|file| read_field(&file, "oom_kill"))
            .unwrap_or_default()
    }

    /// Removes a cgroup and all below it from every hierarchy. One that is gone is no error.
    /// The processes in it have ended; one that is just ending is waited for a moment.
    pub fn remove(&self, path: &str) -> Result<(), CgroupError> {
        // A process that was killed leaves its cgroup a little after it stopped being visible, and
        // the kernel tells nobody when on version 1.
        let mut pause = Duration::from_micros(200);
        loop {
            match self.try_remove(path) {
                Err(error) if error.is_busy() && pause < Duration::from_millis(100) => {
                    std::thread::sleep(pause);
                    pause *= 2;
                }
                result => return result,
            }
        }
    }

    /// The same without waiting: [`CgroupError::is_busy`] if something is just ending.
    pub(crate) fn try_remove(&self, path: &str) -> Result<(), CgroupError> {
        check_path(path)?;
        let mut first = None;
        for directory in self.directories(path) {
            if let Err(error) = remove_tree(&directory) {
                first.get_or_insert(error);
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// Removes a cgroup, and those above it up to (not including) `stop`, as far as they are empty.
    pub fn prune(&self, path: &str, stop: &str) {
        for hierarchy in self.directories("/") {
            let stop = below(&hierarchy, stop);
            let mut directory = below(&hierarchy, path);
            while directory.starts_with(&stop) && directory != stop {
                match fs::remove_dir(&directory) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => break,
                    _ => {}
                }
                if !directory.pop() {
                    break;
                }
            }
        }
    }

    /// The names of the cgroups directly below one, over all hierarchies.
    pub fn children(&self, path: &str) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for directory in self.directories(path) {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    names.extend(entry.file_name().into_string());
                }
            }
        }
        names
    }

    fn directories(&self, path: &str) -> Vec<PathBuf> {
        self.version_1
            .iter()
            .map(|hierarchy| &hierarchy.mount)
            .chain(&self.version_2)
            .map(|mount| below(mount, path))
            .collect()
    }

    fn controller(&self, name: &str) -> Option<&Hierarchy> {
        self.version_1
            .iter()
            .find(|hierarchy| hierarchy.controllers.contains(name))
    }

    fn make(&self, directory: &Path, path: &str) -> Result<(), CgroupError> {
        if self.is_version_2()
            && let Some(mount) = &self.version_2
        {
            return match directory.exists() {
                true => Ok(()),
                false => version_2::make(mount, path),
            };
        }
        version_1::make_directories(directory)
    }
}

fn below(mount: &Path, path: &str) -> PathBuf {
    mount.join(path.trim_start_matches('/'))
}

fn check_path(path: &str) -> Result<(), CgroupError> {
    let parts_are_plain = path
        .strip_prefix('/')
        .is_some_and(|rest| rest.split('/').all(|part| !matches!(part, "" | "." | "..")));
    if parts_are_plain {
        Ok(())
    } else {
        Err(CgroupError::Path(path.to_owned()))
    }
}

fn make_directory(directory: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(CgroupError::File {
            step: "make cgroup",
            path: directory.to_owned(),
            source: error,
        }),
        _ => Ok(()),
    }
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    fs::write(path, value).map_err(|source| CgroupError::File {
        step: "write",
        path: path.to_owned(),
        source,
    })
}

/// The form of a limit whose negative values mean "none".
fn maximum(limit: i64) -> String {
    match limit {
        ..0 => "max".to_owned(),
        limit => limit.to_string(),
    }
}

fn read_number(path: &Path) -> Result<u64, CgroupError> {
    let failed = |source| CgroupError::File {
        step: "read",
        path: path.to_owned(),
        source,
    };
    let text = fs::read_to_string(path).map_err(failed)?;
    text.trim()
        .parse()
        .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))
}

/// Reads the value of `name` in a file of `name value` lines.
fn read_field(path: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(found, _)| *found == name)
        .and_then(|(_, value)| value.trim().parse().ok())
}

fn for_each_below(directory: &Path, visit: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            for_each_below(&entry.path(), visit);
        }
    }
    visit(directory);
}

fn remove_tree(directory: &Path) -> Result<(), CgroupError> {
    let mut failed = None;
    for_each_below(directory, &mut |directory| {
        if let Err(source) = fs::remove_dir(directory)
            && source.kind() != io::ErrorKind::NotFound
        {
            failed.get_or_insert(CgroupError::File {
                step: "remove cgroup",
                path: directory.to_owned(),
                source,
            });
        }
    });
    failed.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_written_in_the_words_of_each_version() {
        let resources = Resources {
            cpu_shares: Some(1024),
            cpu_quota: Some(50_000),
            memory_limit: Some(64 << 20),
            pids_limit: Some(-1),
            ..Resources::default()
        };
        let version_1: Vec<_> = version_1::limits(&resources)
            .into_iter()
            .map(|(controller, file, value)| format!("{controller}:{file}={value}"))
            .collect();
        assert_eq!(
            version_1,
            [
                "cpu:cpu.shares=1024",
                "cpu:cpu.cfs_period_us=100000",
                "cpu:cpu.cfs_quota_us=50000",
                "memory:memory.limit_in_bytes=67108864",
                "pids:pids.max=max",
            ]
        );
        let version_2: Vec<_> = version_2::limits(&resources)
            .into_iter()
            .map(|(file, value)| format!("{file}={value}"))
            .collect();
        assert_eq!(
            version_2,
            [
                "cpu.weight=100",
                "cpu.max=50000 100000",
                "memory.max=67108864",
                "pids.max=max",
            ]
        );
    }

    #[test]
    fn paths_that_climb_are_refused() {
        for path in ["", "/", "wharf", "/wharf/../x", "/wharf//x", "/wharf/."] {
            assert!(check_path(path).is_err(), "{path:?}");
        }
        for path in ["/wharf", "/wharf-0a1b2c/pods/burstable/pod1"] {
            assert!(check_path(path).is_ok(), "{path:?}");
        }
    }
}
