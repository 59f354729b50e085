//! The first signs of life of a cluster that is being started.
//!
//! Before a server listens there is nothing to wait on, so these look again and again.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::time::{sleep, timeout};

use crate::api::Api;

const INTERVAL_LOOK: Duration = Duration::from_millis(1);

/// When a watcher saw the first node Ready.
pub(crate) async fn node_ready(kubeconfig: &Path) -> anyhow::Result<Instant> {
    let mut nodes = loop {
        // Not there, half written, or nobody listens: all the same, it starts.
        if let Ok(api) = Api::of_kubeconfig(kubeconfig)
            && let Ok(nodes) = api.watch("/api/v1/nodes?watch=1").await
        {
            break nodes;
        }
        sleep(INTERVAL_LOOK).await;
    };
    nodes
        .until(|event| {
            let conditions = event["object"]["status"]["conditions"].as_array();
            conditions.is_some_and(|conditions| {
                conditions
                    .iter()
                    .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
            })
        })
        .await?;
    Ok(Instant::now())
}

/// When the cluster's name server first knew the API's Service.
pub(crate) async fn dns_answer(server: Ipv4Addr) -> anyhow::Result<Instant> {
    let mut query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00".to_vec();
    for label in ["kubernetes", "default", "svc", "cluster", "local"] {
        query.push(label.len() as u8);
        query.extend_from_slice(label.as_bytes());
    }
    // The root label, type A, class IN (RFC 1035, section 4.1.2).
    query.extend_from_slice(b"\x00\x00\x01\x00\x01");
    loop {
        // A socket of its own each time: translated once, a flow keeps its translation.
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
        let mut answer = [0; 512];
        if socket.connect((server, 53)).await.is_ok()
            && socket.send(&query).await.is_ok()
            && let Ok(Ok(length)) = timeout(5 * INTERVAL_LOOK, socket.recv(&mut answer)).await
            // Bytes 6 and 7 count the answers.
            && length > 12
            && answer[7] > 0
        {
            return Ok(Instant::now());
        }
        sleep(INTERVAL_LOOK).await;
    }
}
