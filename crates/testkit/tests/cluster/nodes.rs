//! Nodes that are lost and come back.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use objects::pod::{condition, has_ended, is_ready};
use testkit::{Cluster, Options};

use crate::{deployment, web};

async fn two_nodes() -> Cluster {
    let options = Options {
        nodes: 2,
        ..Options::default()
    };
    Cluster::start(options).await
}

async fn taints(cluster: &Cluster, node: &str) -> BTreeSet<String> {
    let node = cluster.get::<Node>(node).await.expect("it is there");
    let taints = node
        .spec
        .iter()
        .flat_map(|spec| spec.taints.iter().flatten());
    taints
        .map(|taint| format!("{}:{}", taint.key, taint.effect))
        .collect()
}

async fn ready_on(cluster: &Cluster, node: &str) -> usize {
    let pods = cluster.list::<Pod>("default").await;
    let is_there =
        |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node);
    pods.iter()
        .filter(|pod| is_there(pod) && is_ready(pod))
        .count()
}

#[tokio::test(start_paused = true)]
async fn a_lost_node_is_tainted_and_its_pods_are_replaced_elsewhere() {
    let mut cluster = two_nodes().await;
    cluster.apply(&web(4, "web:1", "")).await;
    cluster.settle().await;
    assert_eq!(
        (
            ready_on(&cluster, "node-1").await,
            ready_on(&cluster, "node-2").await
        ),
        (2, 2)
    );
    cluster.lose_node("node-2").await;
    cluster.pass(Duration::from_secs(30)).await;
    assert_eq!(taints(&cluster, "node-2").await, BTreeSet::new(), "not yet");
    cluster.pass(Duration::from_secs(30)).await;
    let unreachable = "node.kubernetes.io/unreachable";
    let expected = [
        format!("{unreachable}:NoExecute"),
        format!("{unreachable}:NoSchedule"),
    ];
    assert_eq!(taints(&cluster, "node-2").await, expected.into());
    assert_eq!(ready_on(&cluster, "node-2").await, 0, "out of service");
    assert_eq!(deployment(&cluster, "web").await.0, (4, 4, 2, 2));
    // Tolerated for five minutes, then evicted; others take their place.
    cluster.pass(Duration::from_secs(200)).await;
    assert_eq!(cluster.list::<Pod>("default").await.len(), 4);
    cluster.pass(Duration::from_secs(120)).await;
    assert_eq!(ready_on(&cluster, "node-1").await, 4);
    assert_eq!(deployment(&cluster, "web").await.0, (4, 4, 4, 4));
    // The evicted ones stay until their node has let them go.
    assert_eq!(cluster.list::<Pod>("default").await.len(), 6);
    cluster.return_node("node-2").await;
    cluster.pass(Duration::from_secs(60)).await;
    cluster.settle().await;
    assert_eq!(taints(&cluster, "node-2").await, BTreeSet::new());
    assert_eq!(cluster.list::<Pod>("default").await.len(), 4);
    assert_eq!(cluster.engine("node-2").sandbox_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_returns_in_time_keeps_its_pods() {
    let mut cluster = two_nodes().await;
    cluster.apply(&web(4, "web:1", "")).await;
    cluster.settle().await;
    let before = cluster.engine("node-2").running();
    cluster.lose_node("node-2").await;
    cluster.pass(Duration::from_secs(120)).await;
    assert_eq!(ready_on(&cluster, "node-2").await, 0);
    cluster.return_node("node-2").await;
    cluster.pass(Duration::from_secs(400)).await;
    assert_eq!(ready_on(&cluster, "node-2").await, 2);
    assert_eq!(cluster.engine("node-2").running(), before);
    assert_eq!(cluster.counts().starts, 4);
}

#[tokio::test(start_paused = true)]
async fn a_cordoned_node_gets_no_more() {
    let cluster = two_nodes().await;
    cluster
        .patch(
            ("v1", "Node", "node-1"),
            serde_json::json!({"spec": {"unschedulable": true}}),
        )
        .await;
    cluster.settle().await;
    cluster.apply(&web(4, "web:1", "")).await;
    cluster.settle().await;
    assert_eq!(
        (
            ready_on(&cluster, "node-1").await,
            ready_on(&cluster, "node-2").await
        ),
        (0, 4)
    );
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_removed_takes_its_pods_along() {
    let mut cluster = two_nodes().await;
    cluster.apply(&web(4, "web:1", "")).await;
    cluster.settle().await;
    cluster.lose_node("node-2").await;
    cluster.delete(("v1", "Node", "node-2"), "Background").await;
    // It may come back at once, as one that is installed anew does.
    cluster.pass(Duration::from_secs(30)).await;
    assert_eq!(ready_on(&cluster, "node-2").await, 2);
    cluster.pass(Duration::from_secs(30)).await;
    cluster.settle().await;
    assert_eq!(ready_on(&cluster, "node-1").await, 4);
    assert_eq!(cluster.list::<Pod>("default").await.len(), 4);
    let mut told = BTreeSet::new();
    cluster.history().each(|_, moment| {
        for pod in moment.pods.values().filter(|pod| has_ended(pod)) {
            let disrupted = condition(pod, "DisruptionTarget");
            let message = disrupted.and_then(|condition| condition.message.clone());
            told.insert((pod.metadata.name.clone(), message));
        }
    });
    let messages: Vec<_> = told.into_iter().map(|(_, message)| message).collect();
    let expected = Some("PodGC: node no longer exists".to_owned());
    assert_eq!(messages, [expected.clone(), expected]);
}
