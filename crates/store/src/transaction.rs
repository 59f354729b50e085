//! What a writer asks for, and the answers.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use crate::{EngineError, Entry, Extract, Key, Revision};

/// A value whose revision is not known before it is committed.
///
/// The stored bytes are `before`, the decimal revision, `after`; or `before` alone.
#[derive(Clone, Debug)]
pub struct Body {
    before: Bytes,
    after: Option<Bytes>,
}

impl Body {
    /// A value that holds its own revision, in decimal, between `before` and `after`.
    pub fn new(before: impl Into<Bytes>, after: impl Into<Bytes>) -> Self {
        Body {
            before: before.into(),
            after: Some(after.into()),
        }
    }

    /// A value that does not hold its revision.
    pub fn plain(bytes: impl Into<Bytes>) -> Self {
        Body {
            before: bytes.into(),
            after: None,
        }
    }

    /// How many bytes it has, but for the digits of its revision.
    pub fn size(&self) -> usize {
        self.before.len() + self.after.as_ref().map_or(0, Bytes::len)
    }

    /// The bytes as they are stored at `revision`.
    pub fn at(&self, revision: Revision) -> Bytes {
        let Some(after) = &self.after else {
            return self.before.clone();
        };
        let digits = revision.0.checked_ilog10().unwrap_or(0) as usize + 1;
        let mut bytes = BytesMut::with_capacity(self.before.len() + digits + after.len());
        bytes.put_slice(&self.before);
        bytes.put_slice(revision.0.to_string().as_bytes());
        bytes.put_slice(after);
        bytes.freeze()
    }
}

/// What must be true of a key for a transaction to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// There is no such key.
    Absent,
    /// The key was last written at this revision.
    At(Revision),
    /// The key exists.
    Present,
}

/// A condition of a transaction.
#[derive(Clone, Debug)]
pub struct Check {
    /// On which key.
    pub key: Key,
    /// What must be true of it.
    pub expected: Expected,
}

/// A change that a transaction makes.
#[derive(Clone, Debug)]
pub enum Write {
    /// Creates or replaces a value.
    Put {
        /// Which key.
        key: Key,
        /// The new value.
        body: Body,
    },
    /// Deletes a key that exists; it is a conflict if it does not.
    Delete {
        /// Which key.
        key: Key,
        /// The last state, for the watchers.
        body: Body,
    },
}

impl Write {
    fn key(&self) -> &Key {
        match self {
            Write::Put { key, .. } | Write::Delete { key, .. } => key,
        }
    }
}

/// Conditions and changes that happen together at one revision, or not at all.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    /// All must hold.
    pub checks: Vec<Check>,
    /// All are made. A key occurs at most once.
    pub writes: Vec<Write>,
}

impl Transaction {
    /// One that does nothing yet.
    pub fn new() -> Self {
        Transaction::default()
    }

    /// Adds a condition.
    #[must_use]
    pub fn check(mut self, key: Key, expected: Expected) -> Self {
        self.checks.push(Check { key, expected });
        self
    }

    /// Adds a change that creates or replaces.
    #[must_use]
    pub fn put(mut self, key: Key, body: Body) -> Self {
        self.writes.push(Write::Put { key, body });
        self
    }

    /// Adds a change that deletes.
    #[must_use]
    pub fn delete(mut self, key: Key, body: Body) -> Self {
        self.writes.push(Write::Delete { key, body });
        self
    }

    /// Creates `key`, which must not exist.
    pub fn create(key: Key, body: Body) -> Self {
        Transaction::new()
            .check(key.clone(), Expected::Absent)
            .put(key, body)
    }

    /// Replaces the value of `key` that was written at `at`.
    pub fn replace(key: Key, at: Revision, body: Body) -> Self {
        Transaction::new()
            .check(key.clone(), Expected::At(at))
            .put(key, body)
    }

    /// Deletes the value of `key` that was written at `at`.
    pub fn remove(key: Key, at: Revision, body: Body) -> Self {
        Transaction::new()
            .check(key.clone(), Expected::At(at))
            .delete(key, body)
    }

    /// Does in the caller's task what can be done there, so that the one writer does not have to.
    pub(crate) fn prepare<M>(self, extract: &Extract<M>) -> Result<Prepared<M>, CommitError> {
        let mut seen = BTreeSet::new();
        for write in &self.writes {
            if !seen.insert(write.key()) {
                let key = write.key().clone();
                return Err(CommitError::Repeated { key });
            }
        }
        drop(seen);
        let writes = self
            .writes
            .into_iter()
            .map(|write| {
                let (key, body, delete) = match write {
                    Write::Put { key, body } => (key, body, false),
                    Write::Delete { key, body } => (key, body, true),
                };
                let meta = extract(&key, &body.at(Revision(0)));
                PreparedWrite {
                    key,
                    body,
                    meta,
                    delete,
                }
            })
            .collect();
        Ok(Prepared {
            checks: self.checks,
            writes,
        })
    }
}

/// A transaction that waits for the writer.
pub(crate) struct Prepared<M> {
    pub(crate) checks: Vec<Check>,
    pub(crate) writes: Vec<PreparedWrite<M>>,
}

pub(crate) struct PreparedWrite<M> {
    pub(crate) key: Key,
    pub(crate) body: Body,
    pub(crate) meta: M,
    pub(crate) delete: bool,
}

impl<M> Prepared<M> {
    /// About how many bytes it will write.
    pub(crate) fn weight(&self) -> usize {
        self.writes.iter().map(|write| write.body.size()).sum()
    }
}

/// A transaction that has happened.
#[derive(Debug)]
pub struct Committed<M> {
    /// Its revision; for a transaction without writes, the revision that it was checked at.
    pub revision: Revision,
    /// What it wrote, in the order of its writes; for a deletion, the last state.
    pub entries: Vec<Arc<Entry<M>>>,
}

/// Why a transaction has not happened.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitError {
    /// A condition did not hold.
    #[error("{key} is not in the expected state")]
    Conflict {
        /// The first key whose condition did not hold.
        key: Key,
        /// When it was last written; `None` if it does not exist.
        actual: Option<Revision>,
    },
    /// The transaction writes a key twice.
    #[error("a transaction writes {key} more than once")]
    Repeated {
        /// Which key.
        key: Key,
    },
    /// The engine did not write.
    #[error(transparent)]
    Disk(#[from] EngineError),
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_spliced_with_its_revision() {
        let check = |revision, expected: &str| {
            let body = Body::new("{\"v\":\"", "\"}");
            assert_eq!(body.at(Revision(revision)), expected);
        };
        check(0, "{\"v\":\"0\"}");
        check(9, "{\"v\":\"9\"}");
        check(10, "{\"v\":\"10\"}");
        check(u64::MAX, "{\"v\":\"18446744073709551615\"}");
        assert_eq!(Body::plain("as it is").at(Revision(7)), "as it is");
    }

    #[test]
    fn a_key_occurs_once_in_a_transaction() {
        let extract: Extract<()> = Arc::new(|_, _| ());
        let key = Key::new("space", "name");
        let twice = Transaction::new()
            .put(key.clone(), Body::plain("a"))
            .delete(key.clone(), Body::plain("b"));
        match twice.prepare(&extract) {
            Err(CommitError::Repeated { key: repeated }) => assert_eq!(repeated, key),
            _ => panic!("writing a key twice was not refused"),
        }
    }
}
