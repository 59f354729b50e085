//! EndpointSlices for the Endpoints that people write themselves: a Service without a selector has
//! none that anybody looks after, and whoever routes to Services reads slices only.
//!
//! What is to be written is worked out in [`arrange`] without IO.

use std::collections::BTreeMap;
use std::sync::Arc;

use informer::{Action, EventType, Informer, Key, Queue, Recorder};
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort as OldPort, EndpointSubset, Endpoints, Service,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use kube::api::ObjectMeta;

use crate::slices::{self, Changes, MANAGED_BY, SERVICE_NAME, Slices};
use crate::work::{Reconcile, work};
use crate::{Context, backends, claim, follow};

const KEEPER: &str = "endpointslicemirroring-controller.k8s.io";
/// Says that Endpoints are not to be mirrored.
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Endpoints with this annotation are somebody's lock, in the old way.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// What of the Endpoints' annotations says something about them alone.
const NOT_COPIED: [&str; 2] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    backends::TRIGGER_TIME,
];
/// Addresses of one subset that are mirrored; what is above is left out.
const ADDRESSES_MAX: usize = 1000;

struct Controller {
    recorder: Recorder,
    services: Informer<Service>,
    endpoints: Informer<Endpoints>,
    slices: Slices,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        recorder: context.recorder(),
        services: context.informers.of(),
        endpoints: context.informers.of(),
        slices: Slices::new(&context, KEEPER),
    });
    controller.services.synced().await;
    controller.endpoints.synced().await;
    controller.slices.cache.synced().await;
    let queue = Queue::new();
    tokio::join!(
        follow(controller.services.clone(), |change| queue
            .add(Key::of(&**change.object()))),
        follow(controller.endpoints.clone(), |change| queue
            .add(Key::of(&**change.object()))),
        controller.slices.follow(|key| queue.add(key)),
        work(&controller, &queue, &context.drain),
    );
}

impl Reconcile for Controller {
    type Key = Key;
    type Error = slices::Error;
    const NAME: &'static str = "mirroring";
    const WORKERS: usize = 4;

    async fn reconcile(&self, key: &Key) -> Result<Action, slices::Error> {
        let endpoints = self.endpoints.get(Some(&key.namespace), &key.name);
        let service = self.services.get(Some(&key.namespace), &key.name);
        let mirrored = endpoints.filter(|endpoints| {
            service.is_some_and(|service| is_selfless(&service)) && is_mirrored(endpoints)
        });
        let known = self.slices.of(key);
        let changes = match &mirrored {
            Some(endpoints) => arrange(endpoints, &known),
            None => Changes {
                delete: known,
                ..Changes::default()
            },
        };
        if changes.is_empty() {
            return Ok(Action::Done);
        }
        let written = self.slices.write(&key.namespace, changes).await;
        if let (Err(error), Some(endpoints)) = (&written, &mirrored) {
            let message = format!("Error updating EndpointSlices for Endpoints {key}: {error}");
            let reason = "FailedToUpdateEndpointSlices";
            self.recorder
                .event(&**endpoints, EventType::Warning, reason, message);
        }
        written.map(|()| Action::Done)
    }
}

/// Whether nobody looks after the endpoints of the Service.
fn is_selfless(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    let selector = spec.and_then(|spec| spec.selector.as_ref());
    selector.is_none_or(BTreeMap::is_empty)
}

fn is_mirrored(endpoints: &Endpoints) -> bool {
    let skip = claim::labels(&endpoints.metadata).get(SKIP);
    let annotations = endpoints.metadata.annotations.as_ref();
    let is_lock = annotations.is_some_and(|annotations| annotations.contains_key(LEADER));
    skip.is_none_or(|skip| skip != "true")
        && !is_lock
        && endpoints.metadata.deletion_timestamp.is_none()
}

/// What comes into one slice.
type Group = (Vec<EndpointPort>, Vec<Endpoint>);

/// Works out the slices of Endpoints: one for each set of ports and family of addresses. `known` are
/// those that there are.
fn arrange(endpoints: &Endpoints, known: &[Arc<EndpointSlice>]) -> Changes {
    // By family and the ports' text, so that subsets with the same ports come together.
    let mut groups: BTreeMap<(&str, String), Group> = BTreeMap::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports: Vec<_> = subset.ports.iter().flatten().map(port_of).collect();
        for (address, ready) in addresses_of(subset) {
            let family = match address.ip.contains(':') {
                true => "IPv6",
                false => "IPv4",
            };
            let name = serde_json::to_string(&ports).unwrap_or_default();
            let group = groups.entry((family, name));
            let group = group.or_insert_with(|| (ports.clone(), Vec::new()));
            group.1.push(endpoint_of(address, ready));
        }
    }
    let mut left = known.to_vec();
    let mut changes = Changes::default();
    for ((family, _), (ports, group)) in groups {
        let same = |slice: &Arc<EndpointSlice>| {
            slice.address_type == family && slices::same_ports(slice, &ports)
        };
        let wanted = slice_of(endpoints, family, ports.clone(), group);
        match left.iter().position(same) {
            None => changes.create.push(wanted),
            Some(index) => changes.update.extend(revise(&left.remove(index), wanted)),
        }
    }
    changes.delete = left;
    changes
}

fn addresses_of(subset: &EndpointSubset) -> impl Iterator<Item = (&EndpointAddress, bool)> {
    let ready = subset.addresses.iter().flatten().map(|one| (one, true));
    let others = subset.not_ready_addresses.iter().flatten();
    ready
        .chain(others.map(|one| (one, false)))
        .take(ADDRESSES_MAX)
}

