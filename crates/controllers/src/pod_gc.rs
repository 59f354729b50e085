//! Pods that nobody else will ever clean up: those whose node is gone, those that are deleted without
//! having had a node, and the oldest of those that have ended, when there are too many.

use std::time::Duration;

use informer::{Action, Index, Informer, Key, Queue};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;

use crate::{Clock, Context, follow, pods};

/// How long a node must be gone before its pods are taken for lost.
const QUARANTINE: Duration = Duration::from_secs(40);

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Subject {
    Pod(Key),
    /// The pods that have ended, all together.
    Ended,
}

#[derive(Clone)]
struct Controller {
    client: kube::Client,
    now: Clock,
    pods: Informer<Pod>,
    pods_by_node: Index<Pod>,
    nodes: Informer<Node>,
    ended_max: usize,
}

pub(crate) async fn run(context: Context) {
    let pods = context.informers.pods();
    let controller = Controller {
        client: context.client.clone(),
        now: context.config.now.clone(),
        pods_by_node: pods.index_by("node", |pod| {
            pods::node_name(pod)
                .map(str::to_owned)
                .into_iter()
                .collect()
        }),
        pods: pods.clone(),
        nodes: context.informers.of(),
        ended_max: context.config.ended_pods_max,
    };
    controller.pods.synced().await;
    controller.nodes.synced().await;
    let queue: Queue<Subject> = Queue::new();
    tokio::join!(
        follow(pods, |change| {
            let informer::Change::Applied { new: pod, .. } = change else {
                return;
            };
            let key = Subject::Pod(Key::of(&**pod));
            match pods::node_name(pod) {
                Some(node) if controller.nodes.get(None, node).is_none() => {
                    queue.add_after(key, QUARANTINE);
                }
                None if pod.metadata.deletion_timestamp.is_some() => queue.add(key),
                _ => {}
            }
            if pods::has_ended(pod) && controller.pods.count() > controller.ended_max {
                queue.add(Subject::Ended);
            }
        }),
        follow(controller.nodes.clone(), |change| {
            if let informer::Change::Deleted(node) = change {
                let name = node.metadata.name.as_deref().unwrap_or_default();
                for pod in controller.pods_by_node.get(name) {
                    queue.add_after(Subject::Pod(Key::of(&*pod)), QUARANTINE);
                }
            }
        }),
        queue.clone().run(
            "pod garbage",
            4,
            |subject| {
                let controller = controller.clone();
                async move {
                    match subject {
                        Subject::Pod(key) => controller.collect(&key).await,
                        Subject::Ended => controller.collect_ended().await,
                    }
                }
            },
            context.drain.clone(),
        ),
    );
}

impl Controller {
    async fn collect(&self, key: &Key) -> Result<Action, kube::Error> {
        let Some(pod) = self.pods.get(Some(&key.namespace), &key.name) else {
            return Ok(Action::Done);
        };
        let Some(node) = pods::node_name(&pod) else {
            if pod.metadata.deletion_timestamp.is_some() {
                self.delete(&pod, "PodGC: deleting unscheduled terminating pod")
                    .await?;
            }
            return Ok(Action::Done);
        };
        if self.nodes.get(None, node).is_some() {
            return Ok(Action::Done);
        }
        // The cache may be behind a node that has just joined; a pod must not pay for that.
        let nodes: Api<Node> = Api::all(self.client.clone());
        if nodes.get_metadata_opt(node).await?.is_none() {
            self.delete(&pod, "PodGC: node no longer exists").await?;
        }
        Ok(Action::Done)
    }

    async fn collect_ended(&self) -> Result<Action, kube::Error> {
        let mut ended = self.pods.list();
        ended.retain(|pod| pods::has_ended(pod));
        let excess = ended.len().saturating_sub(self.ended_max);
        ended.sort_by_key(|pod| {
            let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
            (created, pod.metadata.name.clone())
        });
        for pod in ended.iter().take(excess) {
            self.delete(pod, "").await?;
        }
        Ok(Action::Done)
    }

    /// Deletes a pod without waiting for its node. One that has not ended is first said to have failed,
    /// for those who count; `why` is the reason.
    async fn delete(&self, pod: &Pod, why: &str) -> Result<(), kube::Error> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        if !pods::has_ended(pod) {
            let now = (self.now)().as_second();
            let patch = json!({
                "metadata": {"uid": pod.metadata.uid},
                "status": {"phase": "Failed", "conditions": [{
                    "type": "DisruptionTarget",
                    "status": "True",
                    "reason": "DeletionByPodGC",
                    "message": why,
                    "lastTransitionTime": Timestamp::from_second(now).unwrap_or_default(),
                }]},
            });
            let params = PatchParams::default();
            match api
                .patch_status(name, &params, &Patch::Strategic(&patch))
                .await
            {
                Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
                result => drop(result?),
            }
        }
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: pod.metadata.uid.clone(),
                resource_version: None,
            }),
            ..DeleteParams::default().grace_period(0)
        };
        match api.delete(name, &params).await {
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            result => result.map(drop),
        }
    }
}
