//! Keeps as many pods as a ReplicaSet asks for, and says how many there are.

use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use informer::{Action, EventType, Index, Informer, Key, Queue, Recorder};
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, ListParams, PostParams, Preconditions};
use kube::core::SelectorExt;

use crate::pods::{self, Availability};
use crate::{Clock, Context, FIELD_MANAGER, claim, follow, message_of, rest};

/// Pods that are made or deleted in one go; the rest follows when these are seen.
const BURST: usize = 500;
/// Pauses between looks for pods of which it is not known whether they were made.
const LOOKS: [Duration; 5] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];
/// ReplicaSets that are worked on at once.
const WORKERS: usize = 32;

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Claim(#[from] claim::Error),
    #[error("could not create pods: {0}")]
    Create(String),
    #[error("could not delete pods: {0}")]
    Delete(String),
    #[error("could not write the status")]
    Status(#[source] kube::Error),
}

#[derive(Clone)]
struct Controller {
    client: kube::Client,
    now: Clock,
    recorder: Recorder,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    sets_by_owner: Index<ReplicaSet>,
    pods_by_owner: Index<Pod>,
}

pub(crate) async fn run(context: Context) {
    let sets = context.informers.of::<ReplicaSet>();
    let pods = context.informers.pods();
    let controller = Controller {
        client: context.client.clone(),
        now: context.config.now.clone(),
        recorder: context.recorder(),
        sets_by_owner: claim::by_controller(&sets),
        pods_by_owner: claim::by_controller(&pods),
        sets: sets.clone(),
        pods: pods.clone(),
    };
    sets.synced().await;
    pods.synced().await;
    let queue = Queue::new();
    tokio::join!(
        follow(sets.clone(), |change| queue
            .add(Key::of(&**change.object()))),
        follow(pods, |change| {
            let (new, old) = match change {
                informer::Change::Applied { new, old } => (Some(new), old.as_ref()),
                informer::Change::Deleted(last) => (None, Some(last)),
            };
            for pod in [new, old].into_iter().flatten() {
                for key in controller.sets_of(pod) {
                    queue.add(key);
                }
            }
        }),
        queue.clone().run(
            "replicaset",
            WORKERS,
            |key| {
                let controller = controller.clone();
                async move { controller.reconcile(&key).await }
            },
            context.drain.clone(),
        ),
    );
}

impl Controller {
    /// The ReplicaSets that a change of the pod may matter to.
    fn sets_of(&self, pod: &Pod) -> Vec<Key> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        match claim::controller_of(&pod.metadata) {
            Some(controller) if controller.kind == "ReplicaSet" => {
                vec![Key::new(namespace, &controller.name)]
            }
            Some(_) => Vec::new(),
            None => {
                let picks = |set: &ReplicaSet| {
                    let spec = set.spec.as_ref();
                    let selector = spec.and_then(|spec| claim::selector(&spec.selector).ok());
                    let labels = claim::labels(&pod.metadata);
                    selector
                        .flatten()
                        .is_some_and(|selector| selector.matches(labels))
                };
                let sets = self.sets.list_in(namespace);
                sets.iter()
                    .filter(|set| picks(set))
                    .map(|set| Key::of(&**set))
                    .collect()
            }
        }
    }

    async fn reconcile(&self, key: &Key) -> Result<Action, Error> {
        let Some(set) = self.sets.get(Some(&key.namespace), &key.name) else {
            return Ok(Action::Done);
        };
        let Some(spec) = &set.spec else {
            return Ok(Action::Done);
        };
        let Some(selector) = claim::selector(&spec.selector)? else {
            return Ok(Action::Done);
        };
        let sets: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &key.namespace);
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let index = &self.pods_by_owner;
        let mine = claim::claim(&sets, &*set, &pods, index, &selector, pods::is_active).await?;
        let active: Vec<_> = mine
            .iter()
            .filter(|pod| pods::is_active(pod))
            .cloned()
            .collect();
        let terminating = mine.iter().filter(|pod| pods::is_terminating(pod)).count();

        let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or_default();
        let kept = match active.len().cmp(&wanted) {
            _ if set.metadata.deletion_timestamp.is_some() => Ok(()),
            Ordering::Less => self.create(&set, &pods, wanted - active.len()).await,
            Ordering::Greater => {
                self.delete(&set, &pods, &active, active.len() - wanted)
                    .await
            }
            Ordering::Equal => Ok(()),
        };

        let now = (self.now)();
        let status = status_of(&set, &active, terminating, kept.as_ref().err(), now);
        let written = self.write_status(&sets, &set, status).await?;
        kept?;
        if written {
            rest(mine.len()).await;
        }
        let min_ready = spec.min_ready_seconds.unwrap_or_default();
        let next = active
            .iter()
            .filter_map(|pod| match pods::availability(pod, min_ready, now) {
                Availability::In(missing) => Some(missing),
                _ => None,
            });
        Ok(next.min().map_or(Action::Done, Action::After))
    }

    /// Creates pods in growing batches, so that a template that the server refuses costs one request
    /// and not hundreds.
    async fn create(&self, set: &ReplicaSet, pods: &Api<Pod>, count: usize) -> Result<(), Error> {
        let pod = pod_of(set);
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        let mut left = count.min(BURST);
        let mut batch = 1;
        while left > 0 {
            let answers = join_all((0..batch.min(left)).map(|_| pods.create(&params, &pod))).await;
            let mut newest: Option<Pod> = None;
            let (mut failed, mut is_open) = (None, false);
            for answer in answers {
                match answer {
                    Ok(created) => {
                        let name = created.metadata.name.as_deref().unwrap_or_default();
                        let message = format!("Created pod: {name}");
                        self.recorder
                            .event(set, EventType::Normal, "SuccessfulCreate", message);
                        newest = newest.into_iter().chain([created]).max_by_key(revision_of);
                    }
                    Err(error) => {
                        is_open |= leaves_open(&error);
                        failed = Some(error);
                    }
                }
            }
            if is_open {
                let made = self.newest_of(set, pods).await;
                newest = newest.into_iter().chain(made).max_by_key(revision_of);
            }
            if let Some(newest) = newest {
                self.pods.caught_up_with(&newest).await;
            }
            match failed {
                // Nothing can be made in a namespace that is going away, and it need not be said.
                Some(error) if is_namespace_terminating(&error) => return Ok(()),
                Some(error) => {
                    let text = message_of(&error);
                    let message = format!("Error creating: {text}");
                    self.recorder
                        .event(set, EventType::Warning, "FailedCreate", message);
                    return Err(Error::Create(text));
                }
                None => {}
            }
            left -= batch.min(left);
            batch *= 2;
        }
        Ok(())
    }

    /// The pod of the set that was written last, as the server knows it: after an answer that leaves
    /// open whether a pod was made, the cache must be as new as that before pods are counted again.
    async fn newest_of(&self, set: &ReplicaSet, pods: &Api<Pod>) -> Option<Pod> {
        let labels = set.spec.as_ref()?.selector.match_labels.clone();
        let pairs = labels.unwrap_or_default().into_iter();
        let selector: Vec<String> = pairs
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let params = ListParams::default().labels(&selector.join(","));
        for pause in LOOKS {
            match pods.list(&params).await {
                Ok(found) => return found.items.into_iter().max_by_key(revision_of),
                Err(_) => tokio::time::sleep(pause).await,
            }
        }
        None
    }

    async fn delete(
        &self,
        set: &ReplicaSet,
        pods: &Api<Pod>,
        active: &[Arc<Pod>],
        count: usize,
    ) -> Result<(), Error> {
        let doomed = choose(active, &self.per_node(set), count.min(BURST), (self.now)());
        let answers = join_all(doomed.iter().map(|pod| async move {
            let params = DeleteParams {
                preconditions: Some(Preconditions {
                    uid: pod.metadata.uid.clone(),
                    resource_version: None,
                }),
                ..DeleteParams::default()
            };
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            (name, pods.delete(name, &params).await)
        }));
        let mut failed = None;
        for (name, answer) in answers.await {
            match answer {
                Ok(_) => {
                    let message = format!("Deleted pod: {name}");
                    self.recorder
                        .event(set, EventType::Normal, "SuccessfulDelete", message);
                }
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                Err(error) => {
                    let text = message_of(&error);
                    let message = format!("Error deleting: {text}");
                    self.recorder
                        .event(set, EventType::Warning, "FailedDelete", message);
                    failed = Some(text);
                }
            }
        }
        if let Some(text) = failed {
            return Err(Error::Delete(text));
        }
        let going = |pods: &Informer<Pod>| {
            let there = |doomed: &Arc<Pod>| {
                let meta = &doomed.metadata;
                let name = meta.name.as_deref().unwrap_or_default();
                let now = pods.get(meta.namespace.as_deref(), name);
                now.is_some_and(|pod| pod.metadata.uid == meta.uid && pods::is_active(&pod))
            };
            (!doomed.iter().any(there)).then_some(())
        };
        // A watch that is broken for longer is looked into by the informer; going on then is safe,
        // because each deletion names the uid.
        let _ = tokio::time::timeout(Duration::from_secs(10), self.pods.until(going)).await;
        Ok(())
    }

    /// How many active pods of this set and of its sisters (the other sets of its Deployment) each
    /// node has.
    fn per_node(&self, set: &ReplicaSet) -> HashMap<String, usize> {
        let sisters = match claim::controller_of(&set.metadata) {
            Some(owner) => self.sets_by_owner.get(&owner.uid),
            None => vec![Arc::new(set.clone())],
        };
        let mut count = HashMap::new();
        for sister in sisters {
            let uid = sister.metadata.uid.as_deref().unwrap_or_default();
            for pod in self.pods_by_owner.get(uid) {
                if let Some(node) = pods::node_name(&pod).filter(|_| pods::is_active(&pod)) {
                    *count.entry(node.to_owned()).or_default() += 1;
                }
            }
        }
        count
    }

    async fn write_status(
        &self,
        sets: &Api<ReplicaSet>,
        set: &ReplicaSet,
        status: ReplicaSetStatus,
    ) -> Result<bool, Error> {
        if set.status.as_ref() == Some(&status) {
            return Ok(false);
        }
        let desired = ReplicaSet {
            status: Some(status),
            ..set.clone()
        };
        let name = set.metadata.name.as_deref().unwrap_or_default();
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        match sets.replace_status(name, &params, &desired).await {
            Ok(written) => {
                self.sets.caught_up_with(&written).await;
                Ok(true)
            }
            Err(kube::Error::Api(gone)) if gone.code == 404 => Ok(false),
            Err(error) => Err(Error::Status(error)),
        }
    }
}

