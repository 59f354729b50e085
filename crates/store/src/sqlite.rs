//! The engine on one SQLite file: nothing to install, and operators can look in with `sqlite3`.
//!
//! WAL mode with `synchronous=FULL`: a commit is one append and one sync of the log, and is durable
//! when it returns (<https://sqlite.org/pragma.html#pragma_synchronous>). The memory above is the
//! cache, so SQLite's own is kept small.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, params};

use crate::{Change, DurableEngine, EngineError, OpenError, Revision, Row};

/// Marks the file as ours in its header ("Whrf"); `file` and `PRAGMA application_id` show it.
const APPLICATION_ID: i64 = 0x5768_7266;
/// The newest format that this program reads and the one that it writes.
const FORMAT: i64 = 1;
/// How long a commit waits for an operator's `sqlite3` that holds the write lock.
const TIMEOUT_BUSY: Duration = Duration::from_secs(2);

// An ordinary table with an index beside it, not one WITHOUT ROWID: bodies are larger than what an
// index page holds inline, and would each get an overflow page.
const SCHEMA: &str = "
    CREATE TABLE entry (
        id INTEGER PRIMARY KEY,
        space TEXT NOT NULL,
        name TEXT NOT NULL,
        revision INTEGER NOT NULL,
        body BLOB NOT NULL,
        UNIQUE (space, name)
    );
    CREATE TABLE newest (revision INTEGER NOT NULL);
    INSERT INTO newest (revision) VALUES (0);
";
const PUT: &str = "
    INSERT INTO entry (space, name, revision, body) VALUES (?1, ?2, ?3, ?4)
    ON CONFLICT (space, name) DO UPDATE SET revision = excluded.revision, body = excluded.body";
const DELETE: &str = "DELETE FROM entry WHERE space = ?1 AND name = ?2";
const NEWEST: &str = "UPDATE newest SET revision = ?1";

/// A store file that this process has open, alone.
#[derive(Debug)]
pub struct Sqlite {
    path: PathBuf,
    /// `None` once closed.
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    connection: Connection,
    /// SQLite would let a second process in; two memories over one file would overwrite each other.
    /// Held until after the connection is closed.
    lock: File,
}

impl Sqlite {
    /// Opens the store at `path` or makes an empty one, readable by its owner only.
    ///
    /// # Errors
    /// [`OpenError::InUse`] when another process has it open, [`OpenError::NotAStore`] and
    /// [`OpenError::Newer`] when the file is something else or newer than this program, and what
    /// the system says when it cannot be made. The file is not changed then.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, OpenError> {
        let path = path.into();
        let file = |source| OpenError::File {
            path: path.clone(),
            source,
        };
        let mut lock_path = path.clone().into_os_string();
        lock_path.push(".lock");
        let lock = private(lock_path.as_ref()).map_err(file)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse { path }),
            Err(TryLockError::Error(source)) => return Err(file(source)),
        }
        // Closed again before SQLite opens it: closing it later would drop SQLite's own locks.
        drop(private(&path).map_err(file)?);
        sync_directory(&path).map_err(file)?;
        let connection = connect(&path)?;
        Ok(Sqlite {
            path,
            open: Some(Open { connection, lock }),
        })
    }

    fn error(&self, error: rusqlite::Error) -> EngineError {
        let path = self.path.clone();
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => EngineError::Full { path },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                EngineError::Locked { path }
            }
            _ => EngineError::Database {
                path,
                source: Arc::new(error),
            },
        }
    }

    /// The engine is not used after it was closed; if it is, this is the error.
    fn closed(&self) -> EngineError {
        EngineError::Io(Arc::new(io::Error::new(
            io::ErrorKind::NotConnected,
            format!("{} is closed", self.path.display()),
        )))
    }
}

/// Opens or creates a file that only its owner can read, and makes it so if it was not.
fn private(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    let mut permissions = file.metadata()?.permissions();
    if permissions.mode() & 0o077 != 0 {
        permissions.set_mode(0o600);
        file.set_permissions(permissions)?;
    }
    Ok(file)
}

/// Makes the names of new files durable.
fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

