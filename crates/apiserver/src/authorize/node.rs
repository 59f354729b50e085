//! The Node authorizer: of Secrets, ConfigMaps and accounts, the agent of a node reads only those
//! that a pod on that node uses.

use serde_json::Value;
use store::Store;

use crate::meta::Meta;
use crate::route::RequestInfo;

/// Whether the request concerns something that the node has to do with. The role of nodes has
/// allowed it already.
pub(super) fn related(
    store: &Store<Meta>,
    node: &str,
    request: &RequestInfo,
) -> Result<(), String> {
    let wanted = match (request.group.as_str(), request.resource.as_str()) {
        ("", "secrets") => Wanted::Secret,
        ("", "configmaps") => Wanted::ConfigMap,
        ("", "serviceaccounts") => Wanted::Account,
        ("", "persistentvolumeclaims") => Wanted::Claim,
        _ => return Ok(()),
    };
    let issues = matches!(wanted, Wanted::Account) && request.subresource == "token";
    if !issues && !matches!(&*request.verb, "get" | "list" | "watch") {
        return Err("can only read resources of this type".into());
    }
    if request.name.is_empty() {
        return Err("No Object name found".into());
    }
    let prefix = format!("{}/", request.namespace);
    let snapshot = store.snapshot();
    let uses = snapshot
        .range("pods", &prefix, None, usize::MAX)
        .filter(|entry| mentions(&entry.bytes, node))
        .filter_map(|entry| serde_json::from_slice::<Value>(&entry.bytes).ok())
        .filter(|pod| pod["spec"]["nodeName"] == node)
        .any(|pod| wanted.is_used_by(&pod["spec"], &request.name));
    if uses {
        return Ok(());
    }
    Err(format!(
        "no relationship found between node '{node}' and this object"
    ))
}

/// Whether it is worth parsing the bytes to look for the name in them.
fn mentions(bytes: &[u8], name: &str) -> bool {
    memchr::memmem::find(bytes, name.as_bytes()).is_some()
}

#[derive(Clone, Copy)]
enum Wanted {
    Secret,
    ConfigMap,
    Account,
    Claim,
}

impl Wanted {
    fn is_used_by(self, spec: &Value, name: &str) -> bool {
        match self {
            Wanted::Account => {
                let account = spec["serviceAccountName"].as_str().unwrap_or_default();
                name == account || (account.is_empty() && name == "default")
            }
            Wanted::Claim => items(spec, "volumes")
                .any(|volume| volume["persistentVolumeClaim"]["claimName"] == name),
            Wanted::Secret => {
                items(spec, "imagePullSecrets").any(|reference| reference["name"] == name)
                    || in_volumes(spec, "secret", "secretName", name)
                    || in_environment(spec, "secretRef", "secretKeyRef", name)
            }
            Wanted::ConfigMap => {
                in_volumes(spec, "configMap", "name", name)
                    || in_environment(spec, "configMapRef", "configMapKeyRef", name)
            }
        }
    }
}

fn items<'a>(object: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    object[list].as_array().into_iter().flatten()
}

fn in_volumes(spec: &Value, kind: &str, field: &str, name: &str) -> bool {
    items(spec, "volumes").any(|volume| {
        volume[kind][field] == name
            || items(&volume["projected"], "sources").any(|source| source[kind]["name"] == name)
    })
}

fn in_environment(spec: &Value, whole: &str, key: &str, name: &str) -> bool {
    ["containers", "initContainers", "ephemeralContainers"]
        .into_iter()
        .flat_map(|list| items(spec, list))
        .any(|container| {
            items(container, "envFrom").any(|source| source[whole]["name"] == name)
                || items(container, "env")
                    .any(|variable| variable["valueFrom"][key]["name"] == name)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_pod_uses() {
        let spec = json!({
            "serviceAccountName": "a",
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [
                {"secret": {"secretName": "s1"}},
                {"configMap": {"name": "c1"}},
                {"projected": {"sources": [{"secret": {"name": "s2"}}, {"configMap": {"name": "c2"}}]}},
            ],
            "containers": [{
                "envFrom": [{"configMapRef": {"name": "c3"}}, {"secretRef": {"name": "s3"}}],
                "env": [{"valueFrom": {"secretKeyRef": {"name": "s4"}}}, {"valueFrom": {"configMapKeyRef": {"name": "c4"}}}],
            }],
        });
        for secret in ["pull", "s1", "s2", "s3", "s4"] {
            assert!(Wanted::Secret.is_used_by(&spec, secret), "{secret}");
        }
        for map in ["c1", "c2", "c3", "c4"] {
            assert!(Wanted::ConfigMap.is_used_by(&spec, map), "{map}");
            assert!(!Wanted::Secret.is_used_by(&spec, map), "{map}");
        }
        assert!(Wanted::Account.is_used_by(&spec, "a"));
        assert!(!Wanted::Account.is_used_by(&spec, "default"));
    }
}
