//! One event to many watchers: how long until the last one has it.

use std::time::{Duration, Instant};

use anyhow::Context;
use http::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::api::{Api, NAMESPACE, Watch};
use crate::report::{Figure, median};

const ROUNDS: usize = 40;
/// About what the event below has on the wire.
const EVENT_BYTES: usize = 600;

/// Three figures: each watcher on a connection of its own, as 200 clients would have them; all
/// over shared HTTP/2 connections, as client-go has them; and what of the first is the kernel's.
pub(crate) async fn one_event(api: &Api, count: usize) -> anyhow::Result<Vec<Figure>> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
    let mut connection = api.connect().await?;
    let list: Value = serde_json::from_slice(&connection.ask(Method::GET, &path, None).await?)?;
    let version = list["metadata"]["resourceVersion"]
        .as_str()
        .unwrap_or("0")
        .to_string();
    let watching = |label: &str| {
        format!("{path}?watch=1&resourceVersion={version}&labelSelector=watched%3D{label}")
    };
    let mut alone = Vec::new();
    for _ in 0..count {
        alone.push(api.watch(&watching("alone")).await?);
    }
    let alone = rounds(api, &path, "alone", alone).await?;
    let together = api.watches_together(&watching("together"), count).await?;
    let together = rounds(api, &path, "together", together).await?;
    let name = format!("one event to {count} watchers");
    Ok(vec![
        Figure::duration(format!("{name}, the last, p50"), alone),
        Figure::duration(
            format!("{name} that share HTTP/2 connections, the last, p50"),
            together,
        ),
        Figure::duration(
            format!("{EVENT_BYTES} bytes to {count} plain TCP connections, the last, p50"),
            bare(count).await?,
        ),
    ])
}

/// Makes an object per round; the median of how long the last watcher waited for it.
async fn rounds(
    api: &Api,
    path: &str,
    label: &str,
    mut watches: Vec<Watch>,
) -> anyhow::Result<Duration> {
    let mut connection = api.connect().await?;
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": format!("{label}-{round}"), "labels": {"watched": label}}});
        // Each reader runs on its own, as so many clients would.
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
        connection.ask(Method::POST, path, Some(&object)).await?;
        let last;
        (watches, last) = all_have_read(readers).await?;
        times.push(last - started);
    }
    Ok(median(times))
}

/// A reader, which takes its connection back with it, and when it had read.
type Reading<C> = JoinHandle<anyhow::Result<(C, Instant)>>;

/// The connections again, and when the last one had been read from.
async fn all_have_read<C>(readers: Vec<Reading<C>>) -> anyhow::Result<(Vec<C>, Instant)> {
    let (mut connections, mut times) = (Vec::new(), Vec::new());
    for reader in readers {
        let (connection, received) = reader.await??;
        connections.push(connection);
        times.push(received);
    }
    let last = times.into_iter().max().context("nobody reads")?;
    Ok((connections, last))
}

/// The same bytes to as many connections without TLS, HTTP and a server: what no server on this
/// machine gets below.
async fn bare(count: usize) -> anyhow::Result<Duration> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let (mut writers, mut readers) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let reader = TcpStream::connect(listener.local_addr()?).await?;
        let (writer, _) = listener.accept().await?;
        writer.set_nodelay(true)?;
        writers.push(writer);
        readers.push(reader);
    }
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let reading: Vec<_> = readers
            .drain(..)
            .map(|mut reader| {
                tokio::spawn(async move {
                    reader.read_exact(&mut [0; EVENT_BYTES]).await?;
                    anyhow::Ok((reader, Instant::now()))
                })
            })
            .collect();
        let started = Instant::now();
        for writer in &mut writers {
            writer.write_all(&[b'x'; EVENT_BYTES]).await?;
        }
        let last;
        (readers, last) = all_have_read(reading).await?;
        times.push(last - started);
    }
    Ok(median(times))
}
