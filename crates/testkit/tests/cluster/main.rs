//! Whole stories of the cluster: apply this, let it settle, expect that.

mod deployments;
mod garbage;
mod measure;
mod nodes;
mod pods;
mod restart;
mod rollouts;
mod scheduling;
mod weather;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use objects::pod::is_ready;
use testkit::{Cluster, History, Options};

const WEB: (&str, &str, &str) = ("apps/v1", "Deployment", "web");
const LABEL: (&str, &str) = ("app", "web");

/// Three replicas of `web:1`; `spec` is added, as lines of the Deployment's spec.
fn web(replicas: u32, image: &str, spec: &str) -> String {
    let spec: String = spec
        .lines()
        .map(|line| format!("  {}\n", line.trim_end()))
        .collect();
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
{spec}  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      containers:
      - {{name: c, image: \"{image}\"}}
"
    )
}

async fn cluster() -> Cluster {
    Cluster::start(Options::default()).await
}

/// Updated, ready and available replicas, and conditions as `type: reason`, of a Deployment.
async fn deployment(
    cluster: &Cluster,
    name: &str,
) -> ((i32, i32, i32, i32), BTreeMap<String, String>) {
    let deployment = cluster.get::<Deployment>(name).await.expect("it is there");
    let status = deployment.status.clone().unwrap_or_default();
    let conditions = status.conditions.into_iter().flatten();
    let conditions = conditions.map(|condition| {
        let reason = condition.reason.unwrap_or_default();
        (condition.type_, format!("{} {reason}", condition.status))
    });
    let count = |count: Option<i32>| count.unwrap_or_default();
    let counts = (
        count(status.replicas),
        count(status.updated_replicas),
        count(status.ready_replicas),
        count(status.available_replicas),
    );
    (counts, conditions.collect())
}

/// The images of the ready pods of a Deployment called `web`, with their counts.
async fn ready_images(cluster: &Cluster) -> BTreeMap<String, usize> {
    let pods = cluster.list::<Pod>("default").await;
    let mut images = BTreeMap::new();
    for pod in pods.iter().filter(|pod| is_ready(pod)) {
        *images.entry(image_of(pod)).or_default() += 1;
    }
    images
}

fn image_of(pod: &Pod) -> String {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    containers
        .filter_map(|container| container.image.clone())
        .collect()
}

fn images(expected: &[(&str, usize)]) -> BTreeMap<String, usize> {
    let expected = expected.iter();
    expected
        .map(|(image, count)| ((*image).to_owned(), *count))
        .collect()
}

/// Replicas of each ReplicaSet, by its image.
async fn replica_sets(cluster: &Cluster) -> BTreeMap<String, i32> {
    let sets = cluster.list::<ReplicaSet>("default").await;
    sets.iter().map(image_and_replicas).collect()
}

fn image_and_replicas(set: &Arc<ReplicaSet>) -> (String, i32) {
    let spec = set.spec.clone().unwrap_or_default();
    let template = spec.template.and_then(|template| template.spec);
    let image = template.and_then(|spec| spec.containers.into_iter().next()?.image);
    (image.unwrap_or_default(), spec.replicas.unwrap_or_default())
}

/// Checks at every step since the first time that `at_least` pods were ready: there were never fewer
/// than that ready, nor ever more than `at_most` active.
fn check_bounds(history: &History, at_least: usize, at_most: usize) {
    let mut has_begun = false;
    history.each(|step, moment| {
        let active = moment.active(LABEL).len();
        let ready = moment.ready(LABEL).len();
        has_begun |= ready >= at_least;
        assert!(
            active <= at_most,
            "step {step}: {active} pods, not {at_most}"
        );
        assert!(
            !has_begun || ready >= at_least,
            "step {step}: {ready} ready pods, not {at_least}"
        );
    });
    assert!(has_begun, "there were never {at_least} ready pods");
}
