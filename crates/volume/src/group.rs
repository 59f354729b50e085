//! A group that owns a volume, for processes that run under other users.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use crate::{MachineError, failed};

const READ_WRITE: u32 = 0o660;
/// What a group gets that may only read.
pub(crate) const READ_ONLY: u32 = 0o440;
const DIRECTORY: u32 = 0o2110;

/// Gives a volume and all that is in it to a group, which may then read it and, unless `read_only`,
/// write to it; directories become setgid. Links are given away, not followed. To be called while no
/// container uses the volume.
pub fn set_group(volume: &Path, group: u32, read_only: bool) -> Result<(), MachineError> {
    let access = if read_only { READ_ONLY } else { READ_WRITE };
    for entry in walkdir::WalkDir::new(volume) {
        let entry = entry.map_err(|error| {
            let path = error.path().unwrap_or(volume).to_owned();
            failed::<std::io::Error>("read", &path)(error.into())
        })?;
        let path = entry.path();
        let metadata = entry
            .metadata()
            .map_err(|error| failed::<std::io::Error>("look at", path)(error.into()))?;
        if metadata.gid() != group {
            std::os::unix::fs::lchown(path, None, Some(group))
                .map_err(failed("set the group of", path))?;
        }
        if metadata.is_symlink() {
            continue;
        }
        let wanted = access | if metadata.is_dir() { DIRECTORY } else { 0 };
        // A new group takes the setuid and setgid bits of files away: they are set again.
        let mode = (metadata.mode() & 0o7777) | wanted;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .map_err(failed("set the mode of", path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_a_volume_belongs_to_the_group_and_nothing_else() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let outside = place.path().join("outside");
        fs::write(&outside, "").expect("a file");
        fs::set_permissions(&outside, fs::Permissions::from_mode(0o600)).expect("a mode");
        let volume = place.path().join("volume");
        fs::create_dir_all(volume.join("a")).expect("a directory");
        fs::set_permissions(volume.join("a"), fs::Permissions::from_mode(0o700)).expect("a mode");
        fs::write(volume.join("a/b"), "").expect("a file");
        fs::set_permissions(volume.join("a/b"), fs::Permissions::from_mode(0o4700))
            .expect("a mode");
        std::os::unix::fs::symlink("../outside", volume.join("link")).expect("a link");
        set_group(&volume, 777, false).expect("a group");
        let stat = |path: &Path| {
            let metadata = fs::symlink_metadata(path).expect("it is there");
            (metadata.mode() & 0o7777, metadata.gid())
        };
        assert_eq!(stat(&volume.join("a")), (0o2770, 777));
        assert_eq!(stat(&volume.join("a/b")), (0o4760, 777));
        assert_eq!(stat(&volume.join("link")).1, 777);
        assert_eq!(stat(&outside), (0o600, 0));
        fs::write(volume.join("c"), "").expect("a file");
        fs::set_permissions(volume.join("c"), fs::Permissions::from_mode(0o400)).expect("a mode");
        set_group(&volume, 778, true).expect("a group");
        assert_eq!(stat(&volume.join("c")), (0o440, 778));
    }
}
