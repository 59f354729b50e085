//! Random histories against a plain map.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use store::{
    Body, CommitError, DurableEngine, EventKind, Expected, Key, Memory, Options, Revision,
    Snapshot, Sqlite, Store, Transaction, Watch,
};

type Model = BTreeMap<(String, String), (u64, String)>;

#[derive(Clone, Debug)]
enum Op {
    Put(String, String),
    Create(String, String),
    /// Replaces at the current revision, or at a wrong one.
    Replace(String, String, bool),
    Delete(String, String),
    Both(String, String, String),
    Watch(String, String),
    Reopen,
}

fn space() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["pods", "nodes"]).prop_map(str::to_owned)
}

fn name() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "a/1", "a/2", "a0", "b/1", "b/11", ""]).prop_map(str::to_owned)
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (space(), name()).prop_map(|(space, name)| Op::Put(space, name)),
        3 => (space(), name()).prop_map(|(space, name)| Op::Create(space, name)),
        3 => (space(), name(), any::<bool>())
            .prop_map(|(space, name, right)| Op::Replace(space, name, right)),
        3 => (space(), name()).prop_map(|(space, name)| Op::Delete(space, name)),
        1 => (space(), name(), name()).prop_map(|(space, one, other)| Op::Both(space, one, other)),
        1 => (space(), name()).prop_map(|(space, prefix)| Op::Watch(space, prefix)),
        1 => Just(Op::Reopen),
    ]
}

/// A watch, and the state that it must lead to the present one.
struct Follower {
    watch: Watch<Bytes>,
    space: String,
    prefix: String,
    state: Model,
}

impl Follower {
    /// Takes all events up to now and compares.
    async fn catch_up(&mut self, model: &Model) {
        let wanted = filter(model, &self.space, &self.prefix);
        while let Some(next) = futures::FutureExt::now_or_never(self.watch.next()) {
            let event = next.expect("not closed").expect("not lagged");
            let key = &event.entry.key;
            assert_eq!(*key.space, *self.space);
            assert!(key.name.starts_with(&self.prefix));
            let name = (key.space.to_string(), key.name.to_string());
            let previous = match event.kind {
                EventKind::Put => self.state.insert(
                    name,
                    (
                        event.revision.0,
                        String::from_utf8_lossy(&event.entry.bytes).into_owned(),
                    ),
                ),
                EventKind::Delete => self.state.remove(&name),
            };
            assert_eq!(
                previous.map(|(revision, _)| revision),
                event.previous.as_ref().map(|entry| entry.revision.0)
            );
        }
        assert_eq!(self.state, wanted);
    }
}

