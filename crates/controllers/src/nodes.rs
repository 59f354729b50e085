//! Says when a node is not heard of any more, keeps pods away from nodes that are not well, and takes
//! them off after the time that they tolerate.
//!
//! A node is heard of when its lease in `kube-node-lease` is renewed or its Ready condition is posted;
//! when that was is measured by the clock here, never by what the node writes. What follows from the
//! conditions is worked out in [`taints_of`], how long a pod may stay in [`stay`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use informer::{Action, EventType, Index, Informer, Key, Queue, Recorder};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, ObjectReference, Pod, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use crate::{Clock, Context, FIELD_MANAGER, follow, pods};

/// A node that has never posted its conditions has this long to begin.
const STARTUP_GRACE: Duration = Duration::from_secs(60);

const LEASES: &str = "kube-node-lease";
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    (
        "NetworkUnavailable",
        "node.kubernetes.io/network-unavailable",
    ),
];
const NO_EXECUTE: &str = "NoExecute";
const NO_SCHEDULE: &str = "NoSchedule";

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Subject {
    Node(String),
    Pod(Key),
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("could not write the conditions of node {node}")]
    Conditions { node: String, source: kube::Error },
    #[error("could not write the taints of node {node}")]
    Taints { node: String, source: kube::Error },
    #[error("could not write that pod {pod} is not ready")]
    NotReady { pod: String, source: kube::Error },
    #[error("could not evict pod {pod}")]
    Evict { pod: String, source: kube::Error },
}

#[derive(Clone)]
struct Controller {
    client: kube::Client,
    now: Clock,
    recorder: Recorder,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    pods_by_node: Index<Pod>,
    /// When each node was last heard of.
    heard: Arc<Mutex<HashMap<String, Instant>>>,
    grace: Duration,
}

pub(crate) async fn run(context: Context) {
    let pods = context.informers.pods();
    let leases = context.informers.of::<Lease>();
    let controller = Controller {
        client: context.client.clone(),
        now: context.config.now.clone(),
        recorder: context.recorder(),
        nodes: context.informers.of(),
        pods_by_node: pods.index_by("node", |pod| {
            pods::node_name(pod)
                .map(str::to_owned)
                .into_iter()
                .collect()
        }),
        pods: pods.clone(),
        heard: Arc::default(),
        grace: context.config.node_grace,
    };
    controller.nodes.synced().await;
    controller.pods.synced().await;
    leases.synced().await;
    let queue: Queue<Subject> = Queue::new();
    tokio::join!(
        follow(controller.nodes.clone(), |change| controller
            .hear_node(change, &queue)),
        follow(leases, |change| {
            let meta = &change.object().metadata;
            let renewed = matches!(change, informer::Change::Applied { .. });
            if renewed && meta.namespace.as_deref() == Some(LEASES) {
                controller.hear(meta.name.as_deref().unwrap_or_default(), &queue);
            }
        }),
        follow(pods, |change| {
            let informer::Change::Applied { new: pod, old } = change else {
                return;
            };
            let moved = old
                .as_ref()
                .is_none_or(|old| pods::node_name(old) != pods::node_name(pod));
            if moved && pods::node_name(pod).is_some() {
                queue.add(Subject::Pod(Key::of(&**pod)));
            }
        }),
        queue.clone().run(
            "nodes",
            8,
            |subject| {
                let (controller, queue) = (controller.clone(), queue.clone());
                async move {
                    match subject {
                        Subject::Node(name) => controller.keep_node(&name, &queue).await,
                        Subject::Pod(key) => controller.keep_pod(&key).await,
                    }
                }
            },
            context.drain.clone(),
        ),
    );
}

