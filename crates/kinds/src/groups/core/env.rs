//! Checks of environment variables and where they come from.

use serde_json::Value;

use crate::fault::{Fault, Path};
use crate::names;
use crate::read::{list, text};

/// `env` and `envFrom` of a container.
pub(super) fn validate(container: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let list_path = path.child("env");
    for (index, variable) in list(container, "env").iter().enumerate() {
        let path = list_path.index(index);
        let name = text(variable, "name");
        if name.is_empty() {
            faults.push(Fault::required(path.child("name"), ""));
        } else {
            let problems = names::environment_name(name).into_iter();
            faults
                .extend(problems.map(|problem| Fault::invalid(path.child("name"), name, problem)));
        }
        if variable["valueFrom"].is_object() {
            source(variable, path.child("valueFrom"), faults);
        }
    }
    let list_path = path.child("envFrom");
    for (index, source) in list(container, "envFrom").iter().enumerate() {
        whole(source, list_path.index(index), list_path, faults);
    }
}

fn source(variable: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let source = &variable["valueFrom"];
    let mut sources = 0;
    if source["fieldRef"].is_object() {
        sources += 1;
        field(
            &source["fieldRef"],
            &POD_FIELDS,
            path.child("fieldRef"),
            faults,
        );
    }
    if source["resourceFieldRef"].is_object() {
        sources += 1;
        resource_field(
            &source["resourceFieldRef"],
            false,
            path.child("resourceFieldRef"),
            faults,
        );
    }
    for name in ["configMapKeyRef", "secretKeyRef"] {
        if source[name].is_object() {
            sources += 1;
            key(&source[name], path.child(name), faults);
        }
    }
    if source["fileKeyRef"].is_object() {
        sources += 1;
        file_key(&source["fileKeyRef"], path.child("fileKeyRef"), faults);
    }
    if sources == 0 {
        let text = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
        faults.push(Fault::invalid(path, "", text));
    } else if !text(variable, "value").is_empty() {
        faults.push(Fault::invalid(
            path,
            "",
            "may not be specified when `value` is not empty",
        ));
    } else if sources > 1 {
        faults.push(Fault::invalid(
            path,
            "",
            "may not have more than one field specified at a time",
        ));
    }
}

fn key(reference: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let name = text(reference, "name");
    let problems = names::subdomain_name(name, false).into_iter();
    faults.extend(problems.map(|problem| Fault::invalid(path.child("name"), name, problem)));
    let key = text(reference, "key");
    if key.is_empty() {
        faults.push(Fault::required(path.child("key"), ""));
    } else {
        let problems = names::config_key(key).into_iter();
        faults.extend(problems.map(|problem| Fault::invalid(path.child("key"), key, problem)));
    }
}

fn file_key(reference: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    for field in ["key", "volumeName", "path"] {
        if text(reference, field).is_empty() {
            faults.push(Fault::required(path.child(field), ""));
        }
    }
}

fn whole(source: &Value, path: Path<'_>, list_path: Path<'_>, faults: &mut Vec<Fault>) {
    let prefix = text(source, "prefix");
    if !prefix.is_empty() {
        let problems = names::environment_name(prefix).into_iter();
        faults
            .extend(problems.map(|problem| Fault::invalid(path.child("prefix"), prefix, problem)));
    }
    let mut sources = 0;
    for kind in ["configMapRef", "secretRef"] {
        if !source[kind].is_object() {
            continue;
        }
        sources += 1;
        let reference_path = path.child(kind);
        let name = text(&source[kind], "name");
        if name.is_empty() {
            faults.push(Fault::required(reference_path.child("name"), ""));
        } else {
            let problems = names::subdomain_name(name, false).into_iter();
            faults.extend(
                problems.map(|problem| Fault::invalid(reference_path.child("name"), name, problem)),
            );
        }
    }
    match sources {
        0 => faults.push(Fault::invalid(
            list_path,
            "",
            "must specify one of: `configMapRef` or `secretRef`",
        )),
        1 => {}
        _ => faults.push(Fault::invalid(
            list_path,
            "",
            "may not have more than one field specified at a time",
        )),
    }
}

