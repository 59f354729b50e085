//! Many small writes at once, and one large read.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};

use crate::api::{Api, NAMESPACE};
use crate::report::{Figure, median};

fn path(rest: &str) -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/configmaps{rest}")
}

/// `clients` connections write `count` objects of 1 KB; what they wrote stays for [`list`].
pub(crate) async fn creates(
    api: &Api,
    clients: usize,
    count: usize,
) -> anyhow::Result<Vec<Figure>> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut connections = Vec::new();
    for _ in 0..clients {
        connections.push(api.connect().await?);
    }
    let started = Instant::now();
    let tasks: Vec<_> = connections
        .into_iter()
        .map(|mut connection| {
            let next = next.clone();
            tokio::spawn(async move {
                let mut times = Vec::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return anyhow::Ok(times);
                    }
                    let started = Instant::now();
                    connection
                        .ask(Method::POST, &path(""), Some(&object(number)))
                        .await?;
                    times.push(started.elapsed());
                }
            })
        })
        .collect();
    let mut times: Vec<Duration> = Vec::new();
    for task in tasks {
        times.extend(task.await??);
    }
    let rate = count as f64 / started.elapsed().as_secs_f64();
    Ok(vec![
        Figure::rate(format!("creates of 1 KB, {clients} clients"), rate),
        Figure::duration(
            format!("creates of 1 KB, {clients} clients, p50"),
            median(times),
        ),
    ])
}

/// Reads all of them, to the last byte.
pub(crate) async fn list(api: &Api, count: usize) -> anyhow::Result<Figure> {
    let mut connection = api.connect().await?;
    let mut times = Vec::new();
    for _ in 0..15 {
        let started = Instant::now();
        let bytes = connection.read(&path("")).await?;
        times.push(started.elapsed());
        anyhow::ensure!(bytes > count * 1000, "the list has {bytes} bytes only");
    }
    connection.ask(Method::DELETE, &path(""), None).await?;
    Ok(Figure::duration(
        format!("LIST of {count} × 1 KB, p50"),
        median(times),
    ))
}

fn object(number: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("load-{number}")},
        "data": {"content": "x".repeat(700)}})
}
