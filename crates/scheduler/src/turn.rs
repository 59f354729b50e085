//! The loop that owns the state: hears, decides, and sends the bindings on their way.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use informer::{Change, Changes, EventType, Informers, Key, Recorder};
use k8s_openapi::api::core::v1::{Binding, Namespace, Node, ObjectReference, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use lifecycle::Drain;
use serde_json::json;
use tokio::time::Instant;
use tracing::warn;

use crate::cluster::Cluster;
use crate::decide::{Decision, Rejection, decide};
use crate::filter::Rules;
use crate::pending::Pending;

/// Pauses between two questions after what became of a binding, doubled each time.
const ASK_AGAIN_MIN: Duration = Duration::from_millis(50);
const ASK_AGAIN_MAX: Duration = Duration::from_secs(5);

/// The name by which pods ask for this scheduler.
const NAME: &str = "default-scheduler";
const FIELD_MANAGER: &str = "kube-scheduler";
/// Bindings and conditions that may be on their way at once.
const ON_THE_WAY_MAX: usize = 128;
/// Pods decided on before others of the runtime get their turn.
const DECISIONS_AT_ONCE: usize = 32;

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("could not bind the pod: {0}")]
    Bind(#[source] kube::Error),
    #[error("could not write the pod's condition: {0}")]
    Condition(#[source] kube::Error),
}

/// Schedules pods until `drain` is signaled. `client` writes in the scheduler's name
/// (`system:kube-scheduler`); `instance` tells schedulers apart in events, usually by their host.
pub async fn run(informers: Informers, client: kube::Client, instance: &str, drain: Drain) {
    let pods = informers.pods();
    let nodes = informers.of::<Node>();
    let namespaces = informers.of::<Namespace>();
    // A pod that is known to run where its node is not yet known would be counted on nothing.
    nodes.synced().await;
    pods.synced().await;
    namespaces.synced().await;
    let instance = format!("{NAME}-{instance}");
    let scheduler = Scheduler {
        recorder: Recorder::with_series(client.clone(), NAME, &instance, drain.clone()),
        client,
        cluster: Cluster::default(),
        pending: Pending::default(),
    };
    let feeds = Feeds {
        pods: pods.changes(),
        nodes: nodes.changes(),
        namespaces: namespaces.changes(),
    };
    scheduler.run(feeds, drain).await;
}

struct Feeds {
    pods: Changes<Pod>,
    nodes: Changes<Node>,
    namespaces: Changes<Namespace>,
}

struct Scheduler {
    client: kube::Client,
    recorder: Recorder,
    cluster: Cluster,
    pending: Pending,
}

/// What has come of a write.
enum Outcome {
    Bound,
    NotBound(Arc<Pod>, Error),
    Said,
}

impl Scheduler {
    async fn run(mut self, mut feeds: Feeds, drain: Drain) {
        let mut on_the_way = FuturesUnordered::new();
        loop {
            self.hear_all(&mut feeds);
            for _ in 0..DECISIONS_AT_ONCE {
                if on_the_way.len() >= ON_THE_WAY_MAX {
                    break;
                }
                let Some(pod) = self.pending.next(Instant::now()) else {
                    break;
                };
                // Each is a task of its own, so that it goes on while this loop decides.
                on_the_way.extend(self.turn(pod).map(|write| tokio::spawn(write)));
            }
            let full = on_the_way.len() >= ON_THE_WAY_MAX;
            let due = match full {
                true => None,
                false => self.pending.next_due(),
            };
            tokio::select! {
                biased;
                () = drain.signaled() => return,
                Some(outcome) = on_the_way.next() => match outcome {
                    Ok(outcome) => self.settle(outcome),
                    Err(error) => warn!(%error, "a write of the scheduler panicked"),
                },
                change = feeds.nodes.next() => match change {
                    Some(change) => self.hear_node(change),
                    None => return,
                },
                change = feeds.namespaces.next() => match change {
                    Some(change) => self.hear_namespace(&change),
                    None => return,
                },
                change = feeds.pods.next() => match change {
                    Some(change) => self.hear_pod(change),
                    None => return,
                },
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
                () = tokio::task::yield_now(), if !full && self.pending.has_ready() => {}
            }
        }
    }

    fn hear_all(&mut self, feeds: &mut Feeds) {
        while let Some(change) = feeds.namespaces.try_next() {
            self.hear_namespace(&change);
        }
        while let Some(change) = feeds.nodes.try_next() {
            self.hear_node(change);
        }
        while let Some(change) = feeds.pods.try_next() {
            self.hear_pod(change);
        }
    }

    fn hear_namespace(&mut self, change: &Change<Namespace>) {
        let meta = &change.object().metadata;
        let name = meta.name.clone().unwrap_or_default();
        match change {
            Change::Applied { .. } => {
                let labels = meta.labels.clone().unwrap_or_default();
                if self.cluster.namespaces.insert(name, labels.clone()) != Some(labels) {
                    self.pending.changed(Rules::PODS);
                }
            }
            Change::Deleted(_) => drop(self.cluster.namespaces.remove(&name)),
        }
    }

    fn hear_node(&mut self, change: Change<Node>) {
        match change {
            Change::Applied { new, old } => {
                let helps = old.is_none_or(|old| decides(&old) != decides(&new));
                self.cluster.set_node(new);
                if helps {
                    self.pending
                        .changed(Rules::NODE.with(Rules::ROOM).with(Rules::PODS));
                }
            }
            Change::Deleted(node) => {
                self.cluster
                    .remove_node(node.metadata.name.as_deref().unwrap_or_default());
                // One domain less may be what a spread waits for.
                self.pending.changed(Rules::PODS);
            }
        }
    }

    fn hear_pod(&mut self, change: Change<Pod>) {
        let key = Key::of(&**change.object());
        let pod = match change {
            Change::Applied { new, .. } if !objects::pod::has_ended(&new) => new,
            _ => {
                self.pending.remove(&key);
                if self.cluster.remove_pod(&key) {
                    self.pending.changed(Rules::ROOM.with(Rules::PODS));
                }
                return;
            }
        };
        let spec = pod.spec.as_ref();
        match spec
            .and_then(|spec| spec.node_name.clone())
            .filter(|name| !name.is_empty())
        {
            Some(node) => {
                let leaving = pod.metadata.deletion_timestamp.is_some();
                self.pending.remove(&key);
                let news = !self.cluster.is_placed(&key) || leaving;
                self.cluster.place(pod, &node);
                if news {
                    self.pending.changed(Rules::PODS);
                }
            }
            None if is_ours(&pod) => self.pending.set(pod),
            None => self.pending.remove(&key),
        }
    }

    /// Decides over a pod and returns what is to be written, if anything.
    fn turn(&mut self, pod: Arc<Pod>) -> Option<futures::future::BoxFuture<'static, Outcome>> {
        let key = Key::of(&*pod);
        match decide(&mut self.cluster, &pod) {
            Decision::Place(node) => {
                // Counted from now on: the next decision must not give the same room away again.
                self.cluster.place(pod.clone(), &node);
                let (client, recorder) = (self.client.clone(), self.recorder.clone());
                Some(Box::pin(async move {
                    match bind(client, &pod, &node).await {
                        Ok(()) => {
                            let message = format!("Successfully assigned {key} to {node}");
                            say(
                                &recorder,
                                &pod,
                                EventType::Normal,
                                "Scheduled",
                                "Binding",
                                message,
                            );
                            Outcome::Bound
                        }
                        Err(error) => Outcome::NotBound(pod, error),
                    }
                }))
            }
            Decision::Wait(rejection) => {
                self.pending.wait(&key, rejection.rules);
                let Rejection { message, .. } = rejection;
                let said = message.clone();
                let warning = EventType::Warning;
                say(
                    &self.recorder,
                    &pod,
                    warning,
                    "FailedScheduling",
                    "Scheduling",
                    said,
                );
                let client = self.client.clone();
                let condition = unschedulable(&pod, "Unschedulable", message, Timestamp::now())?;
                Some(Box::pin(async move {
                    if let Err(error) = write_condition(client, &pod, condition).await {
                        warn!(%key, %error, "the condition of a pod was not written");
                    }
                    Outcome::Said
                }))
            }
        }
    }

    fn settle(&mut self, outcome: Outcome) {
        let Outcome::NotBound(pod, error) = outcome else {
            // That a pod is bound is heard by the watch.
            return;
        };
        let key = Key::of(&*pod);
        if !self.pending.contains(&key) {
            // Gone meanwhile, or bound by someone else: the watch has told.
            return;
        }
        self.cluster.remove_pod(&key);
        self.pending.pause(&key, Instant::now());
        self.pending.changed(Rules::ROOM.with(Rules::PODS));
        if matches!(&error, Error::Bind(kube::Error::Api(status)) if matches!(status.code, 404 | 409))
        {
            // The same, only that the watch has yet to tell.
            return;
        }
        warn!(%key, %error, "a pod was not bound, will be tried again");
        let text = match error {
            Error::Bind(kube::Error::Api(status)) => status.message,
            other => other.to_string(),
        };
        let warning = EventType::Warning;
        say(
            &self.recorder,
            &pod,
            warning,
            "FailedScheduling",
            "Scheduling",
            text,
        );
    }
}

