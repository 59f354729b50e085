//! Pods that nobody else will ever clean up: those whose node is gone, those that are deleted on a node
//! that is out of service or without having had a node, and the oldest of those that have ended, when
//! there are too many.

use std::sync::Arc;
use std::time::Duration;

use informer::{Action, Change, Index, Informer, Key, Queue};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::Api;

use crate::disruption::{Disruption, disrupt};
use crate::work::{Reconcile, work};
use crate::{Clock, Context, follow, nodes, pods, writes};

/// Put on a node by somebody who knows that it is off.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// How long a node must be gone before its pods are taken for lost.
const QUARANTINE: Duration = Duration::from_secs(40);

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Subject {
    Pod(Key),
    /// The pods that have ended, all together.
    Ended,
}

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
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        now: context.config.now.clone(),
        pods_by_node: pods::by_node(&pods),
        pods: pods.clone(),
        nodes: context.informers.of(),
        ended_max: context.config.ended_pods_max,
    });
    controller.pods.synced().await;
    controller.nodes.synced().await;
    let queue: Queue<Subject> = Queue::new();
    tokio::join!(
        follow(pods, |change| {
            let Change::Applied { new: pod, .. } = change else {
                return;
            };
            let key = Subject::Pod(Key::of(&**pod));
            match pods::node_name(pod) {
                Some(node) if controller.nodes.get(None, node).is_none() => {
                    queue.add_after(key, QUARANTINE);
                }
                _ if pod.metadata.deletion_timestamp.is_some() => queue.add(key),
                _ => {}
            }
            if pods::has_ended(pod) && controller.pods.count() > controller.ended_max {
                queue.add(Subject::Ended);
            }
        }),
        follow(controller.nodes.clone(), |change| {
            let pause = match change {
                Change::Deleted(_) => QUARANTINE,
                Change::Applied { new, .. } if is_out_of_service(new) => Duration::ZERO,
                Change::Applied { .. } => return,
            };
            let node = &change.object().metadata;
            let name = node.name.as_deref().unwrap_or_default();
            for pod in controller.pods_by_node.get(name) {
                queue.add_after(Subject::Pod(Key::of(&*pod)), pause);
            }
        }),
        work(&controller, &queue, &context.drain),
    );
}

impl Reconcile for Controller {
    type Key = Subject;
    type Error = kube::Error;
    const NAME: &'static str = "pod garbage";
    const WORKERS: usize = 4;

    async fn reconcile(&self, subject: &Subject) -> Result<Action, kube::Error> {
        match subject {
            Subject::Pod(key) => self.collect(key).await,
            Subject::Ended => self.collect_ended().await,
        }
    }
}

impl Controller {
    async fn collect(&self, key: &Key) -> Result<Action, kube::Error> {
        let Some(pod) = self.pods.get(Some(&key.namespace), &key.name) else {
            return Ok(Action::Done);
        };
        let Some(node) = pods::node_name(&pod) else {
            if pod.metadata.deletion_timestamp.is_some() {
                self.delete(&pod, None).await?;
            }
            return Ok(Action::Done);
        };
        if let Some(node) = self.nodes.get(None, node) {
            if pod.metadata.deletion_timestamp.is_some() && is_out_of_service(&node) {
                self.delete(&pod, None).await?;
            }
            return Ok(Action::Done);
        }
        // The cache may be behind a node that has just joined; a pod must not pay for that.
        let nodes: Api<Node> = Api::all(self.client.clone());
        if nodes.get_metadata_opt(node).await?.is_none() {
            let target = ("DeletionByPodGC", "PodGC: node no longer exists");
            self.delete(&pod, Some(target)).await?;
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
            self.delete(pod, None).await?;
        }
        Ok(Action::Done)
    }

    /// Deletes a pod without waiting for its node. One that has not ended has failed by it.
    async fn delete(
        &self,
        pod: &Pod,
        target: Option<(&'static str, &'static str)>,
    ) -> Result<(), kube::Error> {
        let disruption = Disruption {
            target,
            fails: true,
        };
        let params = writes::delete(&pod.metadata).grace_period(0);
        disrupt(&self.client, pod, &disruption, &params, (self.now)()).await
    }
}

/// Whether somebody has said that the node is off and will not come back as it was, and nothing is
/// heard of it: then nothing that was on it runs any more.
fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.iter().flat_map(|spec| &spec.taints).flatten();
    let said = taints.into_iter().any(|taint| taint.key == OUT_OF_SERVICE);
    said && !nodes::is_ready(node)
}
