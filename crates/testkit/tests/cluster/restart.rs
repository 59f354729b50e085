//! The daemon ends and starts again; what runs does not notice.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use testkit::{Cluster, Options};

use crate::{WEB, cluster, deployment, images, ready_images, web};

async fn uids(cluster: &Cluster) -> BTreeSet<String> {
    let pods = cluster.list::<Pod>("default").await;
    pods.iter()
        .filter_map(|pod| pod.metadata.uid.clone())
        .collect()
}

#[tokio::test(start_paused = true)]
async fn nothing_is_restarted_and_nothing_replaced() {
    let options = Options {
        nodes: 3,
        ..Options::default()
    };
    let mut cluster = Cluster::start(options).await;
    cluster.apply(&web(9, "web:1", "")).await;
    cluster.settle().await;
    let (pods, counts) = (uids(&cluster).await, cluster.counts());
    for _ in 0..3 {
        cluster.stop().await;
        cluster.pass(Duration::from_secs(3600)).await;
        cluster.start_again().await;
        cluster.settle().await;
        cluster.pass(Duration::from_secs(600)).await;
    }
    assert_eq!(uids(&cluster).await, pods);
    assert_eq!(
        cluster.counts(),
        counts,
        "the engines were asked for nothing"
    );
    assert_eq!(deployment(&cluster, "web").await.0, (9, 9, 9, 9));
}

#[tokio::test(start_paused = true)]
async fn a_rollout_goes_on_where_it_was() {
    let mut cluster = cluster().await;
    cluster.apply(&web(8, "web:1", "")).await;
    cluster.settle().await;
    cluster
        .script()
        .change("web:2", |web| web.start_takes = Duration::from_secs(3));
    cluster.apply(&web(8, "web:2", "")).await;
    for _ in 0..6 {
        cluster.pass(Duration::from_millis(1500)).await;
        cluster.stop().await;
        cluster.start_again().await;
    }
    cluster.settle().await;
    cluster.pass(Duration::from_secs(60)).await;
    cluster.settle().await;
    assert_eq!(ready_images(&cluster).await, images(&[("web:2", 8)]));
    assert_eq!(deployment(&cluster, "web").await.0, (8, 8, 8, 8));
    crate::check_bounds(&cluster.history(), 6, 10);
}

#[tokio::test(start_paused = true)]
async fn what_was_deleted_meanwhile_goes() {
    let mut cluster = cluster().await;
    cluster.apply(&web(3, "web:1", "")).await;
    cluster.settle().await;
    cluster.patch(WEB, json!({"spec": {"replicas": 1}})).await;
    cluster.stop().await;
    cluster.start_again().await;
    cluster.settle().await;
    assert_eq!(cluster.engine("node-1").sandbox_count(), 1);
    assert_eq!(cluster.counts().starts, 3);
}
