//! One instance: a data directory, its layout, its name on this machine, and the lock on it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

/// The default data directory's instance has this name; others have it as a prefix.
const NAME: &str = "wharf";
const DEFAULT_DATA_DIR: &str = "/var/lib/wharf";

/// Where an instance keeps everything, and what its links, rules and cgroups are called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// `wharf`, or `wharf-` and six hexadecimal digits that stand for the data directory.
    pub name: String,
    /// Absolute.
    pub data_dir: PathBuf,
}

/// The exclusive right to an instance, for as long as the value lives and its process does.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Whether the lock could be had.
#[derive(Debug)]
pub enum Locked {
    /// It is ours.
    Ours(Lock),
    /// Another process has it.
    Taken,
}

impl Instance {
    /// The instance of a data directory.
    pub fn at(data_dir: PathBuf) -> Instance {
        let name = if data_dir == *DEFAULT_DATA_DIR {
            NAME.to_string()
        } else {
            let digest = Sha256::digest(data_dir.as_os_str().as_encoded_bytes());
            format!("{NAME}-{:02x}{:02x}{:02x}", digest[0], digest[1], digest[2])
        };
        Instance { name, data_dir }
    }

    /// Keys and certificates.
    pub fn pki_dir(&self) -> PathBuf {
        self.data_dir.join("pki")
    }

    /// The database of the API server.
    pub fn store_file(&self) -> PathBuf {
        self.data_dir.join("store/state.db")
    }

    /// The administrator's kubeconfig, which `wharf up` merges into the user's.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.data_dir.join("pki/admin.kubeconfig")
    }

    /// The socket that the commands reach the server through.
    pub fn control_socket(&self) -> PathBuf {
        self.data_dir.join("run/control.sock")
    }

    /// What the server says, when `wharf up` started it.
    pub fn log_file(&self) -> PathBuf {
        self.data_dir.join("log/wharf.log")
    }

    /// What the cluster was last started with.
    pub fn settings_file(&self) -> PathBuf {
        self.data_dir.join("settings.toml")
    }

    /// Makes the data directory, which only root may enter.
    pub fn make_data_dir(&self) -> anyhow::Result<()> {
        for directory in [
            self.data_dir.clone(),
            self.data_dir.join("run"),
            self.data_dir.join("log"),
        ] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&directory)
                .with_context(|| {
                    format!(
                        "make directory {} (is it another's, or read-only? choose another place with --data-dir)",
                        directory.display()
                    )
                })?;
        }
        Ok(())
    }

    /// Takes the lock if nobody has it. The data directory exists.
    pub fn lock(&self) -> anyhow::Result<Locked> {
        let path = self.data_dir.join("wharf.lock");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            // Deleted between the two calls: who makes it anew may have the new one.
            Ok(()) if file.metadata().is_ok_and(|file| file.nlink() == 0) => self.lock(),
            Ok(()) => Ok(Locked::Ours(Lock { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(Locked::Taken),
            Err(error) => {
                Err(io::Error::from(error)).with_context(|| format!("lock {}", path.display()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_stable_and_different() {
        assert_eq!(Instance::at("/var/lib/wharf".into()).name, "wharf");
        let one = Instance::at("/tmp/one".into());
        assert_eq!(one.name.len(), 12);
        assert_eq!(one, Instance::at("/tmp/one".into()));
        assert_ne!(one.name, Instance::at("/tmp/two".into()).name);
    }

    #[test]
    fn a_second_lock_is_refused_until_the_first_is_dropped() {
        let directory = std::env::temp_dir().join(format!("wharf-lock-{}", std::process::id()));
        let instance = Instance::at(directory.clone());
        instance.make_data_dir().expect("made");
        let first = instance.lock().expect("locked");
        assert!(matches!(first, Locked::Ours(_)));
        assert!(matches!(instance.lock().expect("asked"), Locked::Taken));
        drop(first);
        assert!(matches!(instance.lock().expect("asked"), Locked::Ours(_)));
        std::fs::remove_dir_all(directory).expect("removed");
    }
}
