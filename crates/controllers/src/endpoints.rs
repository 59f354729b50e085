//! Endpoints: what EndpointSlices say, in the older form with one object per Service, for clients that
//! still read it.

use std::collections::BTreeMap;
use std::sync::Arc;

use informer::{Action, EventType, Informer, Key, Queue, Recorder};
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service,
};
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};

use crate::backends::{self, Port};
use crate::slices::write_trigger_time;
use crate::{Context, FIELD_MANAGER, claim, follow, message_of, pods, rest};

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Addresses in one object; what is above is left out and said so.
const ADDRESSES_MAX: usize = 1000;

#[derive(Clone)]
struct Controller {
    client: kube::Client,
    recorder: Recorder,
    services: Informer<Service>,
    pods: Informer<Pod>,
    endpoints: Informer<Endpoints>,
}

pub(crate) async fn run(context: Context) {
    let controller = Controller {
        client: context.client.clone(),
        recorder: context.recorder(),
        services: context.informers.of(),
        pods: context.informers.pods(),
        endpoints: context.informers.of(),
    };
    controller.endpoints.synced().await;
    let queue = Queue::new();
    tokio::join!(
        backends::follow_services(&controller.services, &controller.pods, &queue),
        follow(controller.endpoints.clone(), |change| queue
            .add(Key::of(&**change.object()))),
        async {
            controller.services.synced().await;
            controller.pods.synced().await;
            let reconcile = |key| {
                let controller = controller.clone();
                async move { controller.reconcile(&key).await }
            };
            let queue = queue.clone();
            queue
                .run("endpoints", 16, reconcile, context.drain.clone())
                .await;
        },
    );
}

impl Controller {
    async fn reconcile(&self, key: &Key) -> Result<Action, kube::Error> {
        let api: Api<Endpoints> = Api::namespaced(self.client.clone(), &key.namespace);
        let known = self.endpoints.get(Some(&key.namespace), &key.name);
        if self.services.get(Some(&key.namespace), &key.name).is_none() {
            // Endpoints have no owner reference; those that were made here go with their Service.
            return match known {
                Some(known) if is_ours(&known) => delete(&api, &key.name).await,
                _ => Ok(Action::Done),
            };
        }
        let Some(service) = backends::looked_after(&self.services, key) else {
            return Ok(Action::Done);
        };
        let pods = backends::pods_of(&service, &self.pods);
        let Some(desired) = revise(&service, &pods, known.as_deref()) else {
            return Ok(Action::Done);
        };
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        let written = match &known {
            Some(_) => api.replace(&key.name, &params, &desired).await,
            None => api.create(&params, &desired).await,
        };
        match written {
            Ok(written) => self.endpoints.caught_up_with(&written).await,
            // The namespace is going: nothing can be made in it.
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => {}
            Err(error) => {
                let (verb, reason) = match known {
                    Some(_) => ("update", "FailedToUpdateEndpoint"),
                    None => ("create", "FailedToCreateEndpoint"),
                };
                let text = message_of(&error);
                let message = format!(
                    "Failed to {verb} endpoint {}/{}: {text}",
                    key.namespace, key.name
                );
                let reference = known.as_deref().unwrap_or(&desired);
                self.recorder
                    .event(reference, EventType::Warning, reason, message);
                return Err(error);
            }
        }
        // All addresses are one object, which is written as a whole for each change.
        rest(4 * pods.len()).await;
        Ok(Action::Done)
    }
}

fn is_ours(endpoints: &Endpoints) -> bool {
    let manager = claim::labels(&endpoints.metadata).get(MANAGED_BY);
    manager.is_some_and(|manager| manager == MANAGER)
}

async fn delete(api: &Api<Endpoints>, name: &str) -> Result<Action, kube::Error> {
    match api.delete(name, &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Action::Done),
        result => result.map(|_| Action::Done),
    }
}