fn say(
    recorder: &Recorder,
    pod: &Pod,
    event_type: EventType,
    reason: &str,
    action: &str,
    message: String,
) {
    let regarding = informer::reference_to(pod);
    recorder.event_on(regarding, event_type, reason, Some(action), message);
}

async fn bind(client: kube::Client, pod: &Pod, node: &str) -> Result<(), Error> {
    let meta = &pod.metadata;
    let binding = Binding {
        metadata: ObjectMeta {
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            uid: meta.uid.clone(),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        },
    };
    let pods: Api<Pod> = Api::namespaced(client, meta.namespace.as_deref().unwrap_or_default());
    let name = meta.name.as_deref().unwrap_or_default();
    let params = PostParams::default();
    let bound = pods
        .create_subresource("binding", name, &params, &binding)
        .await;
    match bound.map(|_: serde_json::Value| ()) {
        Err(error) if leaves_open(&error) && is_bound(&pods, name, node).await => Ok(()),
        bound => bound.map_err(Error::Bind),
    }
}

/// Whether the request may have been carried out although it was answered with an error.
fn leaves_open(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => status.code >= 500,
        _ => true,
    }
}

/// Whether the pod is on the node, as far as the server can be asked. A binding that was carried out
/// and counted as failed would give its place on the node to another pod.
async fn is_bound(pods: &Api<Pod>, name: &str, node: &str) -> bool {
    let mut pause = ASK_AGAIN_MIN;
    loop {
        match pods.get_opt(name).await {
            Ok(pod) => {
                let on = pod.and_then(|pod| pod.spec?.node_name);
                return on.as_deref() == Some(node);
            }
            Err(_) if pause > ASK_AGAIN_MAX => return false,
            Err(_) => tokio::time::sleep(pause).await,
        }
        pause *= 2;
    }
}

