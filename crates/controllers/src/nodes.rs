//! Says when a node is not heard of any more, and keeps pods away from nodes that are not well.
//!
//! A node is heard of when its lease in `kube-node-lease` is renewed or its Ready condition is posted;
//! when that was is measured by the clock here, never by what the node writes. What follows from the
//! conditions is worked out in [`taints_of`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use informer::{Action, EventType, Index, Informer, Key, Queue, Recorder};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, ObjectReference, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use crate::work::{Reconcile, work};
use crate::writes::{self, whole_second};
use crate::{Clock, Context, follow, pods};

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
pub(crate) const NO_EXECUTE: &str = "NoExecute";
const NO_SCHEDULE: &str = "NoSchedule";

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("could not write the conditions of node {node}")]
    Conditions { node: String, source: kube::Error },
    #[error("could not write the taints of node {node}")]
    Taints { node: String, source: kube::Error },
    #[error("could not write that pod {pod} is not ready")]
    NotReady { pod: String, source: kube::Error },
}

struct Controller {
    client: kube::Client,
    now: Clock,
    recorder: Recorder,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    pods_by_node: Index<Pod>,
    /// When each node was last heard of.
    heard: Mutex<HashMap<String, Instant>>,
    grace: Duration,
}

pub(crate) async fn run(context: Context) {
    let pods = context.informers.pods();
    let leases = context.informers.of::<Lease>();
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        now: context.config.now.clone(),
        recorder: context.recorder(),
        nodes: context.informers.of(),
        pods_by_node: pods::by_node(&pods),
        pods: pods.clone(),
        heard: Mutex::default(),
        grace: context.config.node_grace,
    });
    controller.nodes.synced().await;
    pods.synced().await;
    leases.synced().await;
    let queue: Queue<String> = Queue::new();
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
        work(&controller, &queue, &context.drain),
    );
}

impl Reconcile for Controller {
    type Key = String;
    type Error = Error;
    const NAME: &'static str = "nodes";
    const WORKERS: usize = 8;

    async fn reconcile(&self, name: &String) -> Result<Action, Error> {
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
        if silent >= grace
            && let Some(unknown) = with_unknown(&node, (self.now)())
        {
            node = self.write_conditions(&unknown).await?;
            if ready.as_deref() == Some("True") {
                let message = format!("Node {name} status is now: NodeNotReady");
                self.say(&node, "NodeNotReady", message);
            }
        }
        self.write_taints(&node).await?;
        // A node that says itself that it is not ready can still tell which of its pods serve.
        let is_unknown = condition(&node, "Ready").is_some_and(|ready| ready.status == "Unknown");
        if is_unknown {
            self.mark_pods(&node).await?;
        }
        // Looked at again when its silence would be too long, if that is still to come.
        Ok(match is_unknown {
            true => Action::Done,
            false => Action::After(grace.saturating_sub(silent).max(Duration::from_millis(100))),
        })
    }
}

impl Controller {
    fn hear_node(&self, change: &informer::Change<Node>, queue: &Queue<String>) {
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
        queue.add(name);
    }