/// Fields of the pod that an environment variable can show.
pub(super) const POD_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// Fields of the pod that a file can show.
pub(super) const FILE_FIELDS: [&str; 5] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];

/// All fields that have a name, whether or not they are allowed at a place.
const KNOWN_FIELDS: [&str; 11] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// A reference to a field of the pod.
pub(super) fn field(reference: &Value, allowed: &[&str], path: Path<'_>, faults: &mut Vec<Fault>) {
    if text(reference, "apiVersion").is_empty() {
        faults.push(Fault::required(path.child("apiVersion"), ""));
        return;
    }
    let field = text(reference, "fieldPath");
    if field.is_empty() {
        faults.push(Fault::required(path.child("fieldPath"), ""));
        return;
    }
    let version = text(reference, "apiVersion");
    if version != "v1" {
        let text = format!("error converting fieldPath: unsupported pod version: {version}");
        faults.push(Fault::invalid(path.child("fieldPath"), field, text));
        return;
    }
    if let Some((map, key)) = subscript(field) {
        let problems = match map {
            "metadata.annotations" => names::qualified_name(&key.to_lowercase()),
            "metadata.labels" => names::qualified_name(key),
            _ => {
                faults.push(Fault::invalid(path, map, "does not support subscript"));
                Vec::new()
            }
        };
        faults.extend(
            problems
                .into_iter()
                .map(|problem| Fault::invalid(path, key, problem)),
        );
        return;
    }
    if !KNOWN_FIELDS.contains(&field) {
        let text = format!("error converting fieldPath: field label not supported: {field}");
        faults.push(Fault::invalid(path.child("fieldPath"), field, text));
    } else if !allowed.contains(&field) {
        faults.push(Fault::not_supported(
            path.child("fieldPath"),
            field,
            allowed,
        ));
    }
}

/// `metadata.labels['key']` → `metadata.labels`, `key`.
fn subscript(field: &str) -> Option<(&str, &str)> {
    let (map, key) = field.strip_suffix("']")?.split_once("['")?;
    (!map.is_empty() && !key.is_empty()).then_some((map, key))
}

const RESOURCE_FIELDS: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// A reference to what a container may use; in a file it must say which container.
pub(super) fn resource_field(
    reference: &Value,
    in_file: bool,
    path: Path<'_>,
    faults: &mut Vec<Fault>,
) {
    if in_file && text(reference, "containerName").is_empty() {
        faults.push(Fault::required(path.child("containerName"), ""));
        return;
    }
    let resource = text(reference, "resource");
    if resource.is_empty() {
        faults.push(Fault::required(path.child("resource"), ""));
        return;
    }
    let huge = ["limits.hugepages-", "requests.hugepages-"]
        .iter()
        .any(|prefix| resource.starts_with(prefix));
    if !RESOURCE_FIELDS.contains(&resource) && !huge {
        faults.push(Fault::not_supported(
            path.child("resource"),
            resource,
            &RESOURCE_FIELDS,
        ));
        return;
    }
    let divisor = text(reference, "divisor");
    const SIZES: [&str; 14] = [
        "0", "1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei",
    ];
    let what = resource.split_once('.').map_or("", |(_, what)| what);
    let (known, text): (&[&str], &str) = match what {
        "cpu" => (
            &["0", "1m", "1"],
            "only divisor's values 1m and 1 are supported with the cpu resource",
        ),
        "memory" => (
            &SIZES,
            "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the memory resource",
        ),
        "ephemeral-storage" => (
            &SIZES,
            "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the local ephemeral storage resource",
        ),
        _ => (
            &SIZES,
            "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the hugepages resource",
        ),
    };
    if !known.contains(&divisor) {
        faults.push(Fault::invalid(path.child("divisor"), resource, text));
    }
}
