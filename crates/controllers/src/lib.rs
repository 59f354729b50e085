//! The controllers: each keeps one promise of the cluster true, one file each.
//!
//! The decision: a controller is a function from what the caches hold to the next few writes, run
//! again whenever something that it looks at has changed. It keeps no state of its own that it could
//! lose: what it did last it finds in the cache again, because after a write it waits until the cache
//! has seen it ([`Informer::caught_up_with`](informer::Informer::caught_up_with)) before it looks
//! at the same object anew. So there are no expectations to count and no timers to guess, and what
//! happens after a crash is what happens every time.
//!
//! ```text
//!   informers ──change──► queue of names ──► reconcile(name): look, decide, write, wait ──► again
//!                                            a panic or an error: the same name, a little later
//! ```
//!
//! What is the same in all of them is in `work`: a controller says by `Reconcile` what it
//! does about a name, and how many it looks at at once.
//!
//! Each writes under its own name (`system:serviceaccount:kube-system:deployment-controller` and so
//! on), with the rights that upstream gives to it. Which node a pod goes to is left to the scheduler,
//! what happens on a node to the node agent.

mod aggregation;
mod backends;
mod certificates;
mod claim;
mod deployment;
mod discovery;
mod disruption;
mod endpoints;
mod endpointslice;
mod events;
mod eviction;
mod garbage;
mod metadata;
mod mirroring;
mod namespace;
mod nodes;
mod pod_gc;
mod pods;
mod replicaset;
mod service_account;
mod slices;
mod tokens;
mod work;
mod writes;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use informer::{Change, Informer, Informers, Object, Recorder};
use k8s_openapi::jiff::Timestamp;
use lifecycle::Drain;
use tracing::error;

/// What the controllers need to know about the cluster, and its rules that are not objects.
#[derive(Clone)]
pub struct Config {
    /// A client that acts under the name of a controller, such as `deployment-controller`.
    pub client_for: Arc<dyn Fn(&'static str) -> kube::Client + Send + Sync>,
    /// The certificates, as PEM, by which pods may trust the API server.
    pub root_certificates: String,
    /// How long a node may go without renewing its lease before it counts as unreachable.
    pub node_grace: Duration,
    /// How many pods that have ended are kept before the oldest are deleted.
    pub ended_pods_max: usize,
    /// How long events are kept.
    pub event_lifetime: Duration,
    /// The time; a value, so that tests can stop it.
    pub now: Clock,
}

/// Reads a clock.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

impl Config {
    /// Upstream's defaults.
    pub fn new(
        client_for: Arc<dyn Fn(&'static str) -> kube::Client + Send + Sync>,
        root_certificates: String,
    ) -> Self {
        Config {
            client_for,
            root_certificates,
            node_grace: Duration::from_secs(50),
            ended_pods_max: 12_500,
            event_lifetime: Duration::from_secs(3600),
            now: Arc::new(Timestamp::now),
        }
    }
}

/// What a controller works with.
#[derive(Clone)]
struct Context {
    name: &'static str,
    client: kube::Client,
    informers: Informers,
    config: Config,
    drain: Drain,
}

impl Context {
    fn recorder(&self) -> Recorder {
        Recorder::new(self.client.clone(), self.name, None, self.drain.clone())
    }
}

type Running = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A controller: the name it acts under, and what runs it.
type Controller = (&'static str, fn(Context) -> Running);

/// Runs all controllers until `drain` is signaled.
pub async fn run(informers: Informers, config: Config, drain: Drain) {
    let controllers: [Controller; 15] = [
        ("deployment-controller", |context| {
            Box::pin(deployment::run(context))
        }),
        ("replicaset-controller", |context| {
            Box::pin(replicaset::run(context))
        }),
        ("endpointslice-controller", |context| {
            Box::pin(endpointslice::run(context))
        }),
        ("endpoint-controller", |context| {
            Box::pin(endpoints::run(context))
        }),
        ("endpointslicemirroring-controller", |context| {
            Box::pin(mirroring::run(context))
        }),
        ("service-account-controller", |context| {
            Box::pin(service_account::run(context))
        }),
        ("root-ca-cert-publisher", |context| {
            Box::pin(certificates::run(context))
        }),
        ("tokens-controller", |context| {
            Box::pin(tokens::run(context))
        }),
        ("namespace-controller", |context| {
            Box::pin(namespace::run(context))
        }),
        ("generic-garbage-collector", |context| {
            Box::pin(garbage::run(context))
        }),
        ("pod-garbage-collector", |context| {
            Box::pin(pod_gc::run(context))
        }),
        ("node-controller", |context| Box::pin(nodes::run(context))),
        ("node-controller", |context| {
            Box::pin(eviction::run(context))
        }),
        ("clusterrole-aggregation-controller", |context| {
            Box::pin(aggregation::run(context))
        }),
        ("generic-garbage-collector", |context| {
            Box::pin(events::run(context))
        }),
    ];
    let mut running = tokio::task::JoinSet::new();
    for (name, start) in controllers {
        let context = Context {
            name,
            client: (config.client_for)(name),
            informers: informers.clone(),
            config: config.clone(),
            drain: drain.clone(),
        };
        running.spawn(keep_running(context, start));
    }
    while running.join_next().await.is_some() {}
}

/// Starts a controller again if it panics outside of a reconcile, which the queue contains itself.
async fn keep_running(context: Context, start: fn(Context) -> Running) {
    while !context.drain.is_signaled() {
        let round = std::panic::AssertUnwindSafe(start(context.clone()));
        if round.catch_unwind().await.is_ok() {
            return;
        }
        error!(controller = context.name, "panicked, starting it again");
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            () = context.drain.signaled() => {}
        }
    }
}

/// Hands each change of a kind to `note`, from the first list on, until the drain.
async fn follow<K: Object>(informer: Informer<K>, mut note: impl FnMut(&Change<K>)) {
    let mut changes = informer.changes();
    while let Some(change) = changes.next().await {
        note(&change);
    }
}

/// Holds a worker on to its object for a moment after it has summed up many others in it: 5 ms, and
/// 20 µs for each. The first change is written at once; but of a thousand pods that become ready one
/// after the other, not each is worth a write of its own.
async fn rest(summed_up: usize) {
    let each =
        Duration::from_micros(20).saturating_mul(u32::try_from(summed_up).unwrap_or(u32::MAX));
    tokio::time::sleep(Duration::from_millis(5) + each).await;
}
