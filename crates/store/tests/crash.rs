//! What was acknowledged survives `kill -9`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use store::{Body, Key, Options, Revision, Sqlite, Store, Transaction};

/// Where the child writes; set only in the child.
const CHILD: &str = "STORE_CRASH_CHILD";
const CLIENTS: usize = 16;
const NAMES: usize = 50;

async fn open(path: &Path) -> Store<()> {
    Store::open(
        Box::new(Sqlite::open(path).expect("opens after a crash")),
        Arc::new(|_: &Key, _: &Bytes| ()),
        Options::default(),
    )
    .await
    .expect("loads after a crash")
}

/// The body of the child: clients that write for ever, each telling what was acknowledged.
///
/// Not a test of its own: without the parent's variable it has nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Some(path) = std::env::var_os(CHILD) else {
        return;
    };
    let store = open(Path::new(&path)).await;
    let clients = (0..CLIENTS).map(|client| {
        let store = store.clone();
        tokio::spawn(async move {
            for count in 0_usize.. {
                // Two keys at once, so that half a transaction would be seen.
                let name = format!("{client}/{}", count % NAMES);
                let body = Body::new(format!("{name} {count} "), "");
                let transaction = Transaction::new()
                    .put(Key::new("left", name.as_str()), body.clone())
                    .put(Key::new("right", name.as_str()), body);
                let revision = store.commit(transaction).await.expect("commits").revision;
                let line = format!("acknowledged {revision} {name} {count}\n");
                // One call per line; the lock of stdout keeps the lines whole.
                std::io::stdout()
                    .write_all(line.as_bytes())
                    .expect("the parent listens");
            }
        })
    });
    futures::future::join_all(clients).await;
}

/// Runs the child until it has told of `lines` acknowledged writes, kills it, and returns all that
/// it has told, by name.
fn killed_after(path: &Path, lines: usize) -> BTreeMap<String, (u64, u64)> {
    let mut child = Command::new(std::env::current_exe().expect("runs"))
        .args(["--exact", "child", "--nocapture"])
        .env(CHILD, path)
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts itself");
    let stdout = child.stdout.take().expect("is piped");
    let mut acknowledged = BTreeMap::new();
    let mut count = 0;
    for line in BufReader::new(stdout).lines() {
        let line = line.expect("is text");
        let words: Vec<&str> = line.split(' ').collect();
        let ["acknowledged", revision, name, number] = words[..] else {
            continue;
        };
        // The line that the kill cut short has no answer either way.
        let (Ok(revision), Ok(written)) = (revision.parse(), number.parse()) else {
            continue;
        };
        acknowledged.insert(name.to_owned(), (revision, written));
        count += 1;
        if count == lines {
            child.kill().expect("still runs");
        }
    }
    child.wait().expect("was started");
    assert!(count >= lines, "the child told of {count} writes only");
    acknowledged
}

#[tokio::test]
async fn every_acknowledged_write_is_there_after_kill_9() {
    if std::env::var_os(CHILD).is_some() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("state.db");
    let mut newest = Revision(0);
    for lines in [1, 200, 1500, 3000] {
        let acknowledged = killed_after(&path, lines);
        let store = open(&path).await;
        let snapshot = store.snapshot();
        assert!(snapshot.revision() > newest);
        newest = snapshot.revision();
        for (name, (revision, count)) in acknowledged {
            assert!(Revision(revision) <= newest);
            let entry = snapshot
                .get(&Key::new("left", name.as_str()))
                .expect("was acknowledged");
            // A later write of this name may have become durable before it was told.
            let text = String::from_utf8(entry.bytes.to_vec()).expect("is text");
            let words: Vec<&str> = text.split(' ').collect();
            let stored: u64 = words[1].parse().expect("is a count");
            assert!(stored >= count, "{name}: {stored} is older than {count}");
            assert!(entry.revision >= Revision(revision));
            assert_eq!(words[2], entry.revision.to_string());
            let twin = snapshot.get(&Key::new("right", name.as_str()));
            assert_eq!(twin.expect("is written together").bytes, entry.bytes);
        }
        store.close().await;
    }
}
