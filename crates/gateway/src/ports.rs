//! Where connections to a Service go: one Service with its EndpointSlices, seen from one node.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use network::{Frontend, Protocol, ServicePort, Unserved};

/// Services with this label are somebody else's to serve (well-known label).
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// `clientIP.timeoutSeconds` where it is not given.
const AFFINITY_SECONDS: u64 = 10_800;
const LOCAL: &str = "Local";

/// All frontends of a Service on the node: cluster addresses, node ports, external addresses. None for
/// headless Services and aliases.
///
/// Endpoints that are ready serve; where there are none, those that still serve while they end do
/// (KEP-1669). A port's endpoints are those of the slices' port of the same name and protocol.
pub fn ports(service: &Service, slices: &[&EndpointSlice], node: &str) -> Vec<ServicePort> {
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    let labels = service.metadata.labels.as_ref();
    let elsewhere = labels.is_some_and(|labels| labels.contains_key(PROXY_NAME));
    if elsewhere || spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let cluster_addresses = cluster_addresses(spec);
    let external_addresses = external_addresses(service, spec);
    let affinity = affinity(spec);
    let internal = Policy::of(spec.internal_traffic_policy.as_deref());
    let external = Policy::of(spec.external_traffic_policy.as_deref());
    let mut found = Vec::new();
    for port in spec.ports.iter().flatten() {
        let Ok(protocol) = port
            .protocol
            .as_deref()
            .unwrap_or("TCP")
            .parse::<Protocol>()
        else {
            continue;
        };
        let Ok(number) = u16::try_from(port.port) else {
            continue;
        };
        let name = port.name.as_deref().unwrap_or_default();
        let endpoints = endpoints(slices, name, protocol);
        let mut add = |address: Option<Ipv4Addr>, number: u16, policy: Policy, inside: bool| {
            let (backends, unserved) = policy.choose(&endpoints, node);
            found.push(ServicePort {
                frontend: Frontend {
                    address,
                    protocol,
                    port: number,
                },
                backends,
                affinity,
                // Other nodes' endpoints must answer through this one; with `Local` there are none.
                rewrite_source: !inside && policy == Policy::Cluster,
                unserved,
            });
        };
        for address in &cluster_addresses {
            add(Some(*address), number, internal, true);
        }
        for address in &external_addresses {
            add(Some(*address), number, external, false);
        }
        let node_port = port.node_port.and_then(|port| u16::try_from(port).ok());
        if let Some(node_port) = node_port.filter(|port| *port != 0) {
            add(None, node_port, external, false);
        }
    }
    found
}

/// The IPv4 addresses inside the cluster; none if the Service is headless or has none yet.
pub(crate) fn cluster_addresses(spec: &ServiceSpec) -> Vec<Ipv4Addr> {
    let listed = spec
        .cluster_ips
        .as_deref()
        .filter(|listed| !listed.is_empty());
    let all = listed.unwrap_or(spec.cluster_ip.as_slice());
    all.iter()
        .filter_map(|address| address.parse().ok())
        .collect()
}

/// External addresses, and those of a load balancer that brings packets here unchanged.
fn external_addresses(service: &Service, spec: &ServiceSpec) -> Vec<Ipv4Addr> {
    let balancer = service
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer
        .and_then(|balancer| balancer.ingress.as_deref())
        .unwrap_or_default();
    let unchanged = ingress
        .iter()
        .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|ingress| ingress.ip.as_ref());
    let mut found: Vec<Ipv4Addr> = spec
        .external_ips
        .iter()
        .flatten()
        .chain(unchanged)
        .filter_map(|address| address.parse().ok())
        .collect();
    found.sort();
    found.dedup();
    found
}

fn affinity(spec: &ServiceSpec) -> Option<Duration> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let given = spec
        .session_affinity_config
        .as_ref()
        .and_then(|config| config.client_ip.as_ref());
    let seconds = given.and_then(|client| client.timeout_seconds);
    let seconds = seconds.and_then(|seconds| u64::try_from(seconds).ok());
    Some(Duration::from_secs(seconds.unwrap_or(AFFINITY_SECONDS)))
}

/// A traffic policy, internal or external.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Policy {
    Cluster,
    Local,
}

impl Policy {
    fn of(text: Option<&str>) -> Policy {
        if text == Some(LOCAL) {
            Policy::Local
        } else {
            Policy::Cluster
        }
    }

    /// The endpoints that get connections, and what becomes of these if there are none.
    fn choose(self, all: &[Candidate<'_>], node: &str) -> (Vec<SocketAddrV4>, Unserved) {
        let cluster = usable(all.iter());
        match self {
            Policy::Cluster => (cluster, Unserved::Refuse),
            Policy::Local => {
                let here = all.iter().filter(|candidate| candidate.node == Some(node));
                // Served elsewhere only: whoever balances between nodes must not take this for an end.
                let unserved = if cluster.is_empty() {
                    Unserved::Refuse
                } else {
                    Unserved::Drop
                };
                (usable(here), unserved)
            }
        }
    }
}

/// An endpoint of one port.
struct Candidate<'a> {
    address: SocketAddrV4,
    node: Option<&'a str>,
    ready: bool,
    /// Ending, and still answering.
    lingering: bool,
}