fn revision_of(pod: &Pod) -> u64 {
    let revision = pod.metadata.resource_version.as_deref();
    revision
        .and_then(|revision| revision.parse().ok())
        .unwrap_or_default()
}

/// Whether the server may have done what it did not say that it has: any answer but a refusal.
fn leaves_open(error: &kube::Error) -> bool {
    !matches!(error, kube::Error::Api(status) if (400..500).contains(&status.code))
}

fn is_namespace_terminating(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else {
        return false;
    };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes
        .into_iter()
        .any(|cause| cause.reason == "NamespaceTerminating")
}

/// The pod that the set's template describes.
fn pod_of(set: &ReplicaSet) -> Pod {
    let template = set.spec.as_ref().and_then(|spec| spec.template.clone());
    let PodTemplateSpec { metadata, spec } = template.unwrap_or_default();
    let described = metadata.unwrap_or_default();
    let name = set.metadata.name.as_deref().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: set.metadata.namespace.clone(),
            labels: described.labels,
            annotations: described.annotations,
            finalizers: described.finalizers,
            owner_references: Some(vec![claim::controller_reference(set)]),
            ..ObjectMeta::default()
        },
        spec,
        status: None,
    }
}

/// The `count` pods that are missed least.
///
/// In order: those without a node; pending before unknown before running; not ready ones; a lower
/// `controller.kubernetes.io/pod-deletion-cost`; those whose node has more pods of the same family;
/// those ready for a shorter time; those that restarted more often; the younger ones. Times are
/// compared by their magnitude only, and by uid within it, so that not always the same generation
/// of pods has to go.
fn choose(
    active: &[Arc<Pod>],
    per_node: &HashMap<String, usize>,
    count: usize,
    now: Timestamp,
) -> Vec<Arc<Pod>> {
    let mut ranked: Vec<_> = active.to_vec();
    ranked.sort_by_cached_key(|pod| {
        let phase = match pods::phase(pod) {
            "Pending" => 0,
            "Running" => 2,
            _ => 1,
        };
        let node = pods::node_name(pod);
        let annotations = pod.metadata.annotations.as_ref();
        let cost = annotations
            .and_then(|all| all.get("controller.kubernetes.io/pod-deletion-cost"))
            .and_then(|cost| cost.parse::<i32>().ok())
            .unwrap_or_default();
        let neighbours = node
            .and_then(|node| per_node.get(node))
            .copied()
            .unwrap_or_default();
        let magnitude = |since: Option<Timestamp>| {
            since.map_or(0, |since| {
                let seconds = now.duration_since(since).as_secs().max(0) as u64;
                u64::BITS - seconds.leading_zeros() + 1
            })
        };
        let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (
            node.is_some(),
            phase,
            pods::is_ready(pod),
            cost,
            Reverse(neighbours),
            magnitude(pods::ready_since(pod)),
            Reverse(restarts(pod)),
            magnitude(created),
            pod.metadata.uid.clone(),
        )
    });
    ranked.truncate(count);
    ranked
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_ref());
    let counts = statuses
        .into_iter()
        .flatten()
        .map(|status| status.restart_count);
    counts.max().unwrap_or_default()
}

