//! The controllers against the real API server, in memory: no sockets, no containers. A make-believe
//! node gives every pod a place, says that it runs, and lets it go when it is deleted.

mod deployments;
mod garbage;
mod namespaces;
mod nodes;
mod roles;
mod services;
mod tokens;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use apiserver::{ApiServer, Caller};
use controllers::Config;
use informer::{Change, Informers, Key, Object};
use k8s_openapi::api::core::v1::{Event, Namespace, Node, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// What the tests wait for at most. They wait for conditions, so this is only how long a failure takes.
const PATIENCE: Duration = Duration::from_secs(180);

struct House {
    client: kube::Client,
    informers: Informers,
    _stop: lifecycle::DrainTrigger,
}

impl House {
    async fn new() -> House {
        House::with(|_| {}).await
    }

    async fn with(configure: impl FnOnce(&mut Config)) -> House {
        let engine = Box::new(store::Memory);
        let store = store::Store::open(engine, apiserver::extract(), store::Options::default());
        let store = store.await.expect("a store in memory opens");
        let authority = Arc::new(pki::Authority::in_memory().expect("keys can be made"));
        let token_key = Arc::new(pki::TokenKey::in_memory().expect("keys can be made"));
        let config = apiserver::Config::new(store, authority, token_key);
        let server = ApiServer::new(config).await.expect("the server starts");
        let (stop, drain) = lifecycle::drain();
        let client = server.client(Caller::system_masters());
        let informers = Informers::new(client.clone(), drain.clone());
        let client_for =
            Arc::new(move |name: &'static str| server.client(Caller::controller(name)));
        let mut config = Config::new(client_for, "certificate".to_owned());
        configure(&mut config);
        tokio::spawn(controllers::run(informers.clone(), config, drain));
        tokio::spawn(run_node(client.clone(), informers.clone()));
        House {
            client,
            informers,
            _stop: stop,
        }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn create<K>(&self, object: Value) -> K
    where
        K: Object
            + serde::Serialize
            + kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        let object: K = serde_json::from_value(object).expect("is of the kind");
        // Pods need the ServiceAccount of their namespace, which a controller makes.
        let accounts = self
            .informers
            .of::<k8s_openapi::api::core::v1::ServiceAccount>();
        accounts
            .until(|accounts| accounts.get(Some("default"), "default"))
            .await;
        self.api()
            .create(&PostParams::default(), &object)
            .await
            .expect("is created")
    }

    async fn patch<K>(&self, name: &str, patch: Value)
    where
        K: Clone
            + DeserializeOwned
            + Debug
            + kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        let api: Api<K> = self.api();
        let patched = api
            .patch(name, &PatchParams::default(), &Patch::Merge(&patch))
            .await;
        patched.expect("is patched");
    }

    /// Waits until the object satisfies `holds`; panics with its last state if it does not.
    async fn wait<K>(&self, name: &str, what: &str, holds: impl Fn(&K) -> bool) -> Arc<K>
    where
        K: Object + kube::Resource<DynamicType = ()>,
    {
        let informer = self.informers.of::<K>();
        let look = |name: &str| {
            informer
                .get(Some("default"), name)
                .or_else(|| informer.get(None, name))
        };
        let found = informer.until(|_| look(name).filter(|object| holds(object)));
        match tokio::time::timeout(PATIENCE, found).await {
            Ok(object) => object,
            Err(_) => panic!("{what}: {:?}", look(name)),
        }
    }

    async fn wait_gone<K>(&self, name: &str)
    where
        K: Object + kube::Resource<DynamicType = ()>,
    {
        let informer = self.informers.of::<K>();
        let look = || {
            informer
                .get(Some("default"), name)
                .or_else(|| informer.get(None, name))
        };
        let gone = informer.until(|_| look().is_none().then_some(()));
        if tokio::time::timeout(PATIENCE, gone).await.is_err() {
            panic!("{name} is still there: {:?}", look());
        }
    }

    /// Waits until the objects of the kind in the namespace satisfy `holds`.
    async fn wait_all<K>(&self, what: &str, holds: impl Fn(&[Arc<K>]) -> bool) -> Vec<Arc<K>>
    where
        K: Object + kube::Resource<DynamicType = ()>,
    {
        let informer = self.informers.of::<K>();
        let found = informer.until(|informer| {
            let all = informer.list_in("default");
            holds(&all).then_some(all)
        });
        match tokio::time::timeout(PATIENCE, found).await {
            Ok(objects) => objects,
            Err(_) => panic!("{what}: {:?}", informer.list_in("default")),
        }
    }

    /// The events about an object, as `reason: message`, in the order of their making.
    async fn wait_events(&self, object: &str, expected: &[&str]) {
        let events = self.informers.of::<Event>();
        let texts = |events: &informer::Informer<Event>| {
            let mut mine = events.list_in("default");
            mine.retain(|event| event.involved_object.name.as_deref() == Some(object));
            mine.sort_by_key(|event| {
                event
                    .metadata
                    .resource_version
                    .as_deref()
                    .and_then(|text| text.parse::<u64>().ok())
            });
            let text = |event: &Arc<Event>| {
                let reason = event.reason.as_deref().unwrap_or_default();
                format!("{reason}: {}", event.message.as_deref().unwrap_or_default())
            };
            mine.iter().map(text).collect::<Vec<_>>()
        };
        let found = events.until(|events| (texts(events) == expected).then_some(()));
        if tokio::time::timeout(PATIENCE, found).await.is_err() {
            panic!("events are {:#?}, not {expected:#?}", texts(&events));
        }
    }
}

/// Tells whether the pod is Running and Ready.
fn runs(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    pod.metadata.deletion_timestamp.is_none()
        && conditions
            .into_iter()
            .flatten()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The make-believe node. A pod with the label `stuck` never gets ready, one with the annotation
/// `linger` is not let go, and one that waits for the scheduler `nobody` gets no node.
async fn run_node(client: kube::Client, informers: Informers) {
    let nodes: Api<Node> = Api::all(client.clone());
    let node = json!({"metadata": {"name": "node-1"}});
    let node: Node = serde_json::from_value(node).expect("is a node");
    nodes
        .create(&PostParams::default(), &node)
        .await
        .expect("the node is made");
    let ready = json!({"status": {"conditions": [
        {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": "2026-01-01T00:00:00Z"},
    ]}});
    let ready = Patch::Strategic(&ready);
    nodes
        .patch_status("node-1", &PatchParams::default(), &ready)
        .await
        .expect("the node is ready");
    let mut changes = informers.of::<Pod>().changes();
    let mut address = 0_u32;
    while let Some(change) = changes.next().await {
        let Change::Applied { new: pod, .. } = change else {
            continue;
        };
        let key = Key::of(&*pod);
        let pods: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
        let spec = pod.spec.as_ref().expect("has a spec");
        let annotations = pod.metadata.annotations.as_ref();
        let lingers = annotations.is_some_and(|all| all.contains_key("linger"));
        let stuck = pod
            .metadata
            .labels
            .as_ref()
            .is_some_and(|all| all.contains_key("stuck"));
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        if pod.metadata.deletion_timestamp.is_some() {
            if !lingers {
                let now = DeleteParams::default().grace_period(0);
                let _ = pods.delete(&key.name, &now).await;
            }
        } else if spec.node_name.is_none() {
            if spec.scheduler_name.as_deref() == Some("nobody") {
                continue;
            }
            let binding = json!({"metadata": {"name": &*key.name}, "target": {"kind": "Node", "name": "node-1"}});
            let params = PostParams::default();
            let bound: Result<Value, _> = pods
                .create_subresource("binding", &key.name, &params, &binding)
                .await;
            // It may have been deleted meanwhile.
            drop(bound);
        } else if phase != Some("Running") {
            address += 1;
            let ready = if stuck { "False" } else { "True" };
            let ip = format!("10.244.{}.{}", address >> 8, address & 255);
            let status = json!({"status": {
                "phase": "Running",
                "podIP": ip, "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": k8s_openapi::jiff::Timestamp::now()}],
            }});
            let status = Patch::Strategic(&status);
            let _ = pods
                .patch_status(&key.name, &PatchParams::default(), &status)
                .await;
        }
    }
}

fn deployment(name: &str, replicas: u32, strategy: Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "annotations": {"note": "hello", "kubernetes.io/change-cause": "first"}},
        "spec": {
            "replicas": replicas,
            "strategy": strategy,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": "web:1",
                    "ports": [{"name": "http", "containerPort": 8080}]}]},
            },
        },
    })
}

/// A patch that gives the Deployment's pods another image.
fn image(image: &str) -> Value {
    let container = json!({"name": "c", "image": image,
        "ports": [{"name": "http", "containerPort": 8080}]});
    json!({"spec": {"template": {"spec": {"containers": [container]}}}})
}

#[tokio::test]
async fn every_namespace_of_the_beginning_is_kept() {
    let house = House::new().await;
    let namespaces: Api<Namespace> = Api::all(house.client.clone());
    let all = namespaces
        .list(&ListParams::default())
        .await
        .expect("is listed");
    assert!(all.items.len() >= 4);
}