impl Controller {
    fn hear_node(&self, change: &informer::Change<Node>, queue: &Queue<Subject>) {
        let node = change.object();
        let name = node.metadata.name.clone().unwrap_or_default();
        let informer::Change::Applied { old, .. } = change else {
            self.heard.lock().remove(&name);
            let message = format!("Node {name} event: Removing Node {name} from Controller");
            self.say(node, "RemovingNode", message);
            return;
        };
        if old.is_none() {
            let message = format!("Node {name} event: Registered Node {name} in Controller");
            self.say(node, "RegisteredNode", message);
        }
        let beat = |node: &Node| {
            condition(node, "Ready").and_then(|ready| ready.last_heartbeat_time.clone())
        };
        if old.as_ref().is_none_or(|old| beat(old) != beat(node)) {
            self.heard.lock().insert(name.clone(), Instant::now());
        }
        queue.add(Subject::Node(name));
    }

    /// Notes a sign of life. A node that is well need not be looked at for it.
    fn hear(&self, name: &str, queue: &Queue<Subject>) {
        self.heard.lock().insert(name.to_owned(), Instant::now());
        let node = self.nodes.get(None, name);
        let ready = node.as_deref().and_then(|node| condition(node, "Ready"));
        if ready.is_some_and(|ready| ready.status == "Unknown") {
            queue.add(Subject::Node(name.to_owned()));
        }
    }

    fn say(&self, node: &Node, reason: &str, message: String) {
        let regarding = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: node.metadata.name.clone(),
            uid: node.metadata.uid.clone(),
            ..ObjectReference::default()
        };
        self.recorder
            .event_on(regarding, EventType::Normal, reason, None, message);
    }

    async fn keep_node(&self, name: &str, queue: &Queue<Subject>) -> Result<Action, Error> {
        let Some(mut node) = self.nodes.get(None, name) else {
            return Ok(Action::Done);
        };
        let silent = {
            let mut heard = self.heard.lock();
            heard
                .entry(name.to_owned())
                .or_insert_with(Instant::now)
                .elapsed()
        };
        let ready = condition(&node, "Ready").map(|ready| ready.status.clone());
        let grace = match ready {
            Some(_) => self.grace,
            None => STARTUP_GRACE.max(self.grace),
        };
        if silent >= grace {
            if let Some(unknown) = with_unknown(&node, (self.now)()) {
                node = self.write_conditions(&unknown).await?;
                if ready.as_deref() == Some("True") {
                    let message = format!("Node {name} status is now: NodeNotReady");
                    self.say(&node, "NodeNotReady", message);
                }
            }
        }
        self.write_taints(&node).await?;
        if condition(&node, "Ready").is_none_or(|ready| ready.status != "True") {
            self.mark_pods(&node).await?;
        }
        for pod in self.pods_by_node.get(name) {
            queue.add(Subject::Pod(Key::of(&*pod)));
        }
        let is_unknown = condition(&node, "Ready").is_some_and(|ready| ready.status == "Unknown");
        // Looked at again when its silence would be too long, if that is still to come.
        Ok(match is_unknown {
            true => Action::Done,
            false => Action::After(grace.saturating_sub(silent).max(Duration::from_millis(100))),
        })
    }

    async fn write_conditions(&self, node: &Node) -> Result<Arc<Node>, Error> {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let api: Api<Node> = Api::all(self.client.clone());
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        let written = api.replace_status(name, &params, node).await;
        let written = written.map_err(|source| Error::Conditions {
            node: name.to_owned(),
            source,
        })?;
        self.nodes.caught_up_with(&written).await;
        Ok(Arc::new(written))
    }

    async fn write_taints(&self, node: &Node) -> Result<(), Error> {
        let known = node
            .spec
            .as_ref()
            .and_then(|spec| spec.taints.clone())
            .unwrap_or_default();
        let taints = taints_of(node, &known, (self.now)());
        if taints == known {
            return Ok(());
        }
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let api: Api<Node> = Api::all(self.client.clone());
        let patch = json!({
            // Taints are a list that is written as a whole: somebody else's must not be lost.
            "metadata": {"resourceVersion": node.metadata.resource_version},
            "spec": {"taints": taints},
        });
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let written = api.patch(name, &params, &Patch::Merge(&patch)).await;
        let written = written.map_err(|source| Error::Taints {
            node: name.to_owned(),
            source,
        })?;
        self.nodes.caught_up_with(&written).await;
        Ok(())
    }

    /// Takes pods on a node that is not well out of service.
    async fn mark_pods(&self, node: &Node) -> Result<(), Error> {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        for pod in self.pods_by_node.get(name) {
            if !pods::is_ready(&pod) {
                continue;
            }
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
            let now = Timestamp::from_second((self.now)().as_second()).unwrap_or_default();
            let patch = json!({
                "metadata": {"uid": pod.metadata.uid},
                "status": {"conditions": [
                    {"type": "Ready", "status": "False", "lastTransitionTime": now},
                ]},
            });
            let params = PatchParams {
                field_manager: Some(FIELD_MANAGER.to_owned()),
                ..PatchParams::default()
            };
            let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
            match api
                .patch_status(pod_name, &params, &Patch::Strategic(&patch))
                .await
            {
                Ok(_) => {
                    let message = "Node is not ready".to_owned();
                    self.recorder
                        .event(&*pod, EventType::Warning, "NodeNotReady", message);
                }
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(source) => {
                    let pod = Key::of(&*pod).to_string();
                    return Err(Error::NotReady { pod, source });
                }
            }
        }
        Ok(())
    }

    /// Evicts a pod when it has been longer on a tainted node than it tolerates.
    async fn keep_pod(&self, key: &Key) -> Result<Action, Error> {
        let Some(pod) = self.pods.get(Some(&key.namespace), &key.name) else {
            return Ok(Action::Done);
        };
        let node = pods::node_name(&pod).and_then(|node| self.nodes.get(None, node));
        let Some(node) = node.filter(|_| pods::is_active(&pod)) else {
            return Ok(Action::Done);
        };
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref());
        let tolerations = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.tolerations.as_deref());
        let (taints, tolerations) = (taints.unwrap_or_default(), tolerations.unwrap_or_default());
        match stay(taints, tolerations, (self.now)()) {
            Stay::ForEver => Ok(Action::Done),
            Stay::For(time) => Ok(Action::After(time)),
            Stay::NoLonger => {
                self.evict(&pod).await?;
                Ok(Action::Done)
            }
        }
    }

    async fn evict(&self, pod: &Pod) -> Result<(), Error> {
        let key = Key::of(pod);
        let error = |source| Error::Evict {
            pod: key.to_string(),
            source,
        };
        let message = format!("Marking for deletion Pod {key}");
        self.recorder
            .event(pod, EventType::Normal, "TaintManagerEviction", message);
        let now = Timestamp::from_second((self.now)().as_second()).unwrap_or_default();
        let patch = json!({
            "metadata": {"uid": pod.metadata.uid},
            "status": {"conditions": [{
                "type": "DisruptionTarget",
                "status": "True",
                "reason": "DeletionByTaintManager",
                "message": "Taint manager: deleting due to NoExecute taint",
                "lastTransitionTime": now,
            }]},
        });
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let params = PatchParams::default();
        match api
            .patch_status(&key.name, &params, &Patch::Strategic(&patch))
            .await
        {
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            result => drop(result.map_err(error)?),
        }
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: pod.metadata.uid.clone(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match api.delete(&key.name, &params).await {
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            result => result.map(drop).map_err(error),
        }
    }
}

