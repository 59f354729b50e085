//! The agent of a node writes only its own node, the pods that run on it, and its own lease.

use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::{Admission, Operation};
use crate::authorize::node::{Wanted, items};
use crate::encode::metadata_str;
use crate::status::Failure;

const MIRROR: &str = "kubernetes.io/config.mirror";

/// Refuses what a node's agent has no business with.
pub(super) fn check(admission: &mut Admission<'_>) -> Result<(), Failure> {
    let call = admission.call;
    let Some(node) = call.caller.node_name() else {
        return Ok(());
    };
    let name = match metadata_str(admission.object, "name") {
        "" => call.info.name.as_str(),
        name => name,
    };
    let refuse = |why: String| Err(Failure::forbidden(call.resource.name(), name, why));
    let kind = call.resource.kind;
    match (kind.group(), kind.kind()) {
        ("", "Pod") => match pod_fault(admission, node) {
            Some(why) => refuse(why),
            None => Ok(()),
        },
        ("", "Node") if name != node => refuse(format!(
            "node \"{node}\" is not allowed to modify node \"{name}\""
        )),
        ("", "Node") => match node_fault(admission, node) {
            Some(why) => refuse(why),
            None => Ok(()),
        },
        ("coordination.k8s.io", "Lease") => {
            let namespace = call.info.namespace.as_str();
            if namespace != "kube-node-lease" {
                return refuse(format!(
                    "can only access leases in the \"kube-node-lease\" system namespace, not \"{namespace}\""
                ));
            }
            if name != node {
                return refuse(
                    "can only access node lease with the same name as the requesting node".into(),
                );
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn pod_fault(admission: &Admission<'_>, node: &str) -> Option<String> {
    let node_of = |pod: &Value| {
        pod["spec"]["nodeName"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    match (admission.operation, admission.subresource) {
        (Operation::Create, None) => {
            let pod = &*admission.object;
            if !pod["metadata"]["annotations"][MIRROR].is_string() {
                return Some(format!(
                    "pod does not have \"{MIRROR}\" annotation, node \"{node}\" can only create mirror pods"
                ));
            }
            if node_of(pod) != node {
                return Some(format!(
                    "node \"{node}\" can only create pods with spec.nodeName set to itself"
                ));
            }
            owner_fault(admission, node).or_else(|| reference_fault(&pod["spec"], node))
        }
        (Operation::Delete, None) => {
            let pod = admission.old.unwrap_or(admission.object);
            (node_of(pod) != node).then(|| {
                format!("node \"{node}\" can only delete pods with spec.nodeName set to itself")
            })
        }
        (Operation::Update, Some("status")) => {
            let pod = admission.old.unwrap_or(admission.object);
            if node_of(pod) != node {
                return Some(format!(
                    "node \"{node}\" can only update pod status for pods with spec.nodeName set to itself"
                ));
            }
            let labels = |pod: &Value| label_map(pod).clone();
            (labels(pod) != labels(admission.object))
                .then(|| format!("node \"{node}\" cannot update labels through pod status"))
        }
        (_, sub) => Some(format!(
            "unexpected operation \"{:?}\" on {}",
            admission.operation,
            sub.unwrap_or("pods")
        )),
    }
}

/// A mirror pod belongs to the node that shows it, and goes with it.
fn owner_fault(admission: &Admission<'_>, node: &str) -> Option<String> {
    let references: Vec<&Value> = items(&admission.object["metadata"], "ownerReferences").collect();
    let can_only = |what: &str| {
        Some(format!(
            "node \"{node}\" can only create pods with {what} set to itself"
        ))
    };
    let owner = match references.as_slice() {
        [] => return can_only("an owner reference"),
        [owner] => owner,
        _ => return can_only("a single owner reference"),
    };
    if owner["apiVersion"] != "v1" || owner["kind"] != "Node" || owner["name"] != node {
        return can_only("an owner reference");
    }
    if owner["controller"] != true {
        return can_only("a controller owner reference");
    }
    if owner["blockOwnerDeletion"] == true {
        return Some(format!(
            "node \"{node}\" must not set blockOwnerDeletion on an owner reference"
        ));
    }
    let core = &admission.call.core;
    let stored = core.read(core.builtin("", "v1", "nodes"), "", node);
    let uid = stored.map(|node| metadata_str(&node, "uid").to_owned());
    let given = owner["uid"].as_str().unwrap_or_default();
    match uid {
        Some(uid) if uid == given => None,
        Some(uid) => Some(format!(
            "node {node} UID mismatch: expected {given} got {uid}"
        )),
        None => Some(format!("node \"{node}\" not found")),
    }
}

/// A mirror pod must not refer to what the node could then read.
fn reference_fault(spec: &Value, node: &str) -> Option<String> {
    let volumes =
        |kind: &'static str| items(spec, "volumes").any(move |volume| volume[kind].is_object());
    let what = if !Wanted::ConfigMap.names_in(spec).is_empty() {
        "configmaps"
    } else if volumes("persistentVolumeClaim") {
        "persistentvolumeclaims"
    } else if volumes("ephemeral") {
        "persistentvolumeclaims (via ephemeral volumes)"
    } else if volumes("csi") {
        "csidrivers (via CSI volumes)"
    } else if items(spec, "resourceClaims").next().is_some() {
        "resourceclaims"
    } else {
        return None;
    };
    Some(format!(
        "node \"{node}\" can not create pods that reference {what}"
    ))
}

/// A node says of itself what it is, and not what is to run on it.
fn node_fault(admission: &Admission<'_>, node: &str) -> Option<String> {
    let new = &*admission.object;
    if admission.operation == Operation::Create {
        let mut set: Vec<&str> = label_map(new)
            .keys()
            .map(String::as_str)
            .filter(|label| !is_own_label(label))
            .collect();
        set.sort_unstable();
        return (!set.is_empty()).then(|| {
            format!(
                "node \"{node}\" is not allowed to set the following labels: {}",
                set.join(", ")
            )
        });
    }
    let old = admission.old?;
    if new["spec"]["configSource"].is_object()
        && new["spec"]["configSource"] != old["spec"]["configSource"]
    {
        return Some(format!(
            "node \"{node}\" is not allowed to update configSource to a new non-nil configSource"
        ));
    }
    let list = |node: &Value, name: &str| -> Vec<Value> { items(node, name).cloned().collect() };
    if list(&new["spec"], "taints") != list(&old["spec"], "taints") {
        return Some(format!("node \"{node}\" is not allowed to modify taints"));
    }
    let (before, after) = (label_map(old), label_map(new));
    let mut modified: Vec<&str> = before
        .keys()
        .chain(after.keys())
        .map(String::as_str)
        .filter(|label| before.get(*label) != after.get(*label) && !is_own_label(label))
        .collect();
    modified.sort_unstable();
    modified.dedup();
    if !modified.is_empty() {
        return Some(format!(
            "is not allowed to modify labels: {}",
            modified.join(", ")
        ));
    }
    let owners = |node: &Value| list(&node["metadata"], "ownerReferences");
    (owners(old) != owners(new))
        .then(|| format!("node \"{node}\" is not allowed to modify ownerReferences"))
}

fn label_map(object: &Value) -> &Map<String, Value> {
    static NONE: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);
    object["metadata"]["labels"].as_object().unwrap_or(&NONE)
}

/// Whether a node may give itself this label: any but those that Kubernetes has a meaning for, and of
/// these the ones that tell what it is (upstream's list).
fn is_own_label(label: &str) -> bool {
    const KNOWN: &[&str] = &[
        "kubernetes.io/hostname",
        "kubernetes.io/os",
        "kubernetes.io/arch",
        "beta.kubernetes.io/os",
        "beta.kubernetes.io/arch",
        "beta.kubernetes.io/instance-type",
        "node.kubernetes.io/instance-type",
        "failure-domain.beta.kubernetes.io/zone",
        "failure-domain.beta.kubernetes.io/region",
        "failure-domain.kubernetes.io/zone",
        "failure-domain.kubernetes.io/region",
        "topology.kubernetes.io/zone",
        "topology.kubernetes.io/region",
    ];
    let prefix = label.split_once('/').map_or("", |(prefix, _)| prefix);
    let below = |domain: &str| {
        prefix
            .strip_suffix(domain)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    if below("node-restriction.kubernetes.io") {
        return false;
    }
    let reserved = below("kubernetes.io") || below("k8s.io");
    !reserved
        || KNOWN.contains(&label)
        || below("kubelet.kubernetes.io")
        || below("node.kubernetes.io")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_a_node_may_give_itself() {
        for label in [
            "a",
            "example.com/a",
            "notkubernetes.io/a",
            "kubernetes.io/os",
            "node.kubernetes.io/x",
            "a.kubelet.kubernetes.io/x",
        ] {
            assert!(is_own_label(label), "{label}");
        }
        for label in [
            "kubernetes.io/x",
            "foo.k8s.io/x",
            "node-role.kubernetes.io/control-plane",
            "node-restriction.kubernetes.io/x",
            "a.node-restriction.kubernetes.io/x",
        ] {
            assert!(!is_own_label(label), "{label}");
        }
    }
}
