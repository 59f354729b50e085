//! One event to many watchers: how long until the last one has it.

use std::time::Instant;

use http::Method;
use serde_json::{Value, json};

use crate::api::{Api, NAMESPACE};
use crate::report::{Figure, median};

const ROUNDS: usize = 20;

pub(crate) async fn one_event(api: &Api, count: usize) -> anyhow::Result<Figure> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
    let mut connection = api.connect().await?;
    let list: Value = serde_json::from_slice(&connection.ask(Method::GET, &path, None).await?)?;
    let version = list["metadata"]["resourceVersion"]
        .as_str()
        .unwrap_or("0")
        .to_string();
    let watching = format!("{path}?watch=1&resourceVersion={version}&labelSelector=watched");
    let mut watches = Vec::new();
    for _ in 0..count {
        watches.push(api.connect().await?.watch(&watching).await?);
    }
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": format!("watched-{round}"), "labels": {"watched": "yes"}}});
        // Each reader runs on its own, as 200 clients would.
        let readers: Vec<_> = watches
            .drain(..)
            .map(|mut watch| {
                tokio::spawn(async move {
                    watch.line().await?;
                    anyhow::Ok((watch, Instant::now()))
                })
            })
            .collect();
        let started = Instant::now();
        connection.ask(Method::POST, &path, Some(&object)).await?;
        let mut last = started;
        for reader in readers {
            let (watch, received) = reader.await??;
            last = last.max(received);
            watches.push(watch);
        }
        times.push(last - started);
    }
    Ok(Figure::duration(
        format!("one event to {count} watchers, the last, p50"),
        median(times),
    ))
}
