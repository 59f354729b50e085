//! Checks of a pod's spec, wherever it stands: in a pod or in the template of a workload.

use std::collections::BTreeSet;

use serde_json::Value;

use super::container::{self, PodFacts};
use super::scheduling::{self, within};
use super::{resources, security, volume};
use crate::fault::{Fault, Path};
use crate::labels::validate_selector;
use crate::metadata::{validate_annotations, validate_labels};
use crate::names;
use crate::read::{flag, list, text};

/// All faults of a pod's spec.
pub(crate) fn validate(spec: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let volumes = volume::validate(spec, path.child("volumes"), faults);
    claims(
        list(spec, "resourceClaims"),
        path.child("resourceClaims"),
        faults,
    );
    let facts = PodFacts {
        volumes,
        claims: list(spec, "resourceClaims")
            .iter()
            .map(|claim| text(claim, "name"))
            .filter(|name| !name.is_empty())
            .collect(),
        host_network: flag(spec, "hostNetwork"),
        own_users: spec["hostUsers"] == false,
    };
    container::validate_all(spec, &facts, path, faults);
    resources::pod(&spec["resources"], path.child("resources"), faults);
    words(spec, path, faults);
    security::pod(
        &spec["securityContext"],
        path.child("securityContext"),
        faults,
    );
    scheduling::validate(spec, path, faults);
    gates(spec, path, faults);
    dns_config(spec, path.child("dnsConfig"), faults);
    named(spec, path, faults);
    within(
        spec,
        "activeDeadlineSeconds",
        1,
        i64::from(i32::MAX),
        path,
        faults,
    );
    host_aliases(list(spec, "hostAliases"), path.child("hostAliases"), faults);
    let os = text(&spec["os"], "name");
    if spec["os"].is_object() {
        match os {
            "" => faults.push(Fault::required(path.child("os.name"), "")),
            "linux" | "windows" => {}
            other => faults.push(Fault::not_supported(
                path.child("os"),
                other,
                &["linux", "windows"],
            )),
        }
    }
}

/// Fields that must hold one of some words.
fn words(spec: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let policy = text(spec, "restartPolicy");
    match policy {
        "Always" | "OnFailure" | "Never" => {}
        "" => faults.push(Fault::required(path.child("restartPolicy"), "")),
        other => {
            faults.push(Fault::not_supported(
                path.child("restartPolicy"),
                other,
                &["Always", "OnFailure", "Never"],
            ));
        }
    }
    let policy = text(spec, "dnsPolicy");
    let known = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
    match policy {
        "" => faults.push(Fault::required(path.child("dnsPolicy"), "")),
        known_policy if known.contains(&known_policy) => {}
        other => faults.push(Fault::not_supported(path.child("dnsPolicy"), other, &known)),
    }
    let policy = text(spec, "preemptionPolicy");
    let known = ["Never", "PreemptLowerPriority"];
    if !spec["preemptionPolicy"].is_null() && !known.contains(&policy) {
        faults.push(Fault::not_supported(
            path.child("preemptionPolicy"),
            policy,
            &known,
        ));
    }
}

/// Fields that hold names.
fn named(spec: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    for field in [
        "serviceAccountName",
        "nodeName",
        "priorityClassName",
        "runtimeClassName",
    ] {
        let name = text(spec, field);
        if name.is_empty() && (field != "runtimeClassName" || spec[field].is_null()) {
            continue;
        }
        let problems = names::subdomain_name(name, false).into_iter();
        faults.extend(problems.map(|problem| Fault::invalid(path.child(field), name, problem)));
    }
    for field in ["hostname", "subdomain"] {
        let name = text(spec, field);
        if !name.is_empty() {
            let problems = names::dns1123_label(name).into_iter();
            faults.extend(problems.map(|problem| Fault::invalid(path.child(field), name, problem)));
        }
    }
    if flag(spec, "hostNetwork") && spec["hostUsers"] == false {
        faults.push(Fault::forbidden(
            path.child("hostUsers"),
            "when `hostNetwork` is true",
        ));
    }
    if flag(spec, "shareProcessNamespace") && flag(spec, "hostPID") {
        let text = "ShareProcessNamespace and HostPID cannot both be enabled";
        faults.push(Fault::invalid(
            path.child("shareProcessNamespace"),
            true,
            text,
        ));
    }
}

