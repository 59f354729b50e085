//! What a container may know of its own pod: `fieldRef` and `resourceFieldRef`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ObjectFieldSelector, Pod, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::resources;

/// A reference that leads nowhere.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FieldError {
    #[error("unsupported fieldPath: {0}")]
    Unsupported(String),
    #[error("container {0} not found")]
    NoContainer(String),
    #[error("unsupported container resource : {0}")]
    NoResource(String),
}

/// The addresses that only the node knows while the pod starts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Addresses {
    pub(crate) host: String,
    pub(crate) pod: Option<String>,
}

/// The value of a field of the pod.
pub(crate) fn field(
    pod: &Pod,
    addresses: &Addresses,
    selector: &ObjectFieldSelector,
) -> Result<String, FieldError> {
    let path = selector.field_path.as_str();
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let text = |value: Option<&String>| value.cloned().unwrap_or_default();
    if let Some(key) = subscript(path, "metadata.labels") {
        return Ok(text(
            meta.labels
                .iter()
                .flatten()
                .find_map(|(name, value)| (name == key).then_some(value)),
        ));
    }
    if let Some(key) = subscript(path, "metadata.annotations") {
        return Ok(text(
            meta.annotations
                .iter()
                .flatten()
                .find_map(|(name, value)| (name == key).then_some(value)),
        ));
    }
    Ok(match path {
        "metadata.name" => text(meta.name.as_ref()),
        "metadata.namespace" => text(meta.namespace.as_ref()),
        "metadata.uid" => text(meta.uid.as_ref()),
        "metadata.labels" => lines(meta.labels.as_ref()),
        "metadata.annotations" => lines(meta.annotations.as_ref()),
        "spec.nodeName" => text(spec.and_then(|spec| spec.node_name.as_ref())),
        "spec.serviceAccountName" => text(spec.and_then(|spec| spec.service_account_name.as_ref())),
        "status.hostIP" | "status.hostIPs" => addresses.host.clone(),
        "status.podIP" | "status.podIPs" => addresses.pod.clone().unwrap_or_default(),
        other => return Err(FieldError::Unsupported(other.to_owned())),
    })
}

fn subscript<'a>(path: &'a str, field: &str) -> Option<&'a str> {
    path.strip_prefix(field)?
        .strip_prefix("['")?
        .strip_suffix("']")
}

/// `key="value"` lines, as the downward API volume writes maps: values quoted as Go quotes them.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", quoted(value)))
        .collect();
    lines.join("\n")
}

fn quoted(text: &str) -> String {
    use std::fmt::Write as _;
    let mut output = String::with_capacity(text.len() + 2);
    output.push('"');
    for character in text.chars() {
        match character {
            '"' => output.push_str("\\\""),
            '\\' => output.push_str("\\\\"),
            '\n' => output.push_str("\\n"),
            '\r' => output.push_str("\\r"),
            '\t' => output.push_str("\\t"),
            control if control.is_control() => {
                let code = u32::from(control);
                // Writing to a String cannot fail.
                let _ = match code {
                    0..=0x7f => write!(output, "\\x{code:02x}"),
                    _ => write!(output, "\\u{code:04x}"),
                };
            }
            plain => output.push(plain),
        }
    }
    output.push('"');
    output
}

/// The value of a request or limit in units of the divisor, rounded up; where the container has no
/// limit, what the node can give (`allocatable`).
pub(crate) fn resource(
    containers: &[Container],
    own: Option<&Container>,
    selector: &ResourceFieldSelector,
    allocatable: &BTreeMap<String, Quantity>,
) -> Result<String, FieldError> {
    let container = match selector
        .container_name
        .as_deref()
        .filter(|name| !name.is_empty())
    {
        None => own.ok_or_else(|| FieldError::NoContainer(String::new()))?,
        Some(name) => containers
            .iter()
            .find(|container| container.name == name)
            .ok_or_else(|| FieldError::NoContainer(name.to_owned()))?,
    };
    let effective = resources::effective(container);
    let (kind, name) = selector
        .resource
        .split_once('.')
        .ok_or_else(|| FieldError::NoResource(selector.resource.clone()))?;
    let known =
        matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    let list = match kind {
        "limits" if known => effective.limits,
        "requests" if known => effective.requests,
        _ => return Err(FieldError::NoResource(selector.resource.clone())),
    };
    let own = list.and_then(|list| list.get(name).cloned());
    let value = match (own, kind) {
        (Some(value), _) => Some(value),
        (None, "limits") => allocatable.get(name).cloned(),
        (None, _) => None,
    };
    let divisor = selector
        .divisor
        .as_ref()
        .filter(|divisor| resources::milli(divisor) > 0);
    Ok(resources::divided(value.as_ref(), divisor).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "name": "web", "namespace": "default", "uid": "u-1",
                "labels": {"app": "web", "a/b": "say \"hi\""},
                "annotations": {"note": "two\nlines"},
            },
            "spec": {"nodeName": "n1", "serviceAccountName": "sa", "containers": [
                {"name": "c", "resources": {"limits": {"cpu": "1500m"}, "requests": {"memory": "100Mi"}}},
                {"name": "d"},
            ]},
        }))
        .expect("a pod")
    }

    #[track_caller]
    fn check_field(path: &str, expected: &str) {
        let addresses = Addresses {
            host: "10.0.0.1".into(),
            pod: Some("10.244.0.5".into()),
        };
        let selector = ObjectFieldSelector {
            field_path: path.to_owned(),
            ..ObjectFieldSelector::default()
        };
        let text = field(&pod(), &addresses, &selector).unwrap_or_else(|error| error.to_string());
        assert_eq!(text, expected);
    }

    #[test]
    fn fields() {
        check_field("metadata.name", "web");
        check_field("metadata.uid", "u-1");
        check_field("metadata.labels['a/b']", "say \"hi\"");
        check_field("metadata.labels['none']", "");
        check_field("metadata.labels", "a/b=\"say \\\"hi\\\"\"\napp=\"web\"");
        check_field("metadata.annotations", "note=\"two\\nlines\"");
        check_field("spec.nodeName", "n1");
        check_field("status.podIPs", "10.244.0.5");
        check_field("status.hostIP", "10.0.0.1");
        check_field("spec.containers", "unsupported fieldPath: spec.containers");
    }

    #[track_caller]
    fn check_resource(resource_name: &str, divisor: &str, container: Option<&str>, expected: &str) {
        let pod = pod();
        let containers = pod.spec.expect("spec").containers;
        let selector = ResourceFieldSelector {
            resource: resource_name.to_owned(),
            divisor: Some(Quantity(divisor.to_owned())),
            container_name: container.map(str::to_owned),
        };
        let allocatable = [("memory".to_owned(), Quantity("24581696Ki".into()))].into();
        let text = resource(&containers, Some(&containers[0]), &selector, &allocatable)
            .unwrap_or_else(|error| error.to_string());
        assert_eq!(text, expected);
    }

    #[test]
    fn resources_are_rounded_up_to_the_divisor() {
        check_resource("limits.cpu", "0", None, "2");
        check_resource("limits.cpu", "1m", None, "1500");
        check_resource("requests.memory", "1Mi", None, "100");
        check_resource("requests.memory", "0", None, "104857600");
        // What genuine Kubernetes gave on a machine of this size.
        check_resource("limits.memory", "1Mi", None, "24006");
        check_resource("limits.cpu", "0", Some("d"), "0");
        check_resource("limits.cpu", "0", Some("x"), "container x not found");
        check_resource(
            "limits.gpu",
            "0",
            None,
            "unsupported container resource : limits.gpu",
        );
    }
}
