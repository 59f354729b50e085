//! Revisions, transactions and watches over ordered memory and a durable engine.
//!
//! The newest state lives in memory as an ordered map per space whose snapshots cost nothing, each
//! entry as the shared bytes that go out on the wire; so a read never waits for a disk. A write is
//! one transaction. A single writer thread takes all transactions that have queued up, checks each
//! against memory, makes them durable with one fsync, swaps the published state, hands the events
//! to the watchers in revision order, and only then acknowledges: what was acknowledged survives
//! `kill -9` and power loss, and whoever got the answer sees the write.
//!
//! ```text
//!  commit() ─► queue ─► writer: check ► splice revisions ► engine.commit (one fsync)
//!                                                              │
//!               acknowledge ◄─ history and watchers ◄─ published state
//! ```
//!
//! What the bytes mean is left to others: the store knows spaces, names and revisions, and keeps
//! beside each entry whatever the caller's [`Extract`] found in its bytes.

mod engine;
mod entry;
mod history;
mod memory;
mod sqlite;
mod state;
mod transaction;
mod watch;
mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;
use tokio::sync::{mpsc, oneshot};

pub use engine::{Change, DurableEngine, EngineError, OpenError, Row};
pub use entry::{Entry, Event, EventKind, Extract, Key, Revision};
pub use memory::Memory;
pub use sqlite::Sqlite;
pub use state::{Difference, Snapshot, Space};
pub use transaction::{Body, Check, CommitError, Committed, Expected, Transaction, Write};
pub use watch::{Compacted, Lagged, Watch};

use history::History;
use writer::{Request, Writer};

/// The limits of a store. The defaults suit one machine.
#[derive(Clone, Debug)]
pub struct Options {
    /// Past events that a watch can begin with, per space. Also how far a watcher may fall behind
    /// before it is [`Lagged`].
    pub history_events: usize,
    /// Bytes that past events of all spaces together may keep in memory beyond the present state.
    /// The oldest go first.
    pub history_bytes: usize,
    /// Transactions that may wait for the writer; further callers wait in [`Store::commit`].
    pub queue: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            history_events: 16_384,
            history_bytes: 24 << 20,
            queue: 1024,
        }
    }
}

/// What readers, watchers and the writer have in common.
pub(crate) struct Shared<M> {
    pub(crate) published: RwLock<Snapshot<M>>,
    pub(crate) history: History<M>,
    /// Whether the engine refused the last batch.
    pub(crate) failing: AtomicBool,
}

/// Whether a store takes writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It does, as far as is known.
    Writes,
    /// The engine refused what was written last; it is asked again with each write.
    Refuses,
    /// It never will again: it was closed, or its writer has come to a bad end.
    Ended,
}

/// An ordered, revisioned, durable map that can be watched. Clones are handles to the same store.
///
/// The engine is closed when [`Store::close`] is called or the last handle is dropped.
pub struct Store<M> {
    shared: Arc<Shared<M>>,
    extract: Extract<M>,
    requests: mpsc::Sender<Request<M>>,
}

impl<M> Clone for Store<M> {
    fn clone(&self) -> Self {
        Store {
            shared: self.shared.clone(),
            extract: self.extract.clone(),
            requests: self.requests.clone(),
        }
    }
}

impl<M: Send + Sync + 'static> Store<M> {
    /// Loads everything that `engine` holds into memory and starts the writer thread.
    ///
    /// `extract` is called once per entry, here for the stored ones and in [`Store::commit`] for new
    /// ones. Its result must not depend on the revision inside the bytes.
    ///
    /// # Errors
    /// What the engine says about its file, or that no thread could be started.
    pub async fn open(
        engine: Box<dyn DurableEngine>,
        extract: Extract<M>,
        options: Options,
    ) -> Result<Self, OpenError> {
        let (requests, queue) = mpsc::channel(options.queue.max(1));
        let (opened, result) = oneshot::channel();
        let load = extract.clone();
        std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || Writer::run(engine, &load, &options, queue, opened))
            .map_err(OpenError::Thread)?;
        let shared = result.await.map_err(|_| OpenError::WriterPanicked)??;
        Ok(Store {
            shared,
            extract,
            requests,
        })
    }

    /// The state as of now. O(1); it stays as it is whatever is written later.
    pub fn snapshot(&self) -> Snapshot<M> {
        self.shared.published.read().clone()
    }

    /// The newest state of one key.
    pub fn get(&self, key: &Key) -> Option<Arc<Entry<M>>> {
        self.shared.published.read().get(key).cloned()
    }

    /// The revision of the newest acknowledged write. It never goes back, also over restarts.
    pub fn revision(&self) -> Revision {
        self.shared.published.read().revision()
    }

    /// Checks and writes in one step, durably: when this returns `Ok`, the write is on the disk, in
    /// [`Store::snapshot`], and on its way to the watchers.
    ///
    /// A transaction without writes only checks. If the future is dropped, the transaction happens
    /// whole or not at all.
    ///
    /// # Errors
    /// [`CommitError::Conflict`] when a check does not hold, [`CommitError::Disk`] when the engine
    /// refused (nothing is written; a later commit may succeed), [`CommitError::Closed`] after
    /// [`Store::close`].
    pub async fn commit(&self, transaction: Transaction) -> Result<Committed<M>, CommitError> {
        let prepared = transaction.prepare(&self.extract)?;
        let (answer, result) = oneshot::channel();
        self.requests
            .send(Request::Commit(prepared, answer))
            .await
            .map_err(|_| CommitError::Closed)?;
        result.await.map_err(|_| CommitError::Closed)?
    }

    /// All changes after revision `after` to the names of `space` that begin with `name_prefix`, in
    /// revision order, without a gap.
    ///
    /// `after` may lie in the future; then the watch begins there.
    ///
    /// # Errors
    /// [`Compacted`] when changes after `after` are no longer remembered.
    pub fn watch(
        &self,
        space: &str,
        name_prefix: &str,
        after: Revision,
    ) -> Result<Watch<M>, Compacted> {
        self.shared.history.watch(space, name_prefix, after)
    }

    /// Whether writes are taken.
    pub fn health(&self) -> Health {
        if self.requests.is_closed() {
            Health::Ended
        } else if self.shared.failing.load(Ordering::Relaxed) {
            Health::Refuses
        } else {
            Health::Writes
        }
    }

    /// Finishes what has been queued, closes the engine and ends all watches. Commits fail from now
    /// on; reads still answer. Returns when the engine is closed. Idempotent.
    pub async fn close(&self) {
        let (answer, closed) = oneshot::channel();
        if self.requests.send(Request::Close(answer)).await.is_ok() {
            // An error means that the writer has ended before it came to this request.
            closed.await.ok();
        }
    }
}
