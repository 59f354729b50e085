//! The ordered state in memory.

use std::ops::Bound;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use crate::{Entry, Key, Revision};

type Names<M> = OrdMap<Arc<str>, Arc<Entry<M>>>;

/// All entries of one space, at one revision. A clone is O(1) and shares everything.
pub struct Space<M> {
    names: Names<M>,
    /// When an entry of it was last written or removed.
    written: Revision,
}

/// How one key of a space differs between two states of it.
#[derive(Debug)]
pub enum Difference<'a, M> {
    /// The later state has this value, the earlier one another or none.
    Put(&'a Arc<Entry<M>>),
    /// The later state does not have the key; this was its value.
    Gone(&'a Arc<Entry<M>>),
}

impl<M> Default for Space<M> {
    fn default() -> Self {
        Space {
            names: Names::new(),
            written: Revision(0),
        }
    }
}

impl<M> Space<M> {
    /// As [`Snapshot::space_revision`].
    pub fn written(&self) -> Revision {
        self.written
    }

    /// The entries whose names begin with `name_prefix`, beginning at `from`, in the order of their
    /// names.
    pub fn range<'a>(
        &'a self,
        name_prefix: &'a str,
        from: Bound<&'a str>,
    ) -> impl Iterator<Item = &'a Arc<Entry<M>>> {
        let begin = match from {
            Bound::Included(name) | Bound::Excluded(name) if name >= name_prefix => from,
            _ => Bound::Included(name_prefix),
        };
        // Where the range has an end, no name has to be looked at.
        let end = end_of(name_prefix);
        let is_past_end = match (&end, begin) {
            (Some(end), Bound::Included(name) | Bound::Excluded(name)) => name >= end.as_str(),
            _ => false,
        };
        (!is_past_end)
            .then(|| {
                let to = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
                let is_bounded = end.is_some();
                self.names
                    .range::<_, str>((begin, to))
                    .take_while(move |(name, _)| is_bounded || name.starts_with(name_prefix))
            })
            .into_iter()
            .flatten()
            .map(|(_, entry)| entry)
    }

    /// What this state has that `earlier` had not, and the other way round, in the order of the
    /// names. What both share is passed over, so this costs about as much as there are differences,
    /// however large the space is.
    pub fn since<'a>(&'a self, earlier: &'a Space<M>) -> impl Iterator<Item = Difference<'a, M>> {
        earlier.names.diff(&self.names).map(|item| match item {
            DiffItem::Add(_, entry)
            | DiffItem::Update {
                new: (_, entry), ..
            } => Difference::Put(entry),
            DiffItem::Remove(_, entry) => Difference::Gone(entry),
        })
    }
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

    /// One space as it is in this state, to be compared with what it is later ([`Space::since`]).
    /// It keeps no other space alive.
    pub fn space(&self, space: &str) -> Space<M> {
        self.spaces.get(space).cloned().unwrap_or_default()
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
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.spaces
            .get(space)
            .into_iter()
            .flat_map(move |space| space.range(name_prefix, from))
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
    use std::collections::BTreeMap;

    use bytes::Bytes;

    use super::*;

    const NAMES: [&str; 9] = ["a", "a-b", "a/", "a/x", "a/~", "a0", "b/x", "é/x", "\u{7f}"];

    fn entry(name: &str, revision: u64) -> Arc<Entry<()>> {
        Arc::new(Entry {
            key: Key::new("space", name),
            revision: Revision(revision),
            bytes: Bytes::new(),
            meta: (),
        })
    }

    #[test]
    fn a_space_tells_what_is_other_than_before() {
        let mut state = Snapshot::empty();
        let mut told: BTreeMap<String, u64> = BTreeMap::new();
        let mut known = BTreeMap::new();
        let mut seen = Space::default();
        // Enough names for a tree of several floors, whose nodes are split and joined.
        for step in 1..6_000_u64 {
            let name = format!("{:03}", (step * 7919) % 997);
            state.set_revision(Revision(step));
            if step % 3 == 0 {
                state.remove(&Key::new("space", name.as_str()));
                known.remove(&name);
            } else {
                state.insert(entry(&name, step));
                known.insert(name, step);
            }
            if step % 17 != 0 {
                continue;
            }
            let now = state.space("space");
            let mut count = 0;
            for difference in now.since(&seen) {
                count += 1;
                match difference {
                    Difference::Put(entry) => {
                        let was = told.insert(entry.key.name.to_string(), entry.revision.0);
                        assert_ne!(was, Some(entry.revision.0), "told without need");
                    }
                    Difference::Gone(entry) => {
                        let was = told.remove(&*entry.key.name);
                        assert_eq!(was, Some(entry.revision.0));
                    }
                }
            }
            assert!(count <= 17, "{count}");
            assert_eq!(told, known, "at {step}");
            seen = now;
        }
        assert_eq!(state.space("other").since(&Space::default()).count(), 0);
    }

    #[test]
    fn a_range_holds_what_begins_with_the_prefix_and_comes_after() {
        let mut state = Snapshot::empty();
        for (index, name) in NAMES.into_iter().enumerate() {
            state.insert(entry(name, index as u64));
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
