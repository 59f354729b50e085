//! Service.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::fault::{Fault, Path};
use crate::metadata::{self, validate_labels};
use crate::names;
use crate::read::{fill, list, remove, text};
use crate::rules::Rules;
use crate::table::{Heading, age_cell, labels, or_none};

const TYPE: &str = "io.k8s.api.core.v1.ServiceSpec";

pub(crate) const RULES: Rules = Rules {
    name: names::label_name,
    default,
    prepare_create: |service| {
        families(service);
        service["status"] = json!({});
    },
    prepare_update,
    validate: |service, faults| validate(service, faults),
    validate_update,
    warnings,
    columns: &[
        Heading::NAME,
        Heading::of("Type", TYPE, "type"),
        Heading::of("Cluster-IP", TYPE, "clusterIP"),
        Heading::of("External-IP", TYPE, "externalIPs"),
        Heading::of("Port(s)", TYPE, "ports"),
        Heading::AGE,
        Heading::of("Selector", TYPE, "selector").wide(),
    ],
    cells,
    fields: |service| {
        let spec = &service["spec"];
        vec![
            ("spec.clusterIP", text(spec, "clusterIP").to_owned()),
            ("spec.type", text(spec, "type").to_owned()),
        ]
    },
    ..Rules::PLAIN
};

const SPEC: Path<'static> = Path::new("spec");

fn default(service: &mut Value) {
    let spec = &mut service["spec"];
    fill(spec, "type", "ClusterIP");
    fill(spec, "sessionAffinity", "None");
    match text(spec, "sessionAffinity") {
        "None" => remove(spec, "sessionAffinityConfig"),
        "ClientIP" if spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"].is_null() => {
            spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": 10_800}});
        }
        _ => {}
    }
    let kind = text(spec, "type").to_owned();
    for port in ports_mut(spec) {
        fill(port, "protocol", "TCP");
        if port["targetPort"] == 0 || port["targetPort"] == "" || port["targetPort"].is_null() {
            port["targetPort"] = port["port"].clone();
        }
    }
    let external = text(spec, "externalTrafficPolicy").is_empty();
    if ["NodePort", "LoadBalancer"].contains(&kind.as_str()) && external {
        spec["externalTrafficPolicy"] = "Cluster".into();
    }
    if spec["internalTrafficPolicy"].is_null()
        && ["NodePort", "LoadBalancer", "ClusterIP"].contains(&kind.as_str())
    {
        spec["internalTrafficPolicy"] = "Cluster".into();
    }
    if kind == "LoadBalancer" && spec["allocateLoadBalancerNodePorts"].is_null() {
        spec["allocateLoadBalancerNodePorts"] = true.into();
    }
    // The older, single form of the field names the first of the newer one.
    if spec["clusterIPs"].is_null() && !text(spec, "clusterIP").is_empty() {
        spec["clusterIPs"] = json!([spec["clusterIP"]]);
    }
}

/// Whether the service neither has an address nor chooses pods, so that nothing is known of its endpoints.
fn is_free(spec: &Value) -> bool {
    text(spec, "clusterIP") == "None"
        && spec["selector"]
            .as_object()
            .is_none_or(|labels| labels.is_empty())
}

/// Which families of addresses the service has. The cluster has IPv4 only; endpoints that it knows nothing of may be
/// of both.
fn families(service: &mut Value) {
    let spec = &mut service["spec"];
    if text(spec, "type") == "ExternalName" {
        return;
    }
    let free = is_free(spec);
    if spec["ipFamilyPolicy"].is_null() {
        spec["ipFamilyPolicy"] = if free {
            "RequireDualStack"
        } else {
            "SingleStack"
        }
        .into();
    }
    let both = free && text(spec, "ipFamilyPolicy") != "SingleStack";
    let wide = text(spec, "clusterIP").contains(':');
    spec["ipFamilies"] = match list(spec, "ipFamilies") {
        [] if both => json!(["IPv4", "IPv6"]),
        [] if wide => json!(["IPv6"]),
        [] => json!(["IPv4"]),
        [only] if both && only == "IPv6" => json!(["IPv6", "IPv4"]),
        [only] if both && only == "IPv4" => json!(["IPv4", "IPv6"]),
        given => given.into(),
    };
}

