//! The objects of one kind, by name, with the indexes and readers that hang on them.
//!
//! Everything that belongs to one moment changes under one lock: the object, its place in every
//! index, and the note to every reader. So a reader that was told of a change finds at least that
//! state in the cache.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Weak};

use kube::Resource;
use kube::api::ObjectMeta;
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::changes::Feed;
use crate::fields::Fields;

/// The name of an object within its kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Empty for kinds without namespaces.
    pub namespace: Arc<str>,
    /// `metadata.name`
    pub name: Arc<str>,
}

impl Key {
    /// A key from plain strings; an empty namespace means a kind without namespaces.
    pub fn new(namespace: &str, name: &str) -> Key {
        Key {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The key of an object.
    pub fn of<K: Resource>(object: &K) -> Key {
        let meta = object.meta();
        Key::new(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        )
    }
}

impl fmt::Display for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.namespace.is_empty() {
            write!(formatter, "{}/", self.namespace)?;
        }
        formatter.write_str(&self.name)
    }
}

/// Names which values of an object it is to be found by. A plain function, so that everybody who asks
/// for the same index by name gets the same one.
pub(crate) type Extract<K> = fn(&K) -> Vec<String>;

struct Indexed<K> {
    name: &'static str,
    extract: Extract<K>,
    // A vector, not a map: an index has many short lists, and a long one (the pods of a ReplicaSet)
    // is searched by pointer, 2,000 of them in a microsecond.
    by_value: HashMap<String, Vec<Arc<K>>>,
}

impl<K> Indexed<K> {
    fn insert(&mut self, object: &Arc<K>) {
        for value in (self.extract)(object) {
            self.by_value.entry(value).or_default().push(object.clone());
        }
    }

    fn remove(&mut self, object: &Arc<K>) {
        for value in (self.extract)(object) {
            if let Some(list) = self.by_value.get_mut(&value) {
                list.retain(|other| !Arc::ptr_eq(other, object));
                if list.is_empty() {
                    self.by_value.remove(&value);
                }
            }
        }
    }
}

struct Contents<K> {
    by_namespace: BTreeMap<Arc<str>, BTreeMap<Arc<str>, Arc<K>>>,
    count: usize,
    indexes: Vec<Indexed<K>>,
    feeds: Vec<Weak<Feed<K>>>,
    views: Vec<View<K>>,
}

/// A cache of some of another's objects: the same objects, and told in the same step.
struct View<K> {
    fields: Fields,
    cache: Arc<Cache<K>>,
}

/// See the module.
pub(crate) struct Cache<K> {
    contents: RwLock<Contents<K>>,
    /// Whether the first list has arrived.
    pub(crate) synced: watch::Sender<bool>,
    /// The newest revision that the cache has reached; told after each step, also when only a
    /// bookmark moved it.
    pub(crate) revision: watch::Sender<u64>,
}

impl<K: Resource> Default for Cache<K> {
    fn default() -> Self {
        Cache {
            contents: RwLock::new(Contents {
                by_namespace: BTreeMap::new(),
                count: 0,
                indexes: Vec::new(),
                feeds: Vec::new(),
                views: Vec::new(),
            }),
            synced: watch::Sender::new(false),
            revision: watch::Sender::new(0),
        }
    }
}

impl<K: Resource + 'static> Cache<K> {
    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let contents = self.contents.read();
        contents.by_namespace.get(namespace)?.get(name).cloned()
    }

    pub(crate) fn list(&self) -> Vec<Arc<K>> {
        let contents = self.contents.read();
        let mut all = Vec::with_capacity(contents.count);
        for objects in contents.by_namespace.values() {
            all.extend(objects.values().cloned());
        }
        all
    }

    pub(crate) fn list_in(&self, namespace: &str) -> Vec<Arc<K>> {
        let contents = self.contents.read();
        match contents.by_namespace.get(namespace) {
            Some(objects) => objects.values().cloned().collect(),
            None => Vec::new(),
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.contents.read().count
    }

    /// Takes an object's state from the server. A state that is already known is passed over.
    pub(crate) fn apply(&self, object: Arc<K>) {
        let revision = revision_of(&*object);
        self.contents.write().apply(object);
        self.reach(revision);
    }

    /// Takes the end of an object from the server; `last` is its last state.
    pub(crate) fn delete(&self, last: Arc<K>) {
        let revision = revision_of(&*last);
        let meta = last.meta();
        let (namespace, name) = (
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        );
        self.contents.write().delete(namespace, name, Some(&last));
        self.reach(revision);
    }

    /// The same for an object of which only the metadata can be read.
    pub(crate) fn delete_named(&self, meta: &ObjectMeta) {
        let (namespace, name) = (
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        );
        self.contents.write().delete(namespace, name, None);
        let revision = meta.resource_version.as_deref();
        self.reach(
            revision
                .and_then(|text| text.parse().ok())
                .unwrap_or_default(),
        );
    }

    /// Takes a whole list: what is not in it has been deleted while nobody watched.
    pub(crate) fn replace(&self, objects: Vec<Arc<K>>, revision: &str) {
        let mut contents = self.contents.write();
        let mut gone: BTreeMap<Key, ()> = BTreeMap::new();
        for objects in contents.by_namespace.values() {
            gone.extend(objects.values().map(|object| (Key::of(&**object), ())));
        }
        for object in objects {
            gone.remove(&Key::of(&*object));
            contents.apply(object);
        }
        for key in gone.into_keys() {
            contents.delete(&key.namespace, &key.name, None);
        }
        drop(contents);
        self.reach(revision.parse().unwrap_or_default());
        self.set_synced();
    }

    fn set_synced(&self) {
        self.synced
            .send_if_modified(|synced| !std::mem::replace(synced, true));
        for view in &self.contents.read().views {
            view.cache.set_synced();
        }
    }

    /// Notes how far the cache has come, and wakes who waits for it.
    pub(crate) fn reach(&self, revision: u64) {
        self.revision
            .send_modify(|reached| *reached = revision.max(*reached));
        for view in &self.contents.read().views {
            view.cache.reach(revision);
        }
    }

    /// A cache of those objects that `fields` pick, kept by this one.
    pub(crate) fn view(&self, fields: Fields) -> Arc<Cache<K>> {
        let cache = Arc::new(Cache::default());
        let mut contents = self.contents.write();
        for objects in contents.by_namespace.values() {
            for object in objects.values().filter(|object| fields.pick(&***object)) {
                cache.contents.write().apply(object.clone());
            }
        }
        cache.reach(*self.revision.borrow());
        if *self.synced.borrow() {
            cache.set_synced();
        }
        contents.views.push(View {
            fields,
            cache: cache.clone(),
        });
        cache
    }

    /// A new reader, who first hears of everything that is there.
    pub(crate) fn subscribe(&self) -> Arc<Feed<K>> {
        let feed = Arc::new(Feed::default());
        let mut contents = self.contents.write();
        for objects in contents.by_namespace.values() {
            for object in objects.values() {
                feed.applied(Key::of(&**object), None, object.clone());
            }
        }
        contents.feeds.retain(|feed| feed.strong_count() > 0);
        contents.feeds.push(Arc::downgrade(&feed));
        feed
    }

    fn index(&self, name: &'static str, extract: Extract<K>) {
        let mut contents = self.contents.write();
        if contents.indexes.iter().any(|index| index.name == name) {
            return;
        }
        let mut index = Indexed {
            name,
            extract,
            by_value: HashMap::new(),
        };
        for objects in contents.by_namespace.values() {
            objects.values().for_each(|object| index.insert(object));
        }
        contents.indexes.push(index);
    }
}

