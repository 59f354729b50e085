//! What a keeper leaves on disk, so that a new daemon knows everything, even of a dead keeper.
//!
//! ```text
//! DIR/sandbox.json         SandboxRecord, written by the daemon before the keeper starts
//! DIR/keeper.sock          while the keeper lives
//! DIR/keeper.log           what the keeper had to complain about
//! DIR/containers/ID.json   ContainerRecord, rewritten by the keeper at every change of state
//! DIR/containers/ID/       working files of one container: bundle, mount point, libcontainer's state
//! ```
//!
//! Files are replaced by rename, never written in place: a reader sees the old or the new one. They
//! are not synced: they outlive the daemon and the keeper, and after a crash of the machine there is
//! no container left for them to tell of.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::spec::{ContainerSpec, ContainerState, SandboxSpec};

/// The form of the records of one sandbox: higher than before when an earlier program could not read
/// them, or would do the wrong thing.
pub(crate) const VERSION: u32 = 1;

/// A sandbox as it was asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// The form of this record and of those of its containers. At first there was no such number.
    #[serde(default)]
    pub version: u32,
    /// What was asked for.
    pub spec: SandboxSpec,
    /// When.
    pub created_at: Timestamp,
    /// The boot of the machine in which it was made; in another one nothing of it can be alive.
    pub boot: String,
}

/// A container and where in its life it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// What was asked for.
    pub spec: ContainerSpec,
    /// When it was made.
    pub created_at: Timestamp,
    /// Where in its life it is.
    pub state: ContainerState,
}

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Reading the file.
    #[error("read {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Writing the file.
    #[error("write {path}: {source}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its content.
    #[error("{path} is not a record of a keeper: {source}")]
    Parse {
        /// Which.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A newer program wrote it.
    #[error(
        "{path} has version {version}, which this program does not know (up to {VERSION}): it was \
         written by a newer one; use that"
    )]
    Newer {
        /// Which.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
}

/// Reads the record of the sandbox in `dir`; `None` if there is none.
pub fn read_sandbox(dir: &Path) -> Result<Option<SandboxRecord>, RecordError> {
    let path = dir.join("sandbox.json");
    match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(RecordError::Read { path, source }),
        Ok(bytes) => {
            let unread = |source| RecordError::Parse {
                path: path.clone(),
                source,
            };
            // First of all: what else is in a newer one may be of another form.
            let Versioned { version } = serde_json::from_slice(&bytes).map_err(unread)?;
            if version > VERSION {
                return Err(RecordError::Newer { path, version });
            }
            serde_json::from_slice(&bytes).map(Some).map_err(unread)
        }
    }
}

#[derive(Deserialize)]
struct Versioned {
    #[serde(default)]
    version: u32,
}

/// Reads the records of all containers of the sandbox in `dir`, oldest first.
pub fn read_container_records(dir: &Path) -> Result<Vec<ContainerRecord>, RecordError> {
    let path = dir.join("containers");
    let entries = match fs::read_dir(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(RecordError::Read { path, source }),
        Ok(entries) => entries,
    };
    let mut records = Vec::new();
    for entry in entries {
        let path = match entry {
            Ok(entry) => entry.path(),
            Err(source) => return Err(RecordError::Read { path, source }),
        };
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let bytes = match fs::read(&path) {
            // Removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(RecordError::Read { path, source }),
            Ok(bytes) => bytes,
        };
        let record: ContainerRecord =
            serde_json::from_slice(&bytes).map_err(|source| RecordError::Parse { path, source })?;
        records.push(record);
    }
    records.sort_by_key(|record| record.created_at);
    Ok(records)
}

pub(crate) fn write_sandbox(dir: &Path, record: &SandboxRecord) -> Result<(), RecordError> {
    replace(&dir.join("sandbox.json"), record)
}

pub(crate) fn write_container(dir: &Path, record: &ContainerRecord) -> Result<(), RecordError> {
    let name = format!("{}.json", record.spec.id);
    replace(&dir.join("containers").join(name), record)
}

/// Identifies the current boot of the machine.
pub(crate) fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

fn replace<T: Serialize>(path: &Path, record: &T) -> Result<(), RecordError> {
    let failed = |source| RecordError::Write {
        path: path.to_owned(),
        source,
    };
    let bytes = serde_json::to_vec(record).map_err(|error| failed(error.into()))?;
    let new = path.with_extension("new");
    fs::write(&new, bytes).map_err(failed)?;
    fs::rename(&new, path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_half_written_or_foreign_file_is_named() {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        assert!(
            read_sandbox(dir.path())
                .expect("absent is no error")
                .is_none()
        );
        fs::write(dir.path().join("sandbox.json"), b"{\"spec\"").expect("writable");
        let error = read_sandbox(dir.path()).expect_err("half a file is an error");
        assert!(
            error
                .to_string()
                .contains("sandbox.json is not a record of a keeper")
        );
        let newer = b"{\"version\":9,\"spec\":\"of another form\"}";
        fs::write(dir.path().join("sandbox.json"), newer).expect("writable");
        let error = read_sandbox(dir.path()).expect_err("not to be guessed at");
        assert!(matches!(error, RecordError::Newer { version: 9, .. }));
    }

    #[test]
    fn records_come_back_without_leftovers_of_a_crash() {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let containers = dir.path().join("containers");
        fs::create_dir(&containers).expect("writable");
        fs::write(containers.join("a.new"), b"torn").expect("writable");
        assert!(
            read_container_records(dir.path())
                .expect("readable")
                .is_empty()
        );
    }
}