fn gates(spec: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let list_path = path.child("readinessGates");
    for (index, gate) in list(spec, "readinessGates").iter().enumerate() {
        let kind = text(gate, "conditionType");
        let path = list_path.index(index);
        let problems = names::qualified_name(kind).into_iter();
        faults.extend(
            problems.map(|problem| Fault::invalid(path.child("conditionType"), kind, problem)),
        );
    }
    let list_path = path.child("schedulingGates");
    let mut seen = BTreeSet::new();
    for (index, gate) in list(spec, "schedulingGates").iter().enumerate() {
        let name = text(gate, "name");
        let path = list_path.index(index);
        let problems = names::qualified_name(name).into_iter();
        faults.extend(problems.map(|problem| Fault::invalid(path, name, problem)));
        if !seen.insert(name) {
            faults.push(Fault::duplicate(path, name));
        }
    }
}

fn claims(claims: &[Value], path: Path<'_>, faults: &mut Vec<Fault>) {
    let mut seen = BTreeSet::new();
    for (index, claim) in claims.iter().enumerate() {
        let path = path.index(index);
        let name = text(claim, "name");
        if name.is_empty() {
            faults.push(Fault::required(path.child("name"), ""));
        } else {
            let problems = names::dns1123_label(name);
            if problems.is_empty() && !seen.insert(name) {
                faults.push(Fault::duplicate(path.child("name"), name));
            }
            faults.extend(
                problems
                    .into_iter()
                    .map(|problem| Fault::invalid(path.child("name"), name, problem)),
            );
        }
        match (
            claim["resourceClaimName"].is_null(),
            claim["resourceClaimTemplateName"].is_null(),
        ) {
            (false, false) => {
                let text = "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
                faults.push(Fault::invalid(path, claim.clone(), text).showing(show_claim(claim)));
            }
            (true, true) => {
                let text = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
                faults.push(Fault::invalid(path, claim.clone(), text).showing(show_claim(claim)));
            }
            _ => {}
        }
        for field in ["resourceClaimName", "resourceClaimTemplateName"] {
            if let Some(name) = claim[field].as_str() {
                let problems = names::subdomain_name(name, false).into_iter();
                faults.extend(
                    problems.map(|problem| Fault::invalid(path.child(field), name, problem)),
                );
            }
        }
    }
}

/// A claim as Go prints its internal form.
fn show_claim(claim: &Value) -> String {
    let name = Value::from(text(claim, "name"));
    let (claimed, template) = (
        &claim["resourceClaimName"],
        &claim["resourceClaimTemplateName"],
    );
    format!(
        "{{\"Name\":{name},\"ResourceClaimName\":{claimed},\"ResourceClaimTemplateName\":{template}}}"
    )
}

