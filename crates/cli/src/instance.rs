//! One instance: a data directory, its layout, its name on this machine, and the lock on it.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
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

    /// Makes the data directory, which only root may enter. One that is there already must be ours
    /// alone: what others put there, links for example, would lead root elsewhere.
    pub fn make_data_dir(&self) -> anyhow::Result<()> {
        refuse_others(&self.data_dir)?;
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

/// Refuses a directory that others own, and one in which they can write; takes their rights away where
/// that harms nobody. Absent is fine.
fn refuse_others(directory: &Path) -> anyhow::Result<()> {
    let look = || format!("look at {}", directory.display());
    let (itself, reached) = match (directory.symlink_metadata(), directory.metadata()) {
        (Err(error), _) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        (itself, reached) => (itself.with_context(look)?, reached.with_context(look)?),
    };
    let own = rustix::process::geteuid().as_raw();
    if let Some(other) = [itself.uid(), reached.uid()]
        .into_iter()
        .find(|owner| *owner != own)
    {
        bail!(
            "{0} belongs to user {other}, who could change what is kept there; choose another place with --data-dir, or, if everything in it is known to be harmless, take it over: chown -h {own} {0}",
            directory.display()
        );
    }
    if reached.mode() & 0o022 == 0 {
        return Ok(());
    }
    if reached.mode() & 0o1000 != 0 {
        // Many share it, as /tmp.
        bail!(
            "others can write in {0}; choose a place of its own with --data-dir, such as {0}/wharf",
            directory.display()
        );
    }
    if !std::fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none()) {
        bail!(
            "others can write in {0}; choose another place with --data-dir, or, if everything in it is known to be harmless, keep them out: chmod go-w {0}",
            directory.display()
        );
    }
    std::fs::set_permissions(directory, Permissions::from_mode(0o700))
        .with_context(|| format!("keep others out of {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a directory of this owner and mode may be used, and its mode afterwards.
    fn check(owner: u32, mode: u32, file: bool, expected: Result<u32, &str>) {
        let name = format!("wharf-data-{}-{owner}-{mode:o}-{file}", std::process::id());
        let instance = Instance::at(std::env::temp_dir().join(name));
        let directory = &instance.data_dir;
        std::fs::create_dir(directory).expect("made");
        if file {
            std::fs::write(directory.join("file"), "").expect("written");
        }
        std::os::unix::fs::chown(directory, Some(owner), None).expect("root may");
        std::fs::set_permissions(directory, Permissions::from_mode(mode)).expect("changed");
        let made = instance.make_data_dir().map_err(|error| error.to_string());
        let after = directory.metadata().expect("there").mode() & 0o7777;
        std::fs::remove_dir_all(directory).expect("removed");
        match (made, expected) {
            (Ok(()), Ok(expected)) => assert_eq!(after, expected, "{mode:o}"),
            (Err(message), Err(expected)) => {
                assert!(message.contains(expected), "{message}");
                assert_eq!(after, mode);
            }
            (made, _) => panic!("{owner} {mode:o}: {made:?}"),
        }
    }

    #[test]
    fn a_directory_of_others_is_refused() {
        check(0, 0o700, true, Ok(0o700));
        check(0, 0o755, true, Ok(0o755));
        check(0, 0o777, false, Ok(0o700));
        check(0, 0o775, true, Err("others can write in "));
        check(
            0,
            0o1777,
            false,
            Err("choose a place of its own with --data-dir"),
        );
        check(65534, 0o700, false, Err("belongs to user 65534"));
    }

    #[test]
    fn a_link_of_others_is_refused() {
        let place = std::env::temp_dir().join(format!("wharf-data-link-{}", std::process::id()));
        std::fs::create_dir(&place).expect("made");
        let link = place.join("link");
        std::os::unix::fs::symlink("/nowhere", &link).expect("made");
        let instance = Instance::at(link.clone());
        instance.make_data_dir().expect_err("it leads nowhere");
        std::fs::remove_file(&link).expect("removed");
        std::fs::create_dir(place.join("real")).expect("made");
        std::os::unix::fs::symlink("real", &link).expect("made");
        instance.make_data_dir().expect("our link to our directory");
        std::os::unix::fs::lchown(&link, Some(65534), None).expect("root may");
        let refused = instance.make_data_dir().expect_err("another's link");
        assert!(refused.to_string().contains("belongs to user 65534"));
        std::fs::remove_dir_all(place).expect("removed");
    }

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
