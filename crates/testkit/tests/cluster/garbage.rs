//! What goes when its owner goes.

use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, Service};
use testkit::{Behaviour, Cluster};

use crate::{WEB, cluster, web};

async fn counts(cluster: &Cluster, namespace: &str) -> (usize, usize, usize) {
    (
        cluster.list::<Deployment>(namespace).await.len(),
        cluster.list::<ReplicaSet>(namespace).await.len(),
        cluster.list::<Pod>(namespace).await.len(),
    )
}

#[tokio::test(start_paused = true)]
async fn in_the_background_everything_below_goes() {
    let cluster = cluster().await;
    cluster.apply(&web(3, "web:1", "")).await;
    cluster.settle().await;
    cluster.delete(WEB, "Background").await;
    assert_eq!(
        cluster.list::<Deployment>("default").await.len(),
        0,
        "at once"
    );
    cluster.settle().await;
    assert_eq!(counts(&cluster, "default").await, (0, 0, 0));
    assert_eq!(cluster.engine("node-1").sandbox_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn in_the_foreground_the_owner_goes_last() {
    let cluster = cluster().await;
    let lingering = Behaviour {
        stop_takes: Duration::from_secs(10),
        ..Behaviour::default()
    };
    cluster.script().set("web:1", lingering);
    cluster.apply(&web(3, "web:1", "")).await;
    cluster.settle().await;
    cluster.delete(WEB, "Foreground").await;
    cluster.settle().await;
    assert_eq!(counts(&cluster, "default").await, (1, 1, 3));
    cluster.pass(Duration::from_secs(10)).await;
    cluster.settle().await;
    assert_eq!(counts(&cluster, "default").await, (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn orphans_stay_and_are_taken_in_again() {
    let cluster = cluster().await;
    cluster.apply(&web(3, "web:1", "")).await;
    cluster.settle().await;
    cluster.delete(WEB, "Orphan").await;
    cluster.settle().await;
    assert_eq!(counts(&cluster, "default").await, (0, 1, 3));
    let sets = cluster.list::<ReplicaSet>("default").await;
    assert_eq!(sets[0].metadata.owner_references, None);
    cluster.apply(&web(3, "web:1", "")).await;
    cluster.settle().await;
    assert_eq!(counts(&cluster, "default").await, (1, 1, 3));
    assert_eq!(cluster.counts().starts, 3, "nothing was made anew");
}

#[tokio::test(start_paused = true)]
async fn a_namespace_takes_all_with_it() {
    let cluster = cluster().await;
    let below = web(2, "web:1", "").replace("name: web}", "name: web, namespace: shop}");
    cluster
        .apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n")
        .await;
    cluster.apply(&below).await;
    cluster
        .apply(
            "apiVersion: v1
kind: ConfigMap
metadata: {name: a, namespace: shop}
---
apiVersion: v1
kind: Secret
metadata: {name: b, namespace: shop}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: c, namespace: shop, finalizers: [example.com/hold]}
",
        )
        .await;
    cluster.settle().await;
    assert_eq!(counts(&cluster, "shop").await, (1, 1, 2));
    cluster
        .delete(("v1", "Namespace", "shop"), "Background")
        .await;
    cluster.settle().await;
    assert_eq!(counts(&cluster, "shop").await, (0, 0, 0));
    let namespace = cluster.get::<Namespace>("shop").await.expect("it is held");
    let status = namespace.status.clone().unwrap_or_default();
    assert_eq!(status.phase.as_deref(), Some("Terminating"));
    let held = status
        .conditions
        .into_iter()
        .flatten()
        .filter(|condition| condition.status == "True");
    let held: Vec<String> = held.map(|condition| condition.type_).collect();
    assert_eq!(
        held,
        ["NamespaceContentRemaining", "NamespaceFinalizersRemaining"]
    );
    let config = ("v1", "ConfigMap", "shop/c");
    cluster
        .patch(
            config,
            serde_json::json!({"metadata": {"finalizers": null}}),
        )
        .await;
    cluster.settle().await;
    assert!(cluster.get::<Namespace>("shop").await.is_none());
    assert_eq!(cluster.list::<ConfigMap>("shop").await.len(), 0);
    assert_eq!(cluster.list::<Secret>("shop").await.len(), 0);
    assert_eq!(cluster.list::<Service>("shop").await.len(), 0);
    assert_eq!(cluster.engine("node-1").sandbox_count(), 0);
}
