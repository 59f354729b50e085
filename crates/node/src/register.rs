//! The Node object and its Lease: that this node is here, what it has, and that it lives.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use engine::ImageInfo;
use informer::EventType;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints,
    NodeFeatures, NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeStatus, ObjectReference,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::Config;
use crate::context::Context;
use crate::health::Health;
use crate::machine::{self, Machine};
use crate::rotate::rotate_logs;

const LEASE_SECONDS: i32 = 40;
/// How often the status is written when nothing changes.
const STATUS_EVERY: Duration = Duration::from_secs(300);
/// Names of images that the status carries at most, as upstream.
const IMAGES_MAX: usize = 50;
const LEASE_NAMESPACE: &str = "kube-node-lease";

/// The node could not be registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The Node object could not be made or changed.
    #[error("register node {name}: {source}")]
    Node {
        /// The node.
        name: String,
        /// What the API said.
        #[source]
        source: Box<kube::Error>,
    },
}

/// Makes the Node object, or brings the one of an earlier start up to date. When this returns, the
/// node is Ready.
pub(crate) async fn register(context: &Context, machine: &Machine) -> Result<Node, RegisterError> {
    let nodes: Api<Node> = Api::all(context.client.clone());
    let name = context.config.node_name.clone();
    let fail = |source| RegisterError::Node {
        name: name.clone(),
        source: Box::new(source),
    };
    let wanted = Node {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            labels: Some(labels(&context.config)),
            annotations: Some(BTreeMap::from([(
                "volumes.kubernetes.io/controller-managed-attach-detach".to_owned(),
                "true".to_owned(),
            )])),
            ..ObjectMeta::default()
        },
        status: Some(status(context, machine, &NodeStatus::default()).await),
        ..Node::default()
    };
    let found = match nodes.create(&PostParams::default(), &wanted).await {
        Ok(made) => return Ok(made),
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let patch = json!({"metadata": {"labels": wanted.metadata.labels}});
            nodes
                .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
                .await
                .map_err(fail)?
        }
        Err(error) => return Err(fail(error)),
    };
    if is_rebooted(&found, &machine.info.boot_id) {
        let message = format!(
            "Node {name} has been rebooted, boot id: {}",
            machine.info.boot_id
        );
        say(context, &found, EventType::Warning, "Rebooted", message);
    }
    write_status(context, machine, &found).await.map_err(fail)
}

/// Whether the node was last heard of in another boot of its machine than this one.
fn is_rebooted(known: &Node, boot: &str) -> bool {
    let before = known
        .status
        .as_ref()
        .and_then(|status| status.node_info.as_ref())
        .map_or("", |info| info.boot_id.as_str());
    !before.is_empty() && before != boot
}

/// The Node object's labels.
pub(crate) fn labels(config: &Config) -> BTreeMap<String, String> {
    let architecture = machine::architecture();
    let mut labels = config.labels.clone();
    for (name, value) in [
        ("kubernetes.io/hostname", config.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", architecture),
    ] {
        labels.insert(name.to_owned(), value.to_owned());
    }
    labels
}

/// The four conditions: the type, whether it is good to be true, and what is said when all is well.
const CONDITIONS: [(&str, &str, &str, &str); 4] = [
    (
        "MemoryPressure",
        "False",
        "KubeletHasSufficientMemory",
        "kubelet has sufficient memory available",
    ),
    (
        "DiskPressure",
        "False",
        "KubeletHasNoDiskPressure",
        "kubelet has no disk pressure",
    ),
    (
        "PIDPressure",
        "False",
        "KubeletHasSufficientPID",
        "kubelet has sufficient PID available",
    ),
    (
        "Ready",
        "True",
        "KubeletReady",
        "kubelet is posting ready status",
    ),
];

/// `complaint`: why the node is not ready, if it is not.
fn conditions(
    before: &[NodeCondition],
    complaint: Option<&str>,
    now: Timestamp,
) -> Vec<NodeCondition> {
    CONDITIONS
        .iter()
        .map(|(name, status, reason, message)| {
            let (status, reason, message) = match (*name, complaint) {
                ("Ready", Some(complaint)) => (&"False", &"KubeletNotReady", complaint),
                _ => (status, reason, *message),
            };
            let since = before
                .iter()
                .find(|known| known.type_ == *name && known.status == *status)
                .and_then(|known| known.last_transition_time.clone());
            NodeCondition {
                type_: (*name).to_owned(),
                status: (*status).to_owned(),
                reason: Some((*reason).to_owned()),
                message: Some(message.to_owned()),
                last_heartbeat_time: Some(Time(now)),
                last_transition_time: since.or(Some(Time(now))),
            }
        })
        .collect()
}

fn images(mut images: Vec<ImageInfo>) -> Vec<ContainerImage> {
    images.retain(|image| !image.references.is_empty());
    // The largest are worth most to a scheduler that looks for them.
    images.sort_by(|left, right| {
        right
            .size
            .cmp(&left.size)
            .then_with(|| left.id.cmp(&right.id))
    });
    images.truncate(IMAGES_MAX);
    images
        .into_iter()
        .map(|image| ContainerImage {
            names: Some(image.references),
            size_bytes: i64::try_from(image.size).ok(),
        })
        .collect()
}

async fn status(context: &Context, machine: &Machine, before: &NodeStatus) -> NodeStatus {
    let config = &context.config;
    let address = |kind: &str, address: String| NodeAddress {
        type_: kind.to_owned(),
        address,
    };
    let complaint = context.complaint.lock().clone();
    NodeStatus {
        addresses: Some(vec![
            address("InternalIP", config.node_ip.to_string()),
            address("Hostname", config.node_name.clone()),
        ]),
        capacity: Some(machine.capacity(config.max_pods)),
        allocatable: Some(machine.allocatable(config.max_pods)),
        conditions: Some(conditions(
            before.conditions.as_deref().unwrap_or_default(),
            complaint.as_deref(),
            context.now(),
        )),
        daemon_endpoints: config.port.map(|port| NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint {
                port: i32::from(port),
            }),
        }),
        features: Some(NodeFeatures {
            supplemental_groups_policy: Some(false),
        }),
        images: match complaint {
            // An engine that is silent is not asked.
            Some(_) => before.images.clone(),
            None => Some(images(context.engine.images().await)),
        },
        node_info: Some(machine.info.clone()),
        runtime_handlers: Some(vec![NodeRuntimeHandler {
            name: Some(String::new()),
            features: Some(NodeRuntimeHandlerFeatures {
                recursive_read_only_mounts: Some(false),
                user_namespaces: Some(false),
            }),
        }]),
        ..NodeStatus::default()
    }
}