fn filter(model: &Model, space: &str, prefix: &str) -> Model {
    model
        .iter()
        .filter(|((of, name), _)| of == space && name.starts_with(prefix))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

fn content(snapshot: &Snapshot<Bytes>) -> Model {
    let mut content = Model::new();
    for space in snapshot.spaces() {
        for entry in snapshot.range(space, "", None, usize::MAX) {
            assert_eq!(*name_of(&entry.meta), *name_of(&entry.bytes));
            content.insert(
                (space.to_string(), entry.key.name.to_string()),
                (
                    entry.revision.0,
                    String::from_utf8_lossy(&entry.bytes).into_owned(),
                ),
            );
        }
    }
    content
}

/// The body without its revision, which [`store::Extract`] does not know yet.
fn name_of(bytes: &Bytes) -> &[u8] {
    let end = bytes.iter().position(|byte| *byte == b'@');
    &bytes[..end.expect("bodies are written by `body`")]
}

fn body(name: &str) -> Body {
    Body::new(format!("{name}@"), ";")
}

/// The transaction, and what the model becomes if it happens; `None` if it must be a conflict.
fn plan(op: &Op, model: &Model, next: u64) -> Option<(Transaction, Option<Model>)> {
    let mut after = model.clone();
    let put = |after: &mut Model, space: &str, name: &str| {
        let key = (space.to_owned(), name.to_owned());
        after.insert(key, (next, format!("{name}@{next};")));
    };
    let (space, name) = match op {
        Op::Put(space, name)
        | Op::Create(space, name)
        | Op::Replace(space, name, _)
        | Op::Delete(space, name)
        | Op::Both(space, name, _) => (space.clone(), name.clone()),
        Op::Watch(..) | Op::Reopen => return None,
    };
    let key = Key::new(space.as_str(), name.as_str());
    let present = model
        .get(&(space.clone(), name.clone()))
        .map(|(revision, _)| *revision);
    let (transaction, happens) = match op {
        Op::Create(..) => (Transaction::create(key, body(&name)), present.is_none()),
        Op::Replace(_, _, right) => {
            let at = present.unwrap_or(0) + u64::from(!right);
            let transaction = Transaction::replace(key, Revision(at), body(&name));
            (transaction, *right && present.is_some())
        }
        Op::Delete(..) => {
            after.remove(&(space, name));
            let transaction = Transaction::new().delete(key, Body::plain("last"));
            return Some((transaction, present.is_some().then_some(after)));
        }
        Op::Both(_, _, other) if *other != name => {
            put(&mut after, &space, other);
            let other_key = Key::new(space.as_str(), other.as_str());
            let transaction = Transaction::new()
                .check(key.clone(), Expected::Present)
                .put(key, body(&name))
                .put(other_key, body(other));
            (transaction, present.is_some())
        }
        _ => (Transaction::new().put(key, body(&name)), true),
    };
    put(&mut after, &space, &name);
    Some((transaction, happens.then_some(after)))
}

async fn open(path: Option<&Path>) -> Store<Bytes> {
    let engine: Box<dyn DurableEngine> = match path {
        Some(path) => Box::new(Sqlite::open(path).expect("opens")),
        None => Box::new(Memory),
    };
    let extract = Arc::new(|_: &Key, bytes: &Bytes| bytes.clone());
    Store::open(engine, extract, Options::default())
        .await
        .expect("loads")
}

async fn follow(ops: Vec<Op>, path: Option<&Path>) {
    let mut store = open(path).await;
    let mut model = Model::new();
    let mut newest = 0;
    let mut snapshots = Vec::new();
    let mut followers: Vec<Follower> = Vec::new();
    for op in ops {
        match (&op, path) {
            (Op::Watch(space, prefix), _) => followers.push(Follower {
                watch: store
                    .watch(space, prefix, Revision(newest))
                    .expect("the present is remembered"),
                space: space.clone(),
                prefix: prefix.clone(),
                state: filter(&model, space, prefix),
            }),
            (Op::Reopen, Some(path)) => {
                for follower in &mut followers {
                    follower.catch_up(&model).await;
                }
                followers.clear();
                store.close().await;
                store = open(Some(path)).await;
            }
            _ => {}
        }
        if let Some((transaction, after)) = plan(&op, &model, newest + 1) {
            match (store.commit(transaction).await, after) {
                (Ok(committed), Some(after)) => {
                    newest += 1;
                    assert_eq!(committed.revision, Revision(newest));
                    model = after;
                }
                (Err(CommitError::Conflict { .. }), None) => {}
                (result, after) => panic!("{op:?}: {result:?}, expected {after:?}"),
            }
        }
        let snapshot = store.snapshot();
        assert_eq!(snapshot.revision(), Revision(newest));
        snapshots.push((snapshot, model.clone()));
    }
    for follower in &mut followers {
        follower.catch_up(&model).await;
    }
    for (snapshot, model) in &snapshots {
        assert_eq!(content(snapshot), *model);
        check_ranges(snapshot, model);
    }
    store.close().await;
}

/// Every prefix, every page.
fn check_ranges(snapshot: &Snapshot<Bytes>, model: &Model) {
    for prefix in ["", "a", "a/", "b/1", "c"] {
        let wanted: Vec<String> = filter(model, "pods", prefix)
            .into_keys()
            .map(|(_, name)| name)
            .collect();
        assert_eq!(snapshot.count("pods", prefix), wanted.len());
        let mut paged: Vec<String> = Vec::new();
        loop {
            let after = paged.last().cloned();
            let page: Vec<_> = snapshot
                .range("pods", prefix, after.as_deref(), 2)
                .map(|entry| entry.key.name.to_string())
                .collect();
            if page.is_empty() {
                break;
            }
            paged.extend(page);
        }
        assert_eq!(paged, wanted);
    }
}

fn run(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime")
        .block_on(future);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn memory_is_the_model(ops in prop::collection::vec(op(), 1..60)) {
        run(follow(ops, None));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sqlite_is_the_model_also_when_it_is_reopened(ops in prop::collection::vec(op(), 1..40)) {
        let directory = tempfile::tempdir().expect("a directory");
        run(follow(ops, Some(&directory.path().join("state.db"))));
    }
}
