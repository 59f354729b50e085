//! Empty directories, on the disk or in memory.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use crate::folder::{Access, Folder, SETGID};
use crate::{MachineError, failed};

/// What a volume's content is kept on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// The disk that the directory is on.
    Disk,
    /// Memory, never swapped where the kernel can promise it.
    Memory {
        /// Bytes; the kernel's default (half of the memory) if absent.
        size: Option<u64>,
    },
}

/// Makes a directory that everybody may write to, as `emptyDir` is: mode 0777, or 1777 in memory;
/// with a group, owned by it and setgid, so that what is made there belongs to the group, too.
/// One that is there already, with its content, stays as it is; so does its medium.
pub fn make_directory(
    directory: &Path,
    medium: Medium,
    group: Option<u32>,
) -> Result<(), MachineError> {
    if let Some(above) = directory.parent() {
        fs::create_dir_all(above).map_err(failed("make directory", above))?;
    }
    let new = match fs::create_dir(directory) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(failed("make directory", directory)(error)),
    };
    let mounted = is_mounted(directory).map_err(failed("look at", directory))?;
    let mode = match medium {
        Medium::Memory { size } if !mounted => {
            mount_memory(directory, size).map_err(failed("mount memory on", directory))?;
            0o1777
        }
        Medium::Disk if new => 0o777,
        // It was given out before, and somebody may have chosen another mode.
        _ => return Ok(()),
    };
    Folder::open(directory)?.set_access(Access {
        mode: mode | group.map_or(0, |_| SETGID),
        owner: None,
        group,
    })
}

fn mount_memory(directory: &Path, size: Option<u64>) -> io::Result<()> {
    let size = size.map(|bytes| format!("size={bytes}"));
    let options = |words: &[&str]| {
        std::ffi::CString::new(words.join(",")).expect("words and digits have no NUL")
    };
    let size: Vec<&str> = size.iter().map(String::as_str).collect();
    let attempt = |words: &[&str]| {
        mount(
            "tmpfs",
            directory,
            "tmpfs",
            MountFlags::empty(),
            options(words).as_c_str(),
        )
    };
    match attempt(&[&size[..], &["noswap"]].concat()) {
        // Linux before 6.4 does not know the word.
        Err(Errno::INVAL) => Ok(attempt(&size)?),
        mounted => Ok(mounted?),
    }
}

fn is_mounted(directory: &Path) -> io::Result<bool> {
    let here = fs::symlink_metadata(directory)?;
    let above = match directory.parent() {
        Some(above) => fs::metadata(above)?,
        None => return Ok(true),
    };
    Ok(here.dev() != above.dev())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::remove;

    fn mode_and_group(path: &Path) -> (u32, u32) {
        let metadata = fs::metadata(path).expect("it is there");
        (metadata.mode() & 0o7777, metadata.gid())
    }

    #[test]
    fn everybody_may_write_and_what_is_there_stays() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let directory = place.path().join("pod/volumes/scratch");
        make_directory(&directory, Medium::Disk, None).expect("a directory");
        assert_eq!(mode_and_group(&directory), (0o777, 0));
        fs::write(directory.join("x"), "y").expect("a file");
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).expect("a mode");
        make_directory(&directory, Medium::Disk, Some(5)).expect("the directory");
        assert_eq!(mode_and_group(&directory), (0o700, 0));
        assert!(directory.join("x").exists());
        remove(place.path().join("pod").as_path()).expect("removed");
    }

    #[test]
    fn a_group_owns_what_is_made_there() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let directory = place.path().join("scratch");
        make_directory(&directory, Medium::Disk, Some(4321)).expect("a directory");
        assert_eq!(mode_and_group(&directory), (0o2777, 4321));
        fs::write(directory.join("x"), "y").expect("a file");
        assert_eq!(mode_and_group(&directory.join("x")).1, 4321);
    }

    #[test]
    fn memory_has_a_size_and_goes_with_the_volume() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let directory = place.path().join("memory");
        let medium = Medium::Memory {
            size: Some(1 << 20),
        };
        make_directory(&directory, medium, Some(4321)).expect("memory");
        make_directory(&directory, medium, Some(4321)).expect("the same memory");
        assert_eq!(mode_and_group(&directory), (0o3777, 4321));
        fs::write(directory.join("small"), vec![0; 1 << 19]).expect("room");
        let error = fs::write(directory.join("large"), vec![0; 1 << 20]).expect_err("no room");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        remove(&directory).expect("removed");
        assert!(!directory.exists());
    }
}
