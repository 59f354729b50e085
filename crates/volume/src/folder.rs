//! A directory that containers may change while we do: held open, never looked up twice.
//!
//! A path is a question that gets another answer when somebody puts a link where a directory was.
//! Here a directory is a descriptor, and what is in it is looked up from there: the kernel refuses
//! links, other mounts and `..` (openat2(2)), and owner and mode are set on what was opened, not on
//! what has that name by then.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid, chownat, fchmod,
    fchown, fstat, mkdirat, openat2, readlinkat, renameat, symlinkat,
};
use rustix::io::Errno;

use crate::{MachineError, failed};

/// Permission bits with setuid, setgid and sticky.
const MODE_BITS: u32 = 0o7777;
/// What is made in a directory belongs to the directory's group.
pub(crate) const SETGID: u32 = 0o2000;

/// An open directory.
pub(crate) struct Folder {
    descriptor: OwnedFd,
    /// For messages only.
    path: PathBuf,
}

/// What somebody owns, and who may use it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub(crate) mode: u32,
    /// Root if absent.
    pub(crate) owner: Option<u32>,
    /// As it comes if absent.
    pub(crate) group: Option<u32>,
}

impl Access {
    fn is_given(&self, found: &Stat) -> bool {
        found.st_mode & MODE_BITS == self.mode & MODE_BITS
            && found.st_uid == self.owner.unwrap_or(0)
            && self.group.is_none_or(|group| found.st_gid == group)
    }

    fn give(&self, to: impl AsFd) -> Result<(), Errno> {
        let owner = self.owner.map(Uid::from_raw);
        let group = self.group.map(Gid::from_raw);
        if owner.is_some() || group.is_some() {
            fchown(to.as_fd(), owner, group)?;
        }
        // A new owner takes the setuid and setgid bits away: the mode comes last.
        fchmod(to, Mode::from_raw_mode(self.mode & MODE_BITS))
    }
}

/// Looks a name up without a way out of the directory.
fn open_in(
    directory: impl AsFd,
    name: &OsStr,
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    openat2(directory, name, flags | OFlags::CLOEXEC, mode, resolve)
}

