//! The one thread that changes the state.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::{mpsc, oneshot};

use crate::history::History;
use crate::transaction::{Prepared, PreparedWrite};
use crate::{
    Change, Check, CommitError, Committed, DurableEngine, EngineError, Entry, Event, EventKind,
    Expected, Extract, Key, OpenError, Options, Revision, Row, Shared, Snapshot,
};

/// Transactions that are committed together at most, and the bytes at which a batch is full: what a
/// caller waits for, beside its own, is bounded.
const BATCH_TRANSACTIONS: usize = 512;
const BATCH_BYTES: usize = 8 << 20;

type Outcome<M> = Result<Committed<M>, CommitError>;
type Answer<M> = oneshot::Sender<Outcome<M>>;

pub(crate) enum Request<M> {
    Commit(Prepared<M>, Answer<M>),
    Close(oneshot::Sender<()>),
}

pub(crate) struct Writer<M> {
    engine: Box<dyn DurableEngine>,
    shared: Arc<Shared<M>>,
}

/// What is done with one fsync.
struct Batch<M> {
    state: Snapshot<M>,
    changes: Vec<Change>,
    events: Vec<Arc<Event<M>>>,
    answers: Vec<(Answer<M>, Outcome<M>)>,
    weight: usize,
}

impl<M: Send + Sync + 'static> Writer<M> {
    /// The body of the thread: loads, tells `opened`, and then works until it is told to close or
    /// nobody is left who could.
    pub(crate) fn run(
        mut engine: Box<dyn DurableEngine>,
        extract: &Extract<M>,
        options: &Options,
        mut queue: mpsc::Receiver<Request<M>>,
        opened: oneshot::Sender<Result<Arc<Shared<M>>, OpenError>>,
    ) {
        let shared = match load(&mut *engine, extract) {
            Ok(state) => Arc::new(Shared {
                history: History::new(state.revision(), options),
                published: RwLock::new(state),
                failing: AtomicBool::new(false),
            }),
            Err(error) => {
                // Whoever asked may have gone; then nobody wants to know.
                opened.send(Err(error)).ok();
                return;
            }
        };
        let mut writer = Writer {
            engine,
            shared: shared.clone(),
        };
        if opened.send(Ok(shared)).is_err() {
            writer.close();
            return;
        }
        let closing = writer.serve(&mut queue);
        // Refuses newcomers; those who still wait see their answers dropped, which says "closed".
        queue.close();
        writer.close();
        if let Some(answer) = closing {
            answer.send(()).ok();
        }
    }

    /// Commits batch after batch. Returns who asked to close, if somebody did.
    fn serve(&mut self, queue: &mut mpsc::Receiver<Request<M>>) -> Option<oneshot::Sender<()>> {
        while let Some(first) = queue.blocking_recv() {
            let mut batch = Batch::on(self.shared.published.read().clone());
            let mut next = Some(first);
            while let Some(request) = next {
                match request {
                    Request::Commit(transaction, answer) => batch.add(transaction, answer),
                    Request::Close(answer) => {
                        self.commit(batch);
                        return Some(answer);
                    }
                }
                next = if batch.is_full() {
                    None
                } else {
                    queue.try_recv().ok()
                };
            }
            self.commit(batch);
        }
        None
    }

    fn commit(&mut self, batch: Batch<M>) {
        let Batch {
            state,
            changes,
            events,
            answers,
            ..
        } = batch;
        if !changes.is_empty() {
            let newest = state.revision();
            if let Err(error) = self.engine.commit(&changes, newest) {
                self.refuse(answers, error);
                return;
            }
            if self.shared.failing.swap(false, Ordering::Relaxed) {
                tracing::info!("the store can write again");
            }
            let replaced = std::mem::replace(&mut *self.shared.published.write(), state);
            self.shared.history.publish(events, newest);
            drop(replaced);
        }
        for (answer, result) in answers {
            // A caller that has gone does not want its answer.
            answer.send(result).ok();
        }
    }

    /// Tells all of a failed batch so. Also those that had a conflict: it may have been with a
    /// write that now has not happened.
    fn refuse(&mut self, answers: Vec<(Answer<M>, Outcome<M>)>, error: EngineError) {
        // The log tells of the change and not of each failure.
        if !self.shared.failing.swap(true, Ordering::Relaxed) {
            tracing::error!(%error, "the store cannot write; nothing was lost, writes are refused until it can");
        }
        for (answer, _) in answers {
            answer.send(Err(CommitError::Disk(error.clone()))).ok();
        }
    }

    fn close(&mut self) {
        if let Err(error) = self.engine.close() {
            tracing::warn!(%error, "the store did not close in order; nothing was lost");
        }
        self.shared.history.close();
    }
}