/// The Endpoints that a Service should have; `None` if it has them.
fn revise(service: &Service, pods: &[Arc<Pod>], known: Option<&Endpoints>) -> Option<Endpoints> {
    let (subsets, truncated) = subsets_of(service, pods);
    let mut labels = backends::labels_of(service);
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let subsets = (!subsets.is_empty()).then_some(subsets);
    let is_truncated = |endpoints: &Endpoints| {
        let annotations = endpoints.metadata.annotations.as_ref();
        annotations.is_some_and(|annotations| annotations.contains_key(OVER_CAPACITY))
    };
    let unchanged = known.is_some_and(|known| {
        known.subsets == subsets
            && known.metadata.labels.as_ref() == Some(&labels)
            && is_truncated(known) == truncated
    });
    if unchanged {
        return None;
    }
    let made = service
        .metadata
        .creation_timestamp
        .as_ref()
        .map(|time| time.0);
    let trigger = match known {
        Some(_) => pods
            .iter()
            .filter_map(|pod| backends::changed_at(pod))
            .max(),
        None => made,
    };
    let mut desired = known.cloned().unwrap_or_else(|| Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            ..ObjectMeta::default()
        },
        ..Endpoints::default()
    });
    desired.metadata.labels = Some(labels);
    desired.subsets = subsets;
    write_trigger_time(&mut desired.metadata, trigger);
    if truncated {
        let annotations = desired.metadata.annotations.get_or_insert_default();
        annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
    } else if let Some(annotations) = &mut desired.metadata.annotations {
        annotations.remove(OVER_CAPACITY);
    }
    Some(desired)
}

/// One subset per set of ports, and whether addresses had to be left out.
fn subsets_of(service: &Service, pods: &[Arc<Pod>]) -> (Vec<EndpointSubset>, bool) {
    let families = backends::families(service);
    let family = families.first().map_or("IPv4", String::as_str);
    let announced = |pod: &&Arc<Pod>| {
        backends::publishes_not_ready(service) || pod.metadata.deletion_timestamp.is_none()
    };
    let mut by_ports: BTreeMap<Vec<Port>, EndpointSubset> = BTreeMap::new();
    let mut count = 0;
    // Ready ones first, so that they are not the ones left out.
    let (ready, not_ready): (Vec<_>, Vec<_>) = pods
        .iter()
        .filter(announced)
        .partition(|pod| backends::publishes_not_ready(service) || pods::is_ready(pod));
    let ready = ready.into_iter().map(|pod| (pod, true));
    let not_ready = not_ready.into_iter().map(|pod| (pod, false));
    for (pod, is_ready) in ready.chain(not_ready) {
        let Some(address) = backends::address_in(pod, family) else {
            continue;
        };
        let ports = backends::ports_of(service, pod);
        let has_ports = service
            .spec
            .as_ref()
            .is_some_and(|spec| spec.ports.is_some());
        if has_ports && ports.is_empty() {
            continue;
        }
        count += 1;
        if count > ADDRESSES_MAX {
            continue;
        }
        let subset = by_ports.entry(ports).or_default();
        let addresses = match is_ready {
            true => &mut subset.addresses,
            false => &mut subset.not_ready_addresses,
        };
        addresses.get_or_insert_default().push(EndpointAddress {
            hostname: backends::hostname_of(service, pod),
            ip: address.to_owned(),
            node_name: pods::node_name(pod).map(str::to_owned),
            target_ref: Some(backends::reference_to(pod)),
        });
    }
    let subsets = by_ports.into_iter().map(|(ports, mut subset)| {
        for list in [&mut subset.addresses, &mut subset.not_ready_addresses] {
            list.iter_mut()
                .for_each(|list| list.sort_by(|one, other| one.ip.cmp(&other.ip)));
        }
        let wire = ports.into_iter().map(|port| EndpointPort {
            name: Some(port.name).filter(|name| !name.is_empty()),
            port: port.number,
            protocol: Some(port.protocol),
            app_protocol: port.app_protocol,
        });
        subset.ports = Some(wire.collect::<Vec<_>>()).filter(|ports| !ports.is_empty());
        subset
    });
    (subsets.collect(), count > ADDRESSES_MAX)
}
