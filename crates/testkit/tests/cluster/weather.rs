//! The same stories in bad weather, for several seeds: the same ends, within the same bounds.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use testkit::{Cluster, Options, Weather};

use crate::{WEB, deployment, images, ready_images, replica_sets, web};

/// Five seeds; as many as `WHARF_WEATHER_SEEDS` says, for a long look.
fn seeds() -> std::ops::RangeInclusive<u64> {
    let wanted = std::env::var("WHARF_WEATHER_SEEDS").ok();
    let count = wanted.and_then(|count| count.parse().ok());
    1..=count.unwrap_or(5)
}

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
    // The longest pause of a queue over a key that has failed many times is a minute.
    cluster.pass(Duration::from_secs(75)).await;
    cluster.settle().await;
}

/// At every step: the sets of the Deployment together were never told to have more than `at_most`
/// pods, and no set ever had more than it was told to have at most. (Together the pods may be more for
/// a moment, here as upstream: a set that was told to shrink may be late.)
fn check_never_too_many(cluster: &Cluster, seed: u64, at_most: i32) {
    let mut most = BTreeMap::<String, i32>::new();
    cluster.history().each(|step, moment| {
        let wanted = |set: &ReplicaSet| set.spec.as_ref().and_then(|spec| spec.replicas);
        let sum: i32 = moment.replica_sets.values().filter_map(wanted).sum();
        assert!(
            sum <= at_most,
            "seed {seed}, step {step}: {sum} pods are wanted"
        );
        for (name, set) in &moment.replica_sets {
            let known = most.entry(name.clone()).or_default();
            *known = wanted(set).unwrap_or_default().max(*known);
            let is_owned = |pod: &&&Pod| {
                let mut owners = pod.metadata.owner_references.iter().flatten();
                owners.any(|owner| Some(&owner.uid) == set.metadata.uid.as_ref())
            };
            let active = moment.active(crate::LABEL);
            let count = active.iter().filter(is_owned).count();
            let bound = usize::try_from(*known).unwrap_or_default();
            assert!(
                count <= bound,
                "seed {seed}, step {step}: {name} has {count} pods, not {bound}"
            );
        }
    });
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
    check_never_too_many(&cluster, seed, 8);
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
    for seed in seeds() {
        story(Weather::rain(seed)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_deployment_lives_in_a_storm() {
    for seed in seeds() {
        story(Weather::storm(seed)).await;
    }
}

/// Pods get names from the server: who asks for one again without knowing whether it was made has two.
#[tokio::test(start_paused = true)]
async fn no_pod_is_made_twice_in_a_hurricane() {
    for seed in seeds().take(2) {
        let cluster = in_weather(Weather::hurricane(seed), 1).await;
        cluster.apply(&web(20, "web:1", "")).await;
        cluster.pass(Duration::from_secs(600)).await;
        calm(&cluster).await;
        assert_eq!(
            deployment(&cluster, "web").await.0,
            (20, 20, 20, 20),
            "seed {seed}"
        );
        check_never_too_many(&cluster, seed, 20);
    }
}

#[tokio::test(start_paused = true)]
async fn a_namespace_goes_in_a_storm() {
    for seed in seeds() {
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
        cluster.settle().await;
        cluster.clear_sky();
        // Its own longest pause is ten seconds; a watch that broke is back after half a minute.
        cluster.pass(Duration::from_secs(45)).await;
        let namespace = cluster
            .get::<k8s_openapi::api::core::v1::Namespace>("shop")
            .await;
        assert!(namespace.is_none(), "seed {seed}: {namespace:#?}");
        assert_eq!(cluster.engine("node-1").sandbox_count(), 0, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_burst_in_a_storm_never_over_commits() {
    for seed in seeds() {
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
            let mut on_nodes = BTreeMap::<String, usize>::new();
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
    for seed in seeds() {
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
