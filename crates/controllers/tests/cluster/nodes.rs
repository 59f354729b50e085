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
async fn a_pod_that_is_deleted_for_its_node_ends_though_the_node_is_gone() {
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
