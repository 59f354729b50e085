//! EndpointSlices: the addresses behind each Service that has a selector, a hundred to a slice.
//!
//! What is to be written is worked out in [`arrange`] without IO. An endpoint stays in the slice in
//! which it is, so that a change of one pod is the change of one slice.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use informer::{Action, EventType, Informer, Key, Queue, Recorder};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use kube::api::ObjectMeta;

use crate::backends::{self, Port};
use crate::slices::{
    self, Changes, MANAGED_BY, SERVICE_NAME, Slices, endpoints_of, same_ports, write_trigger_time,
};
use crate::work::{Reconcile, work};
use crate::{Context, claim, pods, rest};

const KEEPER: &str = "endpointslice-controller.k8s.io";
const ZONE: &str = "topology.kubernetes.io/zone";
/// Endpoints in one slice.
const SLICE_MAX: usize = 100;

struct Controller {
    recorder: Recorder,
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    slices: Slices,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        recorder: context.recorder(),
        services: context.informers.of(),
        pods: context.informers.pods(),
        nodes: context.informers.of(),
        slices: Slices::new(&context, KEEPER),
    });
    controller.services.synced().await;
    controller.pods.synced().await;
    controller.nodes.synced().await;
    controller.slices.cache.synced().await;
    let queue = Queue::new();
    tokio::join!(
        backends::follow_services(&controller.services, &controller.pods, |key| queue.add(key)),
        controller.slices.follow(|key| queue.add(key)),
        work(&controller, &queue, &context.drain),
    );
}

impl Reconcile for Controller {
    type Key = Key;
    type Error = slices::Error;
    const NAME: &'static str = "endpoint slices";
    const WORKERS: usize = 16;

    async fn reconcile(&self, key: &Key) -> Result<Action, slices::Error> {
        // The slices of a Service that is gone go with it, by their owner reference.
        let Some(service) = backends::looked_after(&self.services, key) else {
            return Ok(Action::Done);
        };
        let pods = backends::pods_of(&service, &self.pods);
        let known = self.slices.of(key);
        let zone = |node: &str| {
            let node = self.nodes.get(None, node)?;
            claim::labels(&node.metadata).get(ZONE).cloned()
        };
        let mut changes = arrange(&service, &pods, &known, &zone);
        set_trigger_time(&mut changes, &service, &pods, &known);
        if changes.is_empty() {
            return Ok(Action::Done);
        }
        let result = self.slices.write(&key.namespace, changes).await;
        if let Err(error) = &result {
            let message = format!("Error updating Endpoint Slices for Service {key}: {error}");
            let reason = "FailedToUpdateEndpointSlices";
            self.recorder
                .event(&*service, EventType::Warning, reason, message);
        }
        rest(pods.len()).await;
        result.map(|()| Action::Done)
    }
}

/// Works out the slices of a Service. `known` are those it has, `zone` tells the zone of a node.
fn arrange(
    service: &Service,
    pods: &[Arc<Pod>],
    known: &[Arc<EndpointSlice>],
    zone: &dyn Fn(&str) -> Option<String>,
) -> Changes {
    let mut changes = Changes::default();
    let families = backends::families(service);
    for family in &families {
        let mut groups: BTreeMap<Vec<Port>, VecDeque<Endpoint>> = BTreeMap::new();
        for pod in pods {
            if let Some(address) = backends::address_in(pod, family) {
                let ports = backends::ports_of(service, pod);
                let endpoint = endpoint_of(service, pod, address, zone);
                groups.entry(ports).or_default().push_back(endpoint);
            }
        }
        let of_family = known.iter().filter(|slice| slice.address_type == *family);
        let of_family: Vec<_> = of_family.cloned().collect();
        arrange_family(service, family, groups, &of_family, &mut changes);
    }
    let unwanted = known
        .iter()
        .filter(|slice| !families.contains(&slice.address_type));
    changes.delete.extend(unwanted.cloned());
    changes
}