fn usable<'a>(candidates: impl Iterator<Item = &'a Candidate<'a>> + Clone) -> Vec<SocketAddrV4> {
    let addresses = |wanted: fn(&Candidate<'_>) -> bool| -> Vec<SocketAddrV4> {
        let wanted = candidates.clone().filter(|candidate| wanted(candidate));
        wanted.map(|candidate| candidate.address).collect()
    };
    let ready = addresses(|candidate| candidate.ready);
    if ready.is_empty() {
        addresses(|candidate| candidate.lingering)
    } else {
        ready
    }
}

fn endpoints<'a>(
    slices: &[&'a EndpointSlice],
    name: &str,
    protocol: Protocol,
) -> Vec<Candidate<'a>> {
    let mut found = Vec::new();
    for slice in slices.iter().filter(|slice| slice.address_type == "IPv4") {
        let same = |port: &&k8s_openapi::api::discovery::v1::EndpointPort| {
            port.name.as_deref().unwrap_or_default() == name
                && port.protocol.as_deref().unwrap_or("TCP").parse() == Ok(protocol)
        };
        let port = slice
            .ports
            .iter()
            .flatten()
            .find(same)
            .and_then(|port| port.port);
        let Some(port) = port.and_then(|port| u16::try_from(port).ok()) else {
            continue;
        };
        for endpoint in slice.endpoints.iter().flatten() {
            let ready = is_ready(endpoint);
            // Consumers use the first address only (API reference of EndpointSlice).
            let Some(address) = first_address(endpoint) else {
                continue;
            };
            let conditions = endpoint.conditions.as_ref();
            let serving = conditions
                .and_then(|conditions| conditions.serving)
                .unwrap_or(ready);
            let terminating = conditions.and_then(|conditions| conditions.terminating);
            found.push(Candidate {
                address: SocketAddrV4::new(address, port),
                node: endpoint.node_name.as_deref(),
                ready,
                lingering: serving && terminating.unwrap_or(false),
            });
        }
    }
    found
}

/// Unknown counts as ready.
pub(crate) fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint
        .conditions
        .as_ref()
        .and_then(|conditions| conditions.ready)
        .unwrap_or(true)
}