    /// Notes a sign of life. A node that is well need not be looked at for it.
    fn hear(&self, name: &str, queue: &Queue<String>) {
        self.heard.lock().insert(name.to_owned(), Instant::now());
        let node = self.nodes.get(None, name);
        let ready = node.as_deref().and_then(|node| condition(node, "Ready"));
        if ready.is_some_and(|ready| ready.status == "Unknown") {
            queue.add(name.to_owned());
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

    async fn write_conditions(&self, node: &Node) -> Result<Arc<Node>, Error> {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let api: Api<Node> = Api::all(self.client.clone());
        let written = api.replace_status(name, &writes::post(), node).await;
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
        let patch = Patch::Merge(&patch);
        let written = api.patch(name, &writes::patch(), &patch).await;
        let written = written.map_err(|source| Error::Taints {
            node: name.to_owned(),
            source,
        })?;
        self.nodes.caught_up_with(&written).await;
        Ok(())
    }

    /// Takes the pods of a node that is not heard of out of service.
    async fn mark_pods(&self, node: &Node) -> Result<(), Error> {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        for pod in self.pods_by_node.get(name) {
            if !pods::is_ready(&pod) {
                continue;
            }
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
            let now = whole_second((self.now)());
            let patch = json!({
                "metadata": {"uid": pod.metadata.uid},
                "status": {"conditions": [
                    {"type": "Ready", "status": "False", "lastTransitionTime": now},
                ]},
            });
            let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
            let patch = Patch::Strategic(&patch);
            match api.patch_status(pod_name, &writes::patch(), &patch).await {
                Ok(written) => {
                    self.pods.caught_up_with(&written).await;
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
}

fn condition<'a>(node: &'a Node, condition_type: &str) -> Option<&'a NodeCondition> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions
        .iter()
        .find(|condition| condition.type_ == condition_type)
}

/// Whether the node says, and is still heard to say, that it can run pods.
pub(crate) fn is_ready(node: &Node) -> bool {
    condition(node, "Ready").is_some_and(|ready| ready.status == "True")
}

/// The node with conditions that say that nothing is known of it; `None` if they say so already.
fn with_unknown(node: &Node, now: Timestamp) -> Option<Node> {
    let now = Some(Time(whole_second(now)));
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
                time_added: Some(Time(whole_second(now))),
            });
        }
    }
    taints
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn node(ready: Option<&str>, spec: Value, pressure: &[&str]) -> Node {
        let ready = ready.map(|status| json!({"type": "Ready", "status": status}));
        let pressure = pressure
            .iter()
            .map(|name| json!({"type": name, "status": "True"}));
        let conditions: Vec<Value> = ready.into_iter().chain(pressure).collect();
        let node =
            json!({"metadata": {"name": "n"}, "spec": spec, "status": {"conditions": conditions}});
        serde_json::from_value(node).expect("is a node")
    }

    fn check_taints(node: &Node, known: &[(&str, &str)], expected: &[&str]) {
        let taint = |(key, effect): &(&str, &str)| Taint {
            key: (*key).to_owned(),
            effect: (*effect).to_owned(),
            ..Taint::default()
        };
        let known: Vec<Taint> = known.iter().map(taint).collect();
        let taints = taints_of(node, &known, Timestamp::UNIX_EPOCH);
        let texts: Vec<_> = taints
            .iter()
            .map(|taint| format!("{}:{}", taint.key, taint.effect))
            .collect();
        assert_eq!(texts, expected);
    }

    #[test]
    fn taints_follow_the_conditions_and_spare_those_of_others() {
        let none = json!({});
        check_taints(&node(Some("True"), none.clone(), &[]), &[], &[]);
        check_taints(
            &node(Some("False"), none.clone(), &[]),
            &[("mine", NO_EXECUTE), (UNREACHABLE, NO_EXECUTE)],
            &[
                "mine:NoExecute",
                "node.kubernetes.io/not-ready:NoSchedule",
                "node.kubernetes.io/not-ready:NoExecute",
            ],
        );
        check_taints(
            &node(Some("Unknown"), none.clone(), &[]),
            &[(NOT_READY, NO_SCHEDULE), (UNREACHABLE, NO_SCHEDULE)],
            &[
                "node.kubernetes.io/unreachable:NoSchedule",
                "node.kubernetes.io/unreachable:NoExecute",
            ],
        );
        check_taints(&node(None, none, &[]), &[(NOT_READY, NO_SCHEDULE)], &[]);
        check_taints(
            &node(
                Some("True"),
                json!({"unschedulable": true}),
                &["DiskPressure"],
            ),
            &[],
            &[
                "node.kubernetes.io/disk-pressure:NoSchedule",
                "node.kubernetes.io/unschedulable:NoSchedule",
            ],
        );
    }

    #[test]
    fn what_a_silent_node_said_last_is_taken_back_once() {
        let now = Timestamp::from_second(1_000_000).expect("in range");
        let unknown = with_unknown(&node(Some("True"), json!({}), &["DiskPressure"]), now)
            .expect("has changed");
        let reasons: Vec<_> = unknown
            .status
            .iter()
            .flat_map(|status| &status.conditions)
            .flatten()
            .map(|known| {
                format!(
                    "{} {} {}",
                    known.type_,
                    known.status,
                    known.reason.as_deref().unwrap_or_default()
                )
            })
            .collect();
        assert_eq!(
            reasons,
            [
                "Ready Unknown NodeStatusUnknown",
                "DiskPressure Unknown NodeStatusUnknown",
                "MemoryPressure Unknown NodeStatusNeverUpdated",
                "PIDPressure Unknown NodeStatusNeverUpdated",
            ]
        );
        assert_eq!(with_unknown(&unknown, now), None);
    }
}
