//! The metadata of the objects of any kind, through whichever cache of them there is: those of which
//! this program has whole objects anyway by these, all others by a cache of the metadata alone.

use std::sync::Arc;

use futures::future::BoxFuture;
use informer::{Change, Informer, Key, Metadata, Object};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Endpoints, Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::ApiResource;

use crate::discovery::Resource;
use crate::{Context, follow};

/// What has changed of an object.
pub(crate) struct Step<'a> {
    pub(crate) key: Key,
    /// As it is, or was last.
    pub(crate) meta: &'a ObjectMeta,
    /// As it was when this was last told of it.
    pub(crate) old: Option<&'a ObjectMeta>,
    pub(crate) gone: bool,
}

/// Is told of each change.
pub(crate) type Note = Box<dyn FnMut(&Step<'_>) + Send>;

/// The metadata of the objects of one kind.
pub(crate) trait Cache: Send + Sync {
    fn get(&self, key: &Key) -> Option<ObjectMeta>;

    /// Tells `note` of everything that is there and then of each change, until the drain.
    fn follow(&self, note: Note) -> BoxFuture<'static, ()>;
}

impl<K: Object> Cache for Informer<K> {
    fn get(&self, key: &Key) -> Option<ObjectMeta> {
        let object = Informer::get(self, Some(&key.namespace), &key.name)?;
        Some(object.meta().clone())
    }

    fn follow(&self, mut note: Note) -> BoxFuture<'static, ()> {
        Box::pin(follow(self.clone(), move |change| {
            let old = match change {
                Change::Applied { old, .. } => old.as_ref().map(|old| old.meta()),
                Change::Deleted(_) => None,
            };
            note(&Step {
                key: Key::of(&**change.object()),
                meta: change.object().meta(),
                old,
                gone: matches!(change, Change::Deleted(_)),
            });
        }))
    }
}

/// The cache of a kind.
pub(crate) fn cache_of(context: &Context, resource: &Resource) -> Arc<dyn Cache> {
    let informers = &context.informers;
    macro_rules! whole {
        ($($type:ty),*) => {$(
            if is::<$type>(&resource.api) {
                return Arc::new(informers.of::<$type>());
            }
        )*};
    }
    if is::<Pod>(&resource.api) {
        return Arc::new(informers.pods());
    }
    whole!(
        ReplicaSet,
        Deployment,
        Service,
        Endpoints,
        EndpointSlice,
        Node,
        Namespace,
        ServiceAccount,
        Lease,
        ClusterRole
    );
    Arc::<Informer<Metadata>>::new(informers.of_metadata(&resource.api))
}

fn is<K: kube::Resource<DynamicType = ()>>(api: &ApiResource) -> bool {
    api.group == K::group(&()) && api.plural == K::plural(&())
}
