//! Endpoints: what EndpointSlices say, in the older form with one object per Service, for clients that
//! still read it.

use std::collections::BTreeMap;
use std::sync::Arc;

use informer::{Action, Change, EventType, Informer, Key, Queue, Recorder};
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service,
};
use kube::api::{Api, ObjectMeta};

use crate::backends::{self, Port};
use crate::slices::write_trigger_time;
use crate::work::{Reconcile, work};
use crate::writes::{self, message_of};
use crate::{Context, claim, follow, pods, rest};

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Addresses in one object; what is above is left out and said so.
const ADDRESSES_MAX: usize = 1000;

/// What is to be looked at.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Subject {
    /// A Service, or Endpoints that are named like one.
    Service(Key),
    /// Endpoints whose Service has just been deleted.
    Deserted(Key),
}

struct Controller {
    client: kube::Client,
    recorder: Recorder,
    services: Informer<Service>,
    pods: Informer<Pod>,
    endpoints: Informer<Endpoints>,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        recorder: context.recorder(),
        services: context.informers.of(),
        pods: context.informers.pods(),
        endpoints: context.informers.of(),
    });
    controller.services.synced().await;
    controller.pods.synced().await;
    controller.endpoints.synced().await;
    let queue = Queue::new();
    tokio::join!(
        backends::follow_services(&controller.services, &controller.pods, |key| {
            queue.add(Subject::Service(key));
        }),
        follow(controller.services.clone(), |change| {
            if let Change::Deleted(service) = change {
                queue.add(Subject::Deserted(Key::of(&**service)));
            }
        }),
        follow(controller.endpoints.clone(), |change| {
            queue.add(Subject::Service(Key::of(&**change.object())));
        }),
        work(&controller, &queue, &context.drain),
    );
}

impl Reconcile for Controller {
    type Key = Subject;
    type Error = kube::Error;
    const NAME: &'static str = "endpoints";
    const WORKERS: usize = 16;

    async fn reconcile(&self, subject: &Subject) -> Result<Action, kube::Error> {
        let (Subject::Service(key) | Subject::Deserted(key)) = subject;
        let known = self.endpoints.get(Some(&key.namespace), &key.name);
        if self.services.get(Some(&key.namespace), &key.name).is_some() {
            return self.keep(key, known.as_deref()).await;
        }
        // Endpoints have no owner reference: they go with their Service all the same, whoever wrote
        // them. Without having seen it go, only what was made here is known to have had one.
        let was_seen = matches!(subject, Subject::Deserted(_));
        if let Some(known) = known.filter(|known| was_seen || is_ours(known)) {
            let api: Api<Endpoints> = Api::namespaced(self.client.clone(), &key.namespace);
            let outcome = api
                .delete(&key.name, &writes::delete(&known.metadata))
                .await;
            writes::deleted(outcome)?;
        }
        Ok(Action::Done)
    }
}

impl Controller {
    /// Writes the Endpoints of a Service, if they are looked after here and not as they should be.
    async fn keep(&self, key: &Key, known: Option<&Endpoints>) -> Result<Action, kube::Error> {
        let Some(service) = backends::looked_after(&self.services, key) else {
            return Ok(Action::Done);
        };
        let pods = backends::pods_of(&service, &self.pods);
        let Some(desired) = revise(&service, &pods, known) else {
            return Ok(Action::Done);
        };
        let api: Api<Endpoints> = Api::namespaced(self.client.clone(), &key.namespace);
        let written = match known {
            Some(_) => api.replace(&key.name, &writes::post(), &desired).await,
            None => api.create(&writes::post(), &desired).await,
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
                let reference = known.unwrap_or(&desired);
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
    let trigger = match known {
        Some(known) => {
            let is_news = |pod: &&Arc<Pod>| {
                let now = told(&desired, pod);
                now.is_some() && now != told(known, pod)
            };
            let news = pods.iter().filter(is_news);
            news.filter_map(|pod| backends::changed_at(pod)).min()
        }
        None => made,
    };
    write_trigger_time(&mut desired.metadata, trigger);
    if truncated {
        let annotations = desired.metadata.annotations.get_or_insert_default();
        annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
    } else if let Some(annotations) = &mut desired.metadata.annotations {
        annotations.remove(OVER_CAPACITY);
    }
    Some(desired)
}

/// What Endpoints say of a pod: whether it is ready, if it is among them.
fn told(endpoints: &Endpoints, pod: &Pod) -> Option<bool> {
    let is_it = |address: &EndpointAddress| {
        let target = address.target_ref.as_ref();
        target.is_some_and(|target| target.uid == pod.metadata.uid)
    };
    endpoints.subsets.iter().flatten().find_map(|subset| {
        let ready = subset.addresses.iter().flatten().any(is_it);
        let not_ready = subset.not_ready_addresses.iter().flatten().any(is_it);
        (ready || not_ready).then_some(ready)
    })
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, ready: &str, deleted: Value) -> Arc<Pod> {
        let pod = json!({
            "metadata": {"name": name, "uid": name, "deletionTimestamp": deleted},
            "spec": {"containers": []},
            "status": {"podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": ready,
                "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
        });
        Arc::new(serde_json::from_value(pod).expect("is a pod"))
    }

    #[test]
    fn the_trigger_time_is_that_of_who_comes_or_changes_and_of_no_other() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "web", "creationTimestamp": "2025-01-01T00:00:00Z"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]},
        }))
        .expect("is a service");
        let going = pod("a", "True", json!("2026-01-02T00:00:00Z"));
        let pods = |ready| [pod("a", ready, Value::Null), pod("b", "True", Value::Null)];
        let mut known = None;
        let mut check = |pods: &[Arc<Pod>], expected: Option<&str>| {
            let revised = revise(&service, pods, known.as_ref()).expect("has changed");
            let annotations = revised.metadata.annotations.clone().unwrap_or_default();
            let time = annotations.get(backends::TRIGGER_TIME).map(String::as_str);
            assert_eq!(time, expected);
            known = Some(revised);
        };
        check(&[], Some("2025-01-01T00:00:00Z"));
        check(&pods("True"), Some("2026-01-01T00:00:00Z"));
        check(&pods("False"), Some("2026-01-01T00:00:00Z"));
        check(&[going, pod("b", "True", Value::Null)], None);
        check(&[], None);
    }
}