pub(crate) fn first_address(endpoint: &Endpoint) -> Option<Ipv4Addr> {
    endpoint.addresses.first()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(spec: Value) -> Service {
        let object = json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec});
        serde_json::from_value(object).expect("a Service")
    }

    fn slice(ports: Value, endpoints: Value) -> EndpointSlice {
        let object = json!({
            "metadata": {"name": "web-1", "namespace": "default"},
            "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
        });
        serde_json::from_value(object).expect("an EndpointSlice")
    }

    /// One line per port: `frontend → backends`, and what differs from the ordinary.
    fn lines(service: &Service, slices: &[&EndpointSlice]) -> Vec<String> {
        let line = |port: ServicePort| {
            let at = port.frontend;
            let address = at
                .address
                .map_or("*".to_owned(), |address| address.to_string());
            let backends: Vec<_> = port.backends.iter().map(ToString::to_string).collect();
            let mut line = format!(
                "{address}:{}/{:?} → {}",
                at.port,
                at.protocol,
                backends.join(" ")
            );
            if let Some(affinity) = port.affinity {
                line += &format!(" sticky {}", affinity.as_secs());
            }
            if port.rewrite_source {
                line += " rewritten";
            }
            if port.backends.is_empty() {
                line += &format!("{:?}", port.unserved);
            }
            line
        };
        ports(service, slices, "here")
            .into_iter()
            .map(line)
            .collect()
    }

    #[test]
    fn ports_are_matched_by_name_and_protocol() {
        let service = service(json!({
            "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00::7"],
            "ports": [
                {"name": "http", "port": 80, "targetPort": "web"},
                {"name": "dns", "port": 53, "protocol": "UDP"},
                {"name": "none", "port": 1},
            ],
        }));
        let one = slice(
            json!([{"name": "http", "port": 8080}, {"name": "dns", "port": 5353, "protocol": "UDP"}]),
            json!([{"addresses": ["10.244.0.2"]}, {"addresses": ["10.244.0.3"], "conditions": {"ready": true}}]),
        );
        // A named target port may be another number in another pod.
        let two = slice(
            json!([{"name": "http", "port": 9090}]),
            json!([{"addresses": ["10.244.0.4"]}]),
        );
        let mut other = slice(
            json!([{"name": "http", "port": 80}]),
            json!([{"addresses": ["fd00::1"]}]),
        );
        other.address_type = "IPv6".to_owned();
        assert_eq!(
            lines(&service, &[&one, &two, &other]),
            [
                "10.96.0.7:80/Tcp → 10.244.0.2:8080 10.244.0.3:8080 10.244.0.4:9090",
                "10.96.0.7:53/Udp → 10.244.0.2:5353 10.244.0.3:5353",
                "10.96.0.7:1/Tcp → Refuse",
            ]
        );
    }

    #[test]
    fn ready_endpoints_come_first_and_ending_ones_last() {
        let service = service(json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]}));
        let check = |conditions: &[Value], expected: &str| {
            let endpoints: Vec<Value> = conditions
                .iter()
                .zip(2..)
                .map(|(conditions, last)| {
                    json!({"addresses": [format!("10.244.0.{last}")], "conditions": conditions})
                })
                .collect();
            let slice = slice(json!([{"name": "", "port": 80}]), json!(endpoints));
            assert_eq!(
                lines(&service, &[&slice]),
                [format!("10.96.0.7:80/Tcp → {expected}")]
            );
        };
        let ready = json!({"ready": true, "serving": true, "terminating": false});
        let not_ready = json!({"ready": false, "serving": false, "terminating": false});
        let ending = json!({"ready": false, "serving": true, "terminating": true});
        let ended = json!({"ready": false, "serving": false, "terminating": true});
        check(
            &[ready.clone(), not_ready.clone(), ending.clone()],
            "10.244.0.2:80",
        );
        check(
            &[not_ready.clone(), ending.clone(), ended.clone()],
            "10.244.0.3:80",
        );
        check(&[not_ready, ended], "Refuse");
        check(&[json!({})], "10.244.0.2:80");
    }

    #[test]
    fn policies_choose_by_node() {
        let spec = |internal: &str, external: &str| {
            service(json!({
                "type": "LoadBalancer", "clusterIP": "10.96.0.7", "externalIPs": ["198.51.100.7"],
                "internalTrafficPolicy": internal, "externalTrafficPolicy": external,
                "sessionAffinity": "ClientIP",
                "ports": [{"port": 80, "nodePort": 30080}],
            }))
        };
        let endpoint = |last: u8, node: &str| json!({"addresses": [format!("10.244.0.{last}")], "nodeName": node});
        let both = slice(
            json!([{"port": 80}]),
            json!([endpoint(2, "here"), endpoint(3, "there")]),
        );
        let there = slice(json!([{"port": 80}]), json!([endpoint(3, "there")]));
        assert_eq!(
            lines(&spec("Cluster", "Local"), &[&both]),
            [
                "10.96.0.7:80/Tcp → 10.244.0.2:80 10.244.0.3:80 sticky 10800",
                "198.51.100.7:80/Tcp → 10.244.0.2:80 sticky 10800",
                "*:30080/Tcp → 10.244.0.2:80 sticky 10800",
            ]
        );
        assert_eq!(
            lines(&spec("Local", "Cluster"), &[&there]),
            [
                "10.96.0.7:80/Tcp →  sticky 10800Drop",
                "198.51.100.7:80/Tcp → 10.244.0.3:80 sticky 10800 rewritten",
                "*:30080/Tcp → 10.244.0.3:80 sticky 10800 rewritten",
            ]
        );
        assert_eq!(
            lines(&spec("Local", "Local"), &[])[2],
            "*:30080/Tcp →  sticky 10800Refuse"
        );
    }

    #[test]
    fn load_balancer_addresses_serve_unless_the_balancer_is_a_proxy() {
        let mut service = service(json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]}));
        let status = json!({"loadBalancer": {"ingress": [
            {"ip": "198.51.100.1", "ipMode": "VIP"}, {"ip": "198.51.100.2", "ipMode": "Proxy"},
            {"hostname": "lb.example.com"}, {"ip": "198.51.100.3"},
        ]}});
        service.status = Some(serde_json::from_value(status).expect("a status"));
        let frontends: Vec<_> = ports(&service, &[], "here")
            .into_iter()
            .filter_map(|port| port.frontend.address)
            .collect();
        let expected = [[10, 96, 0, 7], [198, 51, 100, 1], [198, 51, 100, 3]];
        assert_eq!(frontends, expected.map(Ipv4Addr::from));
    }

    #[test]
    fn who_has_no_address_has_no_ports() {
        let port = json!([{"port": 80}]);
        for spec in [
            json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": port}),
            json!({"clusterIP": "", "ports": port}),
            json!({"type": "ExternalName", "externalName": "example.com", "ports": port}),
            json!({"clusterIP": "10.96.0.7"}),
        ] {
            assert_eq!(ports(&service(spec), &[], "here"), []);
        }
        let mut other = service(json!({"clusterIP": "10.96.0.7", "ports": port}));
        other.metadata.labels = Some([(PROXY_NAME.to_owned(), "mesh".to_owned())].into());
        assert_eq!(ports(&other, &[], "here"), []);
    }
}
