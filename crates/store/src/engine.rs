//! What the store wants from a disk.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use crate::{Key, Revision};

/// One stored value, as it is read at the start.
#[derive(Debug)]
pub struct Row {
    /// The space of its key.
    pub space: String,
    /// The name of its key.
    pub name: String,
    /// When it was written.
    pub revision: Revision,
    /// The value.
    pub bytes: Vec<u8>,
}

/// One difference between the stored state and the state to be stored.
#[derive(Clone, Debug)]
pub enum Change {
    /// The key gets this value.
    Put {
        /// Which key.
        key: Key,
        /// When it was written.
        revision: Revision,
        /// The value.
        bytes: Bytes,
    },
    /// The key goes.
    Delete {
        /// Which key.
        key: Key,
    },
}

/// Keeps the state over restarts. One thread uses it, so nothing in it has to be shared.
pub trait DurableEngine: Send {
    /// Hands every stored value to `row`, in any order, and returns the revision of the newest
    /// commit ever made, which may be that of a deletion.
    ///
    /// # Errors
    /// When what is stored cannot be read or understood.
    fn load(&mut self, row: &mut dyn FnMut(Row)) -> Result<Revision, OpenError>;

    /// Makes `changes` durable, all or none, in order, together with `newest`, the revision of the
    /// last of them. `Ok` means that they survive power loss.
    ///
    /// # Errors
    /// When nothing was written. Later commits are tried all the same.
    fn commit(&mut self, changes: &[Change], newest: Revision) -> Result<(), EngineError>;

    /// Leaves the disk in order. Nothing else is called afterwards.
    ///
    /// # Errors
    /// When tidying up failed; what was committed is durable nevertheless.
    fn close(&mut self) -> Result<(), EngineError>;
}

/// Why a store does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file or its directory cannot be made, opened or protected.
    #[error("store file {path}: {source}")]
    File {
        /// The database file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process has the store open.
    #[error("store {path} is in use by another process; stop that one first")]
    InUse {
        /// The database file.
        path: PathBuf,
    },
    /// The file is something else.
    #[error("{path} is not a store of this program; move it away to begin with an empty one")]
    NotAStore {
        /// The file.
        path: PathBuf,
    },
    /// A newer program has written the file.
    #[error(
        "store {path} has format {found}, this program knows formats up to {known}; use the newer program"
    )]
    Newer {
        /// The database file.
        path: PathBuf,
        /// The format that was found.
        found: i64,
        /// The newest format that this program reads.
        known: i64,
    },
    /// The database refused.
    #[error("open store {path}: {source}")]
    Database {
        /// The database file.
        path: PathBuf,
        /// What the database said.
        source: rusqlite::Error,
    },
    /// The writer thread did not start.
    #[error("start the store's writer thread: {0}")]
    Thread(#[source] io::Error),
    /// The engine or the extraction panicked while loading.
    #[error("the store's writer panicked while loading")]
    WriterPanicked,
}

/// Why the engine did not write.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EngineError {
    /// There is no room.
    #[error("no space left for store {path}; make room on its disk and try again")]
    Full {
        /// The database file.
        path: PathBuf,
    },
    /// Another program holds the database's write lock.
    #[error("store {path} is locked by another program that writes to it; stop that one")]
    Locked {
        /// The database file.
        path: PathBuf,
    },
    /// The database refused.
    #[error("write to store {path}: {source}")]
    Database {
        /// The database file.
        path: PathBuf,
        /// What the database said.
        source: Arc<rusqlite::Error>,
    },
    /// Anything else, for engines that are not files.
    #[error("write to store: {0}")]
    Io(#[source] Arc<io::Error>),
}
