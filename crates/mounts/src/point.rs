//! Single mount points.

use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

/// Mounts that may lie on one another before giving up.
const STACKED_MAX: usize = 64;

/// Whether another file system is mounted on `path`. Nothing there is fine.
pub fn is_mounted(path: &Path) -> io::Result<bool> {
    let stat = |path: &Path| match rustix::fs::lstat(path) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    };
    let (Some(here), Some(parent)) = (stat(path)?, path.parent()) else {
        return Ok(false);
    };
    Ok(stat(parent)?.is_some_and(|above| above.st_dev != here.st_dev))
}

/// Takes away everything that is mounted on `path`, at once for new lookups, and for those who are
/// in there when they leave. Nothing mounted, or nothing there, is fine.
pub fn detach(path: &Path) -> io::Result<()> {
    for _ in 0..STACKED_MAX {
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Err(Errno::BUSY.into())
}
