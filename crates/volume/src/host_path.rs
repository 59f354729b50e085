//! Paths of the machine that are to be what somebody says they are.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use crate::{MachineError, failed};

/// What a path is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostPathKind {
    /// Whatever it is; a directory is made if it is absent, as container runtimes do.
    Any,
    /// A directory.
    Directory,
    /// A directory, which is made if absent (0755, with those above it).
    DirectoryOrCreate,
    /// A file.
    File,
    /// A file, which is made if absent (0644); its directory must be there.
    FileOrCreate,
    /// A unix socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

impl HostPathKind {
    /// From the word of the Kubernetes API; `None` for one that it does not have.
    pub fn from_word(word: &str) -> Option<HostPathKind> {
        Some(match word {
            "" => HostPathKind::Any,
            "Directory" => HostPathKind::Directory,
            "DirectoryOrCreate" => HostPathKind::DirectoryOrCreate,
            "File" => HostPathKind::File,
            "FileOrCreate" => HostPathKind::FileOrCreate,
            "Socket" => HostPathKind::Socket,
            "CharDevice" => HostPathKind::CharDevice,
            "BlockDevice" => HostPathKind::BlockDevice,
            _ => return None,
        })
    }

    fn noun(self) -> &'static str {
        match self {
            HostPathKind::Any => "there",
            HostPathKind::Directory | HostPathKind::DirectoryOrCreate => "a directory",
            HostPathKind::File | HostPathKind::FileOrCreate => "a file",
            HostPathKind::Socket => "a socket file",
            HostPathKind::CharDevice => "a character device",
            HostPathKind::BlockDevice => "a block device",
        }
    }
}

/// Why a path cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostPathError {
    /// It is something else, or absent; the text is upstream's.
    #[error("hostPath type check failed: {path} is not {noun}")]
    Kind {
        /// Which path.
        path: String,
        /// What it was to be, with its article.
        noun: &'static str,
    },
    /// It could not be looked at or made.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// Sees to it that a path is of a kind; links are followed.
pub fn check_host_path(path: &Path, kind: HostPathKind) -> Result<(), HostPathError> {
    let found = match fs::metadata(path) {
        Ok(metadata) => Some(metadata.file_type()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        // A file on the way: nothing is there, and nothing can be made there.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => None,
        Err(error) => return Err(failed("look at", path)(error).into()),
    };
    let Some(found) = found else {
        return make(path, kind);
    };
    let fits = match kind {
        HostPathKind::Any => true,
        HostPathKind::Directory | HostPathKind::DirectoryOrCreate => found.is_dir(),
        HostPathKind::File | HostPathKind::FileOrCreate => found.is_file(),
        HostPathKind::Socket => found.is_socket(),
        HostPathKind::CharDevice => found.is_char_device(),
        HostPathKind::BlockDevice => found.is_block_device(),
    };
    if fits { Ok(()) } else { Err(wrong(path, kind)) }
}

fn make(path: &Path, kind: HostPathKind) -> Result<(), HostPathError> {
    match kind {
        HostPathKind::Any | HostPathKind::DirectoryOrCreate => fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path)
            .map_err(failed("make directory", path))?,
        HostPathKind::FileOrCreate => {
            fs::OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o644)
                .open(path)
                .map_err(failed("make file", path))?;
        }
        _ => return Err(wrong(path, kind)),
    }
    Ok(())
}

fn wrong(path: &Path, kind: HostPathKind) -> HostPathError {
    HostPathError::Kind {
        path: path.display().to_string(),
        noun: kind.noun(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(path: &Path, word: &str, expected: &str) {
        let kind = HostPathKind::from_word(word).expect("a word of the API");
        let found = match check_host_path(path, kind) {
            Ok(()) => "fine".to_owned(),
            Err(error) => error.to_string(),
        };
        assert_eq!(
            found.replace(path.to_str().expect("plain"), "@"),
            expected,
            "{word}"
        );
    }

    #[test]
    fn paths_are_what_they_are_said_to_be() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let (file, socket) = (place.path().join("file"), place.path().join("socket"));
        fs::write(&file, "").expect("a file");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
        let absent = place.path().join("absent");
        for (word, noun) in [
            ("Directory", "a directory"),
            ("File", "a file"),
            ("Socket", "a socket file"),
            ("CharDevice", "a character device"),
            ("BlockDevice", "a block device"),
        ] {
            check(
                &absent,
                word,
                &format!("hostPath type check failed: @ is not {noun}"),
            );
        }
        check(place.path(), "Directory", "fine");
        check(place.path(), "DirectoryOrCreate", "fine");
        check(&file, "File", "fine");
        check(&file, "FileOrCreate", "fine");
        check(&file, "", "fine");
        check(&socket, "Socket", "fine");
        check(Path::new("/dev/null"), "CharDevice", "fine");
        check(
            &file,
            "DirectoryOrCreate",
            "hostPath type check failed: @ is not a directory",
        );
        check(
            &file.join("below"),
            "File",
            "hostPath type check failed: @ is not a file",
        );
        check(
            place.path(),
            "FileOrCreate",
            "hostPath type check failed: @ is not a file",
        );
        check(
            &socket,
            "File",
            "hostPath type check failed: @ is not a file",
        );
        check(&absent, "FileOrCreate", "fine");
        assert!(absent.is_file());
        check(&place.path().join("a/b"), "DirectoryOrCreate", "fine");
        check(&place.path().join("c/d"), "", "fine");
        assert!(place.path().join("a/b").is_dir() && place.path().join("c/d").is_dir());
        check(
            &place.path().join("e/f"),
            "FileOrCreate",
            "make file @: No such file or directory (os error 2)",
        );
        assert_eq!(HostPathKind::from_word("Odd"), None);
    }
}
