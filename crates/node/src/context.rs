//! What all parts of the agent share.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use engine::Engine;
use informer::{EventType, Informer, Recorder};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use lifecycle::Drain;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::Config;
use crate::admission::Admission;
use crate::pod::{self, Member};
use crate::sources::Sources;
use crate::tokens::Tokens;

/// The agent's surroundings, shared by its workers.
pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) client: kube::Client,
    /// The pods of this node.
    pub(crate) pods: Informer<Pod>,
    /// Only this node's object.
    pub(crate) nodes: Informer<Node>,
    pub(crate) services: Informer<Service>,
    pub(crate) sources: Sources,
    pub(crate) tokens: Tokens,
    pub(crate) admission: Admission,
    pub(crate) events: Recorder,
    /// Counts up when images came or went.
    pub(crate) images_changed: watch::Sender<u64>,
    /// Why this node is not ready, if it is not.
    pub(crate) complaint: Mutex<Option<String>>,
    pub(crate) allocatable: BTreeMap<String, Quantity>,
    /// Bytes.
    pub(crate) machine_memory: u64,
    pub(crate) drain: Drain,
}

impl Context {
    pub(crate) fn now(&self) -> Timestamp {
        (self.config.now)()
    }

    /// The labels of the Node object, as it is in the API.
    pub(crate) fn node_labels(&self) -> BTreeMap<String, String> {
        let node = self.nodes.get(None, &self.config.node_name);
        let labels = node.and_then(|node| node.metadata.labels.clone());
        labels.unwrap_or_else(|| crate::register::labels(&self.config))
    }

    /// A pod's own directory: its volumes and its containers' termination messages.
    pub(crate) fn pod_dir(&self, uid: &str) -> PathBuf {
        self.config.data_dir.join("pods").join(uid)
    }

    /// The directory of a pod's logs.
    pub(crate) fn log_dir(&self, pod: &Pod) -> PathBuf {
        let name = format!(
            "{}_{}_{}",
            pod::namespace(pod),
            pod::name(pod),
            pod::uid(pod)
        );
        self.config.log_dir.join(name)
    }

    pub(crate) fn log_file(&self, pod: &Pod, container: &str, attempt: u32) -> PathBuf {
        self.log_dir(pod)
            .join(container)
            .join(format!("{attempt}.log"))
    }

    pub(crate) fn host_ip(&self) -> IpAddr {
        self.config.node_ip
    }

    /// Says something about a pod, or about one of its containers.
    pub(crate) fn event(
        &self,
        pod: &Pod,
        member: Option<&Member>,
        event_type: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        let regarding = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            resource_version: pod.metadata.resource_version.clone(),
            field_path: member.map(Member::field_path),
        };
        self.events
            .event_on(regarding, event_type, reason, None, message.into());
    }
}
