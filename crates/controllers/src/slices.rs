//! EndpointSlices as those who keep them see them: found by their Service and by who keeps them, and
//! written as what differs.

use std::sync::Arc;
use std::time::Duration;

use informer::{Index, Informer, Key};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::api::Api;

use crate::writes::{self, message_of, whole_second};
use crate::{Context, backends, claim, follow};

pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// How long a deleted slice is waited for.
const GONE_WITHIN: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("could not create a slice: {}", message_of(.0))]
    Create(kube::Error),
    #[error("could not update slice {slice}: {}", message_of(.source))]
    Update { slice: String, source: kube::Error },
    #[error("could not delete slice {slice}: {}", message_of(.source))]
    Delete { slice: String, source: kube::Error },
}

/// The slices that one controller keeps.
#[derive(Clone)]
pub(crate) struct Slices {
    client: kube::Client,
    /// All slices, whoever keeps them.
    pub(crate) cache: Informer<EndpointSlice>,
    by_service: Index<EndpointSlice>,
    keeper: &'static str,
}

/// What differs between the slices that there are and those that there should be.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) create: Vec<EndpointSlice>,
    pub(crate) update: Vec<EndpointSlice>,
    pub(crate) delete: Vec<Arc<EndpointSlice>>,
}

impl Changes {
    pub(crate) fn is_empty(&self) -> bool {
        self.create.is_empty() && self.update.is_empty() && self.delete.is_empty()
    }
}

impl Slices {
    /// Those whose label `managed-by` names `keeper`.
    pub(crate) fn new(context: &Context, keeper: &'static str) -> Slices {
        let cache = context.informers.of::<EndpointSlice>();
        let by_service = cache.index_by("service", |slice| {
            let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
            let service = claim::labels(&slice.metadata).get(SERVICE_NAME);
            service
                .map(|service| format!("{namespace}/{service}"))
                .into_iter()
                .collect()
        });
        Slices {
            client: context.client.clone(),
            cache,
            by_service,
            keeper,
        }
    }

    /// Has a Service looked at when a slice of these changes, until the drain.
    pub(crate) async fn follow(&self, look_at: impl Fn(Key)) {
        follow(self.cache.clone(), |change| {
            if let Some(service) = self.service_of(change.object()) {
                look_at(service);
            }
        })
        .await;
    }

    fn is_ours(&self, slice: &EndpointSlice) -> bool {
        let keeper = claim::labels(&slice.metadata).get(MANAGED_BY);
        keeper.is_some_and(|keeper| keeper == self.keeper)
    }

    /// The Service that a slice belongs to, if it is one of these.
    fn service_of(&self, slice: &EndpointSlice) -> Option<Key> {
        let service = claim::labels(&slice.metadata).get(SERVICE_NAME)?;
        let namespace = slice.metadata.namespace.as_deref()?;
        self.is_ours(slice).then(|| Key::new(namespace, service))
    }

    /// The slices of a Service, by name, without those that are about to go.
    pub(crate) fn of(&self, service: &Key) -> Vec<Arc<EndpointSlice>> {
        let mut known = self.by_service.get(&service.to_string());
        known.retain(|slice| self.is_ours(slice) && slice.metadata.deletion_timestamp.is_none());
        known.sort_by(|one, other| one.metadata.name.cmp(&other.metadata.name));
        known
    }

    /// Carries out the changes, and waits until the cache has seen them.
    pub(crate) async fn write(&self, namespace: &str, changes: Changes) -> Result<(), Error> {
        let slices: Api<EndpointSlice> = Api::namespaced(self.client.clone(), namespace);
        let params = writes::post();
        for slice in &changes.create {
            match slices.create(&params, slice).await {
                Ok(created) => self.cache.caught_up_with(&created).await,
                // The namespace is going: nothing can be made in it.
                Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => return Ok(()),
                Err(error) => return Err(Error::Create(error)),
            }
        }
        for slice in &changes.update {
            let name = slice.metadata.name.as_deref().unwrap_or_default();
            match slices.replace(name, &params, slice).await {
                Ok(written) => self.cache.caught_up_with(&written).await,
                Err(source) => {
                    let slice = name.to_owned();
                    return Err(Error::Update { slice, source });
                }
            }
        }
        for slice in &changes.delete {
            let name = slice.metadata.name.as_deref().unwrap_or_default();
            let outcome = slices.delete(name, &writes::delete(&slice.metadata)).await;
            writes::deleted(outcome).map_err(|source| Error::Delete {
                slice: name.to_owned(),
                source,
            })?;
            let gone = |slices: &Informer<EndpointSlice>| {
                let known = slices.get(Some(namespace), name);
                let same = known.is_some_and(|known| known.metadata.uid == slice.metadata.uid);
                (!same).then_some(())
            };
            // A slice that somebody else's finalizer keeps is passed over from now on.
            let _ = tokio::time::timeout(GONE_WITHIN, self.cache.until(gone)).await;
        }
        Ok(())
    }
}

pub(crate) fn endpoints_of(slice: &EndpointSlice) -> &[Endpoint] {
    slice.endpoints.as_deref().unwrap_or_default()
}

pub(crate) fn same_ports(slice: &EndpointSlice, ports: &[EndpointPort]) -> bool {
    let known = slice.ports.as_deref().unwrap_or_default();
    known.len() == ports.len() && ports.iter().all(|port| known.contains(port))
}

/// Writes or takes out the annotation that says when the first of the changes came about.
pub(crate) fn write_trigger_time(meta: &mut ObjectMeta, time: Option<Timestamp>) {
    match time.map(whole_second) {
        Some(time) => {
            let annotations = meta.annotations.get_or_insert_default();
            annotations.insert(backends::TRIGGER_TIME.to_owned(), time.to_string());
        }
        None => {
            if let Some(annotations) = &mut meta.annotations {
                annotations.remove(backends::TRIGGER_TIME);
            }
        }
    }
}
