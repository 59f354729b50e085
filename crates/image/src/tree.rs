//! Directories that somebody else filled: opened without following links, removed whatever is in them.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags, openat, openat2, renameat, unlinkat};
use rustix::io::Errno;

/// Directories below this depth are moved up before they are emptied, so that a tree of any depth
/// costs a bounded number of open files and frames.
const REMOVE_DEPTH_MAX: usize = 32;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Opens a directory of our own by its path.
pub(crate) fn open(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// Opens a directory below `root`; fails with ELOOP if there is a link on the way. An empty path is
/// `root` itself.
pub(crate) fn open_beneath(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    openat2(
        root,
        path,
        DIRECTORY,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )
}

/// Removes `name` in `parent`, whatever it is; links are removed, not followed. Absent is fine.
pub(crate) fn remove(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let top = openat(parent, name, DIRECTORY, Mode::empty())?;
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

/// Removes the tree at `path`. Absent is fine.
pub(crate) fn remove_path(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::INVAL.into());
    };
    match open(parent) {
        Ok(parent) => remove(parent.as_fd(), name),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

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
        if depth == REMOVE_DEPTH_MAX {
            move_up(top, directory, name, moved)?;
            continue;
        }
        let child = openat(directory, name, DIRECTORY, Mode::empty())?;
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

/// Bytes that the tree at `path` takes on its disk; a file with several names counts once.
pub(crate) fn disk_usage(path: &Path) -> io::Result<u64> {
    const BLOCK: u64 = 512;
    let mut linked = std::collections::BTreeSet::new();
    let mut bytes = 0;
    for entry in walkdir::WalkDir::new(path) {
        let metadata = match entry.and_then(|entry| entry.metadata()) {
            Ok(metadata) => metadata,
            // Somebody works in the tree while it is measured.
            Err(error)
                if error.io_error().map(io::Error::kind) == Some(io::ErrorKind::NotFound) =>
            {
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        if metadata.nlink() > 1 && !metadata.is_dir() && !linked.insert(metadata.ino()) {
            continue;
        }
        bytes += metadata.blocks() * BLOCK;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

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
    }

    #[test]
    fn trees_deeper_than_any_path_are_removed() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let tree = place.path().join("tree");
        fs::create_dir(&tree).expect("a directory");
        let mut here = open(&tree).expect("a directory");
        for _ in 0..3000 {
            rustix::fs::mkdirat(&here, "deep", Mode::from(0o700)).expect("a directory");
            here = openat(&here, "deep", DIRECTORY, Mode::empty()).expect("a directory");
        }
        fs::create_dir(tree.join(".deep-1")).expect("a directory that is in the way");
        fs::write(tree.join(".deep-1/file"), "x").expect("a file");
        drop(here);
        remove_path(&tree).expect("a removed tree");
        assert!(!tree.exists());
    }

    #[test]
    fn usage_counts_a_file_once() {
        let place = tempfile::tempdir().expect("a temporary directory");
        fs::write(place.path().join("a"), vec![1; 1 << 20]).expect("a file");
        let once = disk_usage(place.path()).expect("usage");
        assert!(once >= 1 << 20, "{once}");
        fs::hard_link(place.path().join("a"), place.path().join("b")).expect("a second name");
        assert_eq!(disk_usage(place.path()).expect("usage"), once);
    }
}