fn status_of(
    set: &ReplicaSet,
    active: &[Arc<Pod>],
    terminating: usize,
    failure: Option<&Error>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let spec = set.spec.clone().unwrap_or_default();
    let described = spec.template.and_then(|template| template.metadata);
    let described = described.and_then(|meta| meta.labels).unwrap_or_default();
    let min_ready = spec.min_ready_seconds.unwrap_or_default();
    let count =
        |holds: &dyn Fn(&Pod) -> bool| active.iter().filter(|pod| holds(pod)).count() as i32;
    let fully_labeled = count(&|pod| {
        let labels = claim::labels(&pod.metadata);
        described
            .iter()
            .all(|(name, value)| labels.get(name) == Some(value))
    });
    let ready = count(&pods::is_ready);
    let available =
        count(&|pod| pods::availability(pod, min_ready, now) == Availability::Available);
    // The API leaves out counts that are zero, but for the first and the last.
    let unless_zero = |count: i32| (count != 0).then_some(count);
    let old = set.status.clone().unwrap_or_default();
    ReplicaSetStatus {
        replicas: active.len() as i32,
        fully_labeled_replicas: unless_zero(fully_labeled),
        ready_replicas: unless_zero(ready),
        available_replicas: unless_zero(available),
        terminating_replicas: Some(terminating as i32),
        observed_generation: set.metadata.generation,
        conditions: conditions_of(old.conditions, failure, now),
    }
}