fn arrange_family(
    service: &Service,
    family: &str,
    groups: BTreeMap<Vec<Port>, VecDeque<Endpoint>>,
    known: &[Arc<EndpointSlice>],
    changes: &mut Changes,
) {
    // A Service without endpoints keeps one empty slice, to tell it from one not yet looked at.
    if groups.is_empty() {
        let mut known = known.iter();
        match known.next() {
            None => changes
                .create
                .push(slice_of(service, family, &[], Vec::new())),
            Some(first) => changes
                .update
                .extend(revise(service, first, &[], Vec::new())),
        }
        changes.delete.extend(known.cloned());
        return;
    }
    let mut left: Vec<Arc<EndpointSlice>> = known.to_vec();
    for (ports, endpoints) in groups {
        let ports = wire_ports(&ports);
        let same = |slice: &Arc<EndpointSlice>| same_ports(slice, &ports);
        let (mut mine, others): (Vec<_>, Vec<_>) = left.into_iter().partition(same);
        left = others;
        if mine.is_empty() {
            // An empty slice is as good as a new one.
            let empty = left.iter().position(|slice| endpoints_of(slice).is_empty());
            mine.extend(empty.map(|index| left.remove(index)));
        }
        arrange_group(service, family, &ports, endpoints, &mine, changes);
    }
    changes.delete.extend(left);
}

fn arrange_group(
    service: &Service,
    family: &str,
    ports: &[EndpointPort],
    endpoints: VecDeque<Endpoint>,
    mine: &[Arc<EndpointSlice>],
    changes: &mut Changes,
) {
    let uid = |endpoint: &Endpoint| target_uid(endpoint).unwrap_or_default().to_owned();
    let mut wanted: HashMap<String, Endpoint> = HashMap::new();
    let mut order = Vec::new();
    for endpoint in endpoints {
        order.push(uid(&endpoint));
        wanted.insert(uid(&endpoint), endpoint);
    }
    let mut kept: Vec<Vec<Endpoint>> = Vec::new();
    for slice in mine {
        let stay = endpoints_of(slice)
            .iter()
            .filter_map(|endpoint| wanted.remove(target_uid(endpoint).unwrap_or_default()));
        kept.push(stay.collect());
    }
    let mut rest = order
        .into_iter()
        .filter_map(|uid| wanted.remove(&uid))
        .peekable();
    for endpoints in &mut kept {
        while endpoints.len() < SLICE_MAX && rest.peek().is_some() {
            endpoints.extend(rest.next());
        }
    }
    for (slice, endpoints) in mine.iter().zip(kept) {
        if endpoints.is_empty() {
            changes.delete.push(slice.clone());
        } else {
            changes
                .update
                .extend(revise(service, slice, ports, endpoints));
        }
    }
    while rest.peek().is_some() {
        let endpoints = rest.by_ref().take(SLICE_MAX).collect();
        changes
            .create
            .push(slice_of(service, family, ports, endpoints));
    }
}

