//! Which node a pod goes to, through the whole way; the rules alone are tested in `scheduler`.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use testkit::{Cluster, Moment, Options};

use crate::web;

async fn five_nodes() -> Cluster {
    let options = Options {
        nodes: 5,
        ..Options::default()
    };
    Cluster::start(options).await
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

/// Pods by node; "" for those that have none.
fn by_node(moment: &Moment) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for pod in moment.pods.values() {
        *counts
            .entry(node_of(pod).unwrap_or_default().to_owned())
            .or_default() += 1;
    }
    counts
}

fn expected(counts: &[(&str, usize)]) -> BTreeMap<String, usize> {
    let counts = counts.iter();
    counts
        .map(|(node, count)| ((*node).to_owned(), *count))
        .collect()
}

/// `web` with requests, and more in the pod's spec.
fn requesting(replicas: u32, cpu: &str, more: &str) -> String {
    let container = format!("image: \"web:1\", resources: {{requests: {{cpu: {cpu}}}}}}}");
    let manifest = web(replicas, "web:1", "").replace("image: \"web:1\"}", &container);
    format!("{manifest}{more}")
}

#[tokio::test(start_paused = true)]
async fn a_burst_never_over_commits() {
    let cluster = five_nodes().await;
    // 4 processors on each of 5 nodes: room for 200 pods of a tenth, and for 3 that get nothing.
    cluster.apply(&requesting(203, "100m", "")).await;
    cluster.settle().await;
    cluster.history().each(|step, moment| {
        for (node, count) in by_node(moment) {
            assert!(
                node.is_empty() || count <= 40,
                "step {step}: {count} on {node}"
            );
        }
    });
    let last = by_node(&cluster.history().last());
    let full = [
        ("", 3),
        ("node-1", 40),
        ("node-2", 40),
        ("node-3", 40),
        ("node-4", 40),
        ("node-5", 40),
    ];
    assert_eq!(last, expected(&full));
    // Room is made: those that wait come to their turn without being asked again.
    cluster
        .patch(crate::WEB, serde_json::json!({"spec": {"replicas": 200}}))
        .await;
    cluster.settle().await;
    assert_eq!(by_node(&cluster.history().last()).get(""), None);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_fit_waits_and_is_told_why() {
    let cluster = five_nodes().await;
    cluster.apply(&requesting(1, "5", "")).await;
    cluster.settle().await;
    let pods = cluster.list::<Pod>("default").await;
    let status = pods[0].status.clone().unwrap_or_default();
    let condition = status
        .conditions
        .into_iter()
        .flatten()
        .next()
        .expect("it is said");
    assert_eq!(
        (condition.type_.as_str(), condition.reason.as_deref()),
        ("PodScheduled", Some("Unschedulable"))
    );
    assert_eq!(
        condition.message.as_deref(),
        Some(
            "0/5 nodes are available: 5 Insufficient cpu. no new claims to deallocate, preemption: 0/5 nodes are available: 5 Preemption is not helpful for scheduling."
        )
    );
}

#[tokio::test(start_paused = true)]
async fn the_maximum_of_pods_is_kept() {
    let options = Options {
        nodes: 2,
        max_pods: 5,
        ..Options::default()
    };
    let cluster = Cluster::start(options).await;
    cluster.apply(&web(12, "web:1", "")).await;
    cluster.settle().await;
    let last = by_node(&cluster.history().last());
    assert_eq!(last, expected(&[("", 2), ("node-1", 5), ("node-2", 5)]));
}

#[tokio::test(start_paused = true)]
async fn taints_selectors_and_affinity_are_kept() {
    let cluster = five_nodes().await;
    for (node, change) in [
        (
            "node-1",
            serde_json::json!({"spec": {"taints": [{"key": "own", "effect": "NoSchedule"}]}}),
        ),
        (
            "node-2",
            serde_json::json!({"metadata": {"labels": {"disk": "fast"}}}),
        ),
        (
            "node-3",
            serde_json::json!({"metadata": {"labels": {"disk": "fast"}}}),
        ),
    ] {
        cluster.patch(("v1", "Node", node), change).await;
    }
    cluster.settle().await;
    // One per node, and not where it is tainted: four fit.
    let apart = "      affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: web}}}]}}\n";
    cluster
        .apply(&format!("{}{apart}", web(6, "web:1", "")))
        .await;
    cluster.settle().await;
    let one_each = [
        ("", 2),
        ("node-2", 1),
        ("node-3", 1),
        ("node-4", 1),
        ("node-5", 1),
    ];
    assert_eq!(by_node(&cluster.history().last()), expected(&one_each));
    cluster.delete(crate::WEB, "Background").await;
    cluster.settle().await;
    let fast = "      nodeSelector: {disk: fast}\n";
    cluster
        .apply(&format!("{}{fast}", web(6, "web:1", "")))
        .await;
    cluster.settle().await;
    assert_eq!(
        by_node(&cluster.history().last()),
        expected(&[("node-2", 3), ("node-3", 3)])
    );
    cluster.delete(crate::WEB, "Background").await;
    cluster.settle().await;
    let tolerant = "      tolerations: [{key: own, operator: Exists}]\n      nodeSelector: {kubernetes.io/hostname: node-1}\n";
    cluster
        .apply(&format!("{}{tolerant}", web(2, "web:1", "")))
        .await;
    cluster.settle().await;
    assert_eq!(
        by_node(&cluster.history().last()),
        expected(&[("node-1", 2)])
    );
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_waits_is_placed_when_its_node_comes() {
    let cluster = five_nodes().await;
    cluster
        .apply(&format!(
            "{}      nodeSelector: {{zone: z}}\n",
            web(1, "web:1", "")
        ))
        .await;
    cluster.pass(Duration::from_secs(600)).await;
    assert_eq!(by_node(&cluster.history().last()), expected(&[("", 1)]));
    let label = serde_json::json!({"metadata": {"labels": {"zone": "z"}}});
    cluster.patch(("v1", "Node", "node-4"), label).await;
    cluster.settle().await;
    assert_eq!(
        by_node(&cluster.history().last()),
        expected(&[("node-4", 1)])
    );
}
