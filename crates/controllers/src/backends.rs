//! The pods behind a Service: which they are, by which address, on which ports.

use std::collections::BTreeMap;
use std::sync::Arc;

use informer::{Change, Informer, Key};
use k8s_openapi::api::core::v1::{
    Container, ObjectReference, Pod, PodSpec, Service, ServicePort, ServiceSpec,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::{claim, follow, pods};

/// Marks what belongs to a Service without an address of its own.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// The trigger time of a change, for whoever measures how long it takes to reach the network.
pub(crate) const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// A port as a pod really has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) number: i32,
    pub(crate) protocol: String,
    pub(crate) app_protocol: Option<String>,
}

/// The selector of a Service whose endpoints are looked after here.
fn selector_of(service: &Service) -> Option<&BTreeMap<String, String>> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    spec.selector
        .as_ref()
        .filter(|selector| !selector.is_empty())
}

fn is_headless(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

/// Whether a Service picks a pod.
fn selects(service: &Service, pod: &Pod) -> bool {
    let labels = claim::labels(&pod.metadata);
    selector_of(service).is_some_and(|selector| {
        selector
            .iter()
            .all(|(name, value)| labels.get(name) == Some(value))
    })
}

/// The pods that can be endpoints of a Service: they have an address and have not ended.
pub(crate) fn pods_of(service: &Service, all: &Informer<Pod>) -> Vec<Arc<Pod>> {
    let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
    let mut pods = all.list_in(namespace);
    pods.retain(|pod| selects(service, pod) && !pods::has_ended(pod) && !addresses(pod).is_empty());
    pods
}

/// The addresses of a pod, of both families.
pub(crate) fn addresses(pod: &Pod) -> Vec<&str> {
    let Some(status) = &pod.status else {
        return Vec::new();
    };
    match &status.pod_ips {
        Some(all) if !all.is_empty() => all.iter().map(|address| address.ip.as_str()).collect(),
        _ => status
            .pod_ip
            .as_deref()
            .filter(|address| !address.is_empty())
            .into_iter()
            .collect(),
    }
}

/// Has a Service looked at when it changes, or a pod behind it does, until the drain.
pub(crate) async fn follow_services(
    services: &Informer<Service>,
    pods: &Informer<Pod>,
    look_at: impl Fn(Key),
) {
    // Which Services a pod is behind can be told only when they are known.
    services.synced().await;
    tokio::join!(
        follow(services.clone(), |change| look_at(Key::of(
            &**change.object()
        ))),
        follow(pods.clone(), |change| {
            services_of(change, services).into_iter().for_each(&look_at);
        }),
    );
}

/// The Service, if it is there to stay and its endpoints are looked after here.
pub(crate) fn looked_after(services: &Informer<Service>, key: &Key) -> Option<Arc<Service>> {
    let service = services.get(Some(&key.namespace), &key.name)?;
    let stays = service.metadata.deletion_timestamp.is_none();
    (stays && selector_of(&service).is_some()).then_some(service)
}

/// The labels of what is made for a Service: its own, and a mark if it has no address.
pub(crate) fn labels_of(service: &Service) -> BTreeMap<String, String> {
    let mut labels = claim::labels(&service.metadata).clone();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels
}

/// The Services that a change of a pod matters to; none, if nothing has changed that an endpoint shows.
fn services_of(change: &Change<Pod>, services: &Informer<Service>) -> Vec<Key> {
    let (new, old) = match change {
        Change::Applied { new, old } => (new, old.as_ref()),
        Change::Deleted(last) => (last, None),
    };
    if old.is_some_and(|old| shown(old) == shown(new)) {
        return Vec::new();
    }
    let namespace = new.metadata.namespace.as_deref().unwrap_or_default();
    let services = services.list_in(namespace);
    let concerned = services
        .iter()
        .filter(|service| selects(service, new) || old.is_some_and(|old| selects(service, old)));
    concerned.map(|service| Key::of(&**service)).collect()
}

/// Everything of a pod that its endpoints show.
fn shown(pod: &Pod) -> impl PartialEq + '_ {
    let spec = pod.spec.as_ref();
    (
        (&pod.metadata.labels, &pod.metadata.uid),
        (
            pod.metadata.deletion_timestamp.is_some(),
            pods::is_ready(pod),
            pods::has_ended(pod),
        ),
        (addresses(pod), pods::node_name(pod)),
        spec.map(|spec| (&spec.hostname, &spec.subdomain)),
    )
}

