//! How much of the disk a tree takes.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, openat2, statat};
use rustix::io::Errno;

/// Directories that are looked at below one another: each costs an open file.
const DEPTH_MAX: usize = 128;
/// Files with several names that are remembered.
const LINKED_MAX: usize = 1 << 16;
/// `st_blocks` counts these (stat(3)).
const BLOCK: u64 = 512;

/// Bytes on the disk of a directory and all that is in it, on its own file system; links are not
/// followed, and a file with several names counts once. Counting ends beyond `most`, and a tree that is
/// too deep to be looked at counts as more. Nothing, if it is absent.
///
/// # Errors
///
/// A directory could not be read.
pub fn usage(directory: &Path, most: u64) -> io::Result<u64> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = match rustix::fs::open(directory, flags, Mode::empty()) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(0),
        Err(error) => return Err(error.into()),
    };
    let mut bytes = 0_u64;
    let mut linked = Linked::default();
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
            Err(error) => return Err(error.into()),
        };
        bytes = bytes.saturating_add(linked.share(&found));
        if bytes > most {
            return Ok(bytes);
        }
        if !is_directory(&found) {
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
}

fn is_directory(found: &Stat) -> bool {
    FileType::from_raw_mode(found.st_mode) == FileType::Directory
}

/// Files with several names that were counted.
#[derive(Default)]
struct Linked(HashSet<u64>);

impl Linked {
    /// What a name adds to the sum. Of a file that cannot be remembered any more, each name has its part.
    fn share(&mut self, found: &Stat) -> u64 {
        let bytes = u64::try_from(found.st_blocks)
            .unwrap_or_default()
            .saturating_mul(BLOCK);
        let names = found.st_nlink;
        if names < 2 || is_directory(found) || bytes == 0 {
            return bytes;
        }
        match self.0.len() < LINKED_MAX || self.0.contains(&found.st_ino) {
            true if self.0.insert(found.st_ino) => bytes,
            true => 0,
            false => bytes / names,
        }
    }
}

struct Level {
    entries: Dir,
}

impl Level {
    fn new(directory: OwnedFd) -> Result<Level, Errno> {
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
    fn what_is_in_a_tree_is_counted_and_nothing_else() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let (tree, outside) = (place.path().join("tree"), place.path().join("outside"));
        fs::create_dir_all(tree.join("a/b")).expect("a directory");
        fs::create_dir(&outside).expect("a directory");
        fs::write(outside.join("large"), vec![1; 4 << 20]).expect("a file");
        symlink(&outside, tree.join("link")).expect("a link");
        symlink("../outside/large", tree.join("a/link")).expect("a link");
        let empty = usage(&tree, u64::MAX).expect("measured");
        assert!(empty < 1 << 20, "{empty}");
        fs::write(tree.join("a/b/file"), vec![1; 2 << 20]).expect("a file");
        fs::write(tree.join("file"), vec![1; 1 << 20]).expect("a file");
        let full = usage(&tree, u64::MAX).expect("measured") - empty;
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

    #[test]
    fn a_file_counts_once_whatever_its_names() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let file = place.path().join("file");
        fs::write(&file, vec![1; 4 << 20]).expect("a file");
        let once = usage(place.path(), u64::MAX).expect("measured");
        fs::create_dir(place.path().join("names")).expect("a directory");
        for number in 0..6 {
            let name = place.path().join(format!("names/{number}"));
            fs::hard_link(&file, name).expect("a name");
        }
        let more = usage(place.path(), u64::MAX).expect("measured") - once;
        assert!(more < 1 << 20, "{more}");
    }

    #[test]
    fn files_that_are_too_many_to_be_remembered_count_by_their_names() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(&file, vec![1; 1 << 16]).expect("a file");
        let mut found = rustix::fs::stat(file.path()).expect("it is there");
        let bytes = Linked::default().share(&found);
        found.st_nlink = 4;
        let mut linked = Linked::default();
        assert_eq!([0; 2].map(|_| linked.share(&found)), [bytes, 0]);
        let mut full = Linked((0..).take(LINKED_MAX).map(|number| !number).collect());
        assert_eq!([0; 2].map(|_| full.share(&found)), [bytes / 4; 2]);
        assert_eq!(full.0.len(), LINKED_MAX);
    }
}
