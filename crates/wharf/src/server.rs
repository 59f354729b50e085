//! The running server, as the control socket sees it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cli::Config;
use cli::control::{NotReady, Running, State, Status};
use engine::{ContainerState, Engine};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use image::{Images, Use};
use informer::Informer;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use lifecycle::{DrainTrigger, Ready};

use crate::addresses::Addresses;
use crate::dns_probe;
use crate::parts::Ground;

/// Everything that runs, with the handle to end it.
pub(crate) struct Server {
    pub(crate) config: Config,
    pub(crate) addresses: Addresses,
    pub(crate) api_for_pods: SocketAddr,
    pub(crate) started_at: Timestamp,
    pub(crate) ground: Ground,
    pub(crate) agent: node::Agent,
    pub(crate) nodes: Informer<Node>,
    pub(crate) ready: Ready,
    pub(crate) workers: Workers,
    pub(crate) end: DrainTrigger,
    pub(crate) taking_down: OnceLock<TakingDown>,
}

/// The one taking down that a server does, for everybody who asks for it.
pub(crate) type TakingDown = Shared<BoxFuture<'static, Result<(), String>>>;

/// The workers: told to stop, and waited for.
pub(crate) struct Workers {
    pub(crate) stop: DrainTrigger,
    pub(crate) tasks: tokio_util::task::TaskTracker,
}

impl Server {
    pub(crate) fn images(&self) -> &Images {
        &self.ground.images
    }

    /// Resolves when the start is complete.
    pub(crate) async fn until_ready(&self) {
        self.ready.wait().await;
    }

    /// What runs, and what is not ready and why, as of now.
    pub(crate) async fn status(&self) -> Status {
        let mut not_ready: Vec<NotReady> = self
            .ready
            .waiting_for()
            .into_iter()
            .map(|name| NotReady {
                name: name.into(),
                reason: "still starting".into(),
            })
            .collect();
        let stopping = self.taking_down.get().is_some();
        if stopping {
            not_ready.push(NotReady {
                name: "server".into(),
                reason: "it was told to end".into(),
            });
        }
        if not_ready.is_empty() {
            not_ready.extend(self.node_fault());
            if let Err(error) = dns_probe::answers(self.addresses.dns_service).await {
                not_ready.push(NotReady {
                    name: "dns".into(),
                    reason: format!("{error:#}"),
                });
            }
        }
        let ready = not_ready.is_empty();
        Status {
            state: match (stopping, ready) {
                (true, _) => State::Stopping,
                (false, true) => State::Running,
                (false, false) => State::Starting,
            },
            ready,
            not_ready,
            pid: Some(std::process::id()),
            started_at: Some(self.started_at.to_string()),
            version: Some(crate::version()),
            instance: self.config.instance.name.clone(),
            data_dir: self.config.instance.data_dir.clone(),
            addresses: Some(cli::control::Addresses {
                api: self.config.server_url(),
                api_in_cluster: format!("https://{}", self.api_for_pods),
                dns: self.addresses.dns_service.to_string(),
                node: self.addresses.node.to_string(),
                pod_cidr: self.config.pod_cidr.to_string(),
                service_cidr: self.config.service_cidr.to_string(),
            }),
            node: Some(self.config.node_name.clone()),
            running: Some(self.running().await),
        }
    }

    /// Why the node is not Ready, in its own words.
    fn node_fault(&self) -> Option<NotReady> {
        let name = || format!("node {}", self.config.node_name);
        let Some(node) = self.nodes.get(None, &self.config.node_name) else {
            return Some(NotReady {
                name: name(),
                reason: "it is not registered".into(),
            });
        };
        let conditions = node
            .status
            .as_ref()
            .and_then(|status| status.conditions.as_ref());
        let ready = conditions
            .into_iter()
            .flatten()
            .find(|condition| condition.type_ == "Ready");
        match ready {
            Some(condition) if condition.status == "True" => None,
            Some(condition) => {
                let reason = condition
                    .message
                    .clone()
                    .or_else(|| condition.reason.clone());
                Some(NotReady {
                    name: name(),
                    reason: reason.unwrap_or_else(|| "it does not say why".into()),
                })
            }
            None => Some(NotReady {
                name: name(),
                reason: "it has not reported yet".into(),
            }),
        }
    }

    async fn running(&self) -> Running {
        let sandboxes = self.ground.engine.sandboxes().await;
        let runs = |state: &ContainerState| matches!(state, ContainerState::Running { .. });
        Running {
            pods: sandboxes.iter().filter(|sandbox| sandbox.alive).count(),
            containers: sandboxes
                .iter()
                .flat_map(|sandbox| &sandbox.containers)
                .filter(|container| runs(&container.state))
                .count(),
        }
    }

    /// Which container uses each image, a running one before a stopped one.
    pub(crate) async fn used_images(&self) -> HashMap<String, Use> {
        let mut used: HashMap<String, Use> = HashMap::new();
        for container in self
            .ground
            .engine
            .sandboxes()
            .await
            .into_iter()
            .flat_map(|sandbox| sandbox.containers)
        {
            let running = !matches!(container.state, ContainerState::Exited { .. });
            let new = Use {
                container: container.id.0.chars().take(12).collect(),
                running,
            };
            let known = used
                .entry(container.image_id)
                .or_insert_with(|| new.clone());
            if new.running && !known.running {
                *known = new;
            }
        }
        used
    }

    /// Ends the workers, every container, link, rule and cgroup; then lets the server end, whatever
    /// came of it. Once begun it goes on, also if nobody waits for it any more; who asks again waits
    /// for the same. Pods end as they asked to, but no later than after `limit`.
    pub(crate) async fn take_down(self: &Arc<Self>, limit: Duration) -> Result<(), String> {
        let taking_down = self.taking_down.get_or_init(|| {
            let server = self.clone();
            let task = tokio::spawn(async move {
                server.stop_workers().await;
                let result = server.ground.take_down(limit).await;
                server.end.signal();
                result.map(drop)
            });
            let told = async {
                let result = task.await.map_err(anyhow::Error::new).flatten();
                result.map_err(|error| format!("{error:#}"))
            };
            told.boxed().shared()
        });
        taking_down.clone().await
    }

    /// Tells the workers to stop, and waits until they have. Containers go on.
    pub(crate) async fn stop_workers(&self) {
        self.workers.stop.signal();
        self.workers.tasks.close();
        self.workers.tasks.wait().await;
    }
}