fn conditions_of(
    old: Option<Vec<ReplicaSetCondition>>,
    failure: Option<&Error>,
    now: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    let mut conditions = old.unwrap_or_default();
    let known = conditions
        .iter()
        .position(|condition| condition.type_ == "ReplicaFailure");
    let reason = match failure {
        Some(Error::Create(text)) => Some(("FailedCreate", text)),
        Some(Error::Delete(text)) => Some(("FailedDelete", text)),
        _ => None,
    };
    match (reason, known) {
        (Some((reason, text)), None) => conditions.push(ReplicaSetCondition {
            type_: "ReplicaFailure".to_owned(),
            status: "True".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(text.clone()),
            last_transition_time: Timestamp::from_second(now.as_second()).ok().map(Time),
        }),
        (None, Some(index)) => {
            conditions.remove(index);
        }
        _ => {}
    }
    (!conditions.is_empty()).then_some(conditions)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, fields: Value) -> Arc<Pod> {
        let field = |name: &str| fields.get(name).cloned().unwrap_or_default();
        let ready = match fields.get("ready") {
            Some(since) => {
                json!([{"type": "Ready", "status": "True", "lastTransitionTime": since}])
            }
            None => json!([]),
        };
        let phase = fields.get("phase").cloned().unwrap_or(json!("Running"));
        let pod = json!({
            "metadata": {"name": name, "uid": name, "creationTimestamp": field("created"), "annotations": field("annotations")},
            "spec": {"nodeName": field("node"), "containers": []},
            "status": {"phase": phase, "conditions": ready,
                "containerStatuses": [{"name": "c", "ready": true, "restartCount": fields.get("restarts").cloned().unwrap_or(json!(0)), "image": "", "imageID": ""}]},
        });
        Arc::new(serde_json::from_value(pod).expect("is a pod"))
    }

    /// `pods` in the order in which they are to go.
    fn check(pods: &[Arc<Pod>], per_node: &[(&str, usize)]) {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().expect("is a time");
        let per_node = per_node
            .iter()
            .map(|(node, count)| ((*node).to_owned(), *count))
            .collect();
        let mut shuffled = pods.to_vec();
        shuffled.reverse();
        let names = |pods: &[Arc<Pod>]| -> Vec<_> {
            pods.iter()
                .map(|pod| pod.metadata.name.clone().unwrap_or_default())
                .collect()
        };
        assert_eq!(
            names(&choose(&shuffled, &per_node, pods.len(), now)),
            names(pods)
        );
        assert_eq!(choose(&shuffled, &per_node, 1, now).len(), 1);
    }

    #[test]
    fn the_least_missed_pods_go_first() {
        let ready = |second: u32| format!("2026-01-01T{second:02}:00:00Z");
        check(
            &[
                pod("homeless", json!({"ready": ready(1)})),
                pod("pending", json!({"node": "a", "phase": "Pending"})),
                pod("unready", json!({"node": "a"})),
                pod(
                    "cheap",
                    json!({"node": "a", "ready": ready(1), "annotations": {"controller.kubernetes.io/pod-deletion-cost": "-5"}}),
                ),
                pod("crowded", json!({"node": "b", "ready": ready(1)})),
                pod("young", json!({"node": "a", "ready": ready(23)})),
                pod(
                    "shaky",
                    json!({"node": "a", "ready": ready(1), "restarts": 7}),
                ),
                pod("solid", json!({"node": "a", "ready": ready(1)})),
                pod(
                    "dear",
                    json!({"node": "a", "ready": ready(23), "annotations": {"controller.kubernetes.io/pod-deletion-cost": "5"}}),
                ),
            ],
            &[("a", 2), ("b", 9)],
        );
    }

    #[test]
    fn the_newly_created_go_before_the_old() {
        check(
            &[
                pod(
                    "new",
                    json!({"node": "a", "created": "2026-01-01T23:59:00Z"}),
                ),
                pod(
                    "old",
                    json!({"node": "a", "created": "2025-01-01T00:00:00Z"}),
                ),
            ],
            &[],
        );
    }

    #[test]
    fn a_failure_is_noted_once_and_taken_back() {
        let now = Timestamp::from_second(1_000_000).expect("in range");
        let failed = conditions_of(None, Some(&Error::Create("forbidden".to_owned())), now);
        let text = |conditions: &Option<Vec<ReplicaSetCondition>>| json!(conditions);
        assert_eq!(
            text(&failed),
            json!([{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "forbidden",
                "lastTransitionTime": "1970-01-12T13:46:40Z"}])
        );
        let later = now + k8s_openapi::jiff::SignedDuration::from_secs(60);
        let again = conditions_of(
            failed.clone(),
            Some(&Error::Create("other".to_owned())),
            later,
        );
        assert_eq!(text(&again), text(&failed));
        assert_eq!(conditions_of(failed, None, later), None);
    }
}
