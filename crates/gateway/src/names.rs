//! What a Service is called: the Kubernetes DNS specification, schema version 1.1.0.
//!
//! ```text
//! web.ns.svc.ZONE                         A     cluster address, or each ready endpoint (headless)
//! _http._tcp.web.ns.svc.ZONE              SRV   each named port
//! HOST.web.ns.svc.ZONE                    A     endpoints of headless Services; HOST is the hostname,
//!                                               or the address with dashes
//! web.ns.svc.ZONE                         CNAME ExternalName
//! 7.0.96.10.in-addr.arpa                  PTR   web.ns.svc.ZONE, HOST.web.ns.svc.ZONE
//! 10-244-0-5.ns.pod.ZONE                  A     10.244.0.5
//! dns-version.ZONE                        TXT   "1.1.0"
//! ```

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use dns::{Data, Entry, Name, Zone, ZoneError};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::ports::{cluster_addresses, first_address, is_ready};

/// Shared out among the records of one name (RFC 2782).
const WEIGHT: u16 = 100;

/// All names of a Service.
///
/// # Errors
/// When a name of the Service does not fit a domain name.
pub fn names(
    zone: &Zone,
    service: &Service,
    slices: &[&EndpointSlice],
) -> Result<Vec<Entry>, ZoneError> {
    let (Some(spec), Some(namespace), Some(name)) = (
        &service.spec,
        &service.metadata.namespace,
        &service.metadata.name,
    ) else {
        return Ok(Vec::new());
    };
    let own = format!("{name}.{namespace}.svc");
    let host = zone.name(&own)?;
    if spec.type_.as_deref() == Some("ExternalName") {
        let target = spec.external_name.as_deref().unwrap_or_default();
        let data = match target.parse() {
            Ok(address) => Data::Address(address),
            Err(_) => Data::Alias(dns::full_name(target)?),
        };
        return Ok(vec![Entry { name: host, data }]);
    }
    if spec.cluster_ip.as_deref() == Some("None") {
        return headless(zone, &own, &host, slices);
    }
    let mut entries = Vec::new();
    for address in cluster_addresses(spec) {
        entries.push(Entry {
            name: host.clone(),
            data: Data::Address(address),
        });
        entries.push(Entry {
            name: dns::reverse_name(address),
            data: Data::Pointer(host.clone()),
        });
    }
    if entries.is_empty() {
        return Ok(entries);
    }
    for port in spec.ports.iter().flatten() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        if let (Some(name), Ok(number)) =
            (port_label(port.name.as_deref()), u16::try_from(port.port))
        {
            let name = zone.name(&format!("_{name}._{}.{own}", protocol.to_lowercase()))?;
            entries.push(Entry {
                name,
                data: port_data(WEIGHT, number, &host),
            });
        }
    }
    Ok(entries)
}

/// One name per endpoint that is ready, and all of them together.
fn headless(
    zone: &Zone,
    own: &str,
    service: &Name,
    slices: &[&EndpointSlice],
) -> Result<Vec<Entry>, ZoneError> {
    let mut addresses: BTreeSet<Ipv4Addr> = BTreeSet::new();
    let mut hosts: BTreeSet<(Name, Ipv4Addr)> = BTreeSet::new();
    let mut ports: BTreeSet<(Name, u16, Name)> = BTreeSet::new();
    for slice in slices.iter().filter(|slice| slice.address_type == "IPv4") {
        for endpoint in slice
            .endpoints
            .iter()
            .flatten()
            .filter(|endpoint| is_ready(endpoint))
        {
            let Some(address) = first_address(endpoint) else {
                continue;
            };
            let label = match endpoint.hostname.as_deref().filter(|name| !name.is_empty()) {
                Some(hostname) => hostname.to_owned(),
                None => address.to_string().replace('.', "-"),
            };
            let host = zone.name(&format!("{label}.{own}"))?;
            addresses.insert(address);
            hosts.insert((host.clone(), address));
            for port in slice.ports.iter().flatten() {
                let protocol = port.protocol.as_deref().unwrap_or("TCP").to_lowercase();
                let number = port.port.and_then(|number| u16::try_from(number).ok());
                if let (Some(name), Some(number)) = (port_label(port.name.as_deref()), number) {
                    let name = zone.name(&format!("_{name}._{protocol}.{own}"))?;
                    ports.insert((name, number, host.clone()));
                }
            }
        }
    }
    let share = WEIGHT
        / u16::try_from(hosts.len().max(1))
            .unwrap_or(WEIGHT)
            .min(WEIGHT);
    let together = addresses.into_iter().map(|address| Entry {
        name: service.clone(),
        data: Data::Address(address),
    });
    let each = hosts.into_iter().flat_map(|(name, address)| {
        let pointer = Data::Pointer(name.clone());
        [
            Entry {
                name,
                data: Data::Address(address),
            },
            Entry {
                name: dns::reverse_name(address),
                data: pointer,
            },
        ]
    });
    let served = ports.into_iter().map(|(name, number, host)| Entry {
        name,
        data: port_data(share, number, &host),
    });
    Ok(together.chain(each).chain(served).collect())
}

/// A port without a name has no SRV record.
fn port_label(name: Option<&str>) -> Option<&str> {
    name.filter(|name| !name.is_empty())
}

