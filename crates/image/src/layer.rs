//! One layer: a tar stream (OCI image spec, layer.md) unpacked into a directory of its own.
//!
//! What is in the stream is somebody else's choice. It is read with bounds on the number of its
//! members, on their size and on the memory that its headers take; where things land is the
//! concern of [`crate::place`].

use std::io::Read;
use std::os::fd::OwnedFd;

use tar::{Entry, EntryType};

use crate::place::{Attributes, Fault, Tree, is_kept};
use crate::space::{NoRoom, Room};
use crate::stream::{Allowance, Allowed};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Of aufs itself; says nothing about the image.
const WHITEOUT_META: &[u8] = b".wh..wh.";
const XATTR: &[u8] = b"SCHILY.xattr.";
/// Names and extended headers of one member.
const HEADER_BYTES_MAX: u64 = 1 << 20;
/// The end of the year 9999: what comes after is damage, and many file systems refuse it.
const TIME_MAX: i64 = 253_402_300_799;
/// Of the devices that were left out, so many are named.
const DEVICES_NAMED_MAX: usize = 8;

/// Character devices that hurt nobody, whoever opens them (Linux, admin-guide/devices.txt). All
/// others are left out: a container gets its devices from the runtime, and not every machine can
/// keep it from using what its image brings along.
const DEVICES: [(u32, u32); 10] = [
    (1, 3),
    (1, 5),
    (1, 7),
    (1, 8),
    (1, 9),
    (5, 0),
    (5, 1),
    (5, 2),
    (10, 200),
    (10, 229),
];

/// How much a layer may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of file content in one layer.
    pub layer_bytes: u64,
    /// Members of one layer.
    pub layer_members: u64,
}

impl Default for Limits {
    /// More than the largest images known have; less than what makes a machine unusable.
    fn default() -> Limits {
        Limits {
            layer_bytes: 256 << 30,
            layer_members: 5_000_000,
        }
    }
}

/// Why a layer cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The stream is no tar, or damaged.
    #[error("damaged: {0}")]
    Stream(#[source] std::io::Error),
    /// One of its members cannot be what it wants to be.
    #[error("{path}: {fault}")]
    Member {
        /// Its name in the layer.
        path: String,
        /// Why.
        #[source]
        fault: Fault,
    },
    /// It is larger than allowed.
    #[error("unpacks to more than {} GiB, which is the limit", .0 >> 30)]
    Bytes(u64),
    /// It has more members than allowed.
    #[error("has more than {0} members, which is the limit")]
    Members(u64),
    /// The disk is too small, here for one of its files.
    #[error(
        "{path} is {needed} bytes long, and {free} bytes of the disk may be used: free some space and try again"
    )]
    Space {
        /// Its name in the layer.
        path: String,
        /// Its length.
        needed: u64,
        /// What there is, but for what is left to others.
        free: u64,
    },
}

impl LayerError {
    /// Whether the stream may be at fault, so that its digest is the better explanation.
    pub(crate) fn is_of_stream(&self) -> bool {
        !matches!(
            self,
            LayerError::Space { .. }
                | LayerError::Bytes(_)
                | LayerError::Members(_)
                | LayerError::Member {
                    fault: Fault::Write(_),
                    ..
                }
        )
    }
}

/// What was unpacked.
#[derive(Debug, Default)]
pub(crate) struct Unpacked {
    /// Bytes of file content.
    pub(crate) size: u64,
    /// How many things were in the stream.
    pub(crate) members: u64,
    /// Directories without a description of their own.
    pub(crate) implied: Vec<Vec<u8>>,
    pub(crate) root_described: bool,
    pub(crate) root_opaque: bool,
    /// Names of the first devices that were left out.
    pub(crate) devices_left_out: Vec<String>,
}

