//! Keeps as many pods as a ReplicaSet asks for, and says how many there are.
//!
//! Pods have names that the server makes up, so a request that is tried again makes another pod. After an
//! answer that leaves open whether a pod was made, the server is therefore asked until it says so, and
//! pods are counted again only when the cache is as new as that.

mod choose;
mod status;

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use informer::{Action, EventType, Index, Informer, Key, Queue, Recorder};
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, ListParams};

use crate::pods::{self, Availability};
use crate::work::{Reconcile, work};
use crate::writes::{self, is_namespace_terminating, is_not_found, message_of};
use crate::{Clock, Context, claim, rest};
use choose::choose;
use status::status_of;

/// Pods that are made or deleted in one go; the rest follows when these are seen.
const BURST: usize = 500;
/// Pauses between looks for pods of which it is not known whether they were made or deleted.
const LOOK_AGAIN_MIN: Duration = Duration::from_millis(50);
const LOOK_AGAIN_MAX: Duration = Duration::from_secs(10);

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
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        now: context.config.now.clone(),
        recorder: context.recorder(),
        sets_by_owner: claim::by_controller(&sets),
        pods_by_owner: claim::by_controller(&pods),
        sets: sets.clone(),
        pods: pods.clone(),
    });
    sets.synced().await;
    pods.synced().await;
    let queue = Queue::new();
    tokio::join!(
        claim::follow_owned(
            &sets,
            &pods,
            |set| Some(&set.spec.as_ref()?.selector),
            &queue
        ),
        work(&controller, &queue, &context.drain),
    );
}

impl Reconcile for Controller {
    type Key = Key;
    type Error = Error;
    const NAME: &'static str = "replicaset";
    const WORKERS: usize = 32;

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
}

impl Controller {
    /// Creates pods in growing batches, so that a template that the server refuses costs one request
    /// and not hundreds.
    async fn create(&self, set: &ReplicaSet, pods: &Api<Pod>, count: usize) -> Result<(), Error> {
        let pod = pod_of(set);
        let params = writes::post();
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
            if let Some(newest) = newest {
                self.pods.caught_up_with(&newest).await;
            }
            if is_open {
                self.catch_up(set, pods).await;
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

    /// Asks the server for the set's pods, for as long as it takes, and waits until the cache has seen
    /// the one that was written last.
    async fn catch_up(&self, set: &ReplicaSet, pods: &Api<Pod>) {
        let spec = set.spec.as_ref();
        let labels = spec.and_then(|spec| spec.selector.match_labels.clone());
        let pairs = labels.unwrap_or_default().into_iter();
        let selector: Vec<String> = pairs
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let params = ListParams::default().labels(&selector.join(","));
        let mut pause = LOOK_AGAIN_MIN;
        loop {
            match pods.list(&params).await {
                Ok(found) => {
                    if let Some(newest) = found.items.iter().max_by_key(|pod| revision_of(pod)) {
                        self.pods.caught_up_with(newest).await;
                    }
                    return;
                }
                Err(error) if !leaves_open(&error) => return,
                Err(_) => tokio::time::sleep(pause).await,
            }
            pause = (pause * 2).min(LOOK_AGAIN_MAX);
        }
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
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            (
                name,
                pods.delete(name, &writes::delete(&pod.metadata)).await,
            )
        }));
        let (mut failed, mut is_open) = (None, false);
        for (name, answer) in answers.await {
            match answer {
                Ok(_) => {
                    let message = format!("Deleted pod: {name}");
                    self.recorder
                        .event(set, EventType::Normal, "SuccessfulDelete", message);
                }
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                Err(error) => {
                    is_open |= leaves_open(&error);
                    let text = message_of(&error);
                    let message = format!("Error deleting: {text}");
                    self.recorder
                        .event(set, EventType::Warning, "FailedDelete", message);
                    failed = Some(text);
                }
            }
        }
        if is_open {
            self.catch_up(set, pods).await;
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
        match sets.replace_status(name, &writes::post(), &desired).await {
            Ok(written) => {
                self.sets.caught_up_with(&written).await;
                Ok(true)
            }
            Err(error) if is_not_found(&error) => Ok(false),
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
