//! The Node authorizer: the agent of a node reads its own node and pods, and of Secrets, ConfigMaps
//! and accounts those that a pod on that node uses.

use serde_json::Value;
use store::{Key, Store};

use crate::meta::Meta;
use crate::route::RequestInfo;

/// The account of pods that name none.
const DEFAULT_ACCOUNT: &str = "default";

/// Whether the request concerns something that the node has to do with. The role of nodes has
/// allowed it already.
pub(super) fn related(
    store: &Store<Meta>,
    node: &str,
    request: &RequestInfo,
) -> Result<(), String> {
    match (request.group.as_str(), request.resource.as_str()) {
        ("", "secrets") => read_used(store, node, request, Wanted::Secret),
        ("", "configmaps") => read_used(store, node, request, Wanted::ConfigMap),
        ("", "serviceaccounts") => account(store, node, request),
        ("", "persistentvolumeclaims") => claim(store, node, request),
        ("", "pods") => pod(store, node, request),
        ("", "nodes") => own_node(node, request),
        ("coordination.k8s.io", "leases") => lease(node, request),
        _ => Ok(()),
    }
}

fn reads(request: &RequestInfo) -> bool {
    matches!(&*request.verb, "get" | "list" | "watch")
}

fn read_used(
    store: &Store<Meta>,
    node: &str,
    request: &RequestInfo,
    wanted: Wanted,
) -> Result<(), String> {
    if !reads(request) {
        return Err("can only read resources of this type".into());
    }
    if !request.subresource.is_empty() {
        return Err("cannot read subresource".into());
    }
    if request.namespace.is_empty() {
        return Err("can only read namespaced object of this type".into());
    }
    used(store, node, request, wanted)
}

fn account(store: &Store<Meta>, node: &str, request: &RequestInfo) -> Result<(), String> {
    match (&*request.verb, request.subresource.as_str()) {
        ("create", "token") | ("get", "") => used(store, node, request, Wanted::Account),
        _ => Err("can only create tokens for individual service accounts".into()),
    }
}

fn claim(store: &Store<Meta>, node: &str, request: &RequestInfo) -> Result<(), String> {
    match (&*request.verb, request.subresource.as_str()) {
        ("get", "") | ("get" | "update" | "patch", "status") => {
            used(store, node, request, Wanted::Claim)
        }
        _ => Err("can only get individual resources of this type".into()),
    }
}

fn used(
    store: &Store<Meta>,
    node: &str,
    request: &RequestInfo,
    wanted: Wanted,
) -> Result<(), String> {
    if request.name.is_empty() {
        return Err("No Object name found".into());
    }
    let prefix = format!("{}/", request.namespace);
    let snapshot = store.snapshot();
    // The one name that a pod need not say.
    let is_told = !(matches!(wanted, Wanted::Account) && request.name == DEFAULT_ACCOUNT);
    let uses = snapshot
        .range("pods", &prefix, None, usize::MAX)
        .filter(|entry| !is_told || mentions(&entry.bytes, &request.name))
        .filter(|entry| mentions(&entry.bytes, node))
        .filter_map(|entry| serde_json::from_slice::<Value>(&entry.bytes).ok())
        .filter(|pod| pod["spec"]["nodeName"] == node)
        .any(|pod| wanted.names_in(&pod["spec"]).contains(&&*request.name));
    if uses {
        return Ok(());
    }
    Err(unrelated(node))
}

fn unrelated(node: &str) -> String {
    format!("no relationship found between node '{node}' and this object")
}

/// Pods that run on the node. What a node writes of pods is looked at by admission, which sees them.
fn pod(store: &Store<Meta>, node: &str, request: &RequestInfo) -> Result<(), String> {
    if !reads(request) {
        return Ok(());
    }
    if !request.subresource.is_empty() {
        return Err(unrelated(node));
    }
    if request.verb != "get" {
        let selector = request.field_selector.as_ref();
        let selected = selector.and_then(|selector| selector.required("spec.nodeName"));
        return match selected {
            Some(selected) if selected == node => Ok(()),
            _ => Err("can only list/watch pods with spec.nodeName field selector".into()),
        };
    }
    if request.name.is_empty() {
        return Err("No Object name found".into());
    }
    let key = Key::new("pods", format!("{}/{}", request.namespace, request.name));
    let Some(entry) = store.get(&key) else {
        // That it is gone is what a node has to learn of its pods.
        return Ok(());
    };
    let pod: Value = serde_json::from_slice(&entry.bytes).unwrap_or_default();
    if pod["spec"]["nodeName"] == node {
        return Ok(());
    }
    Err(unrelated(node))
}