/// The condition that says why a pod has no place; `None` if it says so already.
fn unschedulable(pod: &Pod, reason: &str, message: String, now: Timestamp) -> Option<PodCondition> {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let known = conditions
        .into_iter()
        .flatten()
        .find(|known| known.type_ == "PodScheduled");
    let same = known.filter(|known| known.status == "False");
    let unchanged = same.is_some_and(|known| {
        known.reason.as_deref() == Some(reason)
            && known.message.as_ref() == Some(&message)
            && known.observed_generation == pod.metadata.generation
    });
    if unchanged {
        return None;
    }
    let since = same.and_then(|known| known.last_transition_time.clone());
    Some(PodCondition {
        type_: "PodScheduled".to_owned(),
        status: "False".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_probe_time: None,
        last_transition_time: since
            .or_else(|| Timestamp::from_second(now.as_second()).ok().map(Time)),
        observed_generation: pod.metadata.generation,
    })
}

async fn write_condition(
    client: kube::Client,
    pod: &Pod,
    condition: PodCondition,
) -> Result<(), Error> {
    let meta = &pod.metadata;
    let pods: Api<Pod> = Api::namespaced(client, meta.namespace.as_deref().unwrap_or_default());
    let mut condition = json!(condition);
    // Said by upstream's scheduler even when there was none.
    condition["lastProbeTime"] = serde_json::Value::Null;
    let patch = json!({"metadata": {"uid": meta.uid}, "status": {"conditions": [condition]}});
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let name = meta.name.as_deref().unwrap_or_default();
    match pods
        .patch_status(name, &params, &Patch::Strategic(&patch))
        .await
    {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        result => result.map(drop).map_err(Error::Condition),
    }
}

/// Whether the pod waits for this scheduler: not for another one, not for its gates, and not to go.
fn is_ours(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else {
        return false;
    };
    let gated = spec
        .scheduling_gates
        .as_ref()
        .is_some_and(|gates| !gates.is_empty());
    spec.scheduler_name.as_deref().unwrap_or(NAME) == NAME
        && !gated
        && pod.metadata.deletion_timestamp.is_none()
}

/// What of a node decides over which pods it can take. The times in its conditions, which change all
/// the while, do not.
fn decides(node: &Node) -> impl PartialEq + '_ {
    let spec = node.spec.as_ref();
    (
        &node.metadata.labels,
        spec.map(|spec| (&spec.taints, spec.unschedulable)),
        node.status.as_ref().map(|status| &status.allocatable),
    )
}
