//! Endpoints, the older form of EndpointSlice.

use jiff::Timestamp;
use serde_json::Value;

use crate::fault::{Fault, Path};
use crate::metadata;
use crate::names;
use crate::read::{list, text};
use crate::rules::Rules;
use crate::table::{Heading, age_cell, or_none};

pub(crate) const RULES: Rules = Rules {
    default: |endpoints| {
        for subset in endpoints["subsets"].as_array_mut().into_iter().flatten() {
            for port in subset
                .get_mut("ports")
                .and_then(Value::as_array_mut)
                .into_iter()
                .flatten()
            {
                crate::read::fill(port, "protocol", "TCP");
            }
        }
    },
    deprecated: Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
    validate,
    validate_update: |new, _, _, faults| validate(new, faults),
    columns: &[
        Heading::NAME,
        Heading::of("Endpoints", "io.k8s.api.core.v1.Endpoints", "subsets"),
        Heading::AGE,
    ],
    cells,
    ..Rules::PLAIN
};

fn validate(endpoints: &Value, faults: &mut Vec<Fault>) {
    const SUBSETS: Path<'static> = Path::new("subsets");
    for (index, subset) in list(endpoints, "subsets").iter().enumerate() {
        let path = SUBSETS.index(index);
        let counts = ["addresses", "notReadyAddresses"].map(|kind| list(subset, kind).len());
        if counts == [0, 0] {
            faults.push(Fault::required(
                path,
                "must specify `addresses` or `notReadyAddresses`",
            ));
        }
        for kind in ["addresses", "notReadyAddresses"] {
            let list_path = path.child(kind);
            for (index, address) in list(subset, kind).iter().enumerate() {
                self::address(address, list_path.index(index), faults);
            }
        }
        let ports = list(subset, "ports");
        let list_path = path.child("ports");
        for (index, port) in ports.iter().enumerate() {
            self::port(port, ports.len() > 1, list_path.index(index), faults);
        }
    }
}

fn address(address: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let ip = text(address, "ip");
    if let Some(problem) = names::ip_address(ip) {
        faults.push(Fault::invalid(path.child("ip"), ip, problem));
    }
    let hostname = text(address, "hostname");
    if !hostname.is_empty() {
        let problems = names::dns1123_label(hostname).into_iter();
        faults.extend(
            problems.map(|problem| Fault::invalid(path.child("hostname"), hostname, problem)),
        );
    }
    if let Some(node) = address["nodeName"].as_str() {
        let problems = names::dns1123_subdomain(node).into_iter();
        faults
            .extend(problems.map(|problem| Fault::invalid(path.child("nodeName"), node, problem)));
    }
    not_special(ip, path.child("ip"), faults);
}

/// Addresses that only mean something on one machine or link.
pub(crate) fn not_special(ip: &str, path: Path<'_>, faults: &mut Vec<Fault>) {
    let text = match ip.parse::<std::net::IpAddr>() {
        Err(_) => "must be a valid IP address".to_owned(),
        Ok(address) if address.is_unspecified() => format!("may not be unspecified ({ip})"),
        Ok(address) if address.is_loopback() => {
            "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned()
        }
        Ok(std::net::IpAddr::V4(address)) if address.is_link_local() => {
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned()
        }
        Ok(std::net::IpAddr::V4(address)) if address.octets()[..3] == [224, 0, 0] => {
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned()
        }
        Ok(_) => return,
    };
    faults.push(Fault::invalid(path, ip, text));
}

fn port(port: &Value, named: bool, path: Path<'_>, faults: &mut Vec<Fault>) {
    let name = text(port, "name");
    if name.is_empty() {
        if named {
            faults.push(Fault::required(path.child("name"), ""));
        }
    } else {
        let problems = names::dns1123_label(name).into_iter();
        faults.extend(problems.map(|problem| Fault::invalid(path.child("name"), name, problem)));
    }
    let number = port["port"].as_i64().unwrap_or(0);
    faults.extend(
        names::port_number(number)
            .map(|problem| Fault::invalid(path.child("port"), number, problem)),
    );
    let protocol = text(port, "protocol");
    if protocol.is_empty() {
        faults.push(Fault::required(path.child("protocol"), ""));
    } else if !["SCTP", "TCP", "UDP"].contains(&protocol) {
        faults.push(Fault::not_supported(
            path.child("protocol"),
            protocol,
            &["SCTP", "TCP", "UDP"],
        ));
    }
    if let Some(name) = port["appProtocol"].as_str() {
        let problems = names::qualified_name(name).into_iter();
        faults.extend(
            problems.map(|problem| Fault::invalid(path.child("appProtocol"), name, problem)),
        );
    }
}

fn cells(endpoints: &Value, now: Timestamp) -> Vec<Value> {
    let mut all = Vec::new();
    for subset in list(endpoints, "subsets") {
        let addresses = || {
            list(subset, "addresses")
                .iter()
                .map(|address| text(address, "ip"))
        };
        let ports = list(subset, "ports");
        if ports.is_empty() {
            all.extend(addresses().map(str::to_owned));
        }
        for port in ports {
            all.extend(addresses().map(|address| match address.contains(':') {
                true => format!("[{address}]:{}", port["port"]),
                false => format!("{address}:{}", port["port"]),
            }));
        }
    }
    vec![
        metadata::name(endpoints).into(),
        or_none(&first_three(&all)),
        age_cell(endpoints, now),
    ]
}

/// The first three of some words, and how many there are beyond them.
pub(crate) fn first_three(words: &[String]) -> String {
    match words.len() {
        0..=3 => words.join(","),
        count => format!("{} + {} more...", words[..3].join(","), count - 3),
    }
}