fn port_of(port: &OldPort) -> EndpointPort {
    EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(port.port),
        protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
        app_protocol: port.app_protocol.clone(),
    }
}

fn endpoint_of(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..EndpointConditions::default()
        }),
        hostname: address.hostname.clone().filter(|name| !name.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

fn slice_of(
    endpoints: &Endpoints,
    family: &str,
    ports: Vec<EndpointPort>,
    group: Vec<Endpoint>,
) -> EndpointSlice {
    let meta = &endpoints.metadata;
    let name = meta.name.clone().unwrap_or_default();
    let mut labels = claim::labels(meta).clone();
    labels.insert(SERVICE_NAME.to_owned(), name.clone());
    labels.insert(MANAGED_BY.to_owned(), KEEPER.to_owned());
    let mut annotations = meta.annotations.clone().unwrap_or_default();
    annotations.retain(|name, _| !NOT_COPIED.contains(&name.as_str()));
    EndpointSlice {
        address_type: family.to_owned(),
        endpoints: Some(group),
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: meta.namespace.clone(),
            labels: Some(labels),
            annotations: (!annotations.is_empty()).then_some(annotations),
            owner_references: Some(vec![claim::controller_reference(endpoints)]),
            ..ObjectMeta::default()
        },
        ports: (!ports.is_empty()).then_some(ports),
    }
}

/// The slice with the content of `wanted`; `None` if that is what it has.
fn revise(known: &EndpointSlice, wanted: EndpointSlice) -> Option<EndpointSlice> {
    let mut revised = known.clone();
    revised.endpoints = wanted.endpoints;
    revised.metadata.labels = wanted.metadata.labels;
    revised.metadata.annotations = wanted.metadata.annotations;
    revised.metadata.owner_references = wanted.metadata.owner_references;
    (revised != *known).then_some(revised)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn endpoints(subsets: Value) -> Endpoints {
        let endpoints = json!({
            "metadata": {"name": "db", "namespace": "default", "uid": "u", "labels": {"a": "b"},
                "annotations": {"note": "hello", "kubectl.kubernetes.io/last-applied-configuration": "{}"}},
            "subsets": subsets,
        });
        serde_json::from_value(endpoints).expect("are endpoints")
    }

    /// Each slice as `family ports: address ready …`.
    fn texts(slices: &[EndpointSlice]) -> Vec<String> {
        let text = |slice: &EndpointSlice| {
            let ports = slice.ports.iter().flatten().filter_map(|port| port.port);
            let ports: Vec<_> = ports.map(|port| port.to_string()).collect();
            let endpoints = slices::endpoints_of(slice).iter().map(|endpoint| {
                let ready = endpoint.conditions.as_ref().and_then(|all| all.ready);
                format!(
                    "{} {}",
                    endpoint.addresses.join(","),
                    ready.unwrap_or_default()
                )
            });
            let endpoints: Vec<_> = endpoints.collect();
            format!(
                "{} {}: {}",
                slice.address_type,
                ports.join(","),
                endpoints.join(", ")
            )
        };
        slices.iter().map(text).collect()
    }

    #[test]
    fn each_set_of_ports_and_family_has_a_slice_and_it_is_kept() {
        let subsets = json!([
            {"addresses": [{"ip": "10.0.0.1"}, {"ip": "2001:db8::1"}], "notReadyAddresses": [{"ip": "10.0.0.2"}], "ports": [{"port": 80}]},
            {"addresses": [{"ip": "10.0.0.3"}], "ports": [{"port": 81}]},
            {"addresses": [{"ip": "10.0.0.4"}], "ports": [{"port": 80}]},
        ]);
        let changes = arrange(&endpoints(subsets.clone()), &[]);
        assert_eq!(
            texts(&changes.create),
            [
                "IPv4 80: 10.0.0.1 true, 10.0.0.2 false, 10.0.0.4 true",
                "IPv4 81: 10.0.0.3 true",
                "IPv6 80: 2001:db8::1 true",
            ]
        );
        let first = &changes.create[0].metadata;
        assert_eq!(
            json!([first.labels, first.annotations, first.generate_name]),
            json!([{"a": "b", "kubernetes.io/service-name": "db",
                "endpointslice.kubernetes.io/managed-by": "endpointslicemirroring-controller.k8s.io"},
                {"note": "hello"}, "db-"])
        );
        let known: Vec<_> = changes.create.into_iter().map(Arc::new).collect();
        assert!(arrange(&endpoints(subsets), &known).is_empty());
        let changes = arrange(
            &endpoints(json!([{"addresses": [{"ip": "10.0.0.9"}], "ports": [{"port": 81}]}])),
            &known,
        );
        assert_eq!(texts(&changes.update), ["IPv4 81: 10.0.0.9 true"]);
        assert_eq!((changes.create.len(), changes.delete.len()), (0, 2));
    }

    #[test]
    fn locks_and_what_is_to_be_skipped_are_not_mirrored() {
        let mut endpoints = endpoints(json!([]));
        assert!(is_mirrored(&endpoints));
        let labels = endpoints.metadata.labels.get_or_insert_default();
        labels.insert(SKIP.to_owned(), "true".to_owned());
        assert!(!is_mirrored(&endpoints));
        endpoints.metadata.labels = None;
        let annotations = endpoints.metadata.annotations.get_or_insert_default();
        annotations.insert(LEADER.to_owned(), "{}".to_owned());
        assert!(!is_mirrored(&endpoints));
    }
}
