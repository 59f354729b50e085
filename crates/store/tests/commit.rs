//! Transactions, batches, and an engine that fails.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use bytes::Bytes;
use futures::future::join_all;
use store::{
    Body, Change, CommitError, DurableEngine, EngineError, Expected, Key, OpenError, Options,
    Revision, Row, Store, Transaction,
};

/// An engine that tells of each commit and waits to be told how it ends.
struct Puppet {
    commits: Sender<usize>,
    orders: Receiver<Order>,
}

enum Order {
    Succeed,
    Fail,
}

impl DurableEngine for Puppet {
    fn load(&mut self, _row: &mut dyn FnMut(Row)) -> Result<Revision, OpenError> {
        Ok(Revision(0))
    }

    fn commit(&mut self, changes: &[Change], _newest: Revision) -> Result<(), EngineError> {
        self.commits.send(changes.len()).expect("the test listens");
        match self.orders.recv().expect("the test says how it ends") {
            Order::Succeed => Ok(()),
            Order::Fail => Err(EngineError::Io(Arc::new(io::Error::other("unplugged")))),
        }
    }

    fn close(&mut self) -> Result<(), EngineError> {
        Ok(())
    }
}

async fn puppet() -> (Store<()>, Receiver<usize>, Sender<Order>) {
    let (commits, told) = channel();
    let (order, orders) = channel();
    let engine = Box::new(Puppet { commits, orders });
    let extract = Arc::new(|_: &Key, _: &Bytes| ());
    let store = Store::open(engine, extract, Options::default())
        .await
        .expect("the puppet opens");
    (store, told, order)
}

fn key(name: &str) -> Key {
    Key::new("space", name)
}

fn create(name: &str) -> Transaction {
    Transaction::create(key(name), Body::new(format!("{name}@"), ""))
}

/// What came of a transaction, as text.
fn told(result: Result<store::Committed<()>, CommitError>) -> String {
    match result {
        Ok(committed) => format!("{}", committed.revision),
        Err(CommitError::Conflict { key, actual }) => format!("conflict {} {actual:?}", key.name),
        Err(error) => error.to_string(),
    }
}

/// Starts `first`, waits until the engine has it, and queues `rest` meanwhile: so `rest` is one
/// batch. Ends the commits as `ends` says. Returns what came of each and how many changes the batch had.
async fn batches(
    store: &Store<()>,
    commits: &Receiver<usize>,
    orders: &Sender<Order>,
    first: Transaction,
    rest: Vec<Transaction>,
    ends: [Order; 2],
) -> (Vec<String>, Option<usize>) {
    let running = tokio::spawn({
        let store = store.clone();
        async move { told(store.commit(first).await) }
    });
    while commits.try_recv().is_err() {
        tokio::task::yield_now().await;
    }
    let mut waiting: Vec<_> = rest
        .into_iter()
        .map(|transaction| Box::pin(store.commit(transaction)))
        .collect();
    for commit in &mut waiting {
        assert!(futures::poll!(commit.as_mut()).is_pending());
    }
    for end in ends {
        orders.send(end).expect("the engine waits");
    }
    let mut results = vec![running.await.expect("the commit does not panic")];
    results.extend(join_all(waiting).await.into_iter().map(told));
    (results, commits.try_recv().ok())
}

#[tokio::test]
async fn what_queues_up_is_committed_at_once_and_each_is_checked_against_those_before_it() {
    let (store, commits, orders) = puppet().await;
    let rest = vec![
        create("b"),
        create("b"),
        create("c").check(key("b"), Expected::At(Revision(2))),
        Transaction::remove(key("a"), Revision(7), Body::plain("")),
        Transaction::remove(key("a"), Revision(1), Body::plain("")),
        Transaction::new().check(key("a"), Expected::Absent),
        Transaction::new().delete(key("a"), Body::plain("")),
    ];
    let ends = [Order::Succeed, Order::Succeed];
    let (results, changes) = batches(&store, &commits, &orders, create("a"), rest, ends).await;
    assert_eq!(
        results,
        [
            "1",
            "2",
            "conflict b Some(Revision(2))",
            "3",
            "conflict a Some(Revision(1))",
            "4",
            "4",
            "conflict a None",
        ]
    );
    // One commit for all of them: two puts and a deletion.
    assert_eq!(changes, Some(3));
    assert_eq!(store.revision(), Revision(4));
    assert_eq!(store.get(&key("c")).expect("was put").bytes, "c@3");
}

