//! Watches: what they see, when they are told that they are too late, and how they end.

use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use store::{
    Body, EventKind, Expected, Key, Lagged, Memory, Options, Revision, Store, Transaction, Watch,
};

async fn open(options: Options) -> Store<Bytes> {
    Store::open(
        Box::new(Memory),
        Arc::new(|_: &Key, bytes: &Bytes| bytes.clone()),
        options,
    )
    .await
    .expect("the memory engine opens")
}

async fn put(store: &Store<Bytes>, space: &str, name: &str) -> Revision {
    let body = Body::new(format!("{name}@"), "");
    store
        .commit(Transaction::new().put(Key::new(space, name), body))
        .await
        .expect("nothing stands against a put")
        .revision
}

async fn delete(store: &Store<Bytes>, space: &str, name: &str) -> Revision {
    let body = Body::new(format!("{name} deleted@"), "");
    store
        .commit(Transaction::new().delete(Key::new(space, name), body))
        .await
        .expect("the key exists")
        .revision
}

/// Everything that is there without waiting, as text.
fn ready(watch: &mut Watch<Bytes>) -> Vec<String> {
    let mut seen = Vec::new();
    while let Some(next) = watch.next().now_or_never() {
        seen.push(match next {
            Some(Ok(event)) => {
                let kind = match event.kind {
                    EventKind::Put if event.created() => "created",
                    EventKind::Put => "replaced",
                    EventKind::Delete => "deleted",
                };
                let bytes = String::from_utf8_lossy(&event.entry.bytes).into_owned();
                format!("{kind} {bytes}")
            }
            Some(Err(Lagged { seen })) => format!("lagged after {seen}"),
            None => "end".to_owned(),
        });
        if seen.last().is_some_and(|last| last == "end") {
            break;
        }
    }
    seen
}

#[tokio::test]
async fn a_watch_sees_its_prefix_of_its_space_from_its_revision_on() {
    let store = open(Options::default()).await;
    let first = put(&store, "pods", "a/1").await;
    put(&store, "pods", "b/1").await;
    let mut all = store.watch("pods", "", Revision(0)).expect("all is there");
    let mut later = store.watch("pods", "a/", first).expect("all is there");
    put(&store, "nodes", "a/1").await;
    put(&store, "pods", "a/1").await;
    put(&store, "pods", "a/2").await;
    delete(&store, "pods", "a/1").await;
    let rest = ["replaced a/1@4", "created a/2@5", "deleted a/1 deleted@6"];
    assert_eq!(ready(&mut later), rest);
    assert_eq!(
        ready(&mut all),
        [&["created a/1@1", "created b/1@2"][..], &rest[..]].concat()
    );
    assert_eq!(ready(&mut all), [""; 0]);
}

#[tokio::test]
async fn a_watch_from_the_future_begins_there() {
    let store = open(Options::default()).await;
    let mut watch = store.watch("pods", "", Revision(2)).expect("not compacted");
    for name in ["a", "b", "c"] {
        put(&store, "pods", name).await;
    }
    assert_eq!(ready(&mut watch), ["created c@3"]);
}

#[tokio::test]
async fn what_is_no_longer_remembered_is_compacted_per_space() {
    let options = Options {
        history_events: 2,
        ..Options::default()
    };
    let store = open(options).await;
    put(&store, "quiet", "a").await;
    for name in ["a", "b", "c", "d"] {
        put(&store, "busy", name).await;
    }
    let refused = store.watch("busy", "", Revision(2)).err();
    assert_eq!(refused.map(|compacted| compacted.oldest), Some(Revision(3)));
    let mut watch = store
        .watch("busy", "", Revision(3))
        .expect("just remembered");
    assert_eq!(ready(&mut watch), ["created c@4", "created d@5"]);
    let mut watch = store.watch("quiet", "", Revision(0)).expect("remembered");
    assert_eq!(ready(&mut watch), ["created a@1"]);
}