fn connect(path: &Path) -> Result<Connection, OpenError> {
    let database = |source: rusqlite::Error| match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => OpenError::NotAStore { path: path.into() },
        _ => OpenError::Database {
            path: path.into(),
            source,
        },
    };
    // No mutex: one thread uses it. No URI: a path is a path.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(database)?;
    connection.busy_timeout(TIMEOUT_BUSY).map_err(database)?;
    let application: i64 = connection
        .pragma_query_value(None, "application_id", |row| row.get(0))
        .map_err(database)?;
    let format: i64 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(database)?;
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(database)?;
    if application == 0 && format == 0 && tables == 0 {
        // The file is empty, or a crash came before the first commit.
        configure(&connection).map_err(database)?;
        create(&connection).map_err(database)?;
    } else if application != APPLICATION_ID {
        return Err(OpenError::NotAStore { path: path.into() });
    } else if format > FORMAT {
        return Err(OpenError::Newer {
            path: path.into(),
            found: format,
            known: FORMAT,
        });
    } else {
        configure(&connection).map_err(database)?;
    }
    Ok(connection)
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    // In KiB when negative.
    connection.pragma_update(None, "cache_size", -1024)?;
    // Pages; a checkpoint writes a page once however often it has changed since the last.
    connection.pragma_update(None, "wal_autocheckpoint", 4000)?;
    connection.pragma_update(None, "journal_size_limit", 32 << 20)?;
    Ok(())
}

fn create(connection: &Connection) -> rusqlite::Result<()> {
    let transaction = connection.unchecked_transaction()?;
    transaction.execute_batch(SCHEMA)?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", FORMAT)?;
    transaction.commit()
}

/// SQLite's integers are signed; a store does not live to see 2⁶³ revisions.
fn stored(revision: Revision) -> i64 {
    revision.0.cast_signed()
}

fn loaded(revision: i64) -> Revision {
    Revision(revision.cast_unsigned())
}

fn read(connection: &Connection, row: &mut dyn FnMut(Row)) -> rusqlite::Result<Revision> {
    let mut select = connection.prepare("SELECT space, name, revision, body FROM entry")?;
    let mut rows = select.query([])?;
    while let Some(stored) = rows.next()? {
        row(Row {
            space: stored.get(0)?,
            name: stored.get(1)?,
            revision: loaded(stored.get(2)?),
            bytes: stored.get(3)?,
        });
    }
    connection.query_row("SELECT max(revision) FROM newest", [], |row| {
        row.get(0).map(loaded)
    })
}

fn write(connection: &Connection, changes: &[Change], newest: Revision) -> rusqlite::Result<()> {
    // Dropped on an error, it rolls back; SQLite may have done so already.
    let transaction = connection.unchecked_transaction()?;
    {
        let mut put = transaction.prepare_cached(PUT)?;
        let mut delete = transaction.prepare_cached(DELETE)?;
        for change in changes {
            match change {
                Change::Put {
                    key,
                    revision,
                    bytes,
                } => put.execute(params![
                    &*key.space,
                    &*key.name,
                    stored(*revision),
                    &bytes[..]
                ])?,
                Change::Delete { key } => delete.execute(params![&*key.space, &*key.name])?,
            };
        }
        transaction
            .prepare_cached(NEWEST)?
            .execute([stored(newest)])?;
    }
    transaction.commit()
}

impl DurableEngine for Sqlite {
    fn load(&mut self, row: &mut dyn FnMut(Row)) -> Result<Revision, OpenError> {
        let database = |source| OpenError::Database {
            path: self.path.clone(),
            source,
        };
        match &self.open {
            Some(open) => read(&open.connection, row).map_err(database),
            None => Err(OpenError::File {
                path: self.path.clone(),
                source: io::Error::new(io::ErrorKind::NotConnected, "it is closed"),
            }),
        }
    }

    fn commit(&mut self, changes: &[Change], newest: Revision) -> Result<(), EngineError> {
        let open = self.open.as_ref().ok_or_else(|| self.closed())?;
        write(&open.connection, changes, newest).map_err(|error| self.error(error))
    }

    fn close(&mut self) -> Result<(), EngineError> {
        let Some(Open { connection, lock }) = self.open.take() else {
            return Ok(());
        };
        // The last connection to close moves the log into the file and removes it.
        let closed = connection.close();
        drop(lock);
        closed.map_err(|(_, error)| self.error(error))
    }
}