fn load<M>(engine: &mut dyn DurableEngine, extract: &Extract<M>) -> Result<Snapshot<M>, OpenError> {
    let mut state = Snapshot::empty();
    // One copy of each space's name, however many entries it has.
    let mut spaces: BTreeMap<String, Arc<str>> = BTreeMap::new();
    let mut newest = Revision(0);
    let stored = engine.load(&mut |row: Row| {
        let space = spaces
            .entry(row.space)
            .or_insert_with_key(|space| space.as_str().into())
            .clone();
        let key = Key {
            space,
            name: row.name.into(),
        };
        let bytes = Bytes::from(row.bytes.into_boxed_slice());
        newest = newest.max(row.revision);
        let meta = extract(&key, &bytes);
        state.insert(Arc::new(Entry {
            key,
            revision: row.revision,
            bytes,
            meta,
        }));
    })?;
    state.set_revision(stored.max(newest));
    Ok(state)
}

impl<M> Batch<M> {
    fn on(state: Snapshot<M>) -> Self {
        Batch {
            state,
            changes: Vec::new(),
            events: Vec::new(),
            answers: Vec::new(),
            weight: 0,
        }
    }

    fn is_full(&self) -> bool {
        self.answers.len() >= BATCH_TRANSACTIONS || self.weight >= BATCH_BYTES
    }

    fn add(&mut self, transaction: Prepared<M>, answer: Answer<M>) {
        self.weight += transaction.weight();
        let result = self.apply(transaction);
        self.answers.push((answer, result));
    }

    /// Checks against the state with all earlier transactions of the batch; then nothing can fail.
    fn apply(&mut self, transaction: Prepared<M>) -> Outcome<M> {
        let exists = transaction
            .writes
            .iter()
            .filter(|write| write.delete)
            .map(|write| Check {
                key: write.key.clone(),
                expected: Expected::Present,
            });
        for check in transaction.checks.iter().cloned().chain(exists) {
            let actual = self.state.get(&check.key).map(|entry| entry.revision);
            let holds = match check.expected {
                Expected::Absent => actual.is_none(),
                Expected::At(revision) => actual == Some(revision),
                Expected::Present => actual.is_some(),
            };
            if !holds {
                let key = check.key;
                return Err(CommitError::Conflict { key, actual });
            }
        }
        if transaction.writes.is_empty() {
            return Ok(Committed {
                revision: self.state.revision(),
                entries: Vec::new(),
            });
        }
        let revision = Revision(self.state.revision().0 + 1);
        self.state.set_revision(revision);
        let entries = transaction
            .writes
            .into_iter()
            .map(|write| self.write(write, revision))
            .collect();
        Ok(Committed { revision, entries })
    }

    fn write(&mut self, write: PreparedWrite<M>, revision: Revision) -> Arc<Entry<M>> {
        let key = self.state.known(write.key);
        let entry = Arc::new(Entry {
            bytes: write.body.at(revision),
            key: key.clone(),
            revision,
            meta: write.meta,
        });
        let (kind, previous, change) = if write.delete {
            let previous = self.state.remove(&key);
            (EventKind::Delete, previous, Change::Delete { key })
        } else {
            let bytes = entry.bytes.clone();
            let change = Change::Put {
                key,
                revision,
                bytes,
            };
            (EventKind::Put, self.state.insert(entry.clone()), change)
        };
        self.changes.push(change);
        self.events.push(Arc::new(Event {
            revision,
            kind,
            entry: entry.clone(),
            previous,
        }));
        entry
    }
}
