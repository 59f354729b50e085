//! What a keeper leaves that is gone: found, and put in order.

use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::cgroup::Cgroups;
use crate::client::{Keeper, KeeperError};
use crate::record::{
    ContainerRecord, RecordError, SandboxRecord, boot, read_container_records, read_sandbox,
    write_container,
};
use crate::spec::ContainerState;

/// What is left of a sandbox whose keeper is gone.
#[derive(Debug)]
pub struct Dead {
    /// What was asked for.
    pub sandbox: SandboxRecord,
    /// Its containers as the keeper last knew them.
    pub containers: Vec<ContainerRecord>,
}

impl Dead {
    /// Puts things in order after a keeper that was killed: what it left running is killed and its
    /// cgroups are removed, and containers that were running have exited with 255, as nobody saw how.
    /// Repeating it is harmless. It waits for the kernel; not for a thread that others wait for.
    ///
    /// # Errors
    /// When something of it stays; the containers' states say that they have exited all the same.
    pub fn bury(&mut self, directory: &Path, cgroups: &Cgroups) -> Result<(), KeeperError> {
        let here = self.sandbox.boot == boot();
        if here {
            cgroups.kill(&self.sandbox.spec.cgroup);
        }
        let mut changed = Vec::new();
        for container in &mut self.containers {
            if let ContainerState::Running { started_at, .. } = container.state {
                container.state = ContainerState::Exited {
                    code: 255,
                    signal: None,
                    oom_killed: false,
                    started_at: Some(started_at),
                    finished_at: Timestamp::now(),
                    message: None,
                };
                changed.push(&*container);
            }
        }
        if here {
            cgroups.remove(&self.sandbox.spec.cgroup)?;
        }
        for container in changed {
            write_container(directory, container)?;
        }
        // So that it is not asked whether it lives again.
        let _ = std::fs::remove_file(directory.join("keeper.sock"));
        Ok(())
    }

    /// Forgets a container of a sandbox without a keeper.
    pub fn remove_container(directory: &Path, container: &str) -> Result<(), KeeperError> {
        let base = directory.join("containers");
        let failed = |path: PathBuf| {
            |source: io::Error| KeeperError::Record(RecordError::Write { path, source })
        };
        let absent = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        };
        let files = base.join(container);
        std::fs::remove_dir_all(&files)
            .or_else(absent)
            .map_err(failed(files))?;
        let record = base.join(format!("{container}.json"));
        std::fs::remove_file(&record)
            .or_else(absent)
            .map_err(failed(record))
    }
}

impl Keeper {
    /// What is left in `directory` of a sandbox that has no keeper; `None` if there never was one.
    pub fn read_dead(directory: &Path) -> Result<Option<Dead>, KeeperError> {
        let Some(sandbox) = read_sandbox(directory)? else {
            return Ok(None);
        };
        Ok(Some(Dead {
            sandbox,
            containers: read_container_records(directory)?,
        }))
    }
}
