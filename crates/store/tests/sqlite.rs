//! The SQLite engine on real files: what survives, and what it refuses.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rusqlite::Connection;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use store::{
    Body, CommitError, EngineError, Health, Key, OpenError, Options, Revision, Sqlite, Store,
    Transaction,
};

async fn open(path: &Path) -> Result<Store<usize>, OpenError> {
    Store::open(
        Box::new(Sqlite::open(path)?),
        Arc::new(|_: &Key, bytes: &Bytes| bytes.len()),
        Options::default(),
    )
    .await
}

async fn put(store: &Store<usize>, name: &str, body: &[u8]) -> Result<Revision, CommitError> {
    let body = Body::plain(body.to_vec());
    let transaction = Transaction::new().put(Key::new("space", name), body);
    Ok(store.commit(transaction).await?.revision)
}

/// Names, revisions, lengths, and the lengths that the extraction saw.
fn content(store: &Store<usize>) -> Vec<(String, u64, usize, usize)> {
    store
        .snapshot()
        .range("space", "", None, usize::MAX)
        .map(|entry| {
            let name = entry.key.name.to_string();
            (name, entry.revision.0, entry.bytes.len(), entry.meta)
        })
        .collect()
}

#[tokio::test]
async fn everything_is_there_after_reopening_and_revisions_go_on() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("state.db");
    let store = open(&path).await.expect("opens");
    for name in ["b", "a", "c", "a"] {
        put(&store, name, b"@").await.expect("puts");
    }
    let transaction = Transaction::new().delete(Key::new("space", "c"), Body::plain(""));
    store.commit(transaction).await.expect("deletes");
    let before = content(&store);
    assert_eq!(before.len(), 2);
    store.close().await;
    drop(store);

    let store = open(&path).await.expect("opens again");
    assert_eq!(content(&store), before);
    // The newest revision was that of a deletion.
    assert_eq!(store.revision(), Revision(5));
    assert!(store.watch("space", "", Revision(5)).is_ok());
    let compacted = store.watch("space", "", Revision(4)).err();
    assert_eq!(compacted.map(|error| error.oldest), Some(Revision(5)));
    assert_eq!(put(&store, "d", b"@").await.expect("puts"), Revision(6));
}

#[tokio::test]
async fn the_files_are_for_their_owner_only() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("state.db");
    fs::write(&path, "").expect("an empty file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("is ours");
    let store = open(&path).await.expect("opens");
    put(&store, "a", b"@").await.expect("puts");
    let mut names = Vec::new();
    for file in fs::read_dir(directory.path()).expect("is readable") {
        let file = file.expect("is readable");
        let mode = file.metadata().expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{:?}", file.file_name());
        names.push(file.file_name().into_string().expect("is text"));
    }
    names.sort();
    assert_eq!(
        names,
        ["state.db", "state.db-shm", "state.db-wal", "state.db.lock"]
    );
    store.close().await;
}

#[tokio::test]
async fn a_store_in_use_is_refused_until_it_is_closed() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("state.db");
    let first = open(&path).await.expect("opens");
    let refused = open(&path).await.err().expect("is in use");
    assert_eq!(
        refused.to_string(),
        format!(
            "store {} is in use by another process; stop that one first",
            path.display()
        )
    );
    first.close().await;
    open(&path).await.expect("opens when the first is closed");
}

#[tokio::test]
async fn a_file_that_is_something_else_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("state.db");
    let text = "these are not the bytes of a database\n".repeat(100);
    fs::write(&path, &text).expect("is written");
    let refused = open(&path).await.err().expect("is no database");
    assert!(matches!(refused, OpenError::NotAStore { .. }), "{refused}");
    assert_eq!(fs::read_to_string(&path).expect("is there"), text);

    let other = directory.path().join("other.db");
    let connection = Connection::open(&other).expect("opens");
    connection
        .execute_batch("CREATE TABLE song (title TEXT)")
        .expect("is made");
    drop(connection);
    let refused = open(&other).await.err().expect("is another program's");
    assert!(matches!(refused, OpenError::NotAStore { .. }), "{refused}");
}

#[tokio::test]
async fn a_newer_format_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("state.db");
    open(&path).await.expect("opens").close().await;
    let connection = Connection::open(&path).expect("opens");
    connection
        .pragma_update(None, "user_version", 99)
        .expect("is written");
    drop(connection);
    let refused = open(&path).await.err().expect("is newer");
    assert!(
        refused
            .to_string()
            .contains("has format 99, this program knows formats up to 1"),
        "{refused}"
    );
}

#[tokio::test]
async fn an_operator_who_holds_the_write_lock_is_named_and_then_it_goes_on() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("state.db");
    let store = open(&path).await.expect("opens");
    put(&store, "a", b"@").await.expect("puts");
    let operator = Connection::open(&path).expect("may look in");
    let seen: i64 = operator
        .query_row("SELECT count(*) FROM entry", [], |row| row.get(0))
        .expect("may read");
    assert_eq!(seen, 1);
    operator.execute_batch("BEGIN IMMEDIATE").expect("locks");
    let refused = put(&store, "b", b"@").await.expect_err("is locked");
    assert!(
        matches!(refused, CommitError::Disk(EngineError::Locked { .. })),
        "{refused}"
    );
    operator.execute_batch("ROLLBACK").expect("unlocks");
    assert_eq!(put(&store, "b", b"@").await.expect("puts"), Revision(2));
}

/// A file system of 1 MiB that is gone when the test is.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let size = Some(c"size=1m");
        mount(
            "tmpfs",
            directory.path(),
            "tmpfs",
            MountFlags::empty(),
            size,
        )
        .expect("the tests of the store run as root");
        SmallDisk(directory)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(self.0.path(), UnmountFlags::DETACH).expect("is mounted");
    }
}

#[tokio::test]
async fn a_full_disk_refuses_writes_loses_nothing_and_serves_again_when_there_is_room() {
    let disk = SmallDisk::new();
    let path = disk.0.path().join("state.db");
    let ballast = disk.0.path().join("ballast");
    fs::write(&ballast, vec![0; 500 << 10]).expect("fits");
    let store = open(&path).await.expect("opens");
    let body = vec![b'x'; 20 << 10];
    let mut written = 0;
    let refused = loop {
        match put(&store, &format!("{written:03}"), &body).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 100, "the disk never gets full");
    };
    assert!(
        matches!(refused, CommitError::Disk(EngineError::Full { .. })),
        "{refused}"
    );
    assert!(written > 0);
    assert_eq!(store.health(), Health::Refuses);
    let before = content(&store);
    assert_eq!(before.len(), written);
    assert!(put(&store, "too large", &body).await.is_err());
    assert_eq!(content(&store), before);

    fs::remove_file(&ballast).expect("is there");
    let revision = put(&store, "fits", &body).await.expect("there is room");
    assert_eq!(revision, Revision(written as u64 + 1));
    assert_eq!(store.health(), Health::Writes);
    let before = content(&store);
    store.close().await;
    assert_eq!(store.health(), Health::Ended);
    drop(store);
    let store = open(&path).await.expect("opens again");
    assert_eq!(content(&store), before);
    store.close().await;
}