fn prepare_update(new: &mut Value, old: &Value, sub: Option<&str>) {
    if sub == Some("status") {
        new["spec"] = old["spec"].clone();
        return;
    }
    new["status"] = old["status"].clone();
    let old_spec = &old["spec"];
    if text(&new["spec"], "type") != "LoadBalancer" && text(old_spec, "type") == "LoadBalancer" {
        new["status"] = json!({});
    }
    let spec = &mut new["spec"];
    if text(spec, "type") != "ExternalName" {
        keep_addresses(spec, old_spec);
        keep_node_ports(spec, old_spec);
    }
    drop_of_other_types(spec, old_spec);
    if text(old_spec, "type") == "ExternalName" {
        families(new);
    }
}

/// The addresses that the service has stay, where the writer does not speak of them.
fn keep_addresses(spec: &mut Value, old: &Value) {
    // A writer of the older, single form of the field means the newer one too.
    if spec["clusterIP"] != old["clusterIP"] && spec["clusterIPs"] == old["clusterIPs"] {
        match text(spec, "clusterIP") {
            "" => remove(spec, "clusterIPs"),
            address => spec["clusterIPs"] = json!([address]),
        }
    }
    if text(old, "type") != "ExternalName" {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            if spec[field].is_null() || spec[field] == "" {
                spec[field] = old[field].clone();
            }
        }
    }
}

/// Node ports that the service has stay, where the writer does not speak of them.
fn keep_node_ports(spec: &mut Value, old: &Value) {
    if !needs_node_ports(spec) || !needs_node_ports(old) {
        return;
    }
    let taken = node_ports(spec);
    for port in ports_mut(spec) {
        if port["nodePort"].as_i64().unwrap_or(0) != 0 {
            continue;
        }
        let same =
            |old: &&Value| old["port"] == port["port"] && old["protocol"] == port["protocol"];
        let kept = list(old, "ports")
            .iter()
            .find(same)
            .and_then(|old| old["nodePort"].as_i64());
        if let Some(number) = kept.filter(|number| !taken.contains(number)) {
            port["nodePort"] = number.into();
        }
    }
}

/// Fields that only the old type has, and that the writer left as they were, go: who changes the type need not know
/// them all.
fn drop_of_other_types(spec: &mut Value, old: &Value) {
    /// Fields, and which services have them.
    type Fields = (&'static [&'static str], fn(&Value) -> bool);
    const FIELDS: &[Fields] = &[
        (
            &[
                "clusterIP",
                "clusterIPs",
                "ipFamilies",
                "ipFamilyPolicy",
                "internalTrafficPolicy",
            ],
            |spec| text(spec, "type") != "ExternalName",
        ),
        (&["healthCheckNodePort"], |spec| {
            text(spec, "type") == "LoadBalancer" && text(spec, "externalTrafficPolicy") == "Local"
        }),
        (
            &["allocateLoadBalancerNodePorts", "loadBalancerClass"],
            |spec| text(spec, "type") == "LoadBalancer",
        ),
        (&["externalTrafficPolicy"], is_reached_from_outside),
    ];
    let may_have_node_ports =
        |spec: &Value| ["NodePort", "LoadBalancer"].contains(&text(spec, "type"));
    let loses_node_ports = may_have_node_ports(old) && !may_have_node_ports(spec);
    if loses_node_ports && node_ports(spec) == node_ports(old) {
        ports_mut(spec).for_each(|port| remove(port, "nodePort"));
    }
    let lost: Vec<&str> = FIELDS
        .iter()
        .filter(|(_, has)| has(old) && !has(spec))
        .flat_map(|(fields, _)| fields.iter().copied())
        .filter(|field| spec[*field] == old[*field])
        .collect();
    lost.into_iter().for_each(|field| remove(spec, field));
}

/// Whether clients outside of the cluster are meant to reach the service.
fn is_reached_from_outside(spec: &Value) -> bool {
    match text(spec, "type") {
        "NodePort" | "LoadBalancer" => true,
        "ClusterIP" => !list(spec, "externalIPs").is_empty(),
        _ => false,
    }
}