fn own_node(node: &str, request: &RequestInfo) -> Result<(), String> {
    if !reads(request) || request.name == node {
        return Ok(());
    }
    let what = match request.name.as_str() {
        "" => "all nodes".to_owned(),
        name => format!("'{name}'"),
    };
    Err(format!(
        "node '{node}' cannot read {what}, only its own Node object"
    ))
}

fn lease(node: &str, request: &RequestInfo) -> Result<(), String> {
    let why = match &*request.verb {
        "get" | "create" | "update" | "patch" | "delete" => {
            if request.namespace != "kube-node-lease" {
                "can only access leases in the \"kube-node-lease\" system namespace"
            } else if request.verb != "create" && request.name != node {
                "can only access node lease with the same name as the requesting node"
            } else {
                return Ok(());
            }
        }
        _ => "can only get, create, update, patch, or delete a node lease",
    };
    Err(why.into())
}

/// Whether it is worth parsing the bytes to look for the name in them.
fn mentions(bytes: &[u8], name: &str) -> bool {
    memchr::memmem::find(bytes, name.as_bytes()).is_some()
}

/// What pods refer to by name.
#[derive(Clone, Copy)]
pub(crate) enum Wanted {
    Secret,
    ConfigMap,
    Account,
    Claim,
}

impl Wanted {
    /// The names that the spec of a pod has of it.
    pub(crate) fn names_in(self, spec: &Value) -> Vec<&str> {
        let found: Vec<&Value> = match self {
            Wanted::Account => {
                let account = &spec["serviceAccountName"];
                return vec![match account.as_str().unwrap_or_default() {
                    "" => DEFAULT_ACCOUNT,
                    name => name,
                }];
            }
            Wanted::Claim => items(spec, "volumes")
                .map(|volume| &volume["persistentVolumeClaim"]["claimName"])
                .collect(),
            Wanted::Secret => items(spec, "imagePullSecrets")
                .map(|reference| &reference["name"])
                .chain(secrets_of_volumes(spec))
                .chain(in_environment(spec, "secretRef", "secretKeyRef"))
                .collect(),
            Wanted::ConfigMap => items(spec, "volumes")
                .map(|volume| &volume["configMap"]["name"])
                .chain(projected(spec, "configMap"))
                .chain(in_environment(spec, "configMapRef", "configMapKeyRef"))
                .collect(),
        };
        found.into_iter().filter_map(Value::as_str).collect()
    }
}

pub(crate) fn items<'a>(object: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    object[list].as_array().into_iter().flatten()
}

/// Volumes of many types name a Secret, all of them under one of these names.
fn secrets_of_volumes(spec: &Value) -> impl Iterator<Item = &Value> {
    items(spec, "volumes")
        .filter_map(Value::as_object)
        .flat_map(|volume| volume.values())
        .flat_map(|source| {
            [
                &source["secretName"],
                &source["secretRef"]["name"],
                &source["nodePublishSecretRef"]["name"],
            ]
        })
        .chain(projected(spec, "secret"))
}

fn projected<'a>(spec: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    items(spec, "volumes")
        .flat_map(|volume| items(&volume["projected"], "sources"))
        .map(move |source| &source[kind]["name"])
}

fn in_environment<'a>(
    spec: &'a Value,
    whole: &'a str,
    key: &'a str,
) -> impl Iterator<Item = &'a Value> {
    ["containers", "initContainers", "ephemeralContainers"]
        .into_iter()
        .flat_map(|list| items(spec, list))
        .flat_map(move |container| {
            let all = items(container, "envFrom").map(move |source| &source[whole]["name"]);
            let some =
                items(container, "env").map(move |variable| &variable["valueFrom"][key]["name"]);
            all.chain(some)
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
                {"name": "a", "secret": {"secretName": "s1"}},
                {"csi": {"driver": "d", "nodePublishSecretRef": {"name": "s5"}}},
                {"configMap": {"name": "c1"}},
                {"projected": {"sources": [{"secret": {"name": "s2"}}, {"configMap": {"name": "c2"}}]}},
            ],
            "containers": [{
                "envFrom": [{"configMapRef": {"name": "c3"}}, {"secretRef": {"name": "s3"}}],
                "env": [{"valueFrom": {"secretKeyRef": {"name": "s4"}}}, {"valueFrom": {"configMapKeyRef": {"name": "c4"}}}],
            }],
        });
        let check = |wanted: Wanted, expected: &[&str]| {
            let mut names = wanted.names_in(&spec);
            names.sort_unstable();
            assert_eq!(names, expected);
        };
        check(Wanted::Secret, &["pull", "s1", "s2", "s3", "s4", "s5"]);
        check(Wanted::ConfigMap, &["c1", "c2", "c3", "c4"]);
        check(Wanted::Account, &["a"]);
        check(Wanted::Claim, &[]);
    }
}