fn port_data(weight: u16, port: u16, target: &Name) -> Data {
    Data::Service {
        priority: 0,
        weight,
        port,
        target: target.clone(),
    }
}

/// The names of a namespace: it exists, and pods in it have names by their addresses.
///
/// # Errors
/// When the namespace's name does not fit a domain name.
pub fn namespace_names(zone: &Zone, namespace: &str) -> Result<Vec<Entry>, ZoneError> {
    Ok(vec![
        Entry {
            name: zone.name(&format!("{namespace}.svc"))?,
            data: Data::Exists,
        },
        Entry {
            name: zone.name(&format!("{namespace}.pod"))?,
            data: Data::DashedAddresses,
        },
    ])
}

/// The names of the zone itself; the name server is reached at `address`.
///
/// # Errors
/// When the zone's name is too long.
pub fn zone_names(zone: &Zone, address: Ipv4Addr) -> Result<Vec<Entry>, ZoneError> {
    Ok(vec![
        Entry {
            name: zone.name("dns-version")?,
            data: Data::Text("1.1.0".to_owned()),
        },
        Entry {
            name: zone.name("ns.dns")?,
            data: Data::Address(address),
        },
        Entry {
            name: zone.name("svc")?,
            data: Data::Exists,
        },
        Entry {
            name: zone.name("pod")?,
            data: Data::Exists,
        },
    ])
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn lines(spec: Value, slices: &[Value]) -> Vec<String> {
        let zone = Zone::new("cluster.local").expect("a zone");
        let object = json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec});
        let service: Service = serde_json::from_value(object).expect("a Service");
        let slices: Vec<EndpointSlice> = slices
            .iter()
            .map(|slice| serde_json::from_value(slice.clone()).expect("an EndpointSlice"))
            .collect();
        let slices: Vec<&EndpointSlice> = slices.iter().collect();
        let entries = names(&zone, &service, &slices).expect("names that fit");
        let line = |entry: Entry| {
            let data = match entry.data {
                Data::Address(address) => format!("A {address}"),
                Data::Service {
                    weight,
                    port,
                    target,
                    ..
                } => format!("SRV {weight} {port} {target}"),
                Data::Alias(target) => format!("CNAME {target}"),
                Data::Pointer(target) => format!("PTR {target}"),
                other => format!("{other:?}"),
            };
            format!("{} {data}", entry.name)
        };
        entries.into_iter().map(line).collect()
    }

    #[test]
    fn a_service_with_an_address() {
        let ports = json!([
            {"name": "http", "port": 80, "protocol": "TCP"},
            {"name": "dns", "port": 53, "protocol": "UDP"},
            {"port": 9},
        ]);
        assert_eq!(
            lines(json!({"clusterIP": "10.96.0.7", "ports": ports}), &[]),
            [
                "web.default.svc.cluster.local. A 10.96.0.7",
                "7.0.96.10.in-addr.arpa. PTR web.default.svc.cluster.local.",
                "_http._tcp.web.default.svc.cluster.local. SRV 100 80 web.default.svc.cluster.local.",
                "_dns._udp.web.default.svc.cluster.local. SRV 100 53 web.default.svc.cluster.local.",
            ]
        );
        assert_eq!(
            lines(
                json!({"clusterIP": "", "ports": [{"name": "http", "port": 80}]}),
                &[]
            ),
            [""; 0]
        );
    }

    #[test]
    fn a_headless_service() {
        let slice = json!({
            "metadata": {"name": "web-1"}, "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": [
                {"addresses": ["10.244.0.2"], "hostname": "web-0"},
                {"addresses": ["10.244.0.3"], "conditions": {"ready": true}},
                {"addresses": ["10.244.0.4"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            ],
        });
        // The same endpoint may stand in two slices for a moment.
        assert_eq!(
            lines(
                json!({"clusterIP": "None", "ports": []}),
                &[slice.clone(), slice]
            ),
            [
                "web.default.svc.cluster.local. A 10.244.0.2",
                "web.default.svc.cluster.local. A 10.244.0.3",
                "10-244-0-3.web.default.svc.cluster.local. A 10.244.0.3",
                "3.0.244.10.in-addr.arpa. PTR 10-244-0-3.web.default.svc.cluster.local.",
                "web-0.web.default.svc.cluster.local. A 10.244.0.2",
                "2.0.244.10.in-addr.arpa. PTR web-0.web.default.svc.cluster.local.",
                "_http._tcp.web.default.svc.cluster.local. SRV 50 8080 10-244-0-3.web.default.svc.cluster.local.",
                "_http._tcp.web.default.svc.cluster.local. SRV 50 8080 web-0.web.default.svc.cluster.local.",
            ]
        );
    }

    #[test]
    fn an_alias() {
        let check = |target: &str, expected: &str| {
            let spec = json!({"type": "ExternalName", "externalName": target});
            assert_eq!(
                lines(spec, &[]),
                [format!("web.default.svc.cluster.local. {expected}")]
            );
        };
        check("example.com", "CNAME example.com.");
        check("example.com.", "CNAME example.com.");
        check("192.0.2.1", "A 192.0.2.1");
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let zone = Zone::new("cluster.local").expect("a zone");
        let long = "x".repeat(64);
        assert!(namespace_names(&zone, &long).is_err());
    }
}
