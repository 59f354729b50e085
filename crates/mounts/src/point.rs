//! Single mount points.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};

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
/// in there when they leave. It goes here alone, with what is mounted in it: an unmount in a mount that
/// tells others of it (mount_namespaces(7), shared subtrees) would happen there as well, and take the
/// machine's own file systems away. Nothing mounted, or nothing there, is fine.
pub fn detach(path: &Path) -> io::Result<()> {
    for _ in 0..STACKED_MAX {
        let Some(mount) = uppermost(path)? else {
            return Ok(());
        };
        match unmount(name(&mount), UnmountFlags::DETACH) {
            // Somebody else took it away.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Errno::BUSY.into())
}

/// Makes what is mounted on `path`, and all that is mounted in it, a matter of this place alone: what
/// is mounted and unmounted there is not told to others, nor they to it. Nothing mounted is fine.
pub fn cut_off(path: &Path) -> io::Result<()> {
    uppermost(path).map(drop)
}

/// The root of what is mounted on `path`, cut off.
fn uppermost(path: &Path) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(root) => root,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let alone = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    match mount_change(name(&root), alone) {
        Ok(()) => Ok(Some(root)),
        Err(Errno::INVAL) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Leads to what is open, whatever is put in the place of its path meanwhile.
fn name(root: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", root.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::mount::{MountFlags, mount, mount_bind_recursive};

    use super::*;

    fn mount_memory(path: &Path) {
        fs::create_dir_all(path).expect("a directory");
        mount("tmpfs", path, "tmpfs", MountFlags::empty(), None).expect("a mount");
    }

    #[test]
    fn what_is_taken_away_stays_where_it_came_from() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let (machine, bound) = (place.path().join("machine"), place.path().join("bound"));
        mount_memory(&machine);
        mount_change(&machine, MountPropagationFlags::SHARED).expect("shared");
        mount_memory(&machine.join("below"));
        mount_memory(&machine.join("below/deep"));
        fs::write(machine.join("below/deep/precious"), "x").expect("a file");
        fs::create_dir(&bound).expect("a directory");
        mount_bind_recursive(&machine, &bound).expect("a mount");
        let was_there = bound.join("below/deep/precious").exists();
        detach(&bound).expect("unmounted");
        let is_gone = !bound.join("below").exists();
        let stays = machine.join("below/deep/precious").exists();
        detach(&machine).expect("unmounted");
        assert!(was_there && is_gone && stays);
        assert_eq!(crate::below(place.path()).expect("a list").len(), 0);
    }

    #[test]
    fn what_is_not_mounted_is_left_alone() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let (mounted, link) = (place.path().join("mounted"), place.path().join("link"));
        mount_memory(&mounted);
        std::os::unix::fs::symlink(&mounted, &link).expect("a link");
        let outcomes = [&link, &mounted.join("none"), &place.path().join("none/at")]
            .map(|path| cut_off(path).and_then(|()| detach(path)));
        let stays = is_mounted(&mounted);
        detach(&mounted).expect("unmounted");
        for outcome in outcomes {
            outcome.expect("nothing to do");
        }
        assert!(stays.expect("a directory"));
    }
}
