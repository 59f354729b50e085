//! The same stories in bad weather, for several seeds: the same ends, within the same bounds.

use std::time::Duration;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use testkit::{Cluster, Options, Weather};

use crate::{WEB, deployment, images, ready_images, replica_sets, web};

const SEEDS: std::ops::Range<u64> = 1..6;

async fn in_weather(weather: Weather, nodes: u16) -> Cluster {
    let options = Options {
        nodes,
        weather: Some(weather),
        ..Options::default()
    };
    Cluster::start(options).await
}

/// The sky clears, and what was begun is ended.
async fn calm(cluster: &Cluster) {
    cluster.settle().await;
    cluster.clear_sky();
    // The longest pause of a worker that has failed many times.
    cluster.pass(Duration::from_secs(120)).await;
    cluster.settle().await;
}

/// A Deployment comes up, rolls, scales and goes.
async fn story(weather: Weather) {
    let seed = weather.seed;
    let cluster = in_weather(weather, 2).await;
    cluster.apply(&web(6, "web:1", "")).await;
    cluster.settle().await;
    cluster.apply(&web(6, "web:2", "")).await;
    cluster.settle().await;
    cluster.patch(WEB, json!({"spec": {"replicas": 4}})).await;
    calm(&cluster).await;
    assert!(cluster.troubles() > 0, "seed {seed}: the sun shone");
    assert_eq!(
        deployment(&cluster, "web").await.0,
        (4, 4, 4, 4),
        "seed {seed}"
    );
    assert_eq!(
        ready_images(&cluster).await,
        images(&[("web:2", 4)]),
        "seed {seed}"
    );
    let sets = [("web:1".to_owned(), 0), ("web:2".to_owned(), 4)];
    assert_eq!(replica_sets(&cluster).await, sets.into(), "seed {seed}");
    let sandboxes = ["node-1", "node-2"].map(|node| cluster.engine(node).sandbox_count());
    assert_eq!(sandboxes.iter().sum::<usize>(), 4, "seed {seed}");
    cluster.history().each(|step, moment| {
        let active = moment.active(crate::LABEL).len();
        assert!(
            active <= 8,
            "seed {seed}, step {step}: {active} pods, with surge there may be 8"
        );
    });
    cluster.delete(WEB, "Background").await;
    calm(&cluster).await;
    assert_eq!(cluster.list::<Pod>("default").await.len(), 0, "seed {seed}");
    assert_eq!(
        cluster.list::<ReplicaSet>("default").await.len(),
        0,
        "seed {seed}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_deployment_lives_in_the_rain() {
    for seed in SEEDS {
        story(Weather::rain(seed)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_deployment_lives_in_a_storm() {
    for seed in SEEDS {
        story(Weather::storm(seed)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_namespace_goes_in_a_storm() {
    for seed in SEEDS {
        let cluster = in_weather(Weather::storm(seed), 1).await;
        cluster
            .apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n")
            .await;
        let below = web(3, "web:1", "").replace("name: web}", "name: web, namespace: shop}");
        cluster.apply(&below).await;
        cluster.settle().await;
        cluster
            .delete(("v1", "Namespace", "shop"), "Background")
            .await;
        calm(&cluster).await;
        let namespace = cluster
            .get::<k8s_openapi::api::core::v1::Namespace>("shop")
            .await;
        assert!(namespace.is_none(), "seed {seed}: {namespace:#?}");
        assert_eq!(cluster.engine("node-1").sandbox_count(), 0, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_burst_in_a_storm_never_over_commits() {
    for seed in SEEDS {
        let options = Options {
            nodes: 5,
            max_pods: 10,
            weather: Some(Weather::storm(seed)),
            ..Options::default()
        };
        let cluster = Cluster::start(options).await;
        cluster.apply(&web(50, "web:1", "")).await;
        calm(&cluster).await;
        assert_eq!(
            deployment(&cluster, "web").await.0,
            (50, 50, 50, 50),
            "seed {seed}"
        );
        cluster.history().each(|step, moment| {
            let pods = moment
                .pods
                .values()
                .filter_map(|pod| pod.spec.as_ref()?.node_name.clone());
            let mut on_nodes = std::collections::BTreeMap::<String, usize>::new();
            for node in pods {
                *on_nodes.entry(node).or_default() += 1;
            }
            let most = on_nodes.values().max().copied().unwrap_or_default();
            assert!(most <= 10, "seed {seed}, step {step}: {on_nodes:?}");
        });
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_in_a_storm_restarts_nothing() {
    for seed in SEEDS {
        let mut cluster = in_weather(Weather::storm(seed), 2).await;
        cluster.apply(&web(6, "web:1", "")).await;
        cluster.settle().await;
        let before = cluster.counts();
        cluster.stop().await;
        cluster.start_again().await;
        calm(&cluster).await;
        assert_eq!(cluster.counts(), before, "seed {seed}");
        assert_eq!(
            deployment(&cluster, "web").await.0,
            (6, 6, 6, 6),
            "seed {seed}"
        );
    }
}