/// Unpacks a tar stream into an empty directory that nobody else writes to.
pub(crate) fn unpack(
    stream: impl Read,
    root: OwnedFd,
    limits: Limits,
) -> Result<Unpacked, LayerError> {
    let space = root.try_clone().map_err(LayerError::Stream)?;
    let allowance = Allowance::new();
    let mut archive = tar::Archive::new(Allowed::new(stream, allowance.clone()));
    let mut tree = Tree::new(root);
    let mut unpacked = Unpacked::default();
    let mut room = Room::default();
    let mut read = 0;
    let mut entries = archive.entries().map_err(LayerError::Stream)?;
    loop {
        allowance.limit(HEADER_BYTES_MAX);
        let mut entry = match entries.next() {
            Some(entry) => entry.map_err(LayerError::Stream)?,
            None => break,
        };
        allowance.lift();
        if unpacked.members == limits.layer_members {
            return Err(LayerError::Members(limits.layer_members));
        }
        unpacked.members += 1;
        let path = entry.path_bytes().into_owned();
        let printed = || String::from_utf8_lossy(&path).into_owned();
        let size = entry.size();
        // Of whatever type: what is stepped over must be decompressed, too.
        if size > limits.layer_bytes - read {
            return Err(LayerError::Bytes(limits.layer_bytes));
        }
        read += size;
        let kind = entry.header().entry_type();
        if kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse() {
            let asked = room.ask(&space, size).map_err(LayerError::Stream)?;
            asked.map_err(|NoRoom { free }| LayerError::Space {
                path: printed(),
                needed: size,
                free,
            })?;
            unpacked.size += size;
        }
        let put = put(&mut tree, &mut entry, &path).map_err(|fault| LayerError::Member {
            path: printed(),
            fault,
        })?;
        if put == Put::DeviceLeftOut && unpacked.devices_left_out.len() < DEVICES_NAMED_MAX {
            unpacked.devices_left_out.push(printed());
        }
        // What is left of it would otherwise count against the next member's headers.
        std::io::copy(&mut entry, &mut std::io::sink()).map_err(LayerError::Stream)?;
    }
    let filled = tree.finish().map_err(|fault| LayerError::Member {
        path: "/".to_owned(),
        fault,
    })?;
    Ok(Unpacked {
        implied: filled.implied,
        root_described: filled.root_described,
        root_opaque: filled.root_opaque,
        ..unpacked
    })
}

#[derive(PartialEq)]
enum Put {
    Done,
    DeviceLeftOut,
}

fn put<R: Read>(tree: &mut Tree, entry: &mut Entry<'_, R>, path: &[u8]) -> Result<Put, Fault> {
    let kind = entry.header().entry_type();
    if kind.is_pax_global_extensions() {
        return Ok(Put::Done);
    }
    if put_whiteout(tree, path)? {
        return Ok(Put::Done);
    }
    let attributes = attributes(entry)?;
    let size = entry.size();
    match kind {
        // Archives older than POSIX's have no type for directories.
        EntryType::Regular if path.ends_with(b"/") => tree.directory(path, &attributes)?,
        EntryType::Regular | EntryType::Continuous => {
            tree.file(path, &attributes, entry, size, false)?;
        }
        EntryType::GNUSparse => tree.file(path, &attributes, entry, size, true)?,
        EntryType::Directory => tree.directory(path, &attributes)?,
        EntryType::Symlink => tree.symlink(path, &link_target(entry), &attributes)?,
        EntryType::Link => tree.hard_link(path, &link_target(entry))?,
        EntryType::Fifo => tree.fifo(path, &attributes)?,
        EntryType::Char => {
            let device = device(entry)?;
            if !DEVICES.contains(&device) {
                return Ok(Put::DeviceLeftOut);
            }
            tree.device(path, &attributes, device)?;
        }
        EntryType::Block => return Ok(Put::DeviceLeftOut),
        other => return Err(Fault::Kind(char::from(other.as_byte()))),
    }
    Ok(Put::Done)
}

