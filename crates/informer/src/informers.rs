//! The one place that a process gets its caches from.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::core::{ApiResource, DynamicObject, PartialObjectMeta};
use lifecycle::Drain;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;

use crate::cache::{Cache, Extract, Index};
use crate::changes::Changes;
use crate::fields::Fields;
use crate::reflect::{self, Form, Source, Trim};
use crate::trim;

/// How long a writer waits for its own write to come back: as long as upstream's controllers trust
/// that what they did will show.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(300);

/// What can be cached: any typed object of the API.
pub trait Object:
    kube::Resource<DynamicType: Send + Sync> + Clone + DeserializeOwned + Debug + Send + Sync + 'static
{
}

impl<K> Object for K where
    K: kube::Resource<DynamicType: Send + Sync>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + Sync
        + 'static
{
}

/// An object of which only the metadata is kept.
pub type Metadata = PartialObjectMeta<DynamicObject>;

/// The caches of one process, each started when first asked for. Cheap to clone.
#[derive(Clone)]
pub struct Informers {
    reader: kube::Client,
    client: kube::Client,
    drain: Drain,
    started: Arc<Mutex<HashMap<Place, Box<dyn Any + Send>>>>,
    /// The nodes whose agents read these caches.
    hosted: Arc<[String]>,
}

#[derive(PartialEq, Eq, Hash)]
struct Place {
    kind: TypeId,
    path: String,
    field_selector: Option<String>,
    trimmed: bool,
}

impl Informers {
    /// Caches that read through `client` until `drain` is signaled.
    pub fn new(client: kube::Client, drain: Drain) -> Self {
        Informers {
            reader: client.clone(),
            client,
            drain,
            started: Arc::default(),
            hosted: Arc::default(),
        }
    }

    /// The same caches, which keep the pods of these nodes as a whole: their agents read them too.
    /// To be said before a cache is asked for. What [`Informers::of_fields`] then gives for
    /// `spec.nodeName=NODE` is a view of [`Informers::pods`] and costs neither a watch nor memory of
    /// its own.
    pub fn hosting(mut self, nodes: impl IntoIterator<Item = String>) -> Self {
        self.hosted = nodes.into_iter().collect();
        self
    }

    /// The same caches, for a worker that otherwise acts through a client of its own identity.
    pub fn acting_as(&self, client: kube::Client) -> Self {
        Informers {
            client,
            ..self.clone()
        }
    }

    /// The client that the worker acts through; unless another was given, the caches read through it.
    pub fn client(&self) -> &kube::Client {
        &self.client
    }

    /// The cache of a kind in all namespaces. Must be called within a tokio runtime.
    pub fn of<K>(&self) -> Informer<K>
    where
        K: Object,
        K::DynamicType: Default,
    {
        self.at(&K::DynamicType::default(), None, Form::Whole, None)
    }

    /// The cache of those objects of a kind that a field selector picks, such as
    /// `spec.nodeName=node-1`. Where the whole kind is cached already, or will be (the pods of a hosted
    /// node), it is a view of that; else it is a cache of its own.
    pub fn of_fields<K>(&self, field_selector: &str) -> Informer<K>
    where
        K: Object,
        K::DynamicType: Default,
    {
        let kind = K::DynamicType::default();
        let fields = Fields::parse(field_selector);
        let is_of_host = |node: &String| fields.as_ref() == Some(&Fields::of_node(node));
        let hosted = self.hosted.iter().any(is_of_host) && TypeId::of::<K>() == TypeId::of::<Pod>();
        if hosted {
            self.pods();
        }
        let place = |field_selector: Option<&str>, trimmed| Place {
            kind: TypeId::of::<K>(),
            path: K::url_path(&kind, None),
            field_selector: field_selector.map(str::to_owned),
            trimmed,
        };
        let selected = place(Some(field_selector), false);
        let mut started = self.started.lock();
        if let Some(known) = find(&started, &selected) {
            return known;
        }
        let whole = find::<K>(&started, &place(None, hosted));
        if let (Some(fields), Some(whole)) = (fields, whole) {
            let view = Informer {
                cache: whole.cache.view(fields),
                drain: self.drain.clone(),
            };
            started.insert(selected, Box::new(view.clone()));
            return view;
        }
        drop(started);
        self.at(&kind, Some(field_selector.to_owned()), Form::Whole, None)
    }

    /// The cache of all pods, without what only their own nodes read: volumes but for claims, mounts,
    /// environment, commands, probes, and of the containers' states all but the count of restarts. A
    /// third of the memory of whole pods, for those who look at all of them; never write such a pod as
    /// a whole. The pods of hosted nodes are whole.
    pub fn pods(&self) -> Informer<Pod> {
        let hosted = self.hosted.clone();
        let trim = move |pod: &mut Pod| {
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
            if !node.is_some_and(|node| hosted.contains(node)) {
                trim::pod(pod);
            }
        };
        self.at(&(), None, Form::Whole, Some(Arc::new(trim)))
    }