fn dns_config(spec: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let config = &spec["dnsConfig"];
    let servers = list(config, "nameservers");
    let servers_path = path.child("nameservers");
    if text(spec, "dnsPolicy") == "None" {
        if config.is_null() {
            let text = "must provide `dnsConfig` when `dnsPolicy` is None";
            faults.push(Fault::required(path, text));
            return;
        }
        if servers.is_empty() {
            let text = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            faults.push(Fault::required(servers_path, text));
            return;
        }
    }
    if servers.len() > 3 {
        faults.push(Fault::invalid(
            servers_path,
            Value::from(servers.to_vec()),
            "must not have more than 3 nameservers",
        ));
    }
    for (index, server) in servers.iter().enumerate() {
        let server = server.as_str().unwrap_or_default();
        faults.extend(
            names::ip_address(server)
                .map(|problem| Fault::invalid(servers_path.index(index), server, problem)),
        );
    }
    let searches = list(config, "searches");
    let searches_path = path.child("searches");
    if searches.len() > 32 {
        let text = "must not have more than 32 search paths";
        faults.push(Fault::invalid(
            searches_path,
            Value::from(searches.to_vec()),
            text,
        ));
    }
    for (index, search) in searches.iter().enumerate() {
        let search = search.as_str().unwrap_or_default();
        if search == "." {
            continue;
        }
        let problems =
            names::dns1123_subdomain_with_underscore(search.trim_end_matches('.')).into_iter();
        faults.extend(
            problems.map(|problem| Fault::invalid(searches_path.index(index), search, problem)),
        );
    }
    let options_path = path.child("options");
    for (index, option) in list(config, "options").iter().enumerate() {
        if text(option, "name").is_empty() {
            faults.push(Fault::required(
                options_path.index(index),
                "must not be empty",
            ));
        }
    }
}

fn host_aliases(aliases: &[Value], path: Path<'_>, faults: &mut Vec<Fault>) {
    for (index, alias) in aliases.iter().enumerate() {
        let path = path.index(index);
        let address = text(alias, "ip");
        faults.extend(
            names::ip_address(address)
                .map(|problem| Fault::invalid(path.child("ip"), address, problem)),
        );
        for name in list(alias, "hostnames") {
            let name = name.as_str().unwrap_or_default();
            let problems = names::dns1123_subdomain(name).into_iter();
            faults.extend(
                problems.map(|problem| Fault::invalid(path.child("hostnames"), name, problem)),
            );
        }
    }
}

/// The template of a workload.
pub(crate) fn validate_template(template: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let metadata = &template["metadata"];
    validate_labels(&metadata["labels"], path.child("labels"), faults);
    validate_annotations(&metadata["annotations"], path.child("annotations"), faults);
    validate(&template["spec"], path.child("spec"), faults);
    if !list(&template["spec"], "ephemeralContainers").is_empty() {
        let text = "ephemeral containers not allowed in pod template";
        faults.push(Fault::forbidden(
            path.child("spec.ephemeralContainers"),
            text,
        ));
    }
}

fn is_well_formed(selector: &Value) -> bool {
    let mut faults = Vec::new();
    validate_selector(selector, Path::new(""), &mut faults);
    faults.is_empty()
}

/// A workload's selector and the template of its pods, which it must select.
pub(crate) fn validate_workload(spec: &Value, path: Path<'_>, kind: &str, faults: &mut Vec<Fault>) {
    let template = &spec["template"];
    let template_path = path.child("template");
    // An absent selector chooses nothing, an empty one everything; one that is malformed was told of already.
    let chosen = match crate::Selector::from_object(&spec["selector"]) {
        Ok(Some(selector)) => {
            !is_well_formed(&spec["selector"]) || selector.matches(&template["metadata"]["labels"])
        }
        Ok(None) => false,
        Err(_) => true,
    };
    if !chosen {
        let text = "`selector` does not match template `labels`";
        let labels = template["metadata"]["labels"].clone();
        faults.push(Fault::invalid(
            template_path.child("metadata.labels"),
            labels,
            text,
        ));
    }
    validate_template(template, template_path, faults);
    let pod_path = template_path.child("spec");
    let policy = text(&template["spec"], "restartPolicy");
    if policy != "Always" {
        faults.push(Fault::not_supported(
            pod_path.child("restartPolicy"),
            policy,
            &["Always"],
        ));
    }
    if !template["spec"]["activeDeadlineSeconds"].is_null() {
        let text = format!("activeDeadlineSeconds in {kind} is not Supported");
        faults.push(Fault::forbidden(
            pod_path.child("activeDeadlineSeconds"),
            text,
        ));
    }
}
