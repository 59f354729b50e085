//! What is stored and what watchers are told.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// A point in the history of the whole store. Each committed transaction has one of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// Where an entry lives. Names are ordered by their bytes within their space.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The ordered map that holds the entry.
    pub space: Arc<str>,
    /// The name within the space.
    pub name: Arc<str>,
}

impl Key {
    /// A key from its two parts.
    pub fn new(space: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Key {
            space: space.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.space, self.name)
    }
}

/// One version of one value.
#[derive(Debug)]
pub struct Entry<M> {
    /// Where it lives.
    pub key: Key,
    /// When it was written.
    pub revision: Revision,
    /// The value as it goes out on the wire. Shared, never copied.
    pub bytes: Bytes,
    /// What [`Extract`] found in the bytes.
    pub meta: M,
}

/// A key has one value at one revision.
impl<M> PartialEq for Entry<M> {
    fn eq(&self, other: &Self) -> bool {
        self.revision == other.revision && self.key == other.key
    }
}

/// Reads out of a value what readers want to know without parsing it again.
pub type Extract<M> = Arc<dyn Fn(&Key, &Bytes) -> M + Send + Sync>;

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The key has a new value.
    Put,
    /// The key is gone.
    Delete,
}

/// One change, as watchers are told of it.
#[derive(Debug)]
pub struct Event<M> {
    /// When it happened.
    pub revision: Revision,
    /// What happened.
    pub kind: EventKind,
    /// The new value; after a [`EventKind::Delete`], the last state that the deleter left.
    pub entry: Arc<Entry<M>>,
    /// The value before, if there was one.
    pub previous: Option<Arc<Entry<M>>>,
}

impl<M> Event<M> {
    /// Whether the key did not exist before.
    pub fn created(&self) -> bool {
        self.kind == EventKind::Put && self.previous.is_none()
    }
}
