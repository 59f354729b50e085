//! The agent of a node writes only its own node, the pods that run on it, and its own lease.

use serde_json::Value;

use super::{Admission, Operation};
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
            (node_of(pod) != node).then(|| {
                format!("node \"{node}\" can only create pods with spec.nodeName set to itself")
            })
        }
        (Operation::Delete, None) => {
            let pod = admission.old.unwrap_or(admission.object);
            (node_of(pod) != node).then(|| {
                format!("node \"{node}\" can only delete pods with spec.nodeName set to itself")
            })
        }
        (Operation::Update, Some("status")) => {
            let pod = admission.old.unwrap_or(admission.object);
            (node_of(pod) != node).then(|| {
                format!("node \"{node}\" can only update pod status for pods with spec.nodeName set to itself")
            })
        }
        (_, sub) => Some(format!(
            "unexpected operation \"{:?}\" on {}",
            admission.operation,
            sub.unwrap_or("pods")
        )),
    }
}
