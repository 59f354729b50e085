//! Checks of containers: ports, environment, mounts, probes, and what they may ask for.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{env, probe, resources, security, volume};
use crate::fault::{Fault, Path};
use crate::names;
use crate::read::{flag, list, text};

/// What of the pod a container's check must know.
pub(super) struct PodFacts<'a> {
    pub(super) volumes: BTreeSet<&'a str>,
    pub(super) claims: Vec<&'a str>,
    pub(super) host_network: bool,
    /// Whether users of the pod are others than those of the machine.
    pub(super) own_users: bool,
}

/// The containers of a pod and those that run before them.
pub(super) fn validate_all(
    spec: &Value,
    facts: &PodFacts<'_>,
    path: Path<'_>,
    faults: &mut Vec<Fault>,
) {
    let containers = list(spec, "containers");
    let mut names = BTreeSet::new();
    if containers.is_empty() {
        faults.push(Fault::required(path.child("containers"), ""));
    }
    for (index, container) in containers.iter().enumerate() {
        let list_path = path.child("containers");
        let path = list_path.index(index);
        common(container, facts, path, faults);
        unique_name(container, &mut names, path, faults);
        regular(container, path, faults);
    }
    host_ports(containers, path.child("containers"), faults);
    for (index, container) in list(spec, "initContainers").iter().enumerate() {
        let list_path = path.child("initContainers");
        let path = list_path.index(index);
        common(container, facts, path, faults);
        unique_name(container, &mut names, path, faults);
        init(container, path, faults);
    }
    if facts.host_network {
        for (index, container) in containers.iter().enumerate() {
            let list_path = path.child("containers");
            host_network_ports(container, list_path.index(index), faults);
        }
    }
}

fn unique_name<'a>(
    container: &'a Value,
    names: &mut BTreeSet<&'a str>,
    path: Path<'_>,
    faults: &mut Vec<Fault>,
) {
    let name = text(container, "name");
    if !names.insert(name) {
        faults.push(Fault::duplicate(path.child("name"), name));
    }
}

fn common(container: &Value, facts: &PodFacts<'_>, path: Path<'_>, faults: &mut Vec<Fault>) {
    let name = text(container, "name");
    match name {
        "" => faults.push(Fault::required(path.child("name"), "")),
        _ => faults.extend(
            names::dns1123_label(name)
                .into_iter()
                .map(|problem| Fault::invalid(path.child("name"), name, problem)),
        ),
    }
    let image = text(container, "image");
    if image.is_empty() {
        faults.push(Fault::required(path.child("image"), ""));
    } else if image.trim() != image {
        faults.push(Fault::invalid(
            path.child("image"),
            image,
            "must not have leading or trailing whitespace",
        ));
    }
    let policy = text(container, "terminationMessagePolicy");
    if !["File", "FallbackToLogsOnError"].contains(&policy) {
        let known = ["FallbackToLogsOnError", "File"];
        faults.push(Fault::not_supported(
            path.child("terminationMessagePolicy"),
            policy,
            &known,
        ));
    }
    ports(container, path.child("ports"), faults);
    env::validate(container, path, faults);
    volume::mounts(container, &facts.volumes, path, faults);
    let pull = text(container, "imagePullPolicy");
    if !["Always", "IfNotPresent", "Never"].contains(&pull) {
        faults.push(Fault::not_supported(
            path.child("imagePullPolicy"),
            pull,
            &["Always", "IfNotPresent", "Never"],
        ));
    }
    resources::container(
        &container["resources"],
        &facts.claims,
        path.child("resources"),
        faults,
    );
    security::container(
        &container["securityContext"],
        facts.own_users,
        path.child("securityContext"),
        faults,
    );
    resize_policies(container, path, faults);
}

fn resize_policies(container: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let list_path = path.child("resizePolicy");
    let mut seen = BTreeSet::new();
    for (index, policy) in list(container, "resizePolicy").iter().enumerate() {
        let resource = text(policy, "resourceName");
        if !seen.insert(resource) {
            faults.push(Fault::duplicate(list_path.index(index), resource));
        }
        match resource {
            "cpu" | "memory" => {}
            "" => faults.push(Fault::required(list_path, "")),
            _ => faults.push(Fault::not_supported(
                list_path,
                resource,
                &["cpu", "memory"],
            )),
        }
        match text(policy, "restartPolicy") {
            "NotRequired" | "RestartContainer" => {}
            "" => faults.push(Fault::required(list_path, "")),
            other => faults.push(Fault::not_supported(
                list_path,
                other,
                &["NotRequired", "RestartContainer"],
            )),
        }
    }
}

