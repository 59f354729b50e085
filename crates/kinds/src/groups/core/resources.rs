//! Checks of what a container or pod may use: resource names, amounts, requests against limits.

use serde_json::Value;

use crate::fault::{Fault, Path};
use crate::metadata::NOT_NEGATIVE;
use crate::read::{entries, list, text};
use crate::{Quantity, names};

const OF_CONTAINERS: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];
const STANDARD: [&str; 4] = ["cpu", "memory", "ephemeral-storage", "storage"];

/// `resources` of a container; `claims` are the names that the pod has.
pub(super) fn container(
    resources: &Value,
    claims: &[&str],
    path: Path<'_>,
    faults: &mut Vec<Fault>,
) {
    for kind in ["limits", "requests"] {
        let kind_path = path.child(kind);
        for (name, amount) in entries(&resources[kind]) {
            container_resource_name(name, kind_path.key(name), faults);
            self::amount(name, amount, kind_path.key(name), faults);
        }
    }
    requests_within_limits(resources, path, faults);
    let huge =
        |kind: &str| entries(&resources[kind]).any(|(name, _)| name.starts_with("hugepages-"));
    let plain =
        |kind: &str| !resources[kind]["cpu"].is_null() || !resources[kind]["memory"].is_null();
    if (huge("limits") || huge("requests")) && !plain("limits") && !plain("requests") {
        faults.push(Fault::forbidden(path, "HugePages require cpu or memory"));
    }
    claim_references(resources, claims, path, faults);
}

/// `resources` of a pod as a whole.
pub(super) fn pod(resources: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    for kind in ["limits", "requests"] {
        let kind_path = path.child(kind);
        for (name, amount) in entries(&resources[kind]) {
            let path = kind_path.key(name);
            resource_name(name, path, faults);
            if !["cpu", "memory"].contains(&name.as_str())
                && !name.starts_with("hugepages-")
                && (STANDARD.contains(&name.as_str()) || name.contains('/'))
            {
                faults.push(Fault::not_supported(
                    path,
                    name.as_str(),
                    &["cpu", "hugepages-", "memory"],
                ));
            }
            self::amount(name, amount, path, faults);
        }
    }
    requests_within_limits(resources, path, faults);
}

fn resource_name(name: &str, path: Path<'_>, faults: &mut Vec<Fault>) {
    let problems = names::qualified_name(name);
    let malformed = !problems.is_empty();
    faults.extend(
        problems
            .into_iter()
            .map(|problem| Fault::invalid(path, name, problem)),
    );
    if !malformed
        && !name.contains('/')
        && !STANDARD.contains(&name)
        && !name.starts_with("hugepages-")
    {
        faults.push(Fault::invalid(
            path,
            name,
            "must be a standard resource type or fully qualified",
        ));
    }
}

fn container_resource_name(name: &str, path: Path<'_>, faults: &mut Vec<Fault>) {
    resource_name(name, path, faults);
    if !name.contains('/') {
        if !OF_CONTAINERS.contains(&name) && !name.starts_with("hugepages-") {
            faults.push(Fault::invalid(
                path,
                name,
                "must be a standard resource for containers",
            ));
        }
    } else if is_native(name) && name != "kubernetes.io/batch-cpu" {
        faults.push(Fault::invalid(
            path,
            name,
            "doesn't follow extended resource name standard",
        ));
    }
}

/// Names of the project's own domain, which devices may not use.
fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// An amount of something; some things come whole only.
pub(super) fn amount(name: &str, amount: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let shown = amount.as_str().unwrap_or("0");
    let Ok(quantity) = shown.parse::<Quantity>() else {
        return;
    };
    if quantity.nanos() < 0 {
        faults.push(Fault::invalid(path, shown, NOT_NEGATIVE));
    }
    let whole = !is_native(name) || name.starts_with("hugepages-") || name == "pods";
    if whole && quantity.milli_value() % 1000 != 0 {
        faults.push(Fault::invalid(path, shown, "must be an integer"));
    }
}

/// Resources of which no more can be promised than there is.
fn is_exact(name: &str) -> bool {
    !is_native(name) || name.starts_with("hugepages-")
}

fn requests_within_limits(resources: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let requests_path = path.child("requests");
    for (name, request) in entries(&resources["requests"]) {
        let limit = resources["limits"][name].as_str();
        let (Some(request), parsed) = (
            request.as_str(),
            limit.and_then(|limit| limit.parse::<Quantity>().ok()),
        ) else {
            continue;
        };
        let Ok(amount) = request.parse::<Quantity>() else {
            continue;
        };
        match (limit, parsed) {
            (Some(limit), Some(parsed)) if is_exact(name) && amount != parsed => {
                faults.push(Fault::invalid(
                    requests_path,
                    request,
                    format!("must be equal to {name} limit of {limit}"),
                ));
            }
            (Some(limit), Some(parsed)) if !is_exact(name) && amount > parsed => {
                let text = format!("must be less than or equal to {name} limit of {limit}");
                faults.push(Fault::invalid(requests_path, request, text));
            }
            (None, _) if is_exact(name) => {
                let text = "Limit must be set for non overcommitable resources";
                faults.push(Fault::required(path.child("limits"), text));
            }
            _ => {}
        }
    }
}

fn claim_references(resources: &Value, claims: &[&str], path: Path<'_>, faults: &mut Vec<Fault>) {
    let list_path = path.child("claims");
    let mut seen: Vec<String> = Vec::new();
    for (index, claim) in list(resources, "claims").iter().enumerate() {
        let path = list_path.index(index);
        let name = text(claim, "name");
        if name.is_empty() {
            faults.push(Fault::required(path, ""));
            continue;
        }
        let shown = match text(claim, "request") {
            "" => name.to_owned(),
            request => format!("{name}/{request}"),
        };
        if seen.contains(&shown) {
            faults.push(Fault::duplicate(path, shown.as_str()));
        }
        seen.push(shown);
        if !claims.contains(&name) {
            let known = match claims.is_empty() {
                true => " which is empty".to_owned(),
                false => format!(": {}", claims.join(", ")),
            };
            let text = format!("must be one of the names in pod.spec.resourceClaims{known}");
            faults.push(Fault::not_found(path, name).saying(text));
        }
    }
}
