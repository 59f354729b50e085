//! How much of the disk a volume takes.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, openat2, statat};
use rustix::io::Errno;

use crate::{MachineError, failed};

/// Directories that are looked at below one another: each costs an open file.
const DEPTH_MAX: usize = 128;
/// `st_blocks` counts these (stat(3)).
const BLOCK: u64 = 512;

/// Bytes on the disk of a directory and all that is in it, on its own file system; links are not
/// followed. Counting ends beyond `most`, and a tree that is too deep to be looked at counts as more.
/// Nothing, if it is absent.
///
/// # Errors
///
/// A directory could not be read.
pub fn usage(directory: &Path, most: u64) -> Result<u64, MachineError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = match rustix::fs::open(directory, flags, Mode::empty()) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(0),
        Err(error) => return Err(failed("open", directory)(error)),
    };
    let count = || -> Result<u64, Errno> {
        let mut bytes = 0_u64;
        // Depth first: a directory is left before the next one beside it is opened.
        let mut open = vec![Level::new(top)?];
        while let Some(level) = open.last_mut() {
            let Some(name) = level.next()? else {
                open.pop();
                continue;
            };
            let found = match statat(level.entries.fd()?, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(found) => found,
                // It went meanwhile.
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error),
            };
            let blocks = u64::try_from(found.st_blocks).unwrap_or_default();
            bytes = bytes.saturating_add(blocks.saturating_mul(BLOCK));
            if bytes > most {
                return Ok(bytes);
            }
            if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
                continue;
            }
            if open.len() == DEPTH_MAX {
                return Ok(u64::MAX);
            }
            if let Some(below) = open.last().map(|level| level.open(&name)).transpose()? {
                open.extend(below);
            }
        }
        Ok(bytes)
    };
    count().map_err(failed("measure", directory))
}

struct Level {
    entries: Dir,
}

impl Level {
    fn new(directory: std::os::fd::OwnedFd) -> Result<Level, Errno> {
        let entries = Dir::new(directory)?;
        Ok(Level { entries })
    }

    fn next(&mut self) -> Result<Option<OsString>, Errno> {
        for entry in self.entries.by_ref() {
            let name = OsStr::from_bytes(entry?.file_name().to_bytes()).to_owned();
            if name != "." && name != ".." {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// `None` if it is no directory of this file system any more.
    fn open(&self, name: &OsStr) -> Result<Option<Level>, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        match openat2(self.entries.fd()?, name, flags, Mode::empty(), resolve) {
            Ok(found) => Level::new(found).map(Some),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_is_in_a_volume_is_counted_and_nothing_else() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let (volume, outside) = (place.path().join("volume"), place.path().join("outside"));
        fs::create_dir_all(volume.join("a/b")).expect("a directory");
        fs::create_dir(&outside).expect("a directory");
        fs::write(outside.join("large"), vec![1; 4 << 20]).expect("a file");
        symlink(&outside, volume.join("link")).expect("a link");
        symlink("../outside/large", volume.join("a/link")).expect("a link");
        let empty = usage(&volume, u64::MAX).expect("measured");
        assert!(empty < 1 << 20, "{empty}");
        fs::write(volume.join("a/b/file"), vec![1; 2 << 20]).expect("a file");
        fs::write(volume.join("file"), vec![1; 1 << 20]).expect("a file");
        let full = usage(&volume, u64::MAX).expect("measured") - empty;
        assert!((3 << 20..4 << 20).contains(&full), "{full}");
        assert_eq!(usage(&place.path().join("none"), 1).expect("nothing"), 0);
    }

    #[test]
    fn what_is_too_deep_to_be_counted_is_too_much() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let deep = |depth: usize| vec!["d"; depth].join("/");
        fs::create_dir_all(place.path().join(deep(100))).expect("a directory");
        assert!(usage(place.path(), u64::MAX - 1).expect("measured") < u64::MAX);
        fs::create_dir_all(place.path().join(deep(200))).expect("a directory");
        let counted = usage(place.path(), u64::MAX - 1);
        assert_eq!(counted.expect("measured"), u64::MAX);
    }
}
