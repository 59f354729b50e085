//! The node agent: turns the pods of one node into sandboxes and containers of an [`engine::Engine`].
//!
//! The decision: **one task per pod, level-triggered, and every rule a pure function.** A pod's
//! worker is woken by whatever concerns it (its object, the engine, a probe, a ConfigMap that it
//! mounts), looks at what is wanted and what is there, and takes the next steps; what those are, and
//! what the pod's status says, is computed without IO and tested in tables. Nothing is synced on a
//! timer: an idle pod costs its probes and nothing else. Everything that must be known again after a
//! restart stands in labels of the engine's containers and in the pod's own status, so a new daemon
//! takes up what runs and restarts none.
//!
//! ```text
//!   informer of pods ─► pods ─► worker ─► plan ─► start · stop ─► engine
//!   engine events ──────┘         │  └──► status ─► patch ─► API
//!   probes ───────────────────────┘
//! ```
//!
//! It also answers the API server's requests about its pods ([`Agent::service`]): logs, exec, attach,
//! port-forward. Containers, namespaces and images are the engine's; scheduling, Services and
//! EndpointSlices are others' work.

mod admission;
mod api;
mod backoff;
mod conditions;
mod context;
mod downward;
mod env;
mod excess;
mod expand;
mod failure;
mod grpc;
mod handler;
mod health;
mod hooks;
mod local;
mod log_reader;
mod logs;
mod machine;
mod mounts;
mod observed;
mod payload;
mod plan;
mod pod;
mod pods;
mod probes;
mod record;
mod register;
mod report;
mod resources;
mod rotate;
mod sandbox;
mod security;
mod shutdown;
mod sources;
mod start;
mod status;
mod steps;
mod stop;
mod sweep;
mod termination;
mod tokens;
mod unsupported;
mod volumes;
mod worker;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use engine::Engine;
use http::{Request, Response};
use informer::{Informers, Recorder};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use lifecycle::Drain;
use tower::util::BoxCloneSyncService;

use crate::admission::Admission;
use crate::context::Context;
use crate::machine::Machine;
use crate::sources::Sources;
use crate::tokens::Tokens;

pub use register::RegisterError;
pub use shutdown::end_pods;

/// What a node has for its pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Processors.
    pub cpus: usize,
    /// Bytes of memory.
    pub memory: u64,
}