/// Writes the status; gives the node as it is then.
async fn write_status(
    context: &Context,
    machine: &Machine,
    node: &Node,
) -> Result<Node, kube::Error> {
    let nodes: Api<Node> = Api::all(context.client.clone());
    let before = node.status.clone().unwrap_or_default();
    let mut status = json!(status(context, machine, &before).await);
    // Lists that are merged by key: with this, what is not named in them goes away.
    for (list, key) in [("addresses", "type"), ("conditions", "type")] {
        let order: Vec<_> = status[list]
            .as_array()
            .into_iter()
            .flatten()
            .map(|entry| json!({ key: entry[key] }))
            .collect();
        status[format!("$setElementOrder/{list}")] = json!(order);
    }
    let patch = Patch::Strategic(json!({ "status": status }));
    nodes
        .patch_status(&context.config.node_name, &PatchParams::default(), &patch)
        .await
}

/// Says the things about the node that upstream says when it starts.
pub(crate) fn say_started(context: &Context, node: &Node) {
    let message = "Starting kubelet.".to_owned();
    say(context, node, EventType::Normal, "Starting", message);
    say_status(context, node, "NodeReady");
}

/// Says that the node's status is another one now.
fn say_status(context: &Context, node: &Node, status: &str) {
    let name = &context.config.node_name;
    say(
        context,
        node,
        EventType::Normal,
        status,
        format!("Node {name} status is now: {status}"),
    );
}

fn say(context: &Context, node: &Node, grade: EventType, reason: &str, message: String) {
    let name = &context.config.node_name;
    let regarding = ObjectReference {
        kind: Some("Node".to_owned()),
        name: Some(name.clone()),
        // Upstream names the node here as well, so that `describe node` finds its events.
        uid: node.metadata.uid.clone().or_else(|| Some(name.clone())),
        ..ObjectReference::default()
    };
    context
        .events
        .event_on(regarding, grade, reason, None, message);
}

/// Keeps status and lease fresh until the program drains. `images_changed` has the status written at once.
pub(crate) async fn keep_alive(context: Arc<Context>, machine: Machine, node: Node) {
    let mut node = node;
    let mut lease: Option<Lease> = None;
    let mut rotation: Option<JoinHandle<()>> = None;
    let mut health = Health::new(context.config.heartbeat);
    let mut renewals = tokio::time::interval(context.config.heartbeat);
    renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let first = tokio::time::Instant::now() + STATUS_EVERY;
    let mut heartbeats = tokio::time::interval_at(first, STATUS_EVERY);
    heartbeats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut images_changed = context.images_changed.subscribe();
    loop {
        tokio::select! {
            () = context.drain.signaled() => return,
            _ = renewals.tick() => {
                health.ask(&context.engine);
                match renew(&context, &node, lease.take()).await {
                    Ok(renewed) => lease = Some(renewed),
                    Err(error) => tracing::warn!(%error, "the node's lease was not renewed"),
                }
                let has_turned = take_complaint(&context, &node, health.complaint());
                if has_turned || says_otherwise(&context) {
                    node = refreshed(&context, &machine, node).await;
                }
            }
            sandboxes = health.answered() => {
                // Beside this: a keeper that does not answer must not keep the lease from being renewed.
                if rotation.as_ref().is_none_or(JoinHandle::is_finished) {
                    rotation = Some(tokio::spawn(rotate_logs(context.clone(), sandboxes)));
                }
                if take_complaint(&context, &node, health.complaint()) {
                    node = refreshed(&context, &machine, node).await;
                }
            }
            _ = heartbeats.tick() => node = refreshed(&context, &machine, node).await,
            Ok(()) = images_changed.changed() => node = refreshed(&context, &machine, node).await,
        }
    }
}

