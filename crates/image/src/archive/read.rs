//! An archive as a table of named parts that can be read in any order, several at once.
//!
//! A plain file is read where it lies. What is compressed, or comes through a pipe, is first
//! written to a file without a name, which is gone with the process.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::compression::{Compression, MAGIC_LENGTH};
use crate::space::{NoRoom, Room};
use crate::stream::{Allowance, Allowed, Cancel, Part, Watch};

/// More members than any image archive has.
const MEMBERS_MAX: usize = 100_000;
/// Names and extended headers of one member.
const HEADER_BYTES_MAX: u64 = 1 << 20;
/// Links from one member to another, followed one after the other.
const HOPS_MAX: usize = 8;

/// Where an archive comes from.
pub enum Source {
    /// A file.
    Path(PathBuf),
    /// Anything that can be read once, such as standard input.
    Reader(Box<dyn Read + Send>),
}

impl From<PathBuf> for Source {
    fn from(path: PathBuf) -> Source {
        Source::Path(path)
    }
}

impl From<&Path> for Source {
    fn from(path: &Path) -> Source {
        Source::Path(path.to_owned())
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Path(path) => formatter.debug_tuple("Path").field(path).finish(),
            Source::Reader(_) => formatter.write_str("Reader"),
        }
    }
}

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// There is no such file, or it may not be read.
    #[error("cannot open {}: {source}", path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is a directory.
    #[error("{} is a directory: pack it with `tar -cf image.tar -C {} .` first", .0.display(), .0.display())]
    Directory(PathBuf),
    /// Reading or decompressing failed.
    #[error("cannot read the archive: {0}")]
    Read(#[source] io::Error),
    /// The decompressed archive does not fit.
    #[error("cannot keep the archive in {} while it is read: {source}; free some space there and try again", directory.display())]
    Spool {
        /// Where it was to be kept.
        directory: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The decompressed archive would take what others need of the disk.
    #[error("the archive unpacks to more than {read} bytes, and {free} bytes of the disk at {} may be used: free some space there and try again", directory.display())]
    NoRoom {
        /// What was read of it so far.
        read: u64,
        /// What may still be written.
        free: u64,
        /// Where it was to be kept.
        directory: PathBuf,
    },
    /// It is no tar, or damaged.
    #[error("this is not a tar archive, or a damaged one: {0}")]
    NotTar(#[source] io::Error),
    /// It ends before its end.
    #[error("the archive ends in the middle of {0}: it was not written or copied to its end")]
    Truncated(String),
    /// There is nothing in it.
    #[error("the archive is empty")]
    Empty,
    /// It has more members than an image can have.
    #[error("the archive has more than {MEMBERS_MAX} members")]
    TooManyMembers,
    /// A document in it is longer than such documents are.
    #[error("{path} is {length} bytes long; more than {limit} are not read")]
    TooLong {
        /// Which member.
        path: String,
        /// Its length.
        length: u64,
        /// What is read at most.
        limit: u64,
    },
}

/// Where the content of a member lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member {
    start: u64,
    pub(crate) length: u64,
}

enum Found {
    Content(Member),
    /// To another member: old `docker save` writes a layer that occurs twice as a link.
    Link(String),
}

/// An archive whose members are known.
pub(crate) struct Archive {
    file: File,
    members: HashMap<String, Found>,
}

impl Archive {
    /// Reads the table of contents. `spool` is a directory with room for the plain archive.
    pub(crate) fn open(
        source: Source,
        spool: &Path,
        cancel: &Cancel,
        watch: Watch<'_>,
    ) -> Result<Archive, ArchiveError> {
        let file = match source {
            Source::Path(path) => open_path(path, spool, cancel, watch)?,
            Source::Reader(reader) => spool_plain(reader, spool, cancel, watch)?,
        };
        let length = file.metadata().map_err(ArchiveError::Read)?.len();
        if length == 0 {
            return Err(ArchiveError::Empty);
        }
        let members = index(&file, length, cancel)?;
        Ok(Archive { file, members })
    }

    /// Finds a member, also through links within the archive.
    pub(crate) fn find(&self, path: &str) -> Option<Member> {
        let mut path = clean(path)?;
        for _ in 0..HOPS_MAX {
            match self.members.get(&path)? {
                Found::Content(member) => return Some(*member),
                Found::Link(target) => path = target.clone(),
            }
        }
        None
    }

    /// The content of a short member; `None` if there is no such member.
    pub(crate) fn bytes(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, ArchiveError> {
        let Some(member) = self.find(path) else {
            return Ok(None);
        };
        if member.length > limit {
            return Err(ArchiveError::TooLong {
                path: path.to_owned(),
                length: member.length,
                limit,
            });
        }
        let length = usize::try_from(member.length).expect("the limits of documents are small");
        let mut content = vec![0; length];
        self.file
            .read_exact_at(&mut content, member.start)
            .map_err(ArchiveError::Read)?;
        Ok(Some(content))
    }

    /// How a member is compressed.
    pub(crate) fn compression(&self, member: Member) -> io::Result<Compression> {
        let mut first = [0; MAGIC_LENGTH];
        let wanted =
            usize::try_from(member.length).map_or(MAGIC_LENGTH, |length| length.min(MAGIC_LENGTH));
        self.file
            .read_exact_at(&mut first[..wanted], member.start)?;
        Ok(Compression::detect(&first[..wanted]))
    }

    /// The content of a member.
    pub(crate) fn read<'a>(&'a self, member: Member, cancel: &'a Cancel) -> Part<'a> {
        Part::new(&self.file, member.start, member.length, cancel)
    }
}

fn open_path(
    path: PathBuf,
    spool: &Path,
    cancel: &Cancel,
    watch: Watch<'_>,
) -> Result<File, ArchiveError> {
    let file = File::open(&path).map_err(|source| ArchiveError::Open {
        path: path.clone(),
        source,
    })?;
    let metadata = file.metadata().map_err(ArchiveError::Read)?;
    if metadata.is_dir() {
        return Err(ArchiveError::Directory(path));
    }
    if !metadata.is_file() {
        return spool_plain(Box::new(file), spool, cancel, watch);
    }
    let mut first = [0; MAGIC_LENGTH];
    let read = file.read_at(&mut first, 0).map_err(ArchiveError::Read)?;
    match Compression::detect(&first[..read]) {
        Compression::None => Ok(file),
        _ => spool_plain(Box::new(file), spool, cancel, watch),
    }
}

/// Writes the plain archive to a file without a name.
fn spool_plain(
    mut reader: Box<dyn Read + Send>,
    directory: &Path,
    cancel: &Cancel,
    watch: Watch<'_>,
) -> Result<File, ArchiveError> {
    let mut first = Vec::new();
    reader
        .by_ref()
        .take(MAGIC_LENGTH as u64)
        .read_to_end(&mut first)
        .map_err(ArchiveError::Read)?;
    let compression = Compression::detect(&first);
    let mut plain = compression
        .decode(io::BufReader::with_capacity(
            1 << 17,
            io::Cursor::new(first).chain(reader),
        ))
        .map_err(ArchiveError::Read)?;
    let spool_error = |source| ArchiveError::Spool {
        directory: directory.to_owned(),
        source,
    };
    let mut file = tempfile::tempfile_in(directory).map_err(spool_error)?;
    let mut buffer = vec![0; 1 << 17];
    let (mut room, mut total) = (Room::default(), 0);
    loop {
        cancel.check().map_err(ArchiveError::Read)?;
        let read = match plain.read(&mut buffer) {
            Ok(0) => return Ok(file),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(ArchiveError::Read(error)),
        };
        total += read as u64;
        let asked = room.ask(&file, read as u64).map_err(spool_error)?;
        asked.map_err(|NoRoom { free }| ArchiveError::NoRoom {
            read: total,
            free,
            directory: directory.to_owned(),
        })?;
        file.write_all(&buffer[..read]).map_err(spool_error)?;
        watch(read as u64);
    }
}

fn index(
    file: &File,
    length: u64,
    cancel: &Cancel,
) -> Result<HashMap<String, Found>, ArchiveError> {
    let allowance = Allowance::new();
    let reader = Allowed::new(Part::new(file, 0, length, cancel), allowance.clone());
    let mut archive = tar::Archive::new(reader);
    let mut members = HashMap::new();
    let mut entries = archive.entries_with_seek().map_err(ArchiveError::NotTar)?;
    for count in 0.. {
        allowance.limit(HEADER_BYTES_MAX);
        let entry = match entries.next() {
            Some(entry) => entry.map_err(ArchiveError::NotTar)?,
            None => break,
        };
        if count == MEMBERS_MAX {
            return Err(ArchiveError::TooManyMembers);
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let member = Member {
            start: entry.raw_file_position(),
            length: entry.size(),
        };
        let kind = entry.header().entry_type();
        let found = if kind.is_file() {
            if member
                .start
                .checked_add(member.length)
                .is_none_or(|end| end > length)
            {
                return Err(ArchiveError::Truncated(name));
            }
            Found::Content(member)
        } else if kind.is_symlink() || kind.is_hard_link() {
            let target = entry.link_name_bytes().unwrap_or_default();
            let target = String::from_utf8_lossy(&target).into_owned();
            let target = match name.rsplit_once('/') {
                Some((directory, _)) if kind.is_symlink() => format!("{directory}/{target}"),
                _ => target,
            };
            match clean(&target) {
                Some(target) => Found::Link(target),
                // It leads out of the archive, so it leads to no member.
                None => continue,
            }
        } else {
            continue;
        };
        if let Some(name) = clean(&name) {
            members.insert(name, found);
        }
    }
    if members.is_empty() {
        return Err(ArchiveError::Empty);
    }
    Ok(members)
}

/// `./a//b/../c` → `a/c`; `None` if it leads out of the archive.
fn clean(path: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(bytes: &[u8]) -> Result<Archive, ArchiveError> {
        let spool = tempfile::tempdir().expect("a temporary directory");
        let source = Source::Reader(Box::new(io::Cursor::new(bytes.to_vec())));
        let archive = Archive::open(source, spool.path(), &Cancel::default(), &|_| ());
        let left = std::fs::read_dir(spool.path())
            .expect("a directory")
            .count();
        assert_eq!(left, 0, "the spool has no name");
        archive
    }

    fn archive(members: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, content) in members {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            if kind.is_file() {
                header.set_size(content.len() as u64);
                builder
                    .append_data(&mut header, name, content.as_bytes())
                    .expect("memory");
            } else {
                header.set_size(0);
                builder
                    .append_link(&mut header, name, content)
                    .expect("memory");
            }
        }
        builder.into_inner().expect("memory")
    }

    #[test]
    fn members_are_found_under_their_names_and_through_links() {
        use tar::EntryType;
        let bytes = archive(&[
            ("./one/layer.tar", EntryType::Regular, "first"),
            ("two/layer.tar", EntryType::Symlink, "../one/layer.tar"),
            ("three", EntryType::Link, "one/layer.tar"),
            ("twice", EntryType::Regular, "the first of two"),
            ("./twice", EntryType::Regular, "the last"),
            ("loop", EntryType::Symlink, "loop"),
            ("out", EntryType::Symlink, "../../etc/passwd"),
        ]);
        for compressed in [
            bytes.clone(),
            zstd::encode_all(&bytes[..], 1).expect("memory"),
        ] {
            let archive = open(&compressed).expect("an archive");
            let read = |path: &str| archive.bytes(path, 100).expect("a short member");
            for path in [
                "one/layer.tar",
                "./one//layer.tar",
                "two/layer.tar",
                "three",
                "x/../three",
            ] {
                assert_eq!(read(path).as_deref(), Some(&b"first"[..]), "{path}");
            }
            assert_eq!(read("twice").as_deref(), Some(&b"the last"[..]));
            for path in ["loop", "out", "two", "../three", ""] {
                assert_eq!(read(path), None, "{path}");
            }
            assert!(matches!(
                archive.bytes("three", 4),
                Err(ArchiveError::TooLong { length: 5, .. })
            ));
        }
    }

    #[test]
    fn what_is_no_whole_archive_says_so() {
        #[track_caller]
        fn check(bytes: &[u8], expected: &str) {
            let error = open(bytes).err().expect("no archive").to_string();
            assert!(error.contains(expected), "{error}");
        }
        let whole = archive(&[("a", tar::EntryType::Regular, &"x".repeat(5000))]);
        check(b"", "is empty");
        check(&[0; 1024], "is empty");
        check(b"hello, I am not an archive", "not a tar archive");
        check(&vec![7; 4096], "not a tar archive");
        check(&whole[..3000], "ends in the middle of a");
        check(&whole[..100], "not a tar archive");
        let zipped = zstd::encode_all(&whole[..], 1).expect("memory");
        check(&zipped[..zipped.len() - 5], "cannot read the archive");
        check(b"BZh91AY&SY", "`bzip2 -d`");
    }

    #[test]
    fn an_endless_name_is_not_kept_in_memory() {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_path("././@LongLink").expect("a short name");
        header.set_size(1 << 40);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.resize(4 << 20, b'a');
        let error = open(&bytes).err().expect("no archive").to_string();
        assert!(error.contains("longer than any archiver writes"), "{error}");
    }
}
