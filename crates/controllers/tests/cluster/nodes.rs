//! Nodes that fall silent, are closed, or vanish.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::{House, runs};

fn taints(node: &Node) -> Vec<String> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    let mut texts: Vec<_> = taints
        .into_iter()
        .flatten()
        .map(|taint| format!("{}:{}", taint.key, taint.effect))
        .collect();
    texts.sort();
    texts
}

#[tokio::test]
async fn a_silent_node_is_tainted_its_pods_leave_service_and_it_comes_back() {
    let house = House::with(|config| config.node_grace = Duration::from_millis(500)).await;
    let pod = |name: &str, seconds: Option<i64>| {
        json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "a"}],
            "tolerations": [{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}]}})
    };
    house.create::<Pod>(pod("patient", None)).await;
    house.create::<Pod>(pod("waiting", Some(300))).await;
    house.create::<Pod>(pod("hasty", Some(0))).await;
    let node = house
        .wait::<Node>("node-1", "is unreachable", |node| {
            taints(node)
                == [
                    "node.kubernetes.io/unreachable:NoExecute",
                    "node.kubernetes.io/unreachable:NoSchedule",
                ]
        })
        .await;
    let conditions = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.clone())
        .unwrap_or_default();
    let ready = conditions
        .iter()
        .find(|condition| condition.type_ == "Ready")
        .expect("is there");
    assert_eq!(
        (ready.status.as_str(), ready.reason.as_deref()),
        ("Unknown", Some("NodeStatusUnknown"))
    );
    house.wait_gone::<Pod>("hasty").await;
    house
        .wait::<Pod>("patient", "is out of service", |pod| !runs(pod))
        .await;
    house
        .wait_events(
            "node-1",
            &[
                "RegisteredNode: Node node-1 event: Registered Node node-1 in Controller",
                "NodeNotReady: Node node-1 status is now: NodeNotReady",
            ],
        )
        .await;
    let nodes: Api<Node> = Api::all(house.client.clone());
    let alive = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": "2026-01-01T00:01:00Z"}]}});
    nodes
        .patch_status("node-1", &PatchParams::default(), &Patch::Strategic(&alive))
        .await
        .expect("is patched");
    house
        .wait::<Node>("node-1", "is free again", |node| taints(node).is_empty())
        .await;
    // One was told that it has to go some time, the other never.
    house
        .wait_events(
            "waiting",
            &[
                "NodeNotReady: Node is not ready",
                "TaintManagerEviction: Cancelling deletion of Pod default/waiting",
            ],
        )
        .await;
    house
        .wait_events("patient", &["NodeNotReady: Node is not ready"])
        .await;
}

#[tokio::test]
async fn a_node_that_says_itself_that_it_is_not_ready_keeps_its_pods_in_service() {
    let house = House::new().await;
    let pod =
        json!({"metadata": {"name": "web"}, "spec": {"containers": [{"name": "c", "image": "a"}]}});
    house.create::<Pod>(pod).await;
    house.wait::<Pod>("web", "runs", runs).await;
    let condition = json!({"type": "Ready", "status": "False", "reason": "KubeletNotReady"});
    set_condition(&house, condition).await;
    house
        .wait::<Node>("node-1", "is tainted", |node| taints(node).len() == 2)
        .await;
    let pods: Api<Pod> = house.api();
    assert!(runs(&pods.get("web").await.expect("is there")));
}

async fn set_condition(house: &House, condition: serde_json::Value) {
    let nodes: Api<Node> = Api::all(house.client.clone());
    let status = json!({"status": {"conditions": [condition]}});
    let patch = Patch::Strategic(&status);
    nodes
        .patch_status("node-1", &PatchParams::default(), &patch)
        .await
        .expect("is patched");
}

