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
                notes
                    .by_key
                    .insert(key.clone(), Note { known: before, now });
            }
        }
        let never_heard_of =
            |note: &Note<K>| note.known.is_none() && matches!(note.now, Now::Gone(_));
        if notes.by_key.get(&key).is_some_and(never_heard_of) {
            // Not worth a note; and keeping one would let a reader that is away collect the names of
            // all that ever came and went.
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

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::ObjectMeta;

    use super::*;

    fn object(uid: &str, revision: &str) -> Arc<ConfigMap> {
        Arc::new(ConfigMap {
            metadata: ObjectMeta {
                name: Some("a".to_owned()),
                uid: Some(uid.to_owned()),
                resource_version: Some(revision.to_owned()),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        })
    }

    /// The states that an object went through while the reader was away, as `uid@revision`, the first
    /// of which the reader knew; an empty one stands for "not there". And what the reader then hears.
    fn check(states: &[&str], heard: &[&str]) {
        let feed = Feed::default();
        let key = Key::new("", "a");
        let parse = |state: &str| {
            let (uid, revision) = state.split_once('@')?;
            Some(object(uid, revision))
        };
        let mut before = parse(states[0]);
        for state in &states[1..] {
            match (before.clone(), parse(state)) {
                (old, Some(new)) => {
                    feed.applied(key.clone(), old, new.clone());
                    before = Some(new);
                }
                (Some(old), None) => {
                    feed.deleted(key.clone(), old.clone(), old);
                    before = None;
                }
                (None, None) => {}
            }
        }
        let text = |object: &ConfigMap| {
            let meta = &object.metadata;
            format!(
                "{}@{}",
                meta.uid.clone().unwrap_or_default(),
                meta.resource_version.clone().unwrap_or_default()
            )
        };
        let mut notes = Vec::new();
        while let Some(change) = feed.pop() {
            notes.push(match change {
                Change::Applied { new, old } => match old {
                    Some(old) => format!("{} was {}", text(&new), text(&old)),
                    None => format!("{} is new", text(&new)),
                },
                Change::Deleted(last) => format!("{} is gone", text(&last)),
            });
        }
        assert_eq!(notes, heard, "{states:?}");
        assert!(feed.notes.lock().by_key.is_empty());
    }

    #[test]
    fn a_slow_reader_hears_the_last_state_and_what_it_knew() {
        check(&["", "u@1"], &["u@1 is new"]);
        check(&["u@1", "u@2", "u@3"], &["u@3 was u@1"]);
        check(&["u@1", "u@2", ""], &["u@2 is gone"]);
        check(&["", "u@1", "u@2", ""], &[]);
        check(&["u@1", "", "v@3"], &["u@1 is gone", "v@3 is new"]);
        check(&["u@1", "", "v@3", ""], &["v@3 is gone"]);
        check(&["", "u@1", "", "v@3"], &["v@3 is new"]);
    }
}
