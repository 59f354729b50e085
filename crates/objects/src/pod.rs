//! Pods.

use k8s_openapi::api::core::v1::{Pod, PodCondition};

/// `status.phase`, empty if it is not said.
pub fn phase(pod: &Pod) -> &str {
    let status = pod.status.as_ref();
    status
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

/// Whether all containers have ended and none will start again.
pub fn has_ended(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether the pod counts as a running or coming one: it has not ended and is not about to.
pub fn is_active(pod: &Pod) -> bool {
    !has_ended(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// Whether the pod is to go but has not ended yet.
pub fn is_terminating(pod: &Pod) -> bool {
    !has_ended(pod) && pod.metadata.deletion_timestamp.is_some()
}

/// A condition by its type.
pub fn condition<'a>(pod: &'a Pod, condition_type: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions
        .iter()
        .find(|condition| condition.type_ == condition_type)
}

/// Whether the pod says that it can serve.
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|ready| ready.status == "True")
}

/// `spec.nodeName`, if the pod has a place.
pub fn node_name(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    spec.node_name.as_deref().filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(value: Value) -> Pod {
        serde_json::from_value(value).expect("is a pod")
    }

    #[test]
    fn a_pod_is_active_terminating_or_over() {
        let check = |phase: Value, deleted: bool, expected: (bool, bool, bool)| {
            let deleted = deleted.then_some("2026-01-01T00:00:00Z");
            let pod = pod(json!({
                "metadata": {"deletionTimestamp": deleted}, "status": {"phase": phase},
            }));
            let found = (is_active(&pod), is_terminating(&pod), has_ended(&pod));
            assert_eq!(found, expected, "{phase} {deleted:?}");
        };
        check(Value::Null, false, (true, false, false));
        check(json!("Pending"), false, (true, false, false));
        check(json!("Running"), false, (true, false, false));
        check(json!("Running"), true, (false, true, false));
        check(json!("Failed"), false, (false, false, true));
        check(json!("Succeeded"), true, (false, false, true));
    }

    #[test]
    fn what_is_not_said_is_not_so() {
        let empty = pod(json!({}));
        assert_eq!((phase(&empty), node_name(&empty)), ("", None));
        assert!(!is_ready(&empty));
        let ready = |status: &str| {
            let condition = json!({"type": "Ready", "status": status});
            is_ready(&pod(json!({"status": {"conditions": [condition]}})))
        };
        assert_eq!(
            (ready("True"), ready("False"), ready("Unknown")),
            (true, false, false)
        );
        let placed = |name: &str| pod(json!({"spec": {"containers": [], "nodeName": name}}));
        assert_eq!(node_name(&placed("")), None);
        assert_eq!(node_name(&placed("node-1")), Some("node-1"));
    }
}