/// The phase and the conditions of a pod that waits for a finalizer.
async fn end_of(house: &House, name: &str) -> serde_json::Value {
    let is_over = |pod: &Pod| {
        let status = pod.status.as_ref();
        pod.metadata.deletion_grace_period_seconds == Some(0)
            && status.is_some_and(|status| status.phase.as_deref() == Some("Failed"))
    };
    let pod = house.wait::<Pod>(name, "is over", is_over).await;
    let status = pod.status.clone().unwrap_or_default();
    let disrupted = status
        .conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "DisruptionTarget");
    json!([
        disrupted,
        status.observed_generation == pod.metadata.generation
    ])
}

#[tokio::test]
async fn pods_that_nobody_else_can_end_are_ended() {
    let house = House::new().await;
    let pod = |name: &str, scheduler: &str| {
        json!({"metadata": {"name": name, "finalizers": ["example.com/hold"], "annotations": {"linger": "yes"}},
            "spec": {"schedulerName": scheduler, "tolerations": [{"operator": "Exists"}],
                "containers": [{"name": "c", "image": "a"}]}})
    };
    let pods: Api<Pod> = house.api();
    house.create::<Pod>(pod("homeless", "nobody")).await;
    pods.delete("homeless", &DeleteParams::default())
        .await
        .expect("is deleted");
    assert_eq!(end_of(&house, "homeless").await, json!([false, true]));

    for name in ["going", "staying"] {
        house.create::<Pod>(pod(name, "default-scheduler")).await;
        house.wait::<Pod>(name, "runs", runs).await;
    }
    pods.delete("going", &DeleteParams::default().grace_period(600))
        .await
        .expect("is deleted");
    let nodes: Api<Node> = Api::all(house.client.clone());
    let out = json!([{"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}]);
    let patch = json!({"spec": {"taints": out}});
    nodes
        .patch("node-1", &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .expect("is patched");
    // Only together with the silence of the node it means that nothing runs there.
    let going = pods.get("going").await.expect("is there");
    assert_eq!(going.metadata.deletion_grace_period_seconds, Some(600));
    set_condition(
        &house,
        json!({"type": "Ready", "status": "False", "reason": "Off"}),
    )
    .await;
    assert_eq!(end_of(&house, "going").await, json!([false, true]));
    let staying = pods.get("staying").await.expect("is there");
    assert_eq!(staying.metadata.deletion_timestamp, None);
}

#[tokio::test]
async fn a_closed_node_is_tainted_until_it_is_opened() {
    let house = House::new().await;
    let nodes: Api<Node> = Api::all(house.client.clone());
    house.wait::<Node>("node-1", "is there", |_| true).await;
    for (closed, expected) in [
        (
            true,
            vec![
                "mine:NoSchedule",
                "node.kubernetes.io/unschedulable:NoSchedule",
            ],
        ),
        (false, vec!["mine:NoSchedule"]),
    ] {
        let mine = json!([{"key": "mine", "effect": "NoSchedule"}]);
        let patch = json!({"spec": {"unschedulable": closed, "taints": mine}});
        nodes
            .patch("node-1", &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .expect("is patched");
        house
            .wait::<Node>("node-1", "has the taints", |node| taints(node) == expected)
            .await;
    }
}

#[tokio::test]
async fn a_node_that_is_removed_is_said_to_be() {
    let house = House::new().await;
    let pod =
        json!({"metadata": {"name": "web"}, "spec": {"containers": [{"name": "c", "image": "a"}]}});
    house.create::<Pod>(pod).await;
    house.wait::<Pod>("web", "runs", runs).await;
    let nodes: Api<Node> = Api::all(house.client.clone());
    nodes
        .delete("node-1", &DeleteParams::default())
        .await
        .expect("is deleted");
    house
        .wait_events(
            "node-1",
            &[
                "RegisteredNode: Node node-1 event: Registered Node node-1 in Controller",
                "RemovingNode: Node node-1 event: Removing Node node-1 from Controller",
            ],
        )
        .await;
}