/// What an agent must be told.
#[derive(Clone)]
pub struct Config {
    /// Name of the Node object.
    pub node_name: String,
    /// The node's address (`InternalIP`), and `hostIP` of its pods.
    pub node_ip: IpAddr,
    /// Volumes lie in `pods/` below it.
    pub data_dir: PathBuf,
    /// Logs of pods lie here: `<namespace>_<name>_<uid>/<container>/<n>.log`.
    pub log_dir: PathBuf,
    /// The cluster's DNS server.
    pub cluster_dns: Ipv4Addr,
    /// The cluster's domain, such as `cluster.local`.
    pub cluster_domain: String,
    /// Pods that this node takes at most.
    pub max_pods: u32,
    /// What the node says it has, if that is not what the machine has.
    pub capacity: Option<Capacity>,
    /// Labels of the Node object besides the well-known ones.
    pub labels: BTreeMap<String, String>,
    /// `nodeInfo.kubeletVersion`, such as `v1.36.3`.
    pub kubelet_version: String,
    /// `nodeInfo.containerRuntimeVersion`, such as `wharf://0.1.0`.
    pub runtime_version: String,
    /// Port on which the kubelet's API is served to other machines, if it is.
    pub port: Option<u16>,
    /// The machine's resolv.conf, for pods that ask as the machine does.
    pub resolv_conf: PathBuf,
    /// Run containers that name no seccomp profile with the runtime's default one
    /// (the kubelet's `seccompDefault`).
    pub seccomp_default: bool,
    /// How often the node says that it lives, and asks its engine whether it does. The node lifecycle
    /// controller waits for 40 s.
    pub heartbeat: Duration,
    /// The time.
    pub now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

impl Config {
    /// A configuration with the usual values for all that an instance does not choose.
    pub fn new(node_name: &str, node_ip: IpAddr, data_dir: PathBuf, cluster_dns: Ipv4Addr) -> Self {
        Config {
            node_name: node_name.to_owned(),
            node_ip,
            log_dir: data_dir.join("log").join("pods"),
            data_dir,
            cluster_dns,
            cluster_domain: "cluster.local".to_owned(),
            max_pods: 110,
            capacity: None,
            labels: BTreeMap::new(),
            kubelet_version: "v1.36.3".to_owned(),
            runtime_version: concat!("wharf://", env!("CARGO_PKG_VERSION")).to_owned(),
            port: None,
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            seccomp_default: false,
            heartbeat: Duration::from_secs(10),
            now: Arc::new(Timestamp::now),
        }
    }
}

/// Why the agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The node is not in the API.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// A directory of the agent could not be made.
    #[error("make directory {}: {source}", path.display())]
    Directory {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A node agent that runs. Clones are the same agent; it ends with the drain that it was started with.
#[derive(Clone)]
pub struct Agent {
    context: Arc<Context>,
    tasks: Arc<Tasks>,
}

/// The agent's tasks, to be awaited at the end.
struct Tasks(tokio::sync::Mutex<tokio::task::JoinSet<()>>);

impl Agent {
    /// Registers the node and begins to run its pods. When this returns, the node is Ready and what an
    /// earlier daemon left is being taken up.
    ///
    /// # Errors
    ///
    /// The node could not be registered, or its directories not be made.
    pub async fn start(
        informers: Informers,
        engine: Arc<dyn Engine>,
        config: Config,
        drain: Drain,
    ) -> Result<Agent, StartError> {
        for path in [config.data_dir.join("pods"), config.log_dir.clone()] {
            std::fs::create_dir_all(&path)
                .map_err(|source| StartError::Directory { path, source })?;
        }
        let client = informers.client().clone();
        let mut machine = Machine::look(
            &config.data_dir,
            &config.kubelet_version,
            &config.runtime_version,
        );
        if let Some(capacity) = config.capacity {
            machine.cpus = capacity.cpus;
            machine.memory = capacity.memory;
        }
        let pods = informers.of_fields::<Pod>(&format!("spec.nodeName={}", config.node_name));
        let services = informers.of::<Service>();
        let allocatable = machine.allocatable(config.max_pods);
        let name = format!("metadata.name={}", config.node_name);
        let nodes = informers.of_fields::<Node>(&name);
        let context = Arc::new(Context {
            engine,
            admission: Admission::new(&allocatable, config.max_pods),
            pods: pods.clone(),
            nodes: nodes.clone(),
            services: services.clone(),
            sources: Sources::new(client.clone()),
            tokens: Tokens::new(client.clone()),
            events: Recorder::new(
                client.clone(),
                "kubelet",
                Some(&config.node_name),
                drain.clone(),
            ),
            images_changed: tokio::sync::watch::Sender::new(0),
            complaint: parking_lot::Mutex::default(),
            allocatable,
            machine_memory: machine.memory,
            client,
            drain,
            config,
        });
        let node = register::register(&context, &machine).await?;
        register::say_started(&context, &node);
        // Pods get the variables of services that were there before them.
        tokio::join!(pods.synced(), services.synced(), nodes.synced());
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(register::keep_alive(context.clone(), machine, node));
        tasks.spawn(pods::dispatch(context.clone(), pods));
        Ok(Agent {
            context,
            tasks: Arc::new(Tasks(tokio::sync::Mutex::new(tasks))),
        })
    }

    /// Tells that images were loaded or removed: containers that wait for one look again, and the
    /// Node's list of images is written.
    pub fn images_changed(&self) {
        self.context.images_changed.send_modify(|count| *count += 1);
    }

    /// The kubelet's API, for the API server: logs, exec, attach, port-forward and `stats/summary` of
    /// this node's pods. Requests that upgrade their connection must come through hyper.
    pub fn service(&self) -> BoxCloneSyncService<Request<Body>, Response<Body>, Infallible> {
        api::service(self.context.clone())
    }

    /// Resolves when all tasks of the agent have ended, after its drain was signaled. Containers go on.
    pub async fn ended(&self) {
        while self.tasks.0.lock().await.join_next().await.is_some() {}
    }
}