#[tokio::test]
async fn a_failed_commit_leaves_nothing_behind_and_the_next_one_may_succeed() {
    let (store, commits, orders) = puppet().await;
    let mut watch = store.watch("space", "", Revision(0)).expect("begins");
    let before = store.snapshot();
    let rest = vec![create("b"), create("b"), create("a")];
    let ends = [Order::Succeed, Order::Fail];
    let (results, _) = batches(&store, &commits, &orders, create("a"), rest, ends).await;
    let failed = "write to store: unplugged";
    assert_eq!(results, ["1", failed, failed, failed]);
    assert_eq!(store.revision(), Revision(1));
    assert_eq!(before.revision(), Revision(0));
    assert!(store.get(&key("b")).is_none());

    let ends = [Order::Succeed, Order::Succeed];
    let (results, _) = batches(
        &store,
        &commits,
        &orders,
        create("b"),
        vec![create("c")],
        ends,
    )
    .await;
    assert_eq!(results, ["2", "3"]);
    store.close().await;
    let mut seen = Vec::new();
    while let Some(event) = watch.next().await {
        seen.push(event.expect("not lagged").entry.bytes.clone());
    }
    assert_eq!(seen, ["a@1", "b@2", "c@3"]);
}

#[tokio::test]
async fn a_transaction_happens_though_nobody_waits_for_it() {
    let (store, commits, orders) = puppet().await;
    let mut watch = store.watch("space", "", Revision(0)).expect("begins");
    let mut commit = Box::pin(store.commit(create("a")));
    assert!(futures::poll!(commit.as_mut()).is_pending());
    drop(commit);
    while commits.try_recv().is_err() {
        tokio::task::yield_now().await;
    }
    orders.send(Order::Succeed).expect("the engine waits");
    let event = watch.next().await.expect("open").expect("not lagged");
    assert_eq!(event.entry.bytes, "a@1");
}

#[tokio::test]
async fn closing_finishes_what_was_queued() {
    let (store, commits, orders) = puppet().await;
    let mut commit = Box::pin(store.commit(create("a")));
    assert!(futures::poll!(commit.as_mut()).is_pending());
    let mut close = Box::pin(store.close());
    assert!(futures::poll!(close.as_mut()).is_pending());
    orders.send(Order::Succeed).expect("the engine waits");
    close.await;
    assert_eq!(told(commit.await), "1");
    assert_eq!(commits.try_iter().count(), 1);
    assert_eq!(told(store.commit(create("b")).await), "the store is closed");
}

#[tokio::test]
async fn a_space_tells_when_it_was_last_written() {
    let extract = Arc::new(|_: &Key, _: &Bytes| ());
    let store = Store::open(Box::new(store::Memory), extract, Options::default())
        .await
        .expect("memory opens");
    let commit = async |transaction: Transaction| {
        let committed = store.commit(transaction).await.expect("a commit");
        committed.revision
    };
    let of = |space: &str| store.snapshot().space_revision(space);
    assert_eq!(of("space"), Revision(0));
    let created = commit(create("a")).await;
    assert_eq!(of("space"), created);
    let elsewhere = Key::new("other", "a");
    commit(Transaction::create(elsewhere, Body::plain("a"))).await;
    assert_eq!(of("space"), created);
    let removed = commit(Transaction::remove(key("a"), created, Body::plain(""))).await;
    assert_eq!(of("space"), removed);
    assert!(of("other") < removed);
}
