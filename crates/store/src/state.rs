//! The ordered state in memory.

use std::ops::Bound;
use std::sync::Arc;

use imbl::OrdMap;

use crate::{Entry, Key, Revision};

type Names<M> = OrdMap<Arc<str>, Arc<Entry<M>>>;

/// All entries of one space.
struct Space<M> {
    names: Names<M>,
    /// When an entry of it was last written or removed.
    written: Revision,
}

impl<M> Clone for Space<M> {
    fn clone(&self) -> Self {
        Space {
            names: self.names.clone(),
            written: self.written,
        }
    }
}

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

    /// The revision at which an entry of `space` was last written or removed. What is worked out
    /// from the entries of a space holds as long as this stays the same. Like the history, the
    /// removals before this start are forgotten.
    pub fn space_revision(&self, space: &str) -> Revision {
        self.spaces
            .get(space)
            .map_or(Revision(0), |space| space.written)
    }

    /// The state of one key.
    pub fn get(&self, key: &Key) -> Option<&Arc<Entry<M>>> {
        self.spaces.get(&key.space)?.names.get(&key.name)
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
        // Where the range has an end, no name has to be looked at.
        let end = end_of(name_prefix);
        let is_past_end = end
            .as_deref()
            .zip(after)
            .is_some_and(|(end, after)| after >= end);
        self.spaces
            .get(space)
            .filter(|_| !is_past_end)
            .into_iter()
            .flat_map(move |space| {
                let to = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
                let is_bounded = end.is_some();
                space
                    .names
                    .range::<_, str>((from, to))
                    .take_while(move |(name, _)| is_bounded || name.starts_with(name_prefix))
            })
            .map(|(_, entry)| entry)
            .take(limit)
    }

    /// How many names of `space` begin with `name_prefix`. O(1) for the empty prefix, else as long
    /// as going through them.
    pub fn count(&self, space: &str, name_prefix: &str) -> usize {
        if name_prefix.is_empty() {
            self.spaces.get(space).map_or(0, |space| space.names.len())
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
            space.written = space.written.max(entry.revision);
            return space.names.insert(entry.key.name.clone(), entry);
        }
        self.spaces.insert(
            entry.key.space.clone(),
            Space {
                written: entry.revision,
                names: OrdMap::unit(entry.key.name.clone(), entry),
            },
        );
        None
    }

    /// Takes `key` out, at the revision that was set last.
    pub(crate) fn remove(&mut self, key: &Key) -> Option<Arc<Entry<M>>> {
        let space = self.spaces.get_mut(&key.space)?;
        space.written = self.revision;
        space.names.remove(&key.name)
    }

    /// The key with the strings that the state already holds, so that a write of a known name keeps
    /// one copy of it.
    pub(crate) fn known(&self, key: Key) -> Key {
        let Some((name, space)) = self.spaces.get_key_value(&key.space) else {
            return key;
        };
        Key {
            name: space
                .names
                .get(&key.name)
                .map_or(key.name, |entry| entry.key.name.clone()),
            space: name.clone(),
        }
    }
}

/// The first text that comes after all that begin with `prefix`, where it is told easily.
fn end_of(prefix: &str) -> Option<String> {
    let (last, before) = prefix.as_bytes().split_last()?;
    let next = last.checked_add(1).filter(u8::is_ascii)?;
    String::from_utf8([before, &[next]].concat()).ok()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const NAMES: [&str; 9] = ["a", "a-b", "a/", "a/x", "a/~", "a0", "b/x", "é/x", "\u{7f}"];

    #[test]
    fn a_range_holds_what_begins_with_the_prefix_and_comes_after() {
        let mut state = Snapshot::empty();
        for (index, name) in NAMES.into_iter().enumerate() {
            state.insert(Arc::new(Entry {
                key: Key::new("space", name),
                revision: Revision(index as u64),
                bytes: Bytes::new(),
                meta: (),
            }));
        }
        let mut sorted = NAMES;
        sorted.sort_unstable();
        for prefix in ["", "a", "a/", "a0", "b/", "c/", "é", "é/", "\u{7f}", "~"] {
            for after in [
                None,
                Some(""),
                Some("a"),
                Some("a/x"),
                Some("a0"),
                Some("b"),
                Some("é0"),
            ] {
                let expected: Vec<&str> = sorted
                    .into_iter()
                    .filter(|name| name.starts_with(prefix))
                    .filter(|name| after.is_none_or(|after| *name > after))
                    .collect();
                let got: Vec<&str> = state
                    .range("space", prefix, after, usize::MAX)
                    .map(|entry| &*entry.key.name)
                    .collect();
                assert_eq!(got, expected, "{prefix:?} after {after:?}");
            }
        }
    }
}