fn endpoint_of(
    service: &Service,
    pod: &Pod,
    address: &str,
    zone: &dyn Fn(&str) -> Option<String>,
) -> Endpoint {
    let serving = pods::is_ready(pod);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let ready = backends::publishes_not_ready(service) || (serving && !terminating);
    let node = pods::node_name(pod);
    let zone = node.and_then(zone);
    Endpoint {
        addresses: vec![address.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hints: hints_of(service, node, zone.as_deref()).filter(|_| ready),
        hostname: backends::hostname_of(service, pod),
        node_name: node.map(str::to_owned),
        target_ref: Some(backends::reference_to(pod)),
        zone,
        ..Endpoint::default()
    }
}

/// Who should use an endpoint, where the Service wants its traffic to stay near: those of the same
/// zone, or of the same node. An endpoint of which that is not known is for nobody in particular.
fn hints_of(service: &Service, node: Option<&str>, zone: Option<&str>) -> Option<EndpointHints> {
    let wanted = service.spec.as_ref()?.traffic_distribution.as_deref()?;
    let for_zones = || {
        Some(vec![ForZone {
            name: zone?.to_owned(),
        }])
    };
    let for_nodes = || {
        Some(vec![ForNode {
            name: node?.to_owned(),
        }])
    };
    let hints = match wanted {
        "PreferClose" | "PreferSameZone" => EndpointHints {
            for_zones: for_zones(),
            for_nodes: None,
        },
        "PreferSameNode" => EndpointHints {
            for_zones: for_zones(),
            for_nodes: for_nodes(),
        },
        _ => EndpointHints::default(),
    };
    (hints != EndpointHints::default()).then_some(hints)
}

fn serves(endpoint: &Endpoint) -> bool {
    let conditions = endpoint.conditions.as_ref();
    conditions
        .and_then(|conditions| conditions.serving)
        .unwrap_or_default()
}

fn target_uid(endpoint: &Endpoint) -> Option<&str> {
    endpoint.target_ref.as_ref()?.uid.as_deref()
}

fn wire_ports(ports: &[Port]) -> Vec<EndpointPort> {
    let wire = ports.iter().map(|port| EndpointPort {
        name: Some(port.name.clone()),
        port: Some(port.number),
        protocol: Some(port.protocol.clone()),
        app_protocol: port.app_protocol.clone(),
    });
    wire.collect()
}

/// The labels of a Service's slice: the Service's own, and those by which the slice is found.
fn labels_of(service: &Service) -> BTreeMap<String, String> {
    let mut labels = backends::labels_of(service);
    let name = service.metadata.name.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), name);
    labels.insert(MANAGED_BY.to_owned(), KEEPER.to_owned());
    labels
}

fn slice_of(
    service: &Service,
    family: &str,
    ports: &[EndpointPort],
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    let name = service.metadata.name.as_deref().unwrap_or_default();
    EndpointSlice {
        address_type: family.to_owned(),
        endpoints: (!endpoints.is_empty()).then_some(endpoints),
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels_of(service)),
            owner_references: Some(vec![claim::controller_reference(service)]),
            ..ObjectMeta::default()
        },
        ports: (!ports.is_empty()).then(|| ports.to_vec()),
    }
}

/// The slice with this content; `None` if that is what it has.
fn revise(
    service: &Service,
    slice: &EndpointSlice,
    ports: &[EndpointPort],
    endpoints: Vec<Endpoint>,
) -> Option<EndpointSlice> {
    let labels = Some(labels_of(service));
    let unchanged = endpoints_of(slice) == endpoints
        && slice.metadata.labels == labels
        && same_ports(slice, ports);
    if unchanged {
        return None;
    }
    let mut revised = slice.clone();
    revised.endpoints = (!endpoints.is_empty()).then_some(endpoints);
    revised.metadata.labels = labels;
    if !same_ports(slice, ports) {
        revised.ports = (!ports.is_empty()).then(|| ports.to_vec());
    }
    Some(revised)
}

