//! `proxy` of pods, services and nodes: a request is handed on to what listens there.
//!
//! The name of the object may carry more: `[SCHEME:]NAME[:PORT]`. Addresses come from the status
//! of pods and nodes alone, and only global unicast ones are dialled, so that no object that a user
//! can write leads to what listens on this machine's loopback or on the link. A service is reached
//! through an endpoint that is the pod which it says it is, never through an address that somebody
//! wrote into an Endpoints object.
//!
//! Bodies stream in both directions and upgraded connections are spliced; how the request and its
//! answer are rewritten on the way is in [`super::forward`].

use std::net::IpAddr;

use http::{Request, Response};
use rand::seq::IndexedRandom as _;
use serde_json::Value;

use super::forward::{self, Scheme, Target};
use crate::Body;
use crate::encode::metadata_str;
use crate::handle::{Call, Core, Resource};
use crate::status::Failure;

/// Where the agent of a node listens that does not say so.
const KUBELET_PORT: u64 = 10250;

/// Whether a kind can be reached through `proxy`.
pub(super) fn is_for(resource: &Resource) -> bool {
    ["Pod", "Service", "Node"]
        .iter()
        .any(|kind| resource.is("", kind))
}

/// Finds out what the request is for and hands it on.
pub(super) async fn answer(call: &Call, request: Request<Body>) -> Result<Response<Body>, Failure> {
    let wanted = Wanted::parse(call)?;
    let target = match call.resource.kind.kind() {
        "Pod" => of_pod(call, &wanted),
        "Service" => of_service(call, &wanted),
        _ => of_node(call, &wanted),
    }?;
    forward::send(call, target, request).await
}

/// `[SCHEME:]NAME[:PORT]`, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Wanted<'a> {
    scheme: Scheme,
    name: &'a str,
    port: &'a str,
}

