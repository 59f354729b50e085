//! Node.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{resources, scheduling};
use crate::fault::{Fault, Path};
use crate::metadata;
use crate::names;
use crate::read::{entries, flag, list, text};
use crate::rules::Rules;
use crate::table::{Heading, age_cell, or_none};

const STATUS: &str = "io.k8s.api.core.v1.NodeStatus";

pub(crate) const RULES: Rules = Rules {
    default,
    prepare_update: |new, old, sub| match sub {
        Some("status") => new["spec"] = old["spec"].clone(),
        _ => new["status"] = old["status"].clone(),
    },
    validate,
    validate_update,
    columns: &[
        Heading::NAME,
        Heading::text("Status", "The status of the node"),
        Heading::text("Roles", "The roles of the node"),
        Heading::AGE,
        Heading::of(
            "Version",
            "io.k8s.api.core.v1.NodeSystemInfo",
            "kubeletVersion",
        ),
        Heading::of("Internal-IP", STATUS, "addresses").wide(),
        Heading::of("External-IP", STATUS, "addresses").wide(),
        Heading::of("OS-Image", "io.k8s.api.core.v1.NodeSystemInfo", "osImage").wide(),
        Heading::of(
            "Kernel-Version",
            "io.k8s.api.core.v1.NodeSystemInfo",
            "kernelVersion",
        )
        .wide(),
        Heading::of(
            "Container-Runtime",
            "io.k8s.api.core.v1.NodeSystemInfo",
            "containerRuntimeVersion",
        )
        .wide(),
    ],
    cells,
    fields: |node| {
        vec![(
            "spec.unschedulable",
            flag(&node["spec"], "unschedulable").to_string(),
        )]
    },
    ..Rules::PLAIN
};

fn default(node: &mut Value) {
    // The older, single form of the field names the first of the newer one.
    let spec = &mut node["spec"];
    match (spec["podCIDR"].as_str(), list(spec, "podCIDRs").first()) {
        (Some(range), first) if first.is_none_or(|first| first != range) => {
            spec["podCIDRs"] = json!([range])
        }
        (None, Some(range)) => spec["podCIDR"] = range.clone(),
        _ => {}
    }
    // What may be used is what there is, until the node says otherwise.
    if node["status"]["allocatable"].is_null() && node["status"]["capacity"].is_object() {
        node["status"]["allocatable"] = node["status"]["capacity"].clone();
    }
}

fn taints(spec: &Value, faults: &mut Vec<Fault>) {
    // Upstream looks for the taints in the metadata.
    const TAINTS: Path<'static> = Path::new("metadata.taints");
    let mut seen = BTreeSet::new();
    for (index, taint) in list(spec, "taints").iter().enumerate() {
        let path = TAINTS.index(index);
        let key = text(taint, "key");
        faults.extend(
            names::qualified_name(key)
                .into_iter()
                .map(|problem| Fault::invalid(path.child("key"), key, problem)),
        );
        let value = text(taint, "value");
        let problems = names::label_value(value);
        if !problems.is_empty() {
            faults.push(Fault::invalid(
                path.child("value"),
                value,
                problems.join(";"),
            ));
        }
        let effect = text(taint, "effect");
        scheduling::taint_effect(effect, false, path.child("effect"), faults);
        if !seen.insert((key, effect)) {
            let shown = format!(
                "{{\"Key\":{key:?},\"Value\":{value:?},\"Effect\":{effect:?},\"TimeAdded\":{}}}",
                taint["timeAdded"]
            );
            let text = "taints must be unique by key and effect pair";
            faults.push(
                Fault::duplicate(path, taint.clone())
                    .showing(shown)
                    .saying(text),
            );
        }
    }
}