/// Notes on each slice that is written when the first of the changes in it came about: a pod came, became
/// ready or ceased to be, or the Service was made.
fn set_trigger_time(
    changes: &mut Changes,
    service: &Service,
    pods: &[Arc<Pod>],
    known: &[Arc<EndpointSlice>],
) {
    let before = known.iter().flat_map(|slice| endpoints_of(slice));
    let before: HashMap<_, _> = before
        .map(|endpoint| (target_uid(endpoint), endpoint))
        .collect();
    let by_uid: HashMap<_, _> = pods.iter().map(|pod| (&pod.metadata.uid, pod)).collect();
    for slice in changes.create.iter_mut().chain(&mut changes.update) {
        let new = endpoints_of(slice).iter().filter(|endpoint| {
            let known = before.get(&target_uid(endpoint));
            known.is_none_or(|known| serves(known) != serves(endpoint))
        });
        let times = new.filter_map(|endpoint| {
            let uid = &endpoint.target_ref.as_ref()?.uid;
            backends::changed_at(by_uid.get(uid)?)
        });
        let made = service
            .metadata
            .creation_timestamp
            .as_ref()
            .map(|time| time.0);
        let first = times.min().or(made.filter(|_| known.is_empty()));
        write_trigger_time(&mut slice.metadata, first);
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;
    use serde_json::{Value, json};

    use super::*;

    fn service(ports: Value) -> Service {
        let service = json!({"metadata": {"name": "web", "namespace": "default", "uid": "s"},
            "spec": {"selector": {"app": "web"}, "ports": ports}});
        serde_json::from_value(service).expect("is a service")
    }

    fn pod(number: usize, port: i32, ready: bool) -> Arc<Pod> {
        let pod = json!({"metadata": {"name": format!("p{number:03}"), "namespace": "default", "uid": format!("u{number}")},
            "spec": {"nodeName": "node-1", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]},
            "status": {"phase": "Running", "podIP": format!("10.0.{}.{}", number / 250, number % 250),
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" },
                    "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
        Arc::new(serde_json::from_value(pod).expect("is a pod"))
    }

    /// Carries the changes out on what is known, as the server would.
    fn carry_out(known: &mut Vec<Arc<EndpointSlice>>, changes: Changes, number: &mut usize) {
        for mut slice in changes.create {
            *number += 1;
            slice.metadata.name = Some(format!("web-{number:02}"));
            known.push(Arc::new(slice));
        }
        for slice in changes.update {
            let place = known
                .iter()
                .position(|known| known.metadata.name == slice.metadata.name);
            known[place.expect("only what is known is updated")] = Arc::new(slice);
        }
        for slice in changes.delete {
            known.retain(|known| known.metadata.name != slice.metadata.name);
        }
    }

    /// How many slices are created, updated, deleted.
    fn lengths(changes: &Changes) -> (usize, usize, usize) {
        let Changes {
            create,
            update,
            delete,
        } = changes;
        (create.len(), update.len(), delete.len())
    }

    fn sizes(known: &[Arc<EndpointSlice>]) -> Vec<usize> {
        known
            .iter()
            .map(|slice| endpoints_of(slice).len())
            .collect()
    }

    fn no_zone(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn a_change_of_one_pod_is_a_change_of_one_slice() {
        let service = service(json!([{"name": "http", "port": 80, "targetPort": "http"}]));
        let mut pods: Vec<_> = (0..250).map(|number| pod(number, 8080, true)).collect();
        let (mut known, mut number) = (Vec::new(), 0);
        let changes = arrange(&service, &pods, &[], &no_zone);
        carry_out(&mut known, changes, &mut number);
        assert_eq!(sizes(&known), [100, 100, 50]);
        assert!(arrange(&service, &pods, &known, &no_zone).is_empty());

        pods[120] = pod(120, 8080, false);
        let changes = arrange(&service, &pods, &known, &no_zone);
        assert_eq!(lengths(&changes), (0, 1, 0));
        assert_eq!(changes.update[0].metadata.name.as_deref(), Some("web-02"));
        carry_out(&mut known, changes, &mut number);

        // Room in an earlier slice is used before a new one is made.
        pods.remove(0);
        pods.push(pod(250, 8080, true));
        let changes = arrange(&service, &pods, &known, &no_zone);
        assert_eq!(lengths(&changes), (0, 1, 0));
        carry_out(&mut known, changes, &mut number);
        assert_eq!(sizes(&known), [100, 100, 50]);

        pods.clear();
        let changes = arrange(&service, &pods, &known, &no_zone);
        carry_out(&mut known, changes, &mut number);
        assert_eq!(sizes(&known), [0]);
        assert_eq!((&known[0].endpoints, &known[0].ports), (&None, &None));
    }

    #[test]
    fn pods_that_differ_in_a_named_port_are_in_different_slices() {
        let service = service(json!([{"name": "http", "port": 80, "targetPort": "http"}]));
        let pods = [pod(1, 8080, true), pod(2, 9090, true), pod(3, 8080, true)];
        let (mut known, mut number) = (Vec::new(), 0);
        let changes = arrange(&service, &pods, &[], &no_zone);
        carry_out(&mut known, changes, &mut number);
        let ports: Vec<_> = known
            .iter()
            .map(|slice| {
                (
                    slice.ports.as_ref().and_then(|ports| ports[0].port),
                    endpoints_of(slice).len(),
                )
            })
            .collect();
        assert_eq!(ports, [(Some(8080), 2), (Some(9090), 1)]);
        let pods = [pod(1, 8080, true), pod(3, 8080, true)];
        let changes = arrange(&service, &pods, &known, &no_zone);
        carry_out(&mut known, changes, &mut number);
        assert_eq!(sizes(&known), [2]);
    }

    #[test]
    fn the_trigger_time_is_that_of_the_change_and_of_no_other() {
        let service = service(json!([{"name": "http", "port": 80}]));
        let mut pods = vec![pod(1, 8080, true)];
        let (mut known, mut number) = (Vec::new(), 0);
        let mut changes = arrange(&service, &pods, &[], &no_zone);
        set_trigger_time(&mut changes, &service, &pods, &[]);
        carry_out(&mut known, changes, &mut number);
        let time = |slice: &EndpointSlice| {
            let annotations = slice.metadata.annotations.clone().unwrap_or_default();
            annotations.get(backends::TRIGGER_TIME).cloned()
        };
        assert_eq!(time(&known[0]).as_deref(), Some("2026-01-01T00:00:00Z"));
        // That a pod which serves is to go is not a change that anybody measures.
        let mut going = (*pods[0]).clone();
        going.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        pods[0] = Arc::new(going);
        let mut changes = arrange(&service, &pods, &known, &no_zone);
        set_trigger_time(&mut changes, &service, &pods, &known);
        assert_eq!(changes.update.len(), 1);
        carry_out(&mut known, changes, &mut number);
        assert_eq!(time(&known[0]), None);
        pods.clear();
        let mut changes = arrange(&service, &pods, &known, &no_zone);
        set_trigger_time(&mut changes, &service, &pods, &known);
        carry_out(&mut known, changes, &mut number);
        assert_eq!(time(&known[0]), None);
    }

    #[test]
    fn traffic_that_is_to_stay_near_is_told_where_it_belongs() {
        let check = |wanted: &str, ready: bool, zone: Option<&str>, expected: Value| {
            let mut service = service(json!([{"port": 80}]));
            service.spec.get_or_insert_default().traffic_distribution = Some(wanted.to_owned());
            let zone = |_: &str| zone.map(str::to_owned);
            let changes = arrange(&service, &[pod(1, 80, ready)], &[], &zone);
            let hints = &endpoints_of(&changes.create[0])[0].hints;
            assert_eq!(json!(hints), expected, "{wanted}");
        };
        let near = json!({"forZones": [{"name": "a"}]});
        check("PreferClose", true, Some("a"), near.clone());
        check("PreferSameZone", true, Some("a"), near);
        check("PreferSameZone", true, None, Value::Null);
        check("PreferSameZone", false, Some("a"), Value::Null);
        let nearest = json!({"forNodes": [{"name": "node-1"}], "forZones": [{"name": "a"}]});
        check("PreferSameNode", true, Some("a"), nearest);
        check(
            "PreferSameNode",
            true,
            None,
            json!({"forNodes": [{"name": "node-1"}]}),
        );
        check("", true, Some("a"), Value::Null);
    }
}