    /// The cache of the metadata of any kind that discovery names. The objects' types are left out:
    /// they are those of `resource`.
    pub fn of_metadata(&self, resource: &ApiResource) -> Informer<Metadata> {
        self.at(resource, None, Form::Metadata, None)
    }

    fn at<K: Object>(
        &self,
        kind: &K::DynamicType,
        field_selector: Option<String>,
        form: Form,
        trim: Option<Trim<K>>,
    ) -> Informer<K> {
        let path = K::url_path(kind, None);
        let place = Place {
            kind: TypeId::of::<K>(),
            path: path.clone(),
            field_selector: field_selector.clone(),
            trimmed: trim.is_some(),
        };
        let mut started = self.started.lock();
        if let Some(known) = find(&started, &place) {
            return known;
        }
        let informer = Informer {
            cache: Arc::default(),
            drain: self.drain.clone(),
        };
        let source = Source {
            client: self.reader.clone(),
            path,
            field_selector,
            form,
            trim,
        };
        tokio::spawn(reflect::run(
            source,
            informer.cache.clone(),
            self.drain.clone(),
        ));
        started.insert(place, Box::new(informer.clone()));
        informer
    }
}

/// The cache at a place, if it was started.
fn find<K: Object>(
    started: &HashMap<Place, Box<dyn Any + Send>>,
    place: &Place,
) -> Option<Informer<K>> {
    let known = started.get(place)?.downcast_ref::<Informer<K>>();
    Some(known.expect("the place names the type").clone())
}

/// The cache of one kind. Clones read the same cache.
pub struct Informer<K: kube::Resource> {
    cache: Arc<Cache<K>>,
    drain: Drain,
}

impl<K: kube::Resource> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Informer {
            cache: self.cache.clone(),
            drain: self.drain.clone(),
        }
    }
}

impl<K: kube::Resource + 'static> Informer<K> {
    /// The newest known state of an object. `None` as namespace is for kinds without namespaces.
    pub fn get(&self, namespace: Option<&str>, name: &str) -> Option<Arc<K>> {
        self.cache.get(namespace.unwrap_or_default(), name)
    }

    /// All objects, by namespace and name.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.cache.list()
    }

    /// All objects of a namespace, by name.
    pub fn list_in(&self, namespace: &str) -> Vec<Arc<K>> {
        self.cache.list_in(namespace)
    }

    /// How many objects there are.
    pub fn count(&self) -> usize {
        self.cache.count()
    }

    /// Resolves when the first list has arrived, at once if it has; never if the program drains
    /// before.
    pub async fn synced(&self) {
        let mut synced = self.cache.synced.subscribe();
        // The cache owns the sender and outlives this borrow, so waiting cannot fail.
        let _ = synced.wait_for(|synced| *synced).await;
    }

    /// Whether the first list has arrived.
    pub fn is_synced(&self) -> bool {
        *self.cache.synced.borrow()
    }

    /// A feed of changes that begins with everything that is known.
    pub fn changes(&self) -> Changes<K> {
        Changes {
            feed: self.cache.subscribe(),
            drain: self.drain.clone(),
        }
    }

    /// The objects by the values that `extract` names, for example the uid of the owner. Whoever asks
    /// for an index of the same name gets the same one; `extract` must be the same then.
    pub fn index_by(&self, name: &'static str, extract: fn(&K) -> Vec<String>) -> Index<K> {
        let extract: Extract<K> = extract;
        Index::new(self.cache.clone(), name, extract)
    }

    /// Waits until `probe` finds in the cache what it looks for. It is asked at once, and again after
    /// each step of the cache; the usual use is to wait for one's own write to come back:
    ///
    /// ```ignore
    /// pods.until(|pods| pods.get(Some("default"), &name)).await;
    /// ```
    pub async fn until<T>(&self, mut probe: impl FnMut(&Self) -> Option<T>) -> T {
        let mut revision = self.cache.revision.subscribe();
        loop {
            revision.mark_unchanged();
            if let Some(found) = probe(self) {
                return found;
            }
            // The cache owns the sender and outlives this borrow, so waiting cannot fail.
            let _ = revision.changed().await;
        }
    }

    /// Waits until the cache is at least as new as `written`, the server's answer to a write, so that
    /// what is decided next is not decided on an older state. Gives up after five minutes, for the
    /// watch may be broken; and does not wait at all for a server whose revisions are no numbers.
    pub async fn caught_up_with(&self, written: &K) {
        let revision = written.meta().resource_version.as_deref();
        let Some(revision) = revision.and_then(|revision| revision.parse::<u64>().ok()) else {
            return;
        };
        let reached = self.until(|informer| (informer.revision() >= revision).then_some(()));
        let _ = tokio::time::timeout(CATCH_UP_WITHIN, reached).await;
    }

    /// The newest revision of the server that the cache has reached; 0 before the first list.
    pub fn revision(&self) -> u64 {
        *self.cache.revision.borrow()
    }
}
