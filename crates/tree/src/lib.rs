//! Directories that somebody else filled: opened without being led out, measured, removed whatever is
//! in them.
//!
//! The decision: what containers and image archives have written is hostile. A name in it is never looked
//! up by a path of the machine, every step goes from an open directory to the next, and a tree of any
//! depth costs a bounded number of open files and frames.
//!
//! What is mounted below is not looked at: whoever removes a tree takes the mounts away first.

mod usage;

pub use usage::usage;

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags, openat2, renameat, unlinkat};
use rustix::io::Errno;
use rustix::path::Arg;

/// How often the kernel is asked where a path leads. It gives up when a directory is renamed or something
/// is mounted anywhere on the machine just then, but not so often.
const ATTEMPTS_MAX: usize = 128;
/// Directories below this depth are moved up before they are emptied.
const DEPTH_MAX: usize = 32;

/// Opens a directory of our own by its path.
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// Opens a directory below `root`; fails with ELOOP if there is a link on the way, and with EXDEV if
/// the path would lead out. An empty path is `root` itself.
pub fn open_beneath(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    open_with(root, path, resolve)
}

/// Opens what `path` leads to from `root`, links followed as far as `resolve` has it: where that bounds
/// them (`BENEATH`, `IN_ROOT`), the kernel refuses a `..` with EAGAIN while anything is mounted or
/// renamed elsewhere (openat2(2)), and is asked again. What was opened lives no longer than its holder.
///
/// # Errors
///
/// As openat2(2); EAGAIN only if the machine does nothing but mount and rename.
pub fn open_within<P: Arg + Copy>(
    root: BorrowedFd<'_>,
    path: P,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC;
    persistently(|| openat2(root, path, flags, Mode::empty(), resolve))
}

fn persistently<T>(mut ask: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 1..ATTEMPTS_MAX {
        match ask() {
            Err(Errno::AGAIN) => std::thread::yield_now(),
            answer => return answer,
        }
    }
    ask()
}

fn open_with(root: BorrowedFd<'_>, path: &[u8], resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(root, path, flags, Mode::empty(), resolve)
}

/// Removes the tree at `path`; a link is removed, not followed. Absent is fine. Another file system
/// below is not entered: then it fails with EXDEV, or with EBUSY.
pub fn remove_path(path: &Path) -> io::Result<()> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::INVAL.into());
    };
    // The directory above a relative name is the one that we are in.
    let above = match above.as_os_str().is_empty() {
        true => Path::new("."),
        false => above,
    };
    match open(above) {
        Ok(above) => remove(above.as_fd(), name),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes `name` in `parent`, whatever it is, as [`remove_path`] does.
pub fn remove(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let top = open_child(parent, name)?;
    let mut moved = 0;
    loop {
        let before = moved;
        empty(top.as_fd(), top.as_fd(), 0, &mut moved)?;
        if moved == before {
            break;
        }
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR)?;
    Ok(())
}

/// Opens what is a directory, on the same file system, and no link.
fn open_child(directory: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    open_with(directory, name.as_bytes(), resolve)
}

/// Removes what is in a directory of the tree at `top`.
fn empty(
    top: BorrowedFd<'_>,
    directory: BorrowedFd<'_>,
    depth: usize,
    moved: &mut u64,
) -> io::Result<()> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        match unlinkat(directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
        if depth == DEPTH_MAX {
            move_up(top, directory, name, moved)?;
            continue;
        }
        let child = open_child(directory, name)?;
        empty(top, child.as_fd(), depth + 1, moved)?;
        drop(child);
        unlinkat(directory, name, AtFlags::REMOVEDIR)?;
    }
    Ok(())
}