fn needs_node_ports(spec: &Value) -> bool {
    match text(spec, "type") {
        "NodePort" => true,
        "LoadBalancer" => spec["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    }
}

fn node_ports(spec: &Value) -> BTreeSet<i64> {
    list(spec, "ports")
        .iter()
        .filter_map(|port| port["nodePort"].as_i64())
        .collect()
}

fn ports_mut(spec: &mut Value) -> impl Iterator<Item = &mut Value> {
    spec.get_mut("ports")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
}

fn validate_update(new: &Value, old: &Value, sub: Option<&str>, faults: &mut Vec<Fault>) {
    if sub == Some("status") {
        return;
    }
    let (new_spec, old_spec) = (&new["spec"], &old["spec"]);
    let external = |spec: &Value| text(spec, "type") == "ExternalName";
    if !external(new_spec) && !external(old_spec) && !text(old_spec, "clusterIP").is_empty() {
        let (new_list, old_list) = (list(new_spec, "clusterIPs"), list(old_spec, "clusterIPs"));
        if new_list.first() != old_list.first() {
            let path = SPEC.child("clusterIPs");
            faults.push(Fault::invalid(
                path.index(0),
                Value::from(new_list.to_vec()),
                "may not change once set",
            ));
        }
    }
    if text(new_spec, "type") == "LoadBalancer"
        && text(old_spec, "type") == "LoadBalancer"
        && new_spec["loadBalancerClass"] != old_spec["loadBalancerClass"]
    {
        let class = new_spec["loadBalancerClass"].clone();
        faults.push(Fault::invalid(
            SPEC.child("loadBalancerClass"),
            class,
            "may not change once set",
        ));
    }
    validate(new, faults);
}

fn validate(service: &Value, faults: &mut Vec<Fault>) {
    let spec = &service["spec"];
    let kind = text(spec, "type");
    let headless = text(spec, "clusterIP") == "None";
    // Upstream allocates addresses before it looks at the rest.
    families_and_addresses(spec, kind, faults);
    if !faults.is_empty() {
        return;
    }
    let known = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    let ports_list = list(spec, "ports");
    if ports_list.is_empty() && !headless && kind != "ExternalName" {
        faults.push(Fault::required(SPEC.child("ports"), ""));
    }
    match kind {
        "LoadBalancer" | "NodePort" if headless => {
            let text = format!("may not be set to 'None' for {kind} services");
            faults.push(Fault::invalid(
                SPEC.child("clusterIPs").index(0),
                "None",
                text,
            ));
        }
        "ExternalName" => external_name(spec, faults),
        _ => {}
    }
    ports(spec, faults);
    validate_labels(&spec["selector"], SPEC.child("selector"), faults);
    let affinity = text(spec, "sessionAffinity");
    if affinity.is_empty() {
        faults.push(Fault::required(SPEC.child("sessionAffinity"), ""));
    } else if !["ClientIP", "None"].contains(&affinity) {
        faults.push(Fault::not_supported(
            SPEC.child("sessionAffinity"),
            affinity,
            &["ClientIP", "None"],
        ));
    }
    affinity_config(spec, affinity, faults);
    for (index, address) in list(spec, "externalIPs").iter().enumerate() {
        let path = SPEC.child("externalIPs");
        let text = address.as_str().unwrap_or_default();
        match names::ip_address(text) {
            Some(problem) => faults.push(Fault::invalid(path.index(index), text, problem)),
            None => public_address(text, path.index(index), faults),
        }
    }
    if kind.is_empty() {
        faults.push(Fault::required(SPEC.child("type"), ""));
    } else if !known.contains(&kind) {
        faults.push(Fault::not_supported(SPEC.child("type"), kind, &known));
    }
    port_pairs(ports_list, kind, faults);
    by_type(spec, kind, faults);
    policies(spec, kind, faults);
}

fn external_name(spec: &Value, faults: &mut Vec<Fault>) {
    for field in ["clusterIPs", "ipFamilies"] {
        if !list(spec, field).is_empty() {
            faults.push(Fault::forbidden(
                SPEC.child(field),
                "may not be set for ExternalName services",
            ));
        }
    }
    if !spec["ipFamilyPolicy"].is_null() {
        faults.push(Fault::forbidden(
            SPEC.child("ipFamilyPolicy"),
            "may not be set for ExternalName services",
        ));
    }
    let name = text(spec, "externalName");
    let stem = name.strip_suffix('.').unwrap_or(name);
    if stem.is_empty() {
        faults.push(Fault::required(SPEC.child("externalName"), ""));
    } else {
        let problems = names::dns1123_subdomain(stem).into_iter();
        faults.extend(
            problems.map(|problem| Fault::invalid(SPEC.child("externalName"), stem, problem)),
        );
    }
}

fn ports(spec: &Value, faults: &mut Vec<Fault>) {
    let list_path = SPEC.child("ports");
    let all = list(spec, "ports");
    let mut names_seen = BTreeSet::new();
    for (index, port) in all.iter().enumerate() {
        let path = list_path.index(index);
        let name = text(port, "name");
        if name.is_empty() {
            if all.len() > 1 {
                faults.push(Fault::required(path.child("name"), ""));
            }
        } else {
            let problems = names::dns1123_label(name).into_iter();
            faults
                .extend(problems.map(|problem| Fault::invalid(path.child("name"), name, problem)));
            if !names_seen.insert(name) {
                faults.push(Fault::duplicate(path.child("name"), name));
            }
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
        super::container::port(&port["targetPort"], path.child("targetPort"), faults);
        if let Some(name) = port["appProtocol"].as_str() {
            let problems = names::qualified_name(name).into_iter();
            faults.extend(
                problems.map(|problem| Fault::invalid(path.child("appProtocol"), name, problem)),
            );
        }
    }
}

fn affinity_config(spec: &Value, affinity: &str, faults: &mut Vec<Fault>) {
    let config = &spec["sessionAffinityConfig"];
    let path = SPEC.child("sessionAffinityConfig");
    if affinity == "ClientIP" {
        let path = path.child("clientIP");
        let seconds = config["clientIP"]["timeoutSeconds"].as_i64().unwrap_or(0);
        if !(1..=86_400).contains(&seconds) {
            let text = "must be greater than 0 and less than 86400";
            faults.push(Fault::invalid(path.child("timeoutSeconds"), seconds, text));
        }
    } else if affinity == "None" && !config.is_null() {
        let text = "must not be set when session affinity is None";
        faults.push(Fault::forbidden(path, text));
    }
}

fn families_and_addresses(spec: &Value, kind: &str, faults: &mut Vec<Fault>) {
    if kind == "ExternalName" {
        return;
    }
    let policy = text(spec, "ipFamilyPolicy");
    let known = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    if !spec["ipFamilyPolicy"].is_null() && !known.contains(&policy) {
        faults.push(Fault::not_supported(
            SPEC.child("ipFamilyPolicy"),
            policy,
            &known,
        ));
    }
    let path = SPEC.child("ipFamilies");
    let families = list(spec, "ipFamilies");
    let mut seen = BTreeSet::new();
    for (index, family) in families.iter().enumerate() {
        let word = family.as_str().unwrap_or_default();
        if !["IPv4", "IPv6"].contains(&word) {
            faults.push(Fault::not_supported(
                path.index(index),
                word,
                &["IPv4", "IPv6"],
            ));
        } else if !seen.insert(word) {
            faults.push(Fault::duplicate(path.index(index), word));
        }
    }
    if faults.is_empty() {
        cluster_addresses(spec, families, faults);
    }
    if !faults.is_empty() || is_free(spec) {
        return;
    }
    let policy_path = SPEC.child("ipFamilyPolicy");
    if policy == "RequireDualStack" {
        faults.push(Fault::invalid(
            policy_path,
            policy,
            "this cluster is not configured for dual-stack services",
        ));
    } else if families.len() > 1 && policy == "SingleStack" {
        let text = "must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified";
        faults.push(Fault::invalid(policy_path, policy, text));
    } else if let Some(index) = families.iter().position(|family| family == "IPv6") {
        let wide = text(spec, "clusterIP").contains(':');
        let addresses = spec["clusterIPs"].clone();
        faults.push(match wide {
            true => Fault::invalid(
                SPEC.child("clusterIPs").index(0),
                addresses,
                "IPv6 is not configured on this cluster",
            ),
            false => Fault::invalid(path.index(index), "IPv6", "not configured on this cluster"),
        });
    }
}

fn cluster_addresses(spec: &Value, families: &[Value], faults: &mut Vec<Fault>) {
    let path = SPEC.child("clusterIPs");
    let addresses = list(spec, "clusterIPs");
    let all = || Value::from(addresses.to_vec());
    let Some(first) = addresses.first() else {
        return;
    };
    if text(spec, "clusterIP").is_empty() {
        faults.push(Fault::invalid(
            path,
            all(),
            "must be empty when `clusterIP` is not specified",
        ));
        return;
    }
    if *first != spec["clusterIP"] {
        faults.push(Fault::invalid(
            path,
            all(),
            "first value must match `clusterIP`",
        ));
        return;
    }
    if first == "None" {
        if addresses.len() > 1 {
            faults.push(Fault::invalid(
                path,
                all(),
                "'None' must be the first and only value",
            ));
        }
        return;
    }
    for (index, address) in addresses.iter().enumerate() {
        let address = address.as_str().unwrap_or_default();
        let family = if address.contains(':') {
            "IPv6"
        } else {
            "IPv4"
        };
        match (names::ip_address(address), families.get(index)) {
            (Some(problem), _) => faults.push(Fault::invalid(path.index(index), address, problem)),
            (None, Some(expected)) if expected != family => {
                let expected = expected.as_str().unwrap_or_default();
                let text =
                    format!("expected an {expected} value as indicated by `ipFamilies[{index}]`");
                faults.push(Fault::invalid(path.index(index), address, text));
            }
            _ => {}
        }
    }
}

/// Addresses that must not be claimed from outside.
fn public_address(text: &str, path: Path<'_>, faults: &mut Vec<Fault>) {
    let Ok(address) = text.parse::<std::net::IpAddr>() else {
        return;
    };
    let problem = match address {
        _ if address.is_unspecified() => format!("may not be unspecified ({text})"),
        _ if address.is_loopback() => {
            "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned()
        }
        std::net::IpAddr::V4(address) if address.is_link_local() => {
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned()
        }
        std::net::IpAddr::V4(address) if address.octets()[..3] == [224, 0, 0] => {
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned()
        }
        _ => return,
    };
    faults.push(Fault::invalid(path, text, problem));
}

/// No two ports share protocol and number, nor protocol and node port.
fn port_pairs(ports: &[Value], kind: &str, faults: &mut Vec<Fault>) {
    let list_path = SPEC.child("ports");
    let (mut node_ports, mut pairs) = (BTreeSet::new(), BTreeSet::new());
    if kind == "ClusterIP" {
        for (index, port) in ports.iter().enumerate() {
            if port["nodePort"].as_i64().unwrap_or(0) != 0 {
                let path = list_path.index(index);
                faults.push(Fault::forbidden(
                    path.child("nodePort"),
                    "may not be used when `type` is 'ClusterIP'",
                ));
            }
        }
    }
    for (index, port) in ports.iter().enumerate() {
        let node_port = port["nodePort"].as_i64().unwrap_or(0);
        if node_port != 0 && !node_ports.insert((text(port, "protocol"), node_port)) {
            let path = list_path.index(index);
            faults.push(Fault::duplicate(path.child("nodePort"), node_port));
        }
    }
    for (index, port) in ports.iter().enumerate() {
        let (protocol, number) = (text(port, "protocol"), port["port"].as_i64().unwrap_or(0));
        if !pairs.insert((protocol, number)) {
            let shown = format!(
                "{{\"Name\":\"\",\"Protocol\":\"{protocol}\",\"AppProtocol\":null,\"Port\":{number},\"TargetPort\":0,\"NodePort\":0}}"
            );
            faults.push(Fault::duplicate(list_path.index(index), port.clone()).showing(shown));
        }
    }
}

/// Fields that only some types have.
fn by_type(spec: &Value, kind: &str, faults: &mut Vec<Fault>) {
    const ONLY: &str = "may only be used when `type` is 'LoadBalancer'";
    let ranges = list(spec, "loadBalancerSourceRanges");
    // Upstream has the capital.
    let path = SPEC.child("LoadBalancerSourceRanges");
    if !ranges.is_empty() {
        if kind != "LoadBalancer" {
            faults.push(Fault::forbidden(path, ONLY));
        }
        for (index, range) in ranges.iter().enumerate() {
            let range = range.as_str().unwrap_or_default();
            faults.extend(
                names::cidr(range.trim())
                    .map(|problem| Fault::invalid(path.index(index), range, problem)),
            );
        }
    }
    if !spec["allocateLoadBalancerNodePorts"].is_null() && kind != "LoadBalancer" {
        faults.push(Fault::forbidden(
            SPEC.child("allocateLoadBalancerNodePorts"),
            ONLY,
        ));
    }
    if kind == "LoadBalancer" && spec["allocateLoadBalancerNodePorts"].is_null() {
        faults.push(Fault::required(
            SPEC.child("allocateLoadBalancerNodePorts"),
            "",
        ));
    }
    if let Some(class) = spec["loadBalancerClass"].as_str() {
        if kind != "LoadBalancer" {
            faults.push(Fault::forbidden(SPEC.child("loadBalancerClass"), ONLY));
        }
        let problems = names::qualified_name(class).into_iter();
        faults.extend(
            problems.map(|problem| Fault::invalid(SPEC.child("loadBalancerClass"), class, problem)),
        );
    }
}

fn policies(spec: &Value, kind: &str, faults: &mut Vec<Fault>) {
    let policy = text(spec, "externalTrafficPolicy");
    let path = SPEC.child("externalTrafficPolicy");
    if !policy.is_empty() {
        if !is_reached_from_outside(spec) {
            faults.push(Fault::invalid(
                path,
                policy,
                "may only be set for externally-accessible services",
            ));
        } else if !["Cluster", "Local"].contains(&policy) {
            faults.push(Fault::not_supported(path, policy, &["Cluster", "Local"]));
        }
    } else if ["NodePort", "LoadBalancer"].contains(&kind) {
        faults.push(Fault::required(path, ""));
    }
    let check_port = spec["healthCheckNodePort"].as_i64().unwrap_or(0);
    if check_port != 0 && !(kind == "LoadBalancer" && policy == "Local") {
        let text =
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        faults.push(Fault::invalid(
            SPEC.child("healthCheckNodePort"),
            check_port,
            text,
        ));
    } else if check_port != 0 {
        let path = SPEC.child("healthCheckNodePort");
        faults.extend(
            names::port_number(check_port).map(|problem| Fault::invalid(path, check_port, problem)),
        );
    }
    let policy = text(spec, "internalTrafficPolicy");
    if ["NodePort", "LoadBalancer", "ClusterIP"].contains(&kind)
        && !["Cluster", "Local"].contains(&policy)
    {
        let path = SPEC.child("internalTrafficPolicy");
        match spec["internalTrafficPolicy"].is_null() {
            true => faults.push(Fault::required(path, "")),
            false => faults.push(Fault::not_supported(path, policy, &["Cluster", "Local"])),
        }
    }
    let known = ["PreferClose", "PreferSameZone", "PreferSameNode"];
    if let Some(word) = spec["trafficDistribution"]
        .as_str()
        .filter(|word| !known.contains(word))
    {
        faults.push(Fault::not_supported(
            SPEC.child("trafficDistribution"),
            word,
            &known,
        ));
    }
}

fn warnings(service: &Value) -> Vec<String> {
    let spec = &service["spec"];
    let mut warnings = Vec::new();
    if text(spec, "clusterIP") == "None" {
        if !text(spec, "loadBalancerIP").is_empty() {
            warnings.push("spec.loadBalancerIP is ignored for headless services".to_owned());
        }
        if !list(spec, "externalIPs").is_empty() {
            warnings.push("spec.externalIPs is ignored for headless services".to_owned());
        }
        if text(spec, "sessionAffinity") != "None" {
            warnings.push("spec.SessionAffinity is ignored for headless services".to_owned());
        }
    }
    if !text(spec, "externalName").is_empty() && text(spec, "type") != "ExternalName" {
        warnings
            .push("spec.externalName is ignored when spec.type is not \"ExternalName\"".to_owned());
    }
    if !list(spec, "externalIPs").is_empty() {
        let words = "is deprecated and may no longer be implemented in some clusters";
        warnings.push(format!("spec.externalIPs {words}"));
    }
    if text(spec, "trafficDistribution") == "PreferClose" {
        let words = "\"PreferClose\" is deprecated; use \"PreferSameZone\"";
        warnings.push(format!("spec.trafficDistribution: {words}"));
    }
    warnings
}

fn cells(service: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &service["spec"];
    vec![
        metadata::name(service).into(),
        spec["type"].clone(),
        or_none(text(spec, "clusterIP")),
        or_none(&external_addresses(service)),
        or_none(&port_words(spec)),
        age_cell(service, now),
        labels(&spec["selector"]),
    ]
}

fn port_words(spec: &Value) -> String {
    let words: Vec<String> = list(spec, "ports")
        .iter()
        .map(|port| match port["nodePort"].as_i64().unwrap_or(0) {
            0 => format!("{}/{}", port["port"], text(port, "protocol")),
            node_port => format!("{}:{node_port}/{}", port["port"], text(port, "protocol")),
        })
        .collect();
    words.join(",")
}

fn external_addresses(service: &Value) -> String {
    let spec = &service["spec"];
    let own: Vec<&str> = list(spec, "externalIPs")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    match text(spec, "type") {
        "ExternalName" => text(spec, "externalName").to_owned(),
        "LoadBalancer" => {
            let given = list(&service["status"]["loadBalancer"], "ingress").iter();
            let given = given.map(|entry| {
                if text(entry, "ip").is_empty() {
                    text(entry, "hostname")
                } else {
                    text(entry, "ip")
                }
            });
            let all: Vec<&str> = given.chain(own).collect();
            if all.is_empty() {
                "<pending>".to_owned()
            } else {
                all.join(",")
            }
        }
        _ => own.join(","),
    }
}
