//! The ordered state in memory.

use std::ops::Bound;
use std::sync::Arc;

use imbl::OrdMap;

use crate::{Entry, Key, Revision};

type Space<M> = OrdMap<Arc<str>, Arc<Entry<M>>>;

/// The whole state at one revision. A clone is O(1) and shares everything.
pub struct Snapshot<M> {
    revision: Revision,
    spaces: OrdMap<Arc<str>, Space<M>>,
}

impl<M> Clone for Snapshot<M> {
    fn clone(&self) -> Self {
        Snapshot {
            revision: self.revision,
            spaces: self.spaces.clone(),
        }
    }
}

impl<M> Snapshot<M> {
    pub(crate) fn empty() -> Self {
        Snapshot {
            revision: Revision(0),
            spaces: OrdMap::new(),
        }
    }

    /// The revision of the newest write in it.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The state of one key.
    pub fn get(&self, key: &Key) -> Option<&Arc<Entry<M>>> {
        self.spaces.get(&key.space)?.get(&key.name)
    }

    /// At most `limit` entries of `space` whose names begin with `name_prefix` and come after the
    /// name `after`, in the order of their names.
    pub fn range<'a>(
        &'a self,
        space: &str,
        name_prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> impl Iterator<Item = &'a Arc<Entry<M>>> {
        let from = match after {
            Some(after) if after >= name_prefix => Bound::Excluded(after),
            _ => Bound::Included(name_prefix),
        };
        self.spaces
            .get(space)
            .into_iter()
            .flat_map(move |names| names.range::<_, str>((from, Bound::Unbounded)))
            .take_while(move |(name, _)| name.starts_with(name_prefix))
            .map(|(_, entry)| entry)
            .take(limit)
    }

    /// How many names of `space` begin with `name_prefix`. O(1) for the empty prefix, else as long
    /// as going through them.
    pub fn count(&self, space: &str, name_prefix: &str) -> usize {
        if name_prefix.is_empty() {
            self.spaces.get(space).map_or(0, OrdMap::len)
        } else {
            self.range(space, name_prefix, None, usize::MAX).count()
        }
    }

    /// The spaces that hold or held entries, in order.
    pub fn spaces(&self) -> impl Iterator<Item = &Arc<str>> {
        self.spaces.keys()
    }

    pub(crate) fn set_revision(&mut self, revision: Revision) {
        self.revision = revision;
    }

    /// Puts `entry` in its place and returns what was there.
    pub(crate) fn insert(&mut self, entry: Arc<Entry<M>>) -> Option<Arc<Entry<M>>> {
        if let Some(space) = self.spaces.get_mut(&entry.key.space) {
            return space.insert(entry.key.name.clone(), entry);
        }
        self.spaces.insert(
            entry.key.space.clone(),
            OrdMap::unit(entry.key.name.clone(), entry),
        );
        None
    }

    pub(crate) fn remove(&mut self, key: &Key) -> Option<Arc<Entry<M>>> {
        self.spaces.get_mut(&key.space)?.remove(&key.name)
    }

    /// The key with the strings that the state already holds, so that a write of a known name keeps
    /// one copy of it.
    pub(crate) fn known(&self, key: Key) -> Key {
        let Some((space, names)) = self.spaces.get_key_value(&key.space) else {
            return key;
        };
        Key {
            name: names
                .get(&key.name)
                .map_or(key.name, |entry| entry.key.name.clone()),
            space: space.clone(),
        }
    }
}
