//! Takes pods off a node that is tainted `NoExecute`, after the time that they tolerate.
//!
//! How long a pod may stay is worked out in [`stay`].

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use informer::{Action, Change, EventType, Index, Informer, Key, Queue, Recorder};
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Taint, Toleration};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use objects::tolerates;
use parking_lot::Mutex;

use crate::disruption::{Disruption, disrupt};
use crate::nodes::NO_EXECUTE;
use crate::work::{Reconcile, work};
use crate::{Clock, Context, follow, pods, writes};

/// The name that events give for this, though it acts with the rights of `node-controller`.
const NAME: &str = "taint-eviction-controller";

struct Controller {
    client: kube::Client,
    now: Clock,
    recorder: Recorder,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    pods_by_node: Index<Pod>,
    /// Pods whose time on their node is limited. Only what is said of them depends on it.
    to_go: Mutex<HashSet<Key>>,
}

pub(crate) async fn run(context: Context) {
    let pods = context.informers.pods();
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        now: context.config.now.clone(),
        recorder: Recorder::new(context.client.clone(), NAME, None, context.drain.clone()),
        nodes: context.informers.of(),
        pods_by_node: pods::by_node(&pods),
        pods: pods.clone(),
        to_go: Mutex::default(),
    });
    controller.nodes.synced().await;
    controller.pods.synced().await;
    let queue: Queue<Key> = Queue::new();
    tokio::join!(
        follow(controller.nodes.clone(), |change| {
            let Change::Applied { new: node, old } = change else {
                return;
            };
            if old.as_ref().is_none_or(|old| taints(old) != taints(node)) {
                let name = node.metadata.name.as_deref().unwrap_or_default();
                for pod in controller.pods_by_node.get(name) {
                    queue.add(Key::of(&*pod));
                }
            }
        }),
        follow(pods, |change| {
            let Change::Applied { new: pod, old } = change else {
                controller.to_go.lock().remove(&Key::of(&**change.object()));
                return;
            };
            let place = |pod: &Pod| pods::node_name(pod).map(str::to_owned);
            let moved = old.as_ref().is_none_or(|old| place(old) != place(pod));
            if moved && place(pod).is_some() {
                queue.add(Key::of(&**pod));
            }
        }),
        work(&controller, &queue, &context.drain),
    );
}

fn taints(node: &Node) -> &[Taint] {
    let spec = node.spec.as_ref();
    spec.and_then(|spec| spec.taints.as_deref())
        .unwrap_or_default()
}

impl Reconcile for Controller {
    type Key = Key;
    type Error = kube::Error;
    const NAME: &'static str = "eviction";
    const WORKERS: usize = 8;

    /// Evicts a pod when it has been longer on a tainted node than it tolerates.
    async fn reconcile(&self, key: &Key) -> Result<Action, kube::Error> {
        let was_to_go = self.to_go.lock().remove(key);
        let Some(pod) = self.pods.get(Some(&key.namespace), &key.name) else {
            return Ok(Action::Done);
        };
        let node = pods::node_name(&pod).and_then(|node| self.nodes.get(None, node));
        let Some(node) = node.filter(|_| pods::is_active(&pod)) else {
            return Ok(Action::Done);
        };
        let spec = pod.spec.as_ref();
        let tolerations = spec
            .and_then(|spec| spec.tolerations.as_deref())
            .unwrap_or_default();
        match stay(taints(&node), tolerations, (self.now)()) {
            Stay::ForEver => {
                if was_to_go {
                    self.say(key, format!("Cancelling deletion of Pod {key}"));
                }
                Ok(Action::Done)
            }
            Stay::For(time) => {
                self.to_go.lock().insert(key.clone());
                Ok(Action::After(time))
            }
            Stay::NoLonger => {
                self.evict(&pod).await?;
                Ok(Action::Done)
            }
        }
    }
}

impl Controller {
    /// Says something of a pod, which may be gone by now.
    fn say(&self, key: &Key, message: String) {
        let regarding = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(key.namespace.to_string()),
            name: Some(key.name.to_string()),
            ..ObjectReference::default()
        };
        let normal = EventType::Normal;
        self.recorder
            .event_on(regarding, normal, "TaintManagerEviction", None, message);
    }

    async fn evict(&self, pod: &Pod) -> Result<(), kube::Error> {
        let key = Key::of(pod);
        self.say(&key, format!("Marking for deletion Pod {key}"));
        let message = "Taint manager: deleting due to NoExecute taint";
        let disruption = Disruption {
            target: Some(("DeletionByTaintManager", message)),
            fails: false,
        };
        let params = writes::delete(&pod.metadata);
        disrupt(&self.client, pod, &disruption, &params, (self.now)()).await
    }
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

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::{Value, json};

    use super::*;

    const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
    const NO_SCHEDULE: &str = "NoSchedule";

    #[test]
    fn a_pod_stays_as_long_as_its_least_patient_toleration() {
        let added = Timestamp::from_second(1_000_000).expect("in range");
        let taint = |key: &str, effect: &str| Taint {
            key: key.to_owned(),
            effect: effect.to_owned(),
            value: None,
            time_added: Some(Time(added)),
        };
        let tolerations = |value: Value| -> Vec<Toleration> {
            serde_json::from_value(value).expect("are tolerations")
        };
        let check = |taints: &[Taint], tolerated: Value, elapsed: i64, expected: Stay| {
            let now = added + SignedDuration::from_secs(elapsed);
            assert_eq!(stay(taints, &tolerations(tolerated), now), expected);
        };
        let unreachable = || taint(UNREACHABLE, NO_EXECUTE);
        let exists = |seconds: Value| json!([{"key": UNREACHABLE, "operator": "Exists", "effect": NO_EXECUTE, "tolerationSeconds": seconds}]);
        check(&[], json!([]), 0, Stay::ForEver);
        check(&[taint("a", NO_SCHEDULE)], json!([]), 0, Stay::ForEver);
        check(&[unreachable()], json!([]), 0, Stay::NoLonger);
        check(
            &[unreachable()],
            exists(json!(300)),
            100,
            Stay::For(Duration::from_secs(200)),
        );
        check(&[unreachable()], exists(json!(300)), 300, Stay::NoLonger);
        check(
            &[unreachable()],
            exists(Value::Null),
            100_000,
            Stay::ForEver,
        );
        check(
            &[unreachable(), taint("b", NO_EXECUTE)],
            exists(json!(300)),
            0,
            Stay::NoLonger,
        );
        check(
            &[unreachable()],
            json!([{"operator": "Exists"}]),
            0,
            Stay::ForEver,
        );
        check(
            &[unreachable()],
            json!([{"operator": "Exists"}, {"operator": "Exists", "tolerationSeconds": 5}]),
            0,
            Stay::For(Duration::from_secs(5)),
        );
    }
}