fn condition<'a>(node: &'a Node, condition_type: &str) -> Option<&'a NodeCondition> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions
        .iter()
        .find(|condition| condition.type_ == condition_type)
}

/// The node with conditions that say that nothing is known of it; `None` if they say so already.
fn with_unknown(node: &Node, now: Timestamp) -> Option<Node> {
    let now = Timestamp::from_second(now.as_second()).ok().map(Time);
    let mut unknown = node.clone();
    let conditions = unknown
        .status
        .get_or_insert_default()
        .conditions
        .get_or_insert_default();
    let mut changed = false;
    for condition_type in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        match conditions
            .iter_mut()
            .find(|known| known.type_ == condition_type)
        {
            None => {
                changed = true;
                conditions.push(NodeCondition {
                    type_: condition_type.to_owned(),
                    status: "Unknown".to_owned(),
                    reason: Some("NodeStatusNeverUpdated".to_owned()),
                    message: Some("Kubelet never posted node status.".to_owned()),
                    last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                    last_transition_time: now.clone(),
                });
            }
            Some(known) if known.status != "Unknown" => {
                changed = true;
                known.status = "Unknown".to_owned();
                known.reason = Some("NodeStatusUnknown".to_owned());
                known.message = Some("Kubelet stopped posting node status.".to_owned());
                known.last_transition_time = now.clone();
            }
            Some(_) => {}
        }
    }
    changed.then_some(unknown)
}

