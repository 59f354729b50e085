//! Which sandbox has which address, kept across a restart of the daemon.
//!
//! One small file per sandbox, so that attaching one costs the same beside a hundred others. Files
//! are not synced to disk: a machine that lost power has lost the network namespaces, too.
//!
//! ```text
//! DIR/<id>.json       the attachment
//! DIR/last-address    where the pool goes on
//! ```

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use crate::{Attachment, RecordError};

const LAST: &str = "last-address";
const SUFFIX: &str = ".json";

/// The directory of records.
#[derive(Debug)]
pub(crate) struct Records {
    directory: PathBuf,
}

impl Records {
    /// Opens the directory, making it if it is absent.
    pub(crate) fn open(directory: &Path) -> Result<Records, RecordError> {
        std::fs::create_dir_all(directory).map_err(|source| RecordError {
            step: "create",
            path: directory.to_owned(),
            source,
        })?;
        Ok(Records {
            directory: directory.to_owned(),
        })
    }

    /// All attachments on record. One that cannot be understood is put aside with a warning: its link
    /// is then nobody's and is removed.
    pub(crate) fn load(&self) -> Result<Vec<Attachment>, RecordError> {
        let list = |source| RecordError {
            step: "list",
            path: self.directory.clone(),
            source,
        };
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.directory).map_err(list)? {
            let path = entry.map_err(list)?.path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            let Some(id) = name.strip_suffix(SUFFIX) else {
                continue;
            };
            let bytes = std::fs::read(&path).map_err(|source| RecordError {
                step: "read",
                path: path.clone(),
                source,
            })?;
            match serde_json::from_slice::<Attachment>(&bytes) {
                Ok(attachment) if attachment.id == id => found.push(attachment),
                other => {
                    let reason =
                        other.map_or_else(|e| e.to_string(), |_| "names another".to_owned());
                    tracing::warn!(path = %path.display(), reason, "dropping a network record");
                    self.delete(&path)?;
                }
            }
        }
        Ok(found)
    }

    /// The address given last, if known.
    pub(crate) fn last(&self) -> Option<Ipv4Addr> {
        std::fs::read_to_string(self.directory.join(LAST))
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    /// Writes the record of one attachment.
    pub(crate) fn save(&self, attachment: &Attachment) -> Result<(), RecordError> {
        let bytes = serde_json::to_vec(attachment).expect("an attachment is plain data");
        self.write(&format!("{}{SUFFIX}", attachment.id), &bytes)
    }

    /// Writes the address given last.
    pub(crate) fn save_last(&self, address: Ipv4Addr) -> Result<(), RecordError> {
        self.write(LAST, address.to_string().as_bytes())
    }

    /// Removes the record of an attachment, if there is one.
    pub(crate) fn remove(&self, id: &str) -> Result<(), RecordError> {
        self.delete(&self.directory.join(format!("{id}{SUFFIX}")))
    }

    /// Removes the directory with all records.
    pub(crate) fn remove_all(&self) -> Result<(), RecordError> {
        match std::fs::remove_dir_all(&self.directory) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(RecordError {
                step: "remove",
                path: self.directory.clone(),
                source,
            }),
            _ => Ok(()),
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), RecordError> {
        let path = self.directory.join(name);
        // A name that `load` does not read, so that half a file is never taken for a record.
        let partial = self.directory.join(format!("{name}.partial"));
        std::fs::write(&partial, bytes)
            .and_then(|()| std::fs::rename(&partial, &path))
            .map_err(|source| RecordError {
                step: "write",
                path,
                source,
            })
    }

    fn delete(&self, path: &Path) -> Result<(), RecordError> {
        match std::fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(RecordError {
                step: "remove",
                path: path.to_owned(),
                source,
            }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_there_again_and_rubbish_is_not() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let records = Records::open(directory.path()).expect("opens");
        let attachment = Attachment {
            id: "one".to_owned(),
            address: Ipv4Addr::new(10, 0, 0, 2),
            host_link: "testv2".to_owned(),
            ports: Vec::new(),
            namespace: 4_026_532_000,
        };
        records.save(&attachment).expect("saves");
        records.save_last(attachment.address).expect("saves");
        std::fs::write(directory.path().join("two.json"), b"{\"id\":").expect("writes");
        std::fs::write(directory.path().join("three.json.partial"), b"{").expect("writes");
        assert_eq!(records.load().expect("loads"), [attachment]);
        assert!(!directory.path().join("two.json").exists());
        assert_eq!(records.last(), Some(Ipv4Addr::new(10, 0, 0, 2)));
        records.remove("one").expect("removes");
        records.remove("one").expect("removing again is no error");
        assert_eq!(records.load().expect("loads"), []);
    }
}
