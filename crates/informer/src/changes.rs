//! What one reader has not heard yet.
//!
//! Per object at most one note waits: what the reader knew of it, and what is true now. Memory is
//! bounded by the number of objects, however slow the reader is, and the last state is never lost.
//!
//! ```text
//!   reader knew  now      reader hears
//!   nothing      A        Applied { new: A, old: none }
//!   A            A'       Applied { new: A', old: A }
//!   A            nothing  Deleted(A)
//!   A            B        Deleted(A), then Applied { new: B, old: none }   (same name, other uid)
//!   nothing      nothing  nothing at all: it came and went while the reader was busy
//! ```

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use kube::Resource;
use lifecycle::Drain;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::cache::Key;

/// One step of an object, as far as a reader is concerned.
#[derive(Debug)]
pub enum Change<K> {
    /// The object is there now in this state.
    Applied {
        /// The newest state.
        new: Arc<K>,
        /// The state that this reader was last told of; `None` when the object is new to it.
        old: Option<Arc<K>>,
    },
    /// The object is gone. This is its last known state.
    Deleted(Arc<K>),
}

impl<K> Change<K> {
    /// The object, in its newest state.
    pub fn object(&self) -> &Arc<K> {
        match self {
            Change::Applied { new, .. } => new,
            Change::Deleted(last) => last,
        }
    }
}

/// A reader's place in the changes of a kind. See [`Informer::changes`](crate::Informer::changes).
pub struct Changes<K> {
    pub(crate) feed: Arc<Feed<K>>,
    pub(crate) drain: Drain,
}

impl<K: Resource> Changes<K> {
    /// The next change; `None` when the program drains. Cancel safe.
    pub async fn next(&mut self) -> Option<Change<K>> {
        loop {
            // Registered before looking, so that a note between the look and the wait is not missed.
            let noted = self.feed.noted.notified();
            if self.drain.is_signaled() {
                return None;
            }
            if let Some(change) = self.feed.pop() {
                return Some(change);
            }
            tokio::select! {
                () = noted => {}
                () = self.drain.signaled() => return None,
            }
        }
    }

    /// The next change if one waits already.
    pub fn try_next(&mut self) -> Option<Change<K>> {
        self.feed.pop()
    }
}

struct Note<K> {
    known: Option<Arc<K>>,
    now: Now<K>,
}

enum Now<K> {
    There(Arc<K>),
    /// With the last state.
    Gone(Arc<K>),
}

struct Notes<K> {
    order: VecDeque<Key>,
    by_key: HashMap<Key, Note<K>>,
}

/// The notes that wait for one reader.
pub(crate) struct Feed<K> {
    notes: Mutex<Notes<K>>,
    noted: Notify,
}

impl<K> Default for Feed<K> {
    fn default() -> Self {
        Feed {
            notes: Mutex::new(Notes {
                order: VecDeque::new(),
                by_key: HashMap::new(),
            }),
            noted: Notify::new(),
        }
    }
}

impl<K: Resource> Feed<K> {
    pub(crate) fn applied(&self, key: Key, old: Option<Arc<K>>, new: Arc<K>) {
        self.note(key, old, Now::There(new));
    }

    pub(crate) fn deleted(&self, key: Key, old: Arc<K>, last: Arc<K>) {
        self.note(key, Some(old), Now::Gone(last));
    }

    fn note(&self, key: Key, before: Option<Arc<K>>, now: Now<K>) {
        let mut notes = self.notes.lock();
        match notes.by_key.get_mut(&key) {
            Some(note) => note.now = now,
            None => {
                notes.order.push_back(key.clone());
                notes.by_key.insert(key.clone(), Note { known: before, now });
            }
        }
        let never_heard_of = |note: &Note<K>| note.known.is_none() && matches!(note.now, Now::Gone(_));
        if notes.by_key.get(&key).is_some_and(never_heard_of) {
            // The key's place in the order stays, and is passed over when its turn comes; at most
            // as many places as were ever noted between two looks of the reader would be kept so.
            notes.by_key.remove(&key);
            notes.order.retain(|other| *other != key);
        }
        drop(notes);
        self.noted.notify_one();
    }

    fn pop(&self) -> Option<Change<K>> {
        let mut notes = self.notes.lock();
        let key = notes.order.pop_front()?;
        let note = notes.by_key.remove(&key)?;
        match (note.known, note.now) {
            (_, Now::Gone(last)) => Some(Change::Deleted(last)),
            (Some(known), Now::There(new)) if known.meta().uid != new.meta().uid => {
                let rest = Note {
                    known: None,
                    now: Now::There(new),
                };
                notes.order.push_front(key.clone());
                notes.by_key.insert(key, rest);
                Some(Change::Deleted(known))
            }
            (old, Now::There(new)) => Some(Change::Applied { new, old }),
        }
    }
}
