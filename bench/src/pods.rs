//! From a pod's creation to Running, as a watcher sees it.

use std::collections::HashSet;
use std::time::Instant;

use anyhow::Context;
use http::Method;
use serde_json::{Value, json};

use crate::IMAGE;
use crate::api::{Api, NAMESPACE, Watch};
use crate::report::{Figure, median};

pub(crate) async fn one_at_a_time(api: &Api, count: usize) -> anyhow::Result<Figure> {
    let (mut connection, mut pods) = (api.connect().await?, watch(api).await?);
    let mut times = Vec::new();
    for number in 0..count {
        let name = format!("one-{number}");
        let started = Instant::now();
        connection
            .ask(Method::POST, &path(""), Some(&pod(&name)))
            .await?;
        pods.until(|event| event["object"]["metadata"]["name"] == name && runs(event))
            .await?;
        times.push(started.elapsed());
        connection
            .ask(
                Method::DELETE,
                &path(&format!("/{name}?gracePeriodSeconds=0")),
                None,
            )
            .await?;
        pods.until(|event| {
            event["object"]["metadata"]["name"] == name && event["type"] == "DELETED"
        })
        .await?;
    }
    Ok(Figure::duration(
        "pod: create to Running, one at a time, p50",
        median(times),
    ))
}

pub(crate) async fn at_once(api: &Api, count: usize) -> anyhow::Result<Figure> {
    let (mut connection, mut pods) = (api.connect().await?, watch(api).await?);
    let started = Instant::now();
    for number in 0..count {
        connection
            .ask(
                Method::POST,
                &path(""),
                Some(&pod(&format!("many-{number}"))),
            )
            .await?;
    }
    let mut waiting: HashSet<String> = (0..count).map(|number| format!("many-{number}")).collect();
    while !waiting.is_empty() {
        let event = pods.event().await?;
        if runs(&event) {
            waiting.remove(
                event["object"]["metadata"]["name"]
                    .as_str()
                    .context("a pod without a name")?,
            );
        }
    }
    let figure = Figure::duration(
        format!("pod: {count} at once, all Running"),
        started.elapsed(),
    );
    connection
        .ask(Method::DELETE, &path("?gracePeriodSeconds=0"), None)
        .await?;
    let mut gone = 0;
    while gone < count {
        if pods.event().await?["type"] == "DELETED" {
            gone += 1;
        }
    }
    Ok(figure)
}

fn path(rest: &str) -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/pods{rest}")
}

async fn watch(api: &Api) -> anyhow::Result<Watch> {
    api.watch(&path("?watch=1")).await
}

fn runs(event: &Value) -> bool {
    event["type"] != "DELETED" && event["object"]["status"]["phase"] == "Running"
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "containers": [{"name": "c", "image": IMAGE, "imagePullPolicy": "IfNotPresent"}]}})
}