/// The taints that a node should have: those that others gave it, and those that its conditions call
/// for. One that it has already keeps its time.
fn taints_of(node: &Node, known: &[Taint], now: Timestamp) -> Vec<Taint> {
    let status =
        |condition_type| condition(node, condition_type).map(|known| known.status.as_str());
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    match status("Ready") {
        Some("False") => wanted.extend([(NOT_READY, NO_SCHEDULE), (NOT_READY, NO_EXECUTE)]),
        Some("Unknown") => wanted.extend([(UNREACHABLE, NO_SCHEDULE), (UNREACHABLE, NO_EXECUTE)]),
        Some(_) | None => {}
    }
    for (condition_type, key) in PRESSURES {
        if status(condition_type) == Some("True") {
            wanted.push((key, NO_SCHEDULE));
        }
    }
    let spec = node.spec.as_ref();
    if spec.and_then(|spec| spec.unschedulable).unwrap_or_default() {
        wanted.push((UNSCHEDULABLE, NO_SCHEDULE));
    }
    let ours = |taint: &Taint| {
        let pressure = PRESSURES.iter().any(|(_, key)| taint.key == *key);
        match taint.effect.as_str() {
            NO_SCHEDULE => {
                pressure || [NOT_READY, UNREACHABLE, UNSCHEDULABLE].contains(&taint.key.as_str())
            }
            NO_EXECUTE => [NOT_READY, UNREACHABLE].contains(&taint.key.as_str()),
            _ => false,
        }
    };
    let is = |taint: &Taint, key: &str, effect: &str| taint.key == key && taint.effect == effect;
    let keep =
        |taint: &&Taint| !ours(taint) || wanted.iter().any(|(key, effect)| is(taint, key, effect));
    let mut taints: Vec<Taint> = known.iter().filter(keep).cloned().collect();
    for (key, effect) in wanted {
        if !taints.iter().any(|taint| is(taint, key, effect)) {
            taints.push(Taint {
                key: key.to_owned(),
                value: None,
                effect: effect.to_owned(),
                time_added: Timestamp::from_second(now.as_second()).ok().map(Time),
            });
        }
    }
    taints
}

/// How long a pod may stay on its node.
#[derive(Debug, PartialEq, Eq)]
enum Stay {
    ForEver,
    For(Duration),
    NoLonger,
}

fn stay(taints: &[Taint], tolerations: &[Toleration], now: Timestamp) -> Stay {
    let mut shortest = None;
    for taint in taints.iter().filter(|taint| taint.effect == NO_EXECUTE) {
        let mut matching = tolerations
            .iter()
            .filter(|one| tolerates(one, taint))
            .peekable();
        if matching.peek().is_none() {
            return Stay::NoLonger;
        }
        // The shortest of the tolerations counts; one without a time is for ever.
        let Some(seconds) = matching.filter_map(|one| one.toleration_seconds).min() else {
            continue;
        };
        let since = taint.time_added.as_ref().map_or(now, |time| time.0);
        let left = SignedDuration::from_secs(seconds.max(0)) - now.duration_since(since);
        let left = Duration::try_from(left).unwrap_or_default();
        shortest = shortest.into_iter().chain([left]).min();
    }
    match shortest {
        None => Stay::ForEver,
        Some(left) if left.is_zero() => Stay::NoLonger,
        Some(left) => Stay::For(left),
    }
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    match toleration.operator.as_deref() {
        Some("Exists") => true,
        None | Some("" | "Equal") => {
            let value = toleration.value.as_deref().unwrap_or_default();
            !key.is_empty() && value == taint.value.as_deref().unwrap_or_default()
        }
        Some(_) => false,
    }
}