impl<'a> Wanted<'a> {
    fn parse(call: &'a Call) -> Result<Wanted<'a>, Failure> {
        let text = call.info.name.as_str();
        Wanted::of(text).ok_or_else(|| {
            Failure::bad_request(format!(
                "invalid {} request {}",
                call.resource.kind.singular(),
                kinds::quote(text)
            ))
        })
    }

    fn of(text: &'a str) -> Option<Wanted<'a>> {
        let parts: Vec<&str> = text.split(':').collect();
        let (scheme, name, port) = match parts.as_slice() {
            [name] => ("", *name, ""),
            [name, port] => ("", *name, *port),
            [scheme, name, port] => (*scheme, *name, *port),
            _ => return None,
        };
        let scheme = match scheme {
            "" | "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return None,
        };
        (!name.is_empty()).then_some(Wanted { scheme, name, port })
    }

    /// The object that is named.
    fn object(&self, call: &Call) -> Result<Value, Failure> {
        call.core
            .read(&call.resource, &call.info.namespace, self.name)
            .ok_or_else(|| Failure::not_found(call.resource.name(), self.name))
    }
}

fn of_pod(call: &Call, wanted: &Wanted<'_>) -> Result<Target, Failure> {
    let pod = wanted.object(call)?;
    let address = proxyable(pod_addresses(&pod).next())?;
    let declared = pod["spec"]["containers"]
        .as_array()
        .into_iter()
        .flatten()
        .find_map(|container| container["ports"][0]["containerPort"].as_u64());
    let port = match (wanted.port, declared) {
        ("", Some(declared)) => u16::try_from(declared).unwrap_or(wanted.scheme.port()),
        (given, _) => port_number(given, wanted.scheme)?,
    };
    Ok(Target::address(wanted.scheme, address, port))
}

fn of_service(call: &Call, wanted: &Wanted<'_>) -> Result<Target, Failure> {
    let service = wanted.object(call)?;
    let mut port_name = wanted.port;
    if let Ok(number) = wanted.port.parse::<u16>() {
        let port = service["spec"]["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|port| port["port"] == number)
            .ok_or_else(|| {
                Failure::unavailable(format!(
                    "no service port {number} found for service {}",
                    kinds::quote(wanted.name)
                ))
            })?;
        port_name = port["name"].as_str().unwrap_or_default();
    }
    let endpoints = call
        .core
        .read(
            call.core.builtin("", "v1", "endpoints"),
            &call.info.namespace,
            wanted.name,
        )
        .unwrap_or_default();
    let none = |what: &str| {
        Failure::unavailable(format!(
            "no endpoints available for service {}",
            kinds::quote(what)
        ))
    };
    let subsets = endpoints["subsets"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    if subsets.is_empty() {
        return Err(none(wanted.name));
    }
    let places: Vec<(IpAddr, u16)> = subsets
        .iter()
        .filter_map(|subset| {
            let ports = subset["ports"].as_array()?;
            let port = ports
                .iter()
                .find(|port| port["name"].as_str().unwrap_or_default() == port_name)?;
            Some((subset, u16::try_from(port["port"].as_u64()?).ok()?))
        })
        .flat_map(|(subset, port)| {
            let addresses = subset["addresses"].as_array().into_iter().flatten();
            addresses
                .filter_map(|address| is_of_pod(&call.core, &call.info.namespace, address))
                .map(move |address| (address, port))
        })
        .collect();
    let (address, port) = places
        .choose(&mut rand::rng())
        .ok_or_else(|| none(&call.info.name))?;
    Ok(Target::address(
        wanted.scheme,
        proxyable(Some(*address))?,
        *port,
    ))
}

/// The address of an endpoint, if the pod that it refers to has it.
fn is_of_pod(core: &Core, namespace: &str, endpoint: &Value) -> Option<IpAddr> {
    let address: IpAddr = endpoint["ip"].as_str()?.parse().ok()?;
    let reference = &endpoint["targetRef"];
    if reference["namespace"] != namespace {
        return None;
    }
    let pods = core.builtin("", "v1", "pods");
    let pod = core.read(pods, namespace, reference["name"].as_str()?)?;
    pod_addresses(&pod)
        .any(|known| known == address)
        .then_some(address)
}

fn of_node(call: &Call, wanted: &Wanted<'_>) -> Result<Target, Failure> {
    let node = wanted.object(call)?;
    let kubelet_port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
        .as_u64()
        .unwrap_or(KUBELET_PORT);
    let is_kubelet = wanted.port.is_empty()
        || wanted
            .port
            .parse::<u16>()
            .is_ok_and(|port| kubelet_port == u64::from(port));
    if is_kubelet {
        let name = metadata_str(&node, "name");
        let agent = call.core.config.nodes.node(name).ok_or_else(|| {
            Failure::unavailable(format!("node {} cannot be reached", kinds::quote(name)))
        })?;
        return Ok(Target::Agent(agent));
    }
    let address = node["status"]["addresses"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|address| address["type"] == "InternalIP")
        .and_then(|address| address["address"].as_str()?.parse().ok());
    let port = port_number(wanted.port, wanted.scheme)?;
    Ok(Target::address(wanted.scheme, proxyable(address)?, port))
}

fn pod_addresses(pod: &Value) -> impl Iterator<Item = IpAddr> {
    pod["status"]["podIPs"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|address| address["ip"].as_str()?.parse().ok())
}

/// The address, if it is one that may be dialled for others: global unicast, as Go has it.
fn proxyable(address: Option<IpAddr>) -> Result<IpAddr, Failure> {
    let is_global = |address: &IpAddr| match address {
        IpAddr::V4(address) => {
            !(address.is_unspecified()
                || address.is_broadcast()
                || address.is_loopback()
                || address.is_multicast()
                || address.is_link_local())
        }
        IpAddr::V6(address) => {
            !(address.is_unspecified()
                || address.is_loopback()
                || address.is_multicast()
                || address.is_unicast_link_local())
        }
    };
    address
        .map(|address| address.to_canonical())
        .filter(is_global)
        .ok_or_else(|| Failure::bad_request("address not allowed"))
}

fn port_number(text: &str, scheme: Scheme) -> Result<u16, Failure> {
    if text.is_empty() {
        return Ok(scheme.port());
    }
    text.parse().map_err(|_| {
        Failure::unavailable(format!(
            "error trying to reach service: dial tcp: lookup tcp/{text}: unknown port"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_scheme_and_port() {
        let check = |text, expected: Option<(Scheme, &str, &str)>| {
            let got = Wanted::of(text).map(|wanted| (wanted.scheme, wanted.name, wanted.port));
            assert_eq!(got, expected, "{text}");
        };
        check("web", Some((Scheme::Http, "web", "")));
        check("web:80", Some((Scheme::Http, "web", "80")));
        check("http:web:80", Some((Scheme::Http, "web", "80")));
        check("https:web:", Some((Scheme::Https, "web", "")));
        check(":web:80", Some((Scheme::Http, "web", "80")));
        check("ftp:web:80", None);
        check("a:b:c:d", None);
        check(":80", None);
    }

    #[test]
    fn only_global_addresses_are_dialled() {
        let check = |text: &str, expected: bool| {
            let address = text.parse().ok();
            assert_eq!(proxyable(address).is_ok(), expected, "{text}");
        };
        check("10.244.0.7", true);
        check("fd00::1", true);
        for refused in [
            "127.0.0.1",
            "127.8.9.1",
            "0.0.0.0",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "",
        ] {
            check(refused, false);
        }
    }
}
