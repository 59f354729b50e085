//! Deployments come up, grow and shrink.

use k8s_openapi::api::apps::v1::Deployment;
use serde_json::json;

use crate::{WEB, check_bounds, cluster, deployment, images, ready_images, web};

#[tokio::test(start_paused = true)]
async fn a_deployment_comes_up() {
    let cluster = cluster().await;
    cluster.apply(&web(3, "web:1", "")).await;
    cluster.settle().await;
    let (counts, conditions) = deployment(&cluster, "web").await;
    assert_eq!(counts, (3, 3, 3, 3));
    assert_eq!(conditions["Available"], "True MinimumReplicasAvailable");
    assert_eq!(conditions["Progressing"], "True NewReplicaSetAvailable");
    assert_eq!(ready_images(&cluster).await, images(&[("web:1", 3)]));
    let counts = cluster.counts();
    assert_eq!((counts.sandboxes, counts.starts, counts.stops), (3, 3, 0));
    check_bounds(&cluster.history(), 3, 3);
}

#[tokio::test(start_paused = true)]
async fn scaling_up_and_down_replaces_nothing() {
    let cluster = cluster().await;
    cluster.apply(&web(2, "web:1", "")).await;
    cluster.settle().await;
    for replicas in [5, 1, 0, 4] {
        cluster
            .patch(WEB, json!({"spec": {"replicas": replicas}}))
            .await;
        cluster.settle().await;
        let (counts, _) = deployment(&cluster, "web").await;
        assert_eq!(counts, (replicas, replicas, replicas, replicas));
    }
    // 2, then 3 more, then 4 after none.
    let counts = cluster.counts();
    assert_eq!((counts.starts, counts.stops), (9, 5));
    assert_eq!(cluster.engine("node-1").sandbox_count(), 4);
}

#[tokio::test(start_paused = true)]
async fn applying_the_same_again_writes_nothing() {
    let cluster = cluster().await;
    cluster.apply(&web(2, "web:1", "")).await;
    cluster.settle().await;
    let before = cluster.get::<Deployment>("web").await.expect("it is there");
    cluster.apply(&web(2, "web:1", "")).await;
    cluster.settle().await;
    let after = cluster.get::<Deployment>("web").await.expect("it is there");
    assert_eq!(
        before.metadata.resource_version,
        after.metadata.resource_version
    );
}
