//! Taking a volume away, with whatever is mounted and written below it.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::{MachineError, failed};

/// Rounds of unmounting: what lies on one another, and what somebody mounts meanwhile.
const ROUNDS_MAX: usize = 16;

/// Unmounts everything at and below `directory`, here alone: what was bound there stays mounted where
/// it came from, with all that is mounted in it; and removes the directory. Links are removed, not followed,
/// and a mount that cannot be taken away is an error, never emptied. Absent is fine.
pub fn remove(directory: &Path) -> Result<(), MachineError> {
    let Some(directory) = true_path(directory)? else {
        return Ok(());
    };
    unmount_below(&directory)?;
    tree::remove_path(&directory).map_err(failed("remove", &directory))
}

/// Unmounts everything at and below `directory`, and leaves what is stored. What was kept in memory
/// is gone with it. Absent is fine.
pub fn unmount_all(directory: &Path) -> Result<(), MachineError> {
    match true_path(directory)? {
        Some(directory) => unmount_below(&directory),
        None => Ok(()),
    }
}

/// The kernel lists mounts under their true paths. The last part is not followed.
fn true_path(directory: &Path) -> Result<Option<PathBuf>, MachineError> {
    match directory.parent().map(std::fs::canonicalize) {
        Some(Ok(above)) => Ok(Some(above.join(directory.file_name().unwrap_or_default()))),
        Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Some(Err(error)) => Err(failed("look at", directory)(error)),
        None => Err(failed("unmount", directory)(Errno::INVAL)),
    }
}

fn unmount_below(directory: &Path) -> Result<(), MachineError> {
    for _ in 0..ROUNDS_MAX {
        let found = mounts::below(directory).map_err(failed("list the mounts below", directory))?;
        if found.is_empty() {
            return Ok(());
        }
        // All of them first: what tells of an unmount is the mount that it lies on.
        for mount in &found {
            mounts::cut_off(mount).map_err(failed("make private", mount))?;
        }
        // Later ones lie on earlier ones.
        for mount in found.iter().rev() {
            mounts::detach(mount).map_err(failed("unmount", mount))?;
        }
    }
    Err(failed("unmount what is below", directory)(Errno::BUSY))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::mount::{MountFlags, mount, mount_bind};

    use super::*;

    #[test]
    fn what_is_mounted_below_is_unmounted_and_kept() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let (precious, volume) = (place.path().join("precious"), place.path().join("a volume"));
        fs::create_dir_all(&precious).expect("a directory");
        fs::write(precious.join("data"), "x").expect("a file");
        fs::create_dir_all(volume.join("bound/deep")).expect("a directory");
        fs::create_dir_all(volume.join("memory")).expect("a directory");
        fs::write(volume.join("file"), "").expect("a file");
        symlink(&precious, volume.join("link")).expect("a link");
        mount_bind(&precious, volume.join("bound")).expect("a mount");
        mount_bind(precious.join("data"), volume.join("file")).expect("a mount");
        for _ in 0..3 {
            mount(
                "tmpfs",
                volume.join("memory"),
                "tmpfs",
                MountFlags::empty(),
                None,
            )
            .expect("a mount");
        }
        remove(&volume).expect("removed");
        assert!(!volume.exists());
        assert_eq!(fs::read(precious.join("data")).expect("it stays"), b"x");
        assert_eq!(
            mounts::below(place.path()).expect("a list"),
            Vec::<PathBuf>::new()
        );
        remove(&volume).expect("nothing to do");
        remove(&volume.join("none/at/all")).expect("nothing to do");
    }

    #[test]
    fn a_link_to_a_volume_is_no_volume() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let precious = place.path().join("precious");
        fs::create_dir_all(precious.join("x")).expect("a directory");
        symlink(&precious, place.path().join("volume")).expect("a link");
        remove(&place.path().join("volume")).expect("removed");
        assert!(precious.join("x").exists());
    }
}
