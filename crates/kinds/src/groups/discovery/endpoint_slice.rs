//! EndpointSlice.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;

use crate::fault::{Fault, Path};
use crate::groups::core::endpoints::{first_three, not_special};
use crate::metadata::{self, IMMUTABLE};
use crate::names;
use crate::read::{list, text};
use crate::rules::Rules;
use crate::table::{Heading, age_cell};

const TYPE: &str = "io.k8s.api.discovery.v1.EndpointSlice";

pub(crate) const RULES: Rules = Rules {
    default: |slice| {
        for port in slice["ports"].as_array_mut().into_iter().flatten() {
            if port["name"].is_null() {
                port["name"] = "".into();
            }
            if port["protocol"].is_null() {
                port["protocol"] = "TCP".into();
            }
        }
    },
    prepare_create: |slice| slice["metadata"]["generation"] = 1.into(),
    prepare_update: |new, old, _| {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(0);
        let labels = |slice: &Value| slice["metadata"]["labels"].clone();
        let changed = new["endpoints"] != old["endpoints"]
            || new["ports"] != old["ports"]
            || labels(new) != labels(old);
        new["metadata"]["generation"] = (generation + i64::from(changed)).into();
    },
    validate,
    validate_update: |new, old, _, faults| {
        validate(new, faults);
        if new["addressType"] != old["addressType"] {
            faults.push(Fault::invalid(
                Path::new("addressType"),
                new["addressType"].clone(),
                IMMUTABLE,
            ));
        }
    },
    warnings: |slice| match text(slice, "addressType") {
        "FQDN" => vec!["spec.addressType: FQDN endpoints are deprecated".to_owned()],
        _ => Vec::new(),
    },
    columns: &[
        Heading::NAME,
        Heading::of("AddressType", TYPE, "addressType"),
        Heading::of("Ports", TYPE, "ports"),
        Heading::of("Endpoints", TYPE, "endpoints"),
        Heading::AGE,
    ],
    cells,
    ..Rules::PLAIN
};

fn validate(slice: &Value, faults: &mut Vec<Fault>) {
    const ENDPOINTS: Path<'static> = Path::new("endpoints");
    const PORTS: Path<'static> = Path::new("ports");
    let kind = text(slice, "addressType");
    match kind {
        "IPv4" | "IPv6" | "FQDN" => {}
        "" => faults.push(Fault::required(Path::new("addressType"), "")),
        other => {
            faults.push(Fault::not_supported(
                Path::new("addressType"),
                other,
                &["FQDN", "IPv4", "IPv6"],
            ));
            return;
        }
    }
    let endpoints = list(slice, "endpoints");
    if endpoints.len() > 1000 {
        faults.push(Fault::too_many(ENDPOINTS, endpoints.len(), 1000));
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        self::endpoint(endpoint, kind, ENDPOINTS.index(index), faults);
    }
    let mut seen = BTreeSet::new();
    for (index, port) in list(slice, "ports").iter().enumerate() {
        let path = PORTS.index(index);
        let name = text(port, "name");
        if !name.is_empty() {
            let problems = names::dns1123_label(name).into_iter();
            faults
                .extend(problems.map(|problem| Fault::invalid(path.child("name"), name, problem)));
        }
        if !seen.insert(name) {
            faults.push(Fault::duplicate(path.child("name"), name));
        }
        match text(port, "protocol") {
            "SCTP" | "TCP" | "UDP" => {}
            other => faults.push(Fault::not_supported(
                path.child("protocol"),
                other,
                &["SCTP", "TCP", "UDP"],
            )),
        }
        if let Some(name) = port["appProtocol"].as_str() {
            let problems = names::qualified_name(name).into_iter();
            faults.extend(
                problems.map(|problem| Fault::invalid(path.child("appProtocol"), name, problem)),
            );
        }
    }
}

fn endpoint(endpoint: &Value, kind: &str, path: Path<'_>, faults: &mut Vec<Fault>) {
    let addresses = list(endpoint, "addresses");
    let list_path = path.child("addresses");
    if addresses.is_empty() {
        faults.push(Fault::required(
            list_path,
            "must contain at least 1 address",
        ));
    }
    if addresses.len() > 100 {
        faults.push(Fault::too_many(list_path, addresses.len(), 100));
    }
    for (index, address) in addresses.iter().enumerate() {
        let path = list_path.index(index);
        let text = address.as_str().unwrap_or_default();
        match (kind, names::ip_address(text)) {
            ("FQDN", _) => {
                let problems = names::dns1123_subdomain(text).into_iter();
                faults.extend(problems.map(|problem| Fault::invalid(path, text, problem)));
            }
            (_, Some(problem)) => faults.push(Fault::invalid(path, text, problem)),
            ("IPv4", None) if text.contains(':') => {
                faults.push(Fault::invalid(path, text, "must be an IPv4 address"))
            }
            ("IPv6", None) if !text.contains(':') => {
                faults.push(Fault::invalid(path, text, "must be an IPv6 address"))
            }
            (_, None) => not_special(text, path, faults),
        }
    }
    if let Some(hostname) = endpoint["hostname"].as_str() {
        let problems = names::dns1123_label(hostname).into_iter();
        faults.extend(
            problems.map(|problem| Fault::invalid(path.child("hostname"), hostname, problem)),
        );
    }
    if let Some(node) = endpoint["nodeName"].as_str() {
        let problems = names::dns1123_subdomain(node).into_iter();
        faults
            .extend(problems.map(|problem| Fault::invalid(path.child("nodeName"), node, problem)));
    }
}

fn cells(slice: &Value, now: Timestamp) -> Vec<Value> {
    let words = |words: Vec<String>| match words.is_empty() {
        true => "<unset>".to_owned(),
        false => first_three(&words),
    };
    let ports = list(slice, "ports")
        .iter()
        .map(|port| match port["port"].as_i64() {
            Some(number) => number.to_string(),
            None => "*".to_owned(),
        });
    let addresses = list(slice, "endpoints")
        .iter()
        .flat_map(|endpoint| list(endpoint, "addresses"));
    let addresses = addresses
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    vec![
        metadata::name(slice).into(),
        slice["addressType"].clone(),
        words(ports.collect()).into(),
        words(addresses).into(),
        age_cell(slice, now),
    ]
}