impl<K: Resource + 'static> Contents<K> {
    fn apply(&mut self, object: Arc<K>) {
        let meta = object.meta();
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let name = meta.name.as_deref().unwrap_or_default();
        let known = self
            .by_namespace
            .get(namespace)
            .and_then(|objects| objects.get_key_value(name));
        let (key_name, old) = match known {
            Some((_, old)) if old.meta().resource_version == meta.resource_version => return,
            Some((name, old)) => (name.clone(), Some(old.clone())),
            None => (name.into(), None),
        };
        let key_namespace = match self.by_namespace.get_key_value(namespace) {
            Some((namespace, _)) => namespace.clone(),
            None => namespace.into(),
        };
        let key = Key {
            namespace: key_namespace,
            name: key_name,
        };
        for index in &mut self.indexes {
            if let Some(old) = &old {
                index.remove(old);
            }
            index.insert(&object);
        }
        self.by_namespace
            .entry(key.namespace.clone())
            .or_default()
            .insert(key.name.clone(), object.clone());
        self.count += usize::from(old.is_none());
        for view in &self.views {
            let mut contents = view.cache.contents.write();
            match view.fields.pick(&*object) {
                true => contents.apply(object.clone()),
                false => contents.delete(&key.namespace, &key.name, None),
            }
        }
        self.tell(|feed| feed.applied(key.clone(), old.clone(), object.clone()));
    }

    fn delete(&mut self, namespace: &str, name: &str, last: Option<&Arc<K>>) {
        let Some(objects) = self.by_namespace.get_mut(namespace) else {
            return;
        };
        let Some((key_name, old)) = objects.remove_entry(name) else {
            return;
        };
        if objects.is_empty() {
            self.by_namespace.remove(namespace);
        }
        self.count -= 1;
        for index in &mut self.indexes {
            index.remove(&old);
        }
        for view in &self.views {
            let mut contents = view.cache.contents.write();
            contents.delete(namespace, name, last);
        }
        let key = Key {
            namespace: namespace.into(),
            name: key_name,
        };
        let last = last.unwrap_or(&old);
        self.tell(|feed| feed.deleted(key.clone(), old.clone(), last.clone()));
    }

    fn tell(&mut self, note: impl Fn(&Feed<K>)) {
        self.feeds.retain(|feed| match feed.upgrade() {
            Some(feed) => {
                note(&feed);
                true
            }
            None => false,
        });
    }
}

/// Objects found by something other than their name, kept up to date with the cache.
pub struct Index<K: Resource> {
    name: &'static str,
    cache: Arc<Cache<K>>,
}

impl<K: Resource> Clone for Index<K> {
    fn clone(&self) -> Self {
        Index {
            name: self.name,
            cache: self.cache.clone(),
        }
    }
}

impl<K: Resource + 'static> Index<K> {
    pub(crate) fn new(cache: Arc<Cache<K>>, name: &'static str, extract: Extract<K>) -> Self {
        cache.index(name, extract);
        Index { name, cache }
    }

    /// The objects that the index names by this value, in no order.
    pub fn get(&self, value: &str) -> Vec<Arc<K>> {
        let contents = self.cache.contents.read();
        contents
            .indexes
            .iter()
            .find(|index| index.name == self.name)
            .and_then(|index| index.by_value.get(value))
            .cloned()
            .unwrap_or_default()
    }
}

fn revision_of<K: Resource>(object: &K) -> u64 {
    // Revisions are opaque in principle and ordered numbers in every server since v1.35; one that is
    // no number just never makes anybody's waiting shorter.
    object
        .meta()
        .resource_version
        .as_deref()
        .and_then(|revision| revision.parse().ok())
        .unwrap_or_default()
}
