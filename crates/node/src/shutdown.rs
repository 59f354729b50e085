//! Ending all pods of this machine when the cluster goes down, as the kubelet does when its machine
//! does (graceful node shutdown).
//!
//! What each pod asked for stands in the labels of its containers, so neither the API nor an agent is
//! needed: it is the same after a daemon that was killed. Nothing is written about it either, as the
//! same pods go on when the cluster comes up again.

use std::net::IpAddr;
use std::time::Duration;

use engine::{Engine, SandboxStatus};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use crate::observed::{Attempt, Observed, label};
use crate::pod::{self, Member, Role, members};
use crate::record::remembered;
use crate::stop::{Stop, pre_stop};

/// What is kept by somebody who does not answer is not waited for longer than this after its time.
const PATIENCE: Duration = Duration::from_secs(10);

/// Ends the containers of all pods side by side, each as its pod asked: preStop hook, stop signal, and
/// the kill when the pod's own grace period is over, or `limit` if that is shorter. Within a pod,
/// sidecars end after the others, the last one first. Returns when everything has ended or has been
/// killed; a container that does not even end then is told of in the log.
///
/// The pods' agent has ended: it would start their containers again. `host_ip` is where pods on the
/// machine's network are reached.
pub async fn end_pods(engine: &dyn Engine, host_ip: IpAddr, limit: Duration) {
    let sandboxes = engine.sandboxes().await.into_iter();
    let ends: FuturesUnordered<_> = sandboxes
        .filter(|sandbox| sandbox.labels.contains_key(label::POD_UID))
        .map(|sandbox| end_pod(engine, sandbox, host_ip, limit))
        .collect();
    ends.collect::<()>().await;
}

async fn end_pod(engine: &dyn Engine, sandbox: SandboxStatus, host_ip: IpAddr, limit: Duration) {
    let pod = remembered(&sandbox);
    let deadline = Instant::now() + pod::grace(&pod).min(limit);
    let address = sandbox.address.map_or(host_ip, IpAddr::from).to_string();
    let observed = Observed::new(sandbox);
    let members = pod.spec.as_ref().map(members).unwrap_or_default();
    let (sidecars, others): (Vec<_>, Vec<_>) = members
        .iter()
        .filter_map(|member| Some((member, observed.current(&member.container.name)?)))
        .filter(|(_, attempt)| attempt.is_running())
        .partition(|(member, _)| member.role == Role::Sidecar);
    let end = |(member, attempt)| end_container(engine, &pod, member, attempt, &address, deadline);
    let ends: FuturesUnordered<_> = others.into_iter().map(end).collect();
    ends.collect::<()>().await;
    for sidecar in sidecars.into_iter().rev() {
        end(sidecar).await;
    }
}

async fn end_container(
    engine: &dyn Engine,
    pod: &Pod,
    member: &Member,
    attempt: &Attempt,
    address: &str,
    deadline: Instant,
) {
    let container = &member.container;
    let stop = Stop {
        engine,
        id: &attempt.id,
        container,
        address,
        deadline,
        patience: PATIENCE,
    };
    let complain = |error| {
        tracing::info!(%error, pod = pod::formatted(pod), container = container.name, "preStop hook failed");
    };
    if let Err(error) = stop.run(pre_stop(container), complain).await {
        tracing::warn!(%error, pod = pod::formatted(pod), container = container.name, "it does not end");
    }
}