#[tokio::test]
async fn the_history_keeps_no_more_bytes_than_it_may() {
    let options = Options {
        history_bytes: 10_000,
        ..Options::default()
    };
    let store = open(options).await;
    put(&store, "old", "a").await;
    put(&store, "old", "a").await;
    let large = Bytes::from(vec![b'x'; 6_000]);
    for _ in 0..3 {
        let body = Body::plain(large.clone());
        store
            .commit(Transaction::new().put(Key::new("large", "a"), body))
            .await
            .expect("puts");
    }
    // The three puts replaced twice 6,000 bytes: the oldest events of all spaces went, and as many
    // of "large" as was needed.
    let compacted = |space| store.watch(space, "", Revision(0)).err();
    assert_eq!(
        compacted("old").map(|error| error.oldest),
        Some(Revision(2))
    );
    assert_eq!(
        compacted("large").map(|error| error.oldest),
        Some(Revision(4))
    );
}

#[tokio::test]
async fn who_is_too_slow_is_told_what_it_has_seen() {
    let options = Options {
        history_events: 3,
        ..Options::default()
    };
    let store = open(options).await;
    let mut slow = store.watch("pods", "", Revision(0)).expect("begins");
    let mut elsewhere = store.watch("pods", "z/", Revision(0)).expect("begins");
    put(&store, "pods", "a").await;
    assert_eq!(ready(&mut slow), ["created a@1"]);
    for name in ["b", "c", "d", "e"] {
        put(&store, "pods", name).await;
    }
    assert_eq!(ready(&mut slow), ["lagged after 1", "end"]);
    // Nothing that it wants was forgotten, so it has missed nothing.
    put(&store, "pods", "z/1").await;
    assert_eq!(ready(&mut elsewhere), ["created z/1@6"]);
}

#[tokio::test]
async fn a_long_backlog_arrives_whole() {
    let store = open(Options::default()).await;
    let mut every = store.watch("pods", "", Revision(0)).expect("begins");
    let mut tenth = store.watch("pods", "0/", Revision(0)).expect("begins");
    for number in 0..1000 {
        put(&store, "pods", &format!("{}/{number}", number % 10)).await;
    }
    assert_eq!(ready(&mut every).len(), 1000);
    let seen = ready(&mut tenth);
    assert_eq!(seen.len(), 100);
    assert_eq!(seen[99], "created 0/990@991");
}

#[tokio::test]
async fn progress_tells_up_to_where_everything_has_been_seen() {
    let store = open(Options::default()).await;
    let mut watch = store.watch("pods", "", Revision(0)).expect("begins");
    put(&store, "pods", "a").await;
    put(&store, "pods", "b").await;
    put(&store, "nodes", "a").await;
    assert_eq!(watch.progress(), Revision(0));
    assert!(watch.next().await.is_some());
    assert_eq!(watch.progress(), Revision(1));
    assert!(watch.next().await.is_some());
    assert_eq!(watch.progress(), Revision(3));
    put(&store, "nodes", "b").await;
    assert_eq!(watch.progress(), Revision(4));
}

#[tokio::test]
async fn a_thousand_watchers_wake_up_and_share_the_bytes() {
    let store = open(Options::default()).await;
    let watchers: Vec<_> = (0..1000)
        .map(|_| {
            let mut watch = store.watch("pods", "", Revision(0)).expect("begins");
            tokio::spawn(async move { watch.next().await })
        })
        .collect();
    tokio::task::yield_now().await;
    put(&store, "pods", "a").await;
    let stored = store.get(&Key::new("pods", "a")).expect("was put");
    for watcher in watchers {
        let next = watcher.await.expect("the watcher does not panic");
        let event = next.expect("not closed").expect("not lagged");
        assert!(Arc::ptr_eq(&event.entry, &stored));
    }
}

#[tokio::test]
async fn closing_ends_watches_after_what_they_have_not_taken() {
    let store = open(Options::default()).await;
    let mut watch = store.watch("pods", "", Revision(0)).expect("begins");
    let mut asleep = store.watch("nodes", "", Revision(0)).expect("begins");
    let sleeper = tokio::spawn(async move { asleep.next().await.is_none() });
    put(&store, "pods", "a").await;
    store.close().await;
    store.close().await;
    assert_eq!(ready(&mut watch), ["created a@1", "end"]);
    assert!(sleeper.await.expect("the watcher does not panic"));
    let mut late = store.watch("late", "", Revision(1)).expect("begins");
    assert_eq!(ready(&mut late), ["end"]);
    let key = Key::new("pods", "b");
    let refused = store
        .commit(Transaction::new().check(key.clone(), Expected::Absent))
        .await;
    assert!(matches!(refused, Err(store::CommitError::Closed)));
    assert!(store.get(&Key::new("pods", "a")).is_some());
}
