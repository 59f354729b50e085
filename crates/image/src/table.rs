//! The table of what there is: one small document, always replaced as a whole.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use oci::{Digest, Reference};
use serde::{Deserialize, Serialize};

const FILE: &str = "images.json";
/// Raised when an older Wharf could not read what is written.
const VERSION: u32 = 1;

/// Why the table cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// It is there, but cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no such table.
    #[error("{} is damaged: {source}; move it away to start with no images", path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A newer Wharf wrote it.
    #[error("{} is of a newer version ({version}); use the Wharf that wrote it", path.display())]
    Version {
        /// Which file.
        path: PathBuf,
        /// What it says.
        version: u32,
    },
    /// The disk refused; the old table stands.
    #[error("cannot write {}: {source}; nothing was changed", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What there is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Table {
    version: u32,
    pub(crate) images: BTreeMap<Digest, Row>,
    pub(crate) names: BTreeMap<Reference, Named>,
}

/// One image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    /// Keys of its layers, lowest first.
    pub(crate) layers: Vec<Digest>,
}

/// What a name means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Named {
    pub(crate) image: Digest,
    /// Its manifest's digest, as `name@digest` asks for it; unknown for plain `docker save` archives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) manifest: Option<Digest>,
}

impl Default for Table {
    fn default() -> Table {
        Table {
            version: VERSION,
            images: BTreeMap::new(),
            names: BTreeMap::new(),
        }
    }
}

impl Table {
    /// No file is an empty table.
    pub(crate) fn read(directory: &Path) -> Result<Table, TableError> {
        let path = directory.join(FILE);
        let content = match std::fs::read(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Table::default()),
            Err(source) => return Err(TableError::Read { path, source }),
        };
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let parsed = serde_json::from_slice::<Version>(&content).and_then(|Version { version }| {
            if version > VERSION {
                return Ok(Err(version));
            }
            serde_json::from_slice(&content).map(Ok)
        });
        match parsed {
            Ok(Ok(table)) => Ok(table),
            Ok(Err(version)) => Err(TableError::Version { path, version }),
            Err(source) => Err(TableError::Parse { path, source }),
        }
    }

    /// Replaces the table. When this returns, the new one survives a loss of power.
    pub(crate) fn write(&self, directory: &Path) -> Result<(), TableError> {
        let content = serde_json::to_vec(self).expect("digests and names are plain data");
        replace(directory, FILE, &content).map_err(|source| TableError::Write {
            path: directory.join(FILE),
            source,
        })
    }

    /// Names of an image, sorted.
    pub(crate) fn names_of(&self, image: &Digest) -> Vec<Reference> {
        self.names
            .iter()
            .filter(|(_, named)| named.image == *image)
            .map(|(name, _)| name.clone())
            .collect()
    }
}

/// Writes a file so that there is either the old content or the new one, also after a loss of power.
pub(crate) fn replace(directory: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let mut file = tempfile::Builder::new()
        .prefix(".new-")
        .tempfile_in(directory)?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(directory.join(name))
        .map_err(|error| error.error)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read_back() {
        let place = tempfile::tempdir().expect("a temporary directory");
        assert!(
            Table::read(place.path())
                .expect("no table")
                .names
                .is_empty()
        );
        let mut table = Table::default();
        let (image, name) = (Digest::of(b"x"), Reference::parse("x").expect("a name"));
        table.images.insert(
            image.clone(),
            Row {
                layers: vec![Digest::of(b"l")],
            },
        );
        table.names.insert(
            name.clone(),
            Named {
                image: image.clone(),
                manifest: None,
            },
        );
        table.write(place.path()).expect("a written table");
        let read = Table::read(place.path()).expect("a table");
        assert_eq!(read.names_of(&image), [name]);
        assert_eq!(read.images[&image].layers, [Digest::of(b"l")]);
        let files: Vec<_> = std::fs::read_dir(place.path())
            .expect("a directory")
            .collect();
        assert_eq!(files.len(), 1, "{files:?}");
    }

    #[test]
    fn a_bad_table_names_the_next_step() {
        #[track_caller]
        fn check(content: &str, expected: &str) {
            let place = tempfile::tempdir().expect("a temporary directory");
            std::fs::write(place.path().join(FILE), content).expect("a file");
            let error = Table::read(place.path())
                .expect_err("a bad table")
                .to_string();
            assert!(error.contains(expected), "{error}");
        }
        check("", "move it away");
        check("{\"version\":1", "move it away");
        check(
            r#"{"version":1,"images":{"../x":{"layers":[]}},"names":{}}"#,
            "move it away",
        );
        check(r#"{"version":9,"other":0}"#, "newer version (9)");
    }
}