/// Puts a deep directory right below `top`, under a name that is free there.
fn move_up(
    top: BorrowedFd<'_>,
    directory: BorrowedFd<'_>,
    name: &OsStr,
    moved: &mut u64,
) -> io::Result<()> {
    loop {
        *moved += 1;
        let free = OsString::from(format!(".deep-{moved}"));
        match renameat(directory, name, top, &free) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR | Errno::ISDIR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::mkdirat;
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

    use super::*;

    #[test]
    fn links_are_removed_and_not_followed() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let (keep, tree) = (place.path().join("keep"), place.path().join("tree"));
        fs::create_dir_all(keep.join("a")).expect("a directory");
        fs::create_dir_all(tree.join("b/c")).expect("a directory");
        symlink(&keep, tree.join("b/out")).expect("a link");
        symlink("../../keep", tree.join("b/c/out")).expect("a link");
        remove_path(&tree).expect("a removed tree");
        assert!(!tree.exists());
        assert!(keep.join("a").exists());
        symlink(&keep, &tree).expect("a link");
        remove_path(&tree).expect("a removed link");
        assert!(keep.join("a").exists());
        remove_path(&tree).expect("nothing to remove");
        remove_path(&place.path().join("no/such/tree")).expect("nothing to remove");
        fs::write(&tree, "a file").expect("a file");
        remove_path(&tree).expect("a removed file");
        assert!(!tree.exists());
    }

    #[test]
    fn trees_deeper_than_any_path_are_removed() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let tree = place.path().join("tree");
        fs::create_dir(&tree).expect("a directory");
        let mut here = open(&tree).expect("a directory");
        for _ in 0..3000 {
            mkdirat(&here, "deep", Mode::from(0o700)).expect("a directory");
            here = open_child(here.as_fd(), OsStr::new("deep")).expect("a directory");
        }
        fs::create_dir(tree.join(".deep-1")).expect("a directory that is in the way");
        fs::write(tree.join(".deep-1/file"), "x").expect("a file");
        drop(here);
        remove_path(&tree).expect("a removed tree");
        assert!(!tree.exists());
    }

    /// Needs root.
    #[test]
    fn what_is_mounted_is_not_emptied() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let tree = place.path().join("tree");
        let mounted = tree.join("a/mounted");
        fs::create_dir_all(&mounted).expect("a directory");
        mount("tmpfs", &mounted, "tmpfs", MountFlags::empty(), None).expect("a mount");
        fs::write(mounted.join("precious"), "x").expect("a file");
        let outcome = remove_path(&tree);
        let precious = fs::read_to_string(mounted.join("precious"));
        unmount(&mounted, UnmountFlags::DETACH).expect("unmounted");
        assert_eq!(precious.expect("it stays"), "x");
        let error = outcome.expect_err("a mount is in the way");
        assert_eq!(error.raw_os_error(), Some(Errno::XDEV.raw_os_error()));
        remove_path(&tree).expect("a removed tree");
        assert!(!tree.exists());
    }

    #[test]
    fn what_leads_out_or_through_a_link_is_not_opened() {
        let place = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir_all(place.path().join("root/in/side")).expect("a directory");
        symlink("in", place.path().join("root/link")).expect("a link");
        let root = open(&place.path().join("root")).expect("a directory");
        let open = |path: &str| open_beneath(root.as_fd(), path.as_bytes()).map(drop);
        assert_eq!((open(""), open("in/side")), (Ok(()), Ok(())));
        assert_eq!(open("link/side"), Err(Errno::LOOP));
        assert_eq!(open("in/../.."), Err(Errno::XDEV));
        assert_eq!(open("/"), Err(Errno::XDEV));
        assert_eq!(open("none"), Err(Errno::NOENT));
    }

    #[test]
    fn who_is_told_to_ask_again_does_so() {
        let check = |refusals: usize, expected: Result<usize, Errno>| {
            let mut asked = 0;
            let answer = persistently(|| {
                asked += 1;
                match asked > refusals {
                    true => Ok(asked),
                    false => Err(Errno::AGAIN),
                }
            });
            assert_eq!(answer, expected);
        };
        check(0, Ok(1));
        check(100, Ok(101));
        check(1000, Err(Errno::AGAIN));
        assert_eq!(
            persistently(|| Err::<(), _>(Errno::NOENT)),
            Err(Errno::NOENT)
        );
    }

    #[test]
    fn links_lead_as_far_as_they_may() {
        let place = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir_all(place.path().join("root/run/lock")).expect("a directory");
        fs::create_dir_all(place.path().join("root/var")).expect("a directory");
        symlink("../run", place.path().join("root/var/run")).expect("a link");
        symlink("../../../..", place.path().join("root/var/up")).expect("a link");
        let root = open(&place.path().join("root")).expect("a directory");
        let open =
            |path: &str, resolve| open_within(root.as_fd(), path, OFlags::PATH, resolve).map(drop);
        for resolve in [ResolveFlags::IN_ROOT, ResolveFlags::BENEATH] {
            assert_eq!(open("var/run/lock", resolve), Ok(()));
        }
        assert_eq!(open("var/up/run", ResolveFlags::IN_ROOT), Ok(()));
        assert_eq!(open("var/up/run", ResolveFlags::BENEATH), Err(Errno::XDEV));
    }
}
