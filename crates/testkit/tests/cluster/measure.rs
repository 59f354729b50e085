//! How long the whole takes on a real clock: numbers are printed, and nothing is asserted about time.
//!
//! `cargo test --release -p testkit --test cluster -- --ignored --nocapture measure`

use std::time::Instant;

use k8s_openapi::api::apps::v1::Deployment;
use testkit::{Cluster, Options};

use crate::web;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long when it is not optimised; prints and asserts nothing about time"]
async fn two_thousand_replicas_on_a_hundred_nodes() {
    let began = Instant::now();
    let options = Options {
        nodes: 100,
        paused: false,
        ..Options::default()
    };
    let cluster = Cluster::start(options).await;
    println!(
        "100 nodes are Ready and at rest after {:?}",
        began.elapsed()
    );
    let began = Instant::now();
    cluster.apply(&web(2000, "web:1", "")).await;
    let ready = |deployment: &Deployment| {
        let status = deployment.status.clone().unwrap_or_default();
        status.ready_replicas == Some(2000)
    };
    cluster.until("web", ready).await;
    println!("2,000 replicas are Ready after {:?}", began.elapsed());
}