fn validate(node: &Value, faults: &mut Vec<Fault>) {
    let spec = &node["spec"];
    taints(spec, faults);
    pod_ranges(spec, faults);
    for kind in ["capacity", "allocatable"] {
        let path = Path::new("status");
        let path = path.child(kind);
        for (name, amount) in entries(&node["status"][kind]) {
            resources::amount(name, amount, path.child(name), faults);
        }
    }
}

fn validate_update(new: &Value, old: &Value, sub: Option<&str>, faults: &mut Vec<Fault>) {
    if sub.is_some() {
        return;
    }
    validate(new, faults);
    let (new, old) = (&new["spec"], &old["spec"]);
    // Upstream tells faults of taints twice when they come with an update.
    taints(new, faults);
    if !list(old, "podCIDRs").is_empty() && new["podCIDRs"] != old["podCIDRs"] {
        let text = "node updates may not change podCIDR except from \"\" to valid";
        faults.push(Fault::forbidden(Path::new("spec.podCIDRs"), text));
    }
    if !text(old, "providerID").is_empty() && new["providerID"] != old["providerID"] {
        let text = "node updates may not change providerID except from \"\" to valid";
        faults.push(Fault::forbidden(Path::new("spec.providerID"), text));
    }
    if text(new, "externalID") != text(old, "externalID") {
        faults.push(Fault::forbidden(
            Path::new("spec.externalID"),
            "may not be updated",
        ));
    }
}

fn pod_ranges(spec: &Value, faults: &mut Vec<Fault>) {
    const RANGES: Path<'static> = Path::new("spec.podCIDRs");
    let ranges = list(spec, "podCIDRs");
    for (index, range) in ranges.iter().enumerate() {
        let range = range.as_str().unwrap_or_default();
        faults.extend(
            names::cidr(range).map(|problem| Fault::invalid(RANGES.index(index), range, problem)),
        );
    }
    let of_family = |wide: bool| {
        ranges
            .iter()
            .filter_map(Value::as_str)
            .filter(|range| range.contains(':') == wide)
            .count()
    };
    if of_family(false) > 1 || of_family(true) > 1 {
        let text = "may specify no more than one CIDR for each IP family";
        faults.push(Fault::invalid(RANGES, Value::from(ranges.to_vec()), text));
    }
}

fn cells(node: &Value, now: Timestamp) -> Vec<Value> {
    let info = &node["status"]["nodeInfo"];
    let address = |kind: &str| {
        let found = list(&node["status"], "addresses")
            .iter()
            .find(|address| text(address, "type") == kind);
        or_none(found.map_or("", |address| text(address, "address")))
    };
    let known = |field: &str| match text(info, field) {
        "" => Value::from("<unknown>"),
        word => word.into(),
    };
    vec![
        metadata::name(node).into(),
        status(node).into(),
        or_none(&roles(node)),
        age_cell(node, now),
        text(info, "kubeletVersion").into(),
        address("InternalIP"),
        address("ExternalIP"),
        known("osImage"),
        match (text(info, "kernelVersion"), text(info, "architecture")) {
            ("", _) => "<unknown>".into(),
            (kernel, "") => kernel.into(),
            (kernel, architecture) => format!("{kernel} ({architecture})").into(),
        },
        known("containerRuntimeVersion"),
    ]
}

fn status(node: &Value) -> String {
    let ready = list(&node["status"], "conditions")
        .iter()
        .find(|condition| text(condition, "type") == "Ready");
    let word = match ready.map(|condition| text(condition, "status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    let closed = if flag(&node["spec"], "unschedulable") {
        ",SchedulingDisabled"
    } else {
        ""
    };
    format!("{word}{closed}")
}

fn roles(node: &Value) -> String {
    let mut roles = BTreeSet::new();
    for (key, value) in entries(&node["metadata"]["labels"]) {
        let role = match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => role,
            None if key == "kubernetes.io/role" => value.as_str().unwrap_or_default(),
            None => "",
        };
        if !role.is_empty() {
            roles.insert(role);
        }
    }
    roles.into_iter().collect::<Vec<_>>().join(",")
}