/// The ports of a Service on this pod. A named port that the pod does not have is left out.
pub(crate) fn ports_of(service: &Service, pod: &Pod) -> Vec<Port> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
    let resolved = ports.into_iter().flatten().filter_map(|port| {
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        Some(Port {
            name: port.name.clone().unwrap_or_default(),
            number: resolve(port, &protocol, pod)?,
            protocol,
            app_protocol: port.app_protocol.clone(),
        })
    });
    resolved.collect()
}

fn resolve(port: &ServicePort, protocol: &str, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None | Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let containers = spec.containers.iter().chain(sidecars(spec));
            let ports = containers.flat_map(|container| &container.ports).flatten();
            let mut named = ports.filter(|port| {
                port.name.as_ref() == Some(name)
                    && port.protocol.as_deref().unwrap_or("TCP") == protocol
            });
            named.next().map(|port| port.container_port)
        }
    }
}

fn sidecars(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    let starters = spec.init_containers.iter().flatten();
    starters.filter(|container| container.restart_policy.as_deref() == Some("Always"))
}

/// The name by which the pod is to be found below the name of the Service, if it asks for one.
pub(crate) fn hostname_of(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let below = spec.subdomain.is_some() && spec.subdomain == service.metadata.name;
    spec.hostname
        .clone()
        .filter(|hostname| below && !hostname.is_empty())
}

/// A reference to the pod as endpoints carry it.
pub(crate) fn reference_to(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// Whether pods of the Service are announced before they are ready.
pub(crate) fn publishes_not_ready(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.and_then(|spec| spec.publish_not_ready_addresses)
        .unwrap_or_default()
}

/// The address families of a Service, in its order of preference.
pub(crate) fn families(service: &Service) -> Vec<String> {
    let families = service
        .spec
        .as_ref()
        .and_then(|spec: &ServiceSpec| spec.ip_families.clone());
    families
        .filter(|families| !families.is_empty())
        .unwrap_or_else(|| vec!["IPv4".to_owned()])
}

/// The pod's address of a family.
pub(crate) fn address_in<'a>(pod: &'a Pod, family: &str) -> Option<&'a str> {
    let wanted_v6 = family == "IPv6";
    addresses(pod)
        .into_iter()
        .find(|address| address.contains(':') == wanted_v6)
}

/// When the pod last became what it is now, as far as its readiness goes.
pub(crate) fn changed_at(pod: &Pod) -> Option<k8s_openapi::jiff::Timestamp> {
    let ready = pods::condition(pod, "Ready");
    let transition = ready.and_then(|ready| ready.last_transition_time.as_ref());
    transition.map(|time| time.0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(value: Value) -> Arc<Pod> {
        Arc::new(serde_json::from_value(value).expect("is a pod"))
    }

    #[test]
    fn a_named_port_is_looked_up_in_the_pod() {
        let service: Service = serde_json::from_value(json!({"spec": {"ports": [
            {"name": "a", "port": 80, "targetPort": "http"}, {"name": "b", "port": 81},
            {"name": "c", "port": 82, "targetPort": 8082}, {"name": "d", "port": 83, "targetPort": "none"},
            {"name": "e", "port": 84, "targetPort": "side"}, {"name": "f", "port": 85, "targetPort": "http", "protocol": "UDP"},
        ]}}))
        .expect("is a service");
        let pod = pod(json!({"spec": {
            "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}],
            "initContainers": [
                {"name": "s", "restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 9000}]},
                {"name": "i", "ports": [{"name": "none", "containerPort": 1}]}],
        }}));
        let ports: Vec<_> = ports_of(&service, &pod)
            .into_iter()
            .map(|port| (port.name, port.number))
            .collect();
        let expected = [("a", 8080), ("b", 81), ("c", 8082), ("e", 9000)];
        assert_eq!(
            ports,
            expected.map(|(name, number)| (name.to_owned(), number))
        );
    }

    #[test]
    fn only_what_endpoints_show_counts_as_a_change() {
        let base = json!({"metadata": {"labels": {"a": "b"}, "resourceVersion": "1"},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "startTime": "2026-01-01T00:00:00Z", "conditions": [{"type": "Ready", "status": "True"}]}});
        let first = pod(base.clone());
        let check = |path: &str, value: Value, counts: bool| {
            let mut other = base.clone();
            *other.pointer_mut(path).expect("is there") = value;
            let other = pod(other);
            assert_eq!(shown(&first) != shown(&other), counts, "{path}");
        };
        check("/metadata/resourceVersion", json!("2"), false);
        check("/status/startTime", json!("2026-01-01T00:00:01Z"), false);
        check("/metadata/labels/a", json!("c"), true);
        check("/status/podIP", json!("10.0.0.2"), true);
        check("/status/phase", json!("Failed"), true);
        check("/status/conditions/0/status", json!("False"), true);
    }
}