/// Notes what is wrong with the engine; gives whether the status must be written for that. How long
/// something has been wrong is told at the next regular time.
fn take_complaint(context: &Context, node: &Node, complaint: Option<String>) -> bool {
    let mut known = context.complaint.lock();
    if known.is_some() == complaint.is_some() {
        *known = complaint;
        return false;
    }
    match &complaint {
        Some(complaint) => {
            tracing::warn!("the engine does not answer, and the node is not ready: {complaint}");
            say_status(context, node, "NodeNotReady");
        }
        None => {
            tracing::info!("the engine answers again");
            say_status(context, node, "NodeReady");
        }
    }
    *known = complaint;
    true
}

/// Whether the API has it that this node is not ready although it is: it was not heard for a while,
/// and its pods will be evicted unless it says how it is before the next regular time.
fn says_otherwise(context: &Context) -> bool {
    if context.complaint.lock().is_some() {
        return false;
    }
    let node = context.nodes.get(None, &context.config.node_name);
    let status = node.as_ref().and_then(|node| node.status.as_ref());
    let conditions = status.and_then(|status| status.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status != "True")
}

async fn refreshed(context: &Context, machine: &Machine, node: Node) -> Node {
    match write_status(context, machine, &node).await {
        Ok(node) => node,
        Err(kube::Error::Api(status)) if status.code == 404 => {
            // Somebody deleted it: this node is still here.
            match register(context, machine).await {
                Ok(node) => node,
                Err(error) => {
                    tracing::warn!(%error, "the node was not registered again");
                    node
                }
            }
        }
        Err(error) => {
            tracing::warn!(%error, "the node's status was not written");
            node
        }
    }
}

/// Renews the lease: with the version that was written last, or after a look at what is there.
async fn renew(context: &Context, node: &Node, known: Option<Lease>) -> Result<Lease, kube::Error> {
    let leases: Api<Lease> = Api::namespaced(context.client.clone(), LEASE_NAMESPACE);
    let name = context.config.node_name.clone();
    let now = MicroTime(context.now());
    let params = PostParams::default();
    let known = match known {
        Some(known) => Some(known),
        None => leases.get_opt(&name).await?,
    };
    let Some(mut lease) = known else {
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(LEASE_NAMESPACE.to_owned()),
                owner_references: Some(vec![OwnerReference {
                    api_version: "v1".to_owned(),
                    kind: "Node".to_owned(),
                    name: name.clone(),
                    uid: node.metadata.uid.clone().unwrap_or_default(),
                    ..OwnerReference::default()
                }]),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(name),
                lease_duration_seconds: Some(LEASE_SECONDS),
                renew_time: Some(now),
                ..LeaseSpec::default()
            }),
        };
        return leases.create(&params, &lease).await;
    };
    let spec = lease.spec.get_or_insert_default();
    spec.holder_identity = Some(name.clone());
    spec.lease_duration_seconds = Some(LEASE_SECONDS);
    spec.renew_time = Some(now);
    leases.replace(&name, &params, &lease).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_stays_keeps_its_time() {
        let (early, late) = (
            Timestamp::UNIX_EPOCH,
            Timestamp::from_second(60).expect("in range"),
        );
        let first = conditions(&[], None, early);
        let second = conditions(&first, None, late);
        for (old, new) in first.iter().zip(&second) {
            assert_eq!(old.last_transition_time, new.last_transition_time);
            assert_ne!(old.last_heartbeat_time, new.last_heartbeat_time);
        }
    }

    #[test]
    fn a_node_with_a_complaint_is_not_ready_since_then() {
        let (early, late) = (
            Timestamp::UNIX_EPOCH,
            Timestamp::from_second(60).expect("in range"),
        );
        let well = conditions(&[], None, early);
        let ill = conditions(&well, Some("container runtime is down"), late);
        let ready = ill.last().expect("four conditions");
        assert_eq!(ready.type_, "Ready");
        assert_eq!(ready.status, "False");
        assert_eq!(ready.reason.as_deref(), Some("KubeletNotReady"));
        assert_eq!(ready.message.as_deref(), Some("container runtime is down"));
        assert_eq!(ready.last_transition_time, Some(Time(late)));
        assert_eq!(ill[0].last_transition_time, Some(Time(early)));
    }

    #[test]
    fn the_largest_images_with_a_name() {
        let image = |id: &str, size, names: &[&str]| ImageInfo {
            id: id.into(),
            references: names.iter().map(|name| (*name).to_owned()).collect(),
            size,
            user: String::new(),
            has_command: true,
        };
        let seen = images(vec![
            image("a", 1, &["x:1"]),
            image("b", 9, &[]),
            image("c", 5, &["y:1", "z:1"]),
        ]);
        let sizes: Vec<_> = seen.iter().map(|image| image.size_bytes).collect();
        assert_eq!(sizes, [Some(5), Some(1)]);
    }
}