/// Whether the name is one of those that say what is not there any more.
fn put_whiteout(tree: &mut Tree, path: &[u8]) -> Result<bool, Fault> {
    let trimmed = path.strip_suffix(b"/").unwrap_or(path);
    let (directory, name) = match trimmed.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => trimmed.split_at(slash + 1),
        None => trimmed.split_at(0),
    };
    let mut above = directory.split(|&byte| byte == b'/');
    if above.any(|part| part.starts_with(WHITEOUT_META)) {
        return Ok(true);
    }
    let Some(hidden) = name.strip_prefix(WHITEOUT) else {
        return Ok(false);
    };
    if name == OPAQUE {
        tree.opaque(directory)?;
    } else if matches!(hidden, b"" | b"." | b"..") {
        return Err(Fault::Whiteout);
    } else if !name.starts_with(WHITEOUT_META) {
        tree.whiteout(&[directory, hidden].concat())?;
    }
    Ok(true)
}

fn link_target<R: Read>(entry: &Entry<'_, R>) -> Vec<u8> {
    entry.link_name_bytes().unwrap_or_default().into_owned()
}

fn device<R: Read>(entry: &Entry<'_, R>) -> Result<(u32, u32), Fault> {
    let number = |number: std::io::Result<Option<u32>>| match number {
        Ok(Some(number)) => Ok(number),
        _ => Err(Fault::Header("device number")),
    };
    Ok((
        number(entry.header().device_major())?,
        number(entry.header().device_minor())?,
    ))
}

fn attributes<R: Read>(entry: &mut Entry<'_, R>) -> Result<Attributes, Fault> {
    let header = entry.header();
    let old = header.as_old();
    let id = |field: &[u8], id: std::io::Result<u64>, what| match id.map(u32::try_from) {
        // The largest number means "leave it" to the kernel.
        Ok(Ok(id)) if id != u32::MAX => Ok(id),
        Err(_) if is_blank(field) => Ok(0),
        _ => Err(Fault::Header(what)),
    };
    let mode = match header.mode() {
        Err(_) if !is_blank(&old.mode) => return Err(Fault::Header("mode")),
        mode => mode.unwrap_or(0),
    };
    let mut attributes = Attributes {
        mode: mode & 0o7777,
        uid: id(&old.uid, header.uid(), "owner")?,
        gid: id(&old.gid, header.gid(), "group")?,
        modified: (bounded_time(header.mtime().ok()), 0),
        xattrs: Vec::new(),
    };
    let Some(extensions) = entry.pax_extensions().map_err(Fault::Read)? else {
        return Ok(attributes);
    };
    for extension in extensions {
        let extension = extension.map_err(Fault::Read)?;
        let (key, value) = (extension.key_bytes(), extension.value_bytes());
        match key {
            b"mtime" => attributes.modified = pax_time(value).unwrap_or(attributes.modified),
            // Would otherwise land as a file that begins with a map of its holes.
            key if key.starts_with(b"GNU.sparse.") => return Err(Fault::Header("sparse map")),
            key => match key.strip_prefix(XATTR) {
                Some(name) if is_kept(name) => {
                    attributes.xattrs.push((name.to_vec(), value.to_vec()));
                }
                _ => {}
            },
        }
    }
    Ok(attributes)
}

/// A number that the archiver left out is 0.
fn is_blank(field: &[u8]) -> bool {
    field.iter().all(|&byte| byte == 0 || byte == b' ')
}

/// Damaged times, and those before 1970, are 1970: nobody refuses an image for them.
fn bounded_time(seconds: Option<u64>) -> i64 {
    seconds
        .and_then(|seconds| i64::try_from(seconds).ok())
        .filter(|&seconds| seconds <= TIME_MAX)
        .unwrap_or(0)
}

/// Decimal seconds with a fraction (POSIX, pax, extended header `mtime`).
fn pax_time(text: &[u8]) -> Option<(i64, i64)> {
    let text = std::str::from_utf8(text).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    if seconds.starts_with('-') {
        return Some((0, 0));
    }
    let nanoseconds = fraction
        .bytes()
        .chain(std::iter::repeat(b'0'))
        .take(9)
        .try_fold(0, |sum, digit| {
            digit
                .is_ascii_digit()
                .then(|| sum * 10 + i64::from(digit - b'0'))
        })?;
    Some((bounded_time(Some(seconds.parse().ok()?)), nanoseconds))
}

#[cfg(test)]
mod tests;
