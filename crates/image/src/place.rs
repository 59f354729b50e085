//! Writing what a hostile archive names into one directory, and nowhere else.
//!
//! Every path is taken apart first: `/` in front is dropped, `..` may go up to the root of the
//! image but not above. Links on the way to a file are followed by hand, as the image's own
//! processes would see them, and every directory is opened below the root's descriptor with
//! `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`, so that no name of the machine is ever looked up.
//!
//! Whiteouts become what overlayfs reads (kernel documentation, filesystems/overlayfs.rst): a
//! character device 0/0 hides a name, `trusted.overlay.opaque` hides what a directory had below.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

const OPAQUE: &str = "trusted.overlay.opaque";
/// Links followed on the way to one file; the kernel's own number.
const LINKS_MAX: usize = 40;
/// The longest resolved path: below PATH_MAX, so that each can be opened by one call.
const PATH_MAX: usize = 4000;
const COPY_BUFFER: usize = 1 << 17;

/// Owner, mode and such of one thing in a layer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attributes {
    /// Permission bits with setuid, setgid and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds since 1970.
    pub(crate) modified: (i64, i64),
    /// Those that [`is_kept`] allows.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Why one thing of a layer could not be put into its place.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// `..` would lead above the root.
    #[error("the name leads out of the image")]
    Escapes,
    /// Only a directory can be the root.
    #[error("the image's root is not a directory")]
    Root,
    /// A byte that no file name can have.
    #[error("the name has a NUL byte in it")]
    Nul,
    /// A whiteout of nothing.
    #[error("the whiteout names no file")]
    Whiteout,
    /// Longer than the system takes.
    #[error("the path is too long once links are followed")]
    TooLong,
    /// The header says something that cannot be.
    #[error("its {0} is not one")]
    Header(&'static str),
    /// A type of member that makes no file.
    #[error("a member of type {0:?} is not part of the image format")]
    Kind(char),
    /// A hard link to something that this layer does not have.
    #[error("hard link to {target}: {source}")]
    HardLink {
        /// What it names.
        target: String,
        /// Why it cannot be linked to.
        source: io::Error,
    },
    /// The archive could not be read.
    #[error("cannot read its content: {0}")]
    Read(#[source] io::Error),
    /// The disk or the system refused.
    #[error("{0}")]
    Write(#[from] io::Error),
}

impl From<Errno> for Fault {
    fn from(error: Errno) -> Fault {
        Fault::Write(error.into())
    }
}

/// Whether an extended attribute of an archive is taken over. Those that the kernel's overlay, or a
/// security module of this machine, acts on are not.
pub(crate) fn is_kept(xattr: &[u8]) -> bool {
    (xattr.starts_with(b"user.") && !xattr.starts_with(b"user.overlay."))
        || matches!(
            xattr,
            b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default"
        )
}

/// A directory that is being filled.
pub(crate) struct Tree {
    root: OwnedFd,
    /// The last one used: archives go through directories one after the other.
    parent: Option<Parent>,
    implied: BTreeSet<Vec<u8>>,
    /// Of directories: set at the end, because each new file changes its directory's.
    times: Vec<(Vec<u8>, (i64, i64))>,
    root_described: bool,
    root_opaque: bool,
}

/// A directory that a thing is put into.
struct Parent {
    /// As the archive says.
    asked: Vec<u8>,
    /// Without links.
    resolved: Vec<u8>,
    fd: OwnedFd,
}

/// What is known of a tree when it is full.
#[derive(Debug, Default)]
pub(crate) struct Filled {
    /// Directories that were needed and never described.
    pub(crate) implied: Vec<Vec<u8>>,
    /// The root's owner and mode were given.
    pub(crate) root_described: bool,
    /// The root hides everything below.
    pub(crate) root_opaque: bool,
}

impl Tree {
    pub(crate) fn new(root: OwnedFd) -> Tree {
        Tree {
            root,
            parent: None,
            implied: BTreeSet::new(),
            times: Vec::new(),
            root_described: false,
            root_opaque: false,
        }
    }

    /// A directory; one that is there already is described anew.
    pub(crate) fn directory(&mut self, path: &[u8], attributes: &Attributes) -> Result<(), Fault> {
        let Some((above, name)) = split(path)? else {
            self.root_described = true;
            describe(&self.root, attributes)?;
            self.times.push((Vec::new(), attributes.modified));
            return Ok(());
        };
        let name = name.as_slice();
        let parent = self.parent(&above)?;
        let mut opaque = false;
        let mut replaced = false;
        match rustix::fs::mkdirat(&parent.fd, name, Mode::from(0o700)) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let existing = rustix::fs::statat(&parent.fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
                if FileType::from_raw_mode(existing.st_mode) != FileType::Directory {
                    opaque = is_whiteout(&existing);
                    replaced = true;
                    tree::remove(parent.fd.as_fd(), OsStr::from_bytes(name))?;
                    rustix::fs::mkdirat(&parent.fd, name, Mode::from(0o700))?;
                }
            }
            Err(error) => return Err(error.into()),
        }
        let directory = tree::open_beneath(parent.fd.as_fd(), name)?;
        if opaque {
            set_opaque(&directory)?;
        }
        describe(&directory, attributes)?;
        let resolved = join(&parent.resolved, name);
        self.implied.remove(&resolved);
        self.times.push((resolved, attributes.modified));
        self.keep(parent, replaced);
        Ok(())
    }

    /// A file with `size` bytes of `content`; holes are kept where `sparse`.
    pub(crate) fn file(
        &mut self,
        path: &[u8],
        attributes: &Attributes,
        content: &mut dyn Read,
        size: u64,
        sparse: bool,
    ) -> Result<(), Fault> {
        let (above, name) = split(path)?.ok_or(Fault::Root)?;
        let name = name.as_slice();
        let parent = self.parent(&above)?;
        let create = || {
            rustix::fs::openat(
                &parent.fd,
                name,
                OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::from(0o600),
            )
        };
        let (file, replaced) = match create() {
            Err(Errno::EXIST) => {
                tree::remove(parent.fd.as_fd(), OsStr::from_bytes(name))?;
                (create()?, true)
            }
            file => (file?, false),
        };
        let file = copy(content, File::from(file), size, sparse)?;
        describe(&file, attributes)?;
        rustix::fs::futimens(&file, &timestamps(attributes.modified))?;
        self.keep(parent, replaced);
        Ok(())
    }

    /// A symbolic link; its target is never looked at.
    pub(crate) fn symlink(
        &mut self,
        path: &[u8],
        target: &[u8],
        attributes: &Attributes,
    ) -> Result<(), Fault> {
        if target.contains(&0) {
            return Err(Fault::Nul);
        }
        self.node(path, attributes, |parent, name| {
            rustix::fs::symlinkat(target, parent, name)
        })
    }

    /// A second name for a file of this layer.
    pub(crate) fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<(), Fault> {
        let failed = |source: Errno| Fault::HardLink {
            target: String::from_utf8_lossy(target).into_owned(),
            source: source.into(),
        };
        let (target_above, target_name) = split(target)?.ok_or_else(|| failed(Errno::PERM))?;
        let target_name = target_name.as_slice();
        let target_above = self.resolve(&target_above, false)?;
        let target_parent = tree::open_beneath(self.root.as_fd(), &target_above).map_err(failed)?;
        let (above, name) = split(path)?.ok_or(Fault::Root)?;
        let name = name.as_slice();
        let parent = self.parent(&above)?;
        let link = || {
            rustix::fs::linkat(
                &target_parent,
                target_name,
                &parent.fd,
                name,
                AtFlags::empty(),
            )
        };
        let mut replaced = false;
        match link() {
            Err(Errno::EXIST) => {
                let stat = |parent: &OwnedFd, name: &[u8]| {
                    rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
                };
                let (old, new) = (
                    stat(&parent.fd, name)?,
                    stat(&target_parent, target_name).map_err(failed)?,
                );
                // A link to itself is there already.
                if (old.st_dev, old.st_ino) != (new.st_dev, new.st_ino) {
                    replaced = true;
                    tree::remove(parent.fd.as_fd(), OsStr::from_bytes(name))?;
                    link().map_err(failed)?;
                }
            }
            linked => linked.map_err(failed)?,
        }
        self.keep(parent, replaced);
        Ok(())
    }

    /// A named pipe.
    pub(crate) fn fifo(&mut self, path: &[u8], attributes: &Attributes) -> Result<(), Fault> {
        self.node(path, attributes, |parent, name| {
            rustix::fs::mknodat(parent, name, FileType::Fifo, Mode::from(0o600), 0)
        })
    }

    /// A character device.
    pub(crate) fn device(
        &mut self,
        path: &[u8],
        attributes: &Attributes,
        (major, minor): (u32, u32),
    ) -> Result<(), Fault> {
        self.node(path, attributes, |parent, name| {
            rustix::fs::mknodat(
                parent,
                name,
                FileType::CharacterDevice,
                Mode::from(0o600),
                rustix::fs::makedev(major, minor),
            )
        })
    }

    /// Hides `path` of the layers below. What this layer has there itself stays.
    pub(crate) fn whiteout(&mut self, path: &[u8]) -> Result<(), Fault> {
        let (above, name) = split(path)?.ok_or(Fault::Whiteout)?;
        let name = name.as_slice();
        let parent = self.parent(&above)?;
        match rustix::fs::statat(&parent.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => rustix::fs::mknodat(
                &parent.fd,
                name,
                FileType::CharacterDevice,
                Mode::empty(),
                rustix::fs::makedev(0, 0),
            )?,
            Err(error) => return Err(error.into()),
            Ok(existing) if FileType::from_raw_mode(existing.st_mode) == FileType::Directory => {
                set_opaque(&tree::open_beneath(parent.fd.as_fd(), name)?)?;
            }
            Ok(_) => {}
        }
        self.keep(parent, false);
        Ok(())
    }

    /// Hides everything that the layers below have in the directory `path`.
    pub(crate) fn opaque(&mut self, path: &[u8]) -> Result<(), Fault> {
        let path = clean(path)?;
        if path.is_empty() {
            // Overlayfs does not look at the attribute on a layer's root.
            self.root_opaque = true;
            return Ok(());
        }
        let parent = self.parent(&path)?;
        set_opaque(&parent.fd)?;
        self.keep(parent, false);
        Ok(())
    }

    /// Nothing more comes.
    pub(crate) fn finish(self) -> Result<Filled, Fault> {
        for (path, modified) in &self.times {
            match tree::open_beneath(self.root.as_fd(), path) {
                Ok(directory) => rustix::fs::futimens(&directory, &timestamps(*modified))?,
                // Something else took its place.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Filled {
            implied: self.implied.into_iter().collect(),
            root_described: self.root_described,
            root_opaque: self.root_opaque,
        })
    }

    /// Makes something that has no content, in the place of what is there.
    fn node(
        &mut self,
        path: &[u8],
        attributes: &Attributes,
        make: impl Fn(&OwnedFd, &[u8]) -> Result<(), Errno>,
    ) -> Result<(), Fault> {
        let (above, name) = split(path)?.ok_or(Fault::Root)?;
        let name = name.as_slice();
        let parent = self.parent(&above)?;
        let replaced = match make(&parent.fd, name) {
            Err(Errno::EXIST) => {
                tree::remove(parent.fd.as_fd(), OsStr::from_bytes(name))?;
                make(&parent.fd, name)?;
                true
            }
            made => {
                made?;
                false
            }
        };
        let made = rustix::fs::statat(&parent.fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
        rustix::fs::chownat(
            &parent.fd,
            name,
            Some(Uid::from_raw(attributes.uid)),
            Some(Gid::from_raw(attributes.gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
        if FileType::from_raw_mode(made.st_mode) != FileType::Symlink {
            // Nothing else writes here, so the name is still what was just made, and no link.
            let mode = Mode::from_raw_mode(attributes.mode);
            rustix::fs::chmodat(&parent.fd, name, mode, AtFlags::empty())?;
        }
        rustix::fs::utimensat(
            &parent.fd,
            name,
            &timestamps(attributes.modified),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
        self.keep(parent, replaced);
        Ok(())
    }

    /// Opens a directory that things are put into, and makes it if need be.
    fn parent(&mut self, asked: &[u8]) -> Result<Parent, Fault> {
        if let Some(parent) = self.parent.take_if(|parent| parent.asked == asked) {
            return Ok(parent);
        }
        let (fd, resolved) = match tree::open_beneath(self.root.as_fd(), asked) {
            Ok(fd) => (fd, asked.to_vec()),
            // Missing, or a link or a whiteout on the way.
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => {
                let resolved = self.resolve(asked, true)?;
                (tree::open_beneath(self.root.as_fd(), &resolved)?, resolved)
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Parent {
            asked: asked.to_vec(),
            resolved,
            fd,
        })
    }

    /// Remembers a directory for the next thing. If something was replaced, a link that led to the
    /// directory may be gone.
    fn keep(&mut self, parent: Parent, replaced: bool) {
        self.parent = (!replaced).then_some(parent);
    }

    /// Follows links as a process with this root would. What is missing is made if `make`, and is
    /// otherwise left to whoever opens the path.
    fn resolve(&mut self, path: &[u8], make: bool) -> Result<Vec<u8>, Fault> {
        let mut pending: Vec<Vec<u8>> = components(path).map(<[u8]>::to_vec).collect();
        pending.reverse();
        let mut resolved: Vec<u8> = Vec::new();
        let mut links = 0;
        while let Some(name) = pending.pop() {
            if name == b".." {
                let end = resolved.iter().rposition(|&byte| byte == b'/');
                resolved.truncate(end.unwrap_or(0));
                continue;
            }
            let next = join(&resolved, &name);
            if next.len() > PATH_MAX {
                return Err(Fault::TooLong);
            }
            let directory = match tree::open_beneath(self.root.as_fd(), &resolved) {
                Err(Errno::NOENT) if !make => {
                    resolved = next;
                    continue;
                }
                directory => directory?,
            };
            match rustix::fs::statat(&directory, &name[..], AtFlags::SYMLINK_NOFOLLOW) {
                Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::Symlink => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(Errno::LOOP.into());
                    }
                    let target = rustix::fs::readlinkat(&directory, &name[..], Vec::new())?;
                    let target = target.as_bytes();
                    if target.starts_with(b"/") {
                        resolved.clear();
                    }
                    let at = pending.len();
                    pending.extend(components(target).map(<[u8]>::to_vec));
                    pending[at..].reverse();
                    continue;
                }
                Ok(found) if make && is_whiteout(&found) => {
                    tree::remove(directory.as_fd(), OsStr::from_bytes(&name))?;
                    rustix::fs::mkdirat(&directory, &name[..], Mode::from(0o755))?;
                    let made = tree::open_beneath(directory.as_fd(), &name)?;
                    rustix::fs::fchmod(&made, Mode::from(0o755))?;
                    set_opaque(&made)?;
                    self.parent = None;
                }
                Ok(_) => {}
                Err(Errno::NOENT) if make => {
                    rustix::fs::mkdirat(&directory, &name[..], Mode::from(0o755))?;
                    let made = tree::open_beneath(directory.as_fd(), &name)?;
                    rustix::fs::fchmod(&made, Mode::from(0o755))?;
                    self.implied.insert(next.clone());
                }
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
            resolved = next;
        }
        Ok(resolved)
    }
}

/// Sets owner, mode and attributes: in this order, because a new owner takes away the setuid bits
/// and the capabilities.
fn describe(file: &impl AsFd, attributes: &Attributes) -> Result<(), Errno> {
    rustix::fs::fchown(
        file,
        Some(Uid::from_raw(attributes.uid)),
        Some(Gid::from_raw(attributes.gid)),
    )?;
    rustix::fs::fchmod(file, Mode::from_raw_mode(attributes.mode))?;
    for (name, value) in &attributes.xattrs {
        match rustix::fs::fsetxattr(file, &name[..], value, XattrFlags::empty()) {
            // The disk's file system has no such thing: Docker goes on, too.
            Ok(()) | Err(Errno::NOTSUP) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn copy(content: &mut dyn Read, mut file: File, size: u64, sparse: bool) -> Result<File, Fault> {
    let capacity = usize::try_from(size).map_or(COPY_BUFFER, |size| size.clamp(1, COPY_BUFFER));
    let mut buffer = vec![0; capacity];
    let mut copied = 0;
    loop {
        let read = match content.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Fault::Read(error)),
        };
        copied += read as u64;
        if sparse && buffer[..read].iter().all(|&byte| byte == 0) {
            let distance = i64::try_from(read).expect("a buffer is short");
            io::Seek::seek(&mut file, io::SeekFrom::Current(distance))?;
        } else {
            file.write_all(&buffer[..read])?;
        }
    }
    if copied != size {
        return Err(Fault::Read(io::ErrorKind::UnexpectedEof.into()));
    }
    if sparse {
        file.set_len(size)?;
    }
    Ok(file)
}

fn set_opaque(directory: &OwnedFd) -> Result<(), Errno> {
    rustix::fs::fsetxattr(directory, OPAQUE, b"y", XattrFlags::empty())
}

/// Whether a directory hides what is below it.
pub(crate) fn is_opaque(directory: &OwnedFd) -> bool {
    let mut value = [0; 8];
    rustix::fs::fgetxattr(directory, OPAQUE, &mut value)
        .is_ok_and(|length| &value[..length] == b"y")
}

/// Whether this hides a name of the layers below.
pub(crate) fn is_whiteout(stat: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// A modification time; the time of access is made the same.
pub(crate) fn timestamps((tv_sec, tv_nsec): (i64, i64)) -> Timestamps {
    let time = Timespec { tv_sec, tv_nsec };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() {
        return name.to_vec();
    }
    [directory, b"/", name].concat()
}

/// The path without `/` in front, `.` and `..`.
pub(crate) fn clean(path: &[u8]) -> Result<Vec<u8>, Fault> {
    if path.contains(&0) {
        return Err(Fault::Nul);
    }
    let mut parts = Vec::new();
    for part in components(path) {
        if part != b".." {
            parts.push(part);
        } else if parts.pop().is_none() {
            return Err(Fault::Escapes);
        }
    }
    Ok(parts.join(&b'/'))
}

/// A directory, and a name in it.
type Place = (Vec<u8>, Vec<u8>);

/// Where a path lies; `None` for the root.
fn split(path: &[u8]) -> Result<Option<Place>, Fault> {
    let mut above = clean(path)?;
    if above.is_empty() {
        return Ok(None);
    }
    let name = match above.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => {
            let name = above.split_off(slash + 1);
            above.truncate(slash);
            name
        }
        None => std::mem::take(&mut above),
    };
    Ok(Some((above, name)))
}

/// Looks for the directory `path` in layers, the uppermost first, as an overlay of them would show it.
pub(crate) fn describe_from(layers: &[OwnedFd], path: &[u8]) -> Result<Option<Attributes>, Errno> {
    for layer in layers {
        match tree::open_beneath(layer.as_fd(), path) {
            Ok(directory) => return attributes_of(&directory).map(Some),
            Err(Errno::NOENT) => {}
            // A file, a link or a whiteout: whatever is further below is hidden.
            Err(_) => return Ok(None),
        }
        let hidden = (0..path.len()).filter(|&at| path[at] == b'/').any(|at| {
            match tree::open_beneath(layer.as_fd(), &path[..at]) {
                Ok(directory) => is_opaque(&directory),
                Err(error) => error != Errno::NOENT,
            }
        });
        if hidden {
            return Ok(None);
        }
    }
    Ok(None)
}

/// Gives a directory of a layer the description of another.
pub(crate) fn redescribe(
    root: &OwnedFd,
    path: &[u8],
    attributes: &Attributes,
) -> Result<(), Errno> {
    let directory = tree::open_beneath(root.as_fd(), path)?;
    describe(&directory, attributes)?;
    rustix::fs::futimens(&directory, &timestamps(attributes.modified))
}

fn attributes_of(directory: &OwnedFd) -> Result<Attributes, Errno> {
    let stat = rustix::fs::fstat(directory)?;
    let mut names = vec![0; 64 << 10];
    let length = match rustix::fs::flistxattr(directory, &mut names) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => 0,
        Err(error) => return Err(error),
    };
    let mut xattrs = Vec::new();
    for name in names[..length].split(|&byte| byte == 0) {
        if name.is_empty() || !is_kept(name) {
            continue;
        }
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::fgetxattr(directory, name, &mut value)?;
        value.truncate(length);
        xattrs.push((name.to_vec(), value));
    }
    Ok(Attributes {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        modified: (
            stat.st_mtime,
            i64::try_from(stat.st_mtime_nsec).unwrap_or(0),
        ),
        xattrs,
    })
}

/// Copies owner, mode and times of one directory of ours to another.
pub(crate) fn copy_description(from: &Path, to: &Path) -> io::Result<()> {
    let attributes = attributes_of(&tree::open(from)?)?;
    redescribe(&tree::open(to)?, b"", &attributes)?;
    Ok(())
}
