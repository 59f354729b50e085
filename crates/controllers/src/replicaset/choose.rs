//! Which pods go when there are too many.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;

use crate::pods;

/// The `count` pods that are missed least.
///
/// In order: those without a node; pending before unknown before running; not ready ones; a lower
/// `controller.kubernetes.io/pod-deletion-cost`; those whose node has more pods of the same family;
/// those ready for a shorter time; those that restarted more often; the younger ones. Times are
/// compared by their magnitude only, and by uid within it, so that not always the same generation
/// of pods has to go.
pub(super) fn choose(
    active: &[Arc<Pod>],
    per_node: &HashMap<String, usize>,
    count: usize,
    now: Timestamp,
) -> Vec<Arc<Pod>> {
    let mut ranked: Vec<_> = active.to_vec();
    ranked.sort_by_cached_key(|pod| {
        let phase = match pods::phase(pod) {
            "Pending" => 0,
            "Running" => 2,
            _ => 1,
        };
        let node = pods::node_name(pod);
        let annotations = pod.metadata.annotations.as_ref();
        let cost = annotations
            .and_then(|all| all.get("controller.kubernetes.io/pod-deletion-cost"))
            .and_then(|cost| cost.parse::<i32>().ok())
            .unwrap_or_default();
        let neighbours = node
            .and_then(|node| per_node.get(node))
            .copied()
            .unwrap_or_default();
        let magnitude = |since: Option<Timestamp>| {
            since.map_or(0, |since| {
                let seconds = now.duration_since(since).as_secs().max(0) as u64;
                u64::BITS - seconds.leading_zeros() + 1
            })
        };
        let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (
            node.is_some(),
            phase,
            pods::is_ready(pod),
            cost,
            Reverse(neighbours),
            magnitude(pods::ready_since(pod)),
            Reverse(restarts(pod)),
            magnitude(created),
            pod.metadata.uid.clone(),
        )
    });
    ranked.truncate(count);
    ranked
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_ref());
    let counts = statuses
        .into_iter()
        .flatten()
        .map(|status| status.restart_count);
    counts.max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, fields: Value) -> Arc<Pod> {
        let field = |name: &str| fields.get(name).cloned().unwrap_or_default();
        let ready = match fields.get("ready") {
            Some(since) => {
                json!([{"type": "Ready", "status": "True", "lastTransitionTime": since}])
            }
            None => json!([]),
        };
        let phase = fields.get("phase").cloned().unwrap_or(json!("Running"));
        let pod = json!({
            "metadata": {"name": name, "uid": name, "creationTimestamp": field("created"), "annotations": field("annotations")},
            "spec": {"nodeName": field("node"), "containers": []},
            "status": {"phase": phase, "conditions": ready,
                "containerStatuses": [{"name": "c", "ready": true, "restartCount": fields.get("restarts").cloned().unwrap_or(json!(0)), "image": "", "imageID": ""}]},
        });
        Arc::new(serde_json::from_value(pod).expect("is a pod"))
    }

    /// `pods` in the order in which they are to go.
    fn check(pods: &[Arc<Pod>], per_node: &[(&str, usize)]) {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().expect("is a time");
        let per_node = per_node
            .iter()
            .map(|(node, count)| ((*node).to_owned(), *count))
            .collect();
        let mut shuffled = pods.to_vec();
        shuffled.reverse();
        let names = |pods: &[Arc<Pod>]| -> Vec<_> {
            pods.iter()
                .map(|pod| pod.metadata.name.clone().unwrap_or_default())
                .collect()
        };
        assert_eq!(
            names(&choose(&shuffled, &per_node, pods.len(), now)),
            names(pods)
        );
        assert_eq!(choose(&shuffled, &per_node, 1, now).len(), 1);
    }

    #[test]
    fn the_least_missed_pods_go_first() {
        let ready = |second: u32| format!("2026-01-01T{second:02}:00:00Z");
        check(
            &[
                pod("homeless", json!({"ready": ready(1)})),
                pod("pending", json!({"node": "a", "phase": "Pending"})),
                pod("unready", json!({"node": "a"})),
                pod(
                    "cheap",
                    json!({"node": "a", "ready": ready(1), "annotations": {"controller.kubernetes.io/pod-deletion-cost": "-5"}}),
                ),
                pod("crowded", json!({"node": "b", "ready": ready(1)})),
                pod("young", json!({"node": "a", "ready": ready(23)})),
                pod(
                    "shaky",
                    json!({"node": "a", "ready": ready(1), "restarts": 7}),
                ),
                pod("solid", json!({"node": "a", "ready": ready(1)})),
                pod(
                    "dear",
                    json!({"node": "a", "ready": ready(23), "annotations": {"controller.kubernetes.io/pod-deletion-cost": "5"}}),
                ),
            ],
            &[("a", 2), ("b", 9)],
        );
    }

    #[test]
    fn the_newly_created_go_before_the_old() {
        check(
            &[
                pod(
                    "new",
                    json!({"node": "a", "created": "2026-01-01T23:59:00Z"}),
                ),
                pod(
                    "old",
                    json!({"node": "a", "created": "2025-01-01T00:00:00Z"}),
                ),
            ],
            &[],
        );
    }
}