impl Folder {
    /// Opens a directory by its path, which is the caller's own: nobody else can change it but for
    /// what is in the directory.
    pub(crate) fn open(path: &Path) -> Result<Folder, MachineError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let descriptor =
            rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(failed("open", path))?;
        Ok(Folder {
            descriptor,
            path: path.to_owned(),
        })
    }

    fn path_of(&self, name: &OsStr) -> PathBuf {
        self.path.join(name)
    }

    /// A directory in this one; `None` if there is none of that name.
    pub(crate) fn directory(&self, name: &OsStr) -> Result<Option<Folder>, MachineError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        match open_in(&self.descriptor, name, flags, Mode::empty()) {
            Ok(descriptor) => Ok(Some(Folder {
                descriptor,
                path: self.path_of(name),
            })),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(error) => Err(failed("open", &self.path_of(name))(error)),
        }
    }

    /// A directory in this one that must be there.
    pub(crate) fn existing(&self, name: &OsStr) -> Result<Folder, MachineError> {
        let found = self.directory(name)?;
        found.ok_or_else(|| failed("open", &self.path_of(name))(Errno::NOTDIR))
    }

    /// Makes a directory; `None` if something has that name.
    pub(crate) fn make_directory(
        &self,
        name: &OsStr,
        access: Access,
    ) -> Result<Option<Folder>, MachineError> {
        let path = self.path_of(name);
        match mkdirat(&self.descriptor, name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Ok(None),
            Err(error) => return Err(failed("make directory", &path)(error)),
        }
        let made = self.existing(name)?;
        let access = access.give(&made.descriptor);
        access.map_err(failed("set the mode of", &path))?;
        Ok(Some(made))
    }

    /// Makes a file, which nobody else can open before it is whole.
    pub(crate) fn make_file(
        &self,
        name: &OsStr,
        content: &[u8],
        access: Access,
    ) -> Result<(), MachineError> {
        let path = self.path_of(name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let made = open_in(&self.descriptor, name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(failed("make file", &path))?;
        let mut made = File::from(made);
        made.write_all(content).map_err(failed("write", &path))?;
        access.give(&made).map_err(failed("set the mode of", &path))
    }

    /// Whether there is a plain file at this path below, with this content and access.
    pub(crate) fn has_file(&self, path: &str, content: &[u8], access: Access) -> bool {
        // A pipe would be waited for.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let Ok(found) = open_in(&self.descriptor, OsStr::new(path), flags, Mode::empty()) else {
            return false;
        };
        let fits = |stat: &Stat| {
            FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
                && access.is_given(stat)
                && u64::try_from(stat.st_size) == Ok(content.len() as u64)
        };
        if !fstat(&found).is_ok_and(|stat| fits(&stat)) {
            return false;
        }
        let mut seen = Vec::with_capacity(content.len());
        let limit = content.len() as u64 + 1;
        File::from(found).take(limit).read_to_end(&mut seen).is_ok() && seen == content
    }

    /// Makes a link that leads to `target`.
    pub(crate) fn make_link(
        &self,
        name: &OsStr,
        target: &Path,
        group: Option<u32>,
    ) -> Result<(), MachineError> {
        let path = self.path_of(name);
        symlinkat(target, &self.descriptor, name).map_err(failed("make link", &path))?;
        let Some(group) = group.map(Gid::from_raw) else {
            return Ok(());
        };
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        chownat(&self.descriptor, name, None, Some(group), flags)
            .map_err(failed("set the group of", &path))
    }

    /// Where a link leads; `None` if there is no link of that name.
    pub(crate) fn link(&self, name: &OsStr) -> Result<Option<OsString>, MachineError> {
        match readlinkat(&self.descriptor, name, Vec::new()) {
            Ok(target) => Ok(Some(OsString::from_vec(target.into_bytes()))),
            Err(Errno::NOENT | Errno::INVAL) => Ok(None),
            Err(error) => Err(failed("read", &self.path_of(name))(error)),
        }
    }

    /// Puts one name in the place of another.
    pub(crate) fn rename(&self, name: &OsStr, to: &OsStr) -> Result<(), MachineError> {
        renameat(&self.descriptor, name, &self.descriptor, to)
            .map_err(failed("replace", &self.path_of(to)))
    }

    /// Removes what has this name, with all that is in it. Absent is fine.
    pub(crate) fn remove(&self, name: &OsStr) -> Result<(), MachineError> {
        tree::remove(self.descriptor.as_fd(), name).map_err(failed("remove", &self.path_of(name)))
    }

    /// Sets who may use the directory itself.
    pub(crate) fn set_access(&self, access: Access) -> Result<(), MachineError> {
        let set = access.give(&self.descriptor);
        set.map_err(failed("set the mode of", &self.path))
    }

    /// Gives the directory itself to a group, and what is made in it from now on.
    pub(crate) fn set_group(&self, group: u32) -> Result<(), MachineError> {
        let found = fstat(&self.descriptor).map_err(failed("look at", &self.path))?;
        self.set_access(Access {
            mode: found.st_mode & MODE_BITS | SETGID,
            owner: None,
            group: Some(group),
        })
    }

    /// All names in it.
    pub(crate) fn names(&self) -> Result<Vec<OsString>, MachineError> {
        let list = || -> io::Result<Vec<OsString>> {
            let mut names = Vec::new();
            for entry in Dir::read_from(&self.descriptor)? {
                let name = OsStr::from_bytes(entry?.file_name().to_bytes()).to_owned();
                if name != "." && name != ".." {
                    names.push(name);
                }
            }
            Ok(names)
        };
        list().map_err(failed("read", &self.path))
    }

    /// All names in a directory below, by its path; `None` if there is none.
    pub(crate) fn names_in(&self, path: &str) -> Result<Option<Vec<OsString>>, MachineError> {
        match path {
            "" => self.names().map(Some),
            below => match self.directory(OsStr::new(below))? {
                Some(below) => below.names().map(Some),
                None => Ok(None),
            },
        }
    }
}