fn regular(container: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    probe::lifecycle(&container["lifecycle"], path.child("lifecycle"), faults);
    probe::liveness(
        &container["livenessProbe"],
        path.child("livenessProbe"),
        faults,
    );
    probe::readiness(
        &container["readinessProbe"],
        path.child("readinessProbe"),
        faults,
    );
    probe::liveness(
        &container["startupProbe"],
        path.child("startupProbe"),
        faults,
    );
    let policy = text(container, "restartPolicy");
    if !container["restartPolicy"].is_null() && !["Always", "Never", "OnFailure"].contains(&policy)
    {
        faults.push(Fault::not_supported(
            path.child("restartPolicy"),
            policy,
            &["Always", "Never", "OnFailure"],
        ));
    }
}

fn init(container: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let restarts = text(container, "restartPolicy") == "Always";
    if restarts {
        probe::lifecycle(&container["lifecycle"], path.child("lifecycle"), faults);
        probe::liveness(
            &container["livenessProbe"],
            path.child("livenessProbe"),
            faults,
        );
        probe::readiness(
            &container["readinessProbe"],
            path.child("readinessProbe"),
            faults,
        );
        probe::liveness(
            &container["startupProbe"],
            path.child("startupProbe"),
            faults,
        );
        return;
    }
    for field in [
        "lifecycle",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
    ] {
        if !container[field].is_null() {
            let text = "may not be set for init containers without restartPolicy=Always";
            faults.push(Fault::forbidden(path.child(field), text));
        }
    }
    let policy = text(container, "restartPolicy");
    if !container["restartPolicy"].is_null() && !["Never", "OnFailure"].contains(&policy) {
        faults.push(Fault::not_supported(
            path.child("restartPolicy"),
            policy,
            &["Always", "Never", "OnFailure"],
        ));
    }
}

/// A number or a name of a port.
pub(super) fn port(value: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    match value.as_str() {
        Some(name) => {
            faults.extend(
                names::port_name(name)
                    .into_iter()
                    .map(|problem| Fault::invalid(path, name, problem)),
            );
        }
        None => {
            let number = value.as_i64().unwrap_or(0);
            faults.extend(
                names::port_number(number).map(|problem| Fault::invalid(path, number, problem)),
            );
        }
    }
}

fn ports(container: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let mut names_seen = BTreeSet::new();
    for (index, port) in list(container, "ports").iter().enumerate() {
        let path = path.index(index);
        let name = text(port, "name");
        if !name.is_empty() {
            let problems = names::port_name(name);
            if problems.is_empty() && !names_seen.insert(name) {
                faults.push(Fault::duplicate(path.child("name"), name));
            }
            faults.extend(
                problems
                    .into_iter()
                    .map(|problem| Fault::invalid(path.child("name"), name, problem)),
            );
        }
        let number = port["containerPort"].as_i64().unwrap_or(0);
        match names::port_number(number) {
            Some(_) if number == 0 => faults.push(Fault::required(path.child("containerPort"), "")),
            Some(problem) => {
                faults.push(Fault::invalid(path.child("containerPort"), number, problem))
            }
            None => {}
        }
        let host_port = port["hostPort"].as_i64().unwrap_or(0);
        if host_port != 0 {
            faults.extend(
                names::port_number(host_port)
                    .map(|problem| Fault::invalid(path.child("hostPort"), host_port, problem)),
            );
        }
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
        let host_ip = text(port, "hostIP");
        if !host_ip.is_empty() {
            faults.extend(
                names::ip_address(host_ip)
                    .map(|problem| Fault::invalid(path.child("hostIP"), host_ip, problem)),
            );
        }
    }
}

/// Two containers cannot have the same port of the host.
fn host_ports(containers: &[Value], path: Path<'_>, faults: &mut Vec<Fault>) {
    let mut taken = BTreeSet::new();
    for (index, container) in containers.iter().enumerate() {
        let container_path = path.index(index);
        for (number, port) in list(container, "ports").iter().enumerate() {
            let host_port = port["hostPort"].as_i64().unwrap_or(0);
            if host_port == 0 {
                continue;
            }
            let place = format!(
                "{}/{}/{host_port}",
                text(port, "protocol"),
                text(port, "hostIP")
            );
            if !taken.insert(place.clone()) {
                let ports = container_path.child("ports");
                let port_path = ports.index(number);
                faults.push(Fault::duplicate(port_path.child("hostPort"), place));
            }
        }
    }
}

fn host_network_ports(container: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let list_path = path.child("ports");
    for (index, port) in list(container, "ports").iter().enumerate() {
        let number = port["containerPort"].as_i64().unwrap_or(0);
        if port["hostPort"].as_i64().unwrap_or(0) != number {
            let text = "must match `hostPort` when `hostNetwork` is true";
            let path = list_path.index(index);
            faults.push(Fault::invalid(path.child("containerPort"), number, text));
        }
    }
}

/// Whether the container runs with all rights.
pub(super) fn is_privileged(container: &Value) -> bool {
    flag(&container["securityContext"], "privileged")
}
