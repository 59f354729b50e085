//! The agent against the real API server, in memory, and an engine in memory: no sockets, no containers.

mod fake_engine;
mod lifecycle_of_pods;
mod node_status;
mod remains;
mod shutdown;
mod streaming;
mod stuck;
mod unsupported;
mod volumes;

use std::fmt::Debug;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use apiserver::{ApiServer, Caller};
use informer::Informers;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Node, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fake_engine::FakeEngine;

/// What the tests wait for at most. They wait for conditions, so this is only how long a failure takes.
const PATIENCE: Duration = Duration::from_secs(30);

const NODE: &str = "n1";

struct House {
    client: kube::Client,
    server: ApiServer,
    engine: Arc<FakeEngine>,
    agent: node::Agent,
    stop: lifecycle::DrainTrigger,
    directory: TempDir,
    heartbeat: Duration,
}

impl House {
    async fn new() -> House {
        House::with_heartbeat(Duration::from_secs(10)).await
    }

    async fn with_heartbeat(heartbeat: Duration) -> House {
        let engine = Box::new(store::Memory);
        let store = store::Store::open(engine, apiserver::extract(), store::Options::default());
        let store = store.await.expect("a store in memory opens");
        let authority = Arc::new(pki::Authority::in_memory().expect("keys can be made"));
        let token_key = Arc::new(pki::TokenKey::in_memory().expect("keys can be made"));
        let config = apiserver::Config::new(store, authority, token_key);
        let server = ApiServer::new(config).await.expect("the server starts");
        let engine = FakeEngine::with_images(["app:1", "app:2"]);
        let directory = tempfile::tempdir().expect("a directory");
        let (agent, stop) = start(&server, &engine, &directory, heartbeat).await;
        let house = House {
            client: server.client(Caller::system_masters()),
            server,
            engine,
            agent,
            stop,
            directory,
            heartbeat,
        };
        let account = json!({"metadata": {"name": "default"}});
        house
            .create::<k8s_openapi::api::core::v1::ServiceAccount>(account)
            .await;
        let root = json!({"metadata": {"name": "kube-root-ca.crt"}, "data": {"ca.crt": "x"}});
        house.create::<ConfigMap>(root).await;
        house
    }

    /// Ends the agent as a daemon ends, and starts another one on the same engine.
    async fn restart(&mut self, meanwhile: impl AsyncFnOnce(&House)) {
        self.stop.signal();
        self.agent.ended().await;
        meanwhile(self).await;
        let (agent, stop) =
            start(&self.server, &self.engine, &self.directory, self.heartbeat).await;
        self.agent = agent;
        self.stop = stop;
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn create<K>(&self, object: Value) -> K
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned
            + serde::Serialize,
    {
        let object: K = serde_json::from_value(object).expect("is of the kind");
        let made = self.api().create(&PostParams::default(), &object).await;
        made.expect("is created")
    }

    /// Makes a pod on this node, as if a scheduler had put it here.
    async fn run(&self, name: &str, mut spec: Value) -> Pod {
        spec["nodeName"] = json!(NODE);
        self.create(json!({"metadata": {"name": name}, "spec": spec}))
            .await
    }

    async fn pod(&self, name: &str) -> Option<Value> {
        let pod: Option<Pod> = self.api().get_opt(name).await.expect("is read");
        pod.map(|pod| json!(pod))
    }

    /// Waits until a pod is as wanted.
    #[track_caller]
    fn until(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> impl Future<Output = Value> {
        let (name, what) = (name.to_owned(), what.to_owned());
        async move {
            let mut last = Value::Null;
            let waiting = async {
                loop {
                    if let Some(pod) = self.pod(&name).await {
                        if wanted(&pod) {
                            return pod;
                        }
                        last = pod;
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            match tokio::time::timeout(PATIENCE, waiting).await {
                Ok(pod) => pod,
                Err(_) => panic!(
                    "{name}: {what} was waited for in vain: {:#}",
                    last["status"]
                ),
            }
        }
    }

    async fn until_phase(&self, name: &str, phase: &str) -> Value {
        let wanted = |pod: &Value| pod["status"]["phase"] == phase;
        self.until(name, phase, wanted).await
    }

    async fn until_ready(&self, name: &str) -> Value {
        let wanted = |pod: &Value| condition(pod, "Ready")["status"] == "True";
        self.until(name, "ready", wanted).await
    }

    async fn until_gone(&self, name: &str) {
        let waiting = async {
            while self.pod(name).await.is_some() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let gone = tokio::time::timeout(PATIENCE, waiting).await;
        gone.unwrap_or_else(|_| panic!("{name} does not go"));
    }

    /// Waits until something has been said about a pod.
    async fn until_said(&self, name: &str, reason: &str, message: &str) {
        let waiting = async {
            loop {
                if self
                    .said(name)
                    .await
                    .contains(&(reason.to_owned(), message.to_owned()))
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
            panic!(
                "{name}: {reason} {message} was not said, but {:#?}",
                self.said(name).await
            );
        }
    }

    async fn said(&self, name: &str) -> Vec<(String, String)> {
        let events: Api<Event> = self.api();
        let events = events
            .list(&ListParams::default())
            .await
            .expect("is listed");
        let about = |event: &Event| event.involved_object.name.as_deref() == Some(name);
        let text = |text: Option<String>| text.unwrap_or_default();
        let of_pod = events.items.into_iter().filter(about);
        of_pod
            .map(|event| (text(event.reason), text(event.message)))
            .collect()
    }

    async fn delete(&self, name: &str) {
        let pods: Api<Pod> = self.api();
        let deleted = pods.delete(name, &DeleteParams::default()).await;
        deleted.expect("is deleted");
    }

    async fn patch(&self, name: &str, patch: Value) {
        let pods: Api<Pod> = self.api();
        let patched = pods
            .patch(name, &PatchParams::default(), &Patch::Strategic(patch))
            .await;
        patched.expect("is patched");
    }

    async fn node(&self) -> Value {
        let nodes: Api<Node> = Api::all(self.client.clone());
        json!(nodes.get(NODE).await.expect("is read"))
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.stop.signal();
        // Pods that a test leaves have volumes in memory, which a directory is not removed with.
        if let Err(error) = volume::remove(&self.directory.path().join("pods")) {
            eprintln!("a test leaves something behind: {error}");
        }
    }
}

async fn start(
    server: &ApiServer,
    engine: &Arc<FakeEngine>,
    directory: &TempDir,
    heartbeat: Duration,
) -> (node::Agent, lifecycle::DrainTrigger) {
    let (stop, drain) = lifecycle::drain();
    let informers = Informers::new(server.client(Caller::node(NODE)), drain.clone());
    let mut config = node::Config::new(
        NODE,
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        directory.path().to_owned(),
        Ipv4Addr::new(10, 96, 0, 10),
    );
    config.heartbeat = heartbeat;
    let agent = node::Agent::start(informers, engine.clone(), config, drain).await;
    (agent.expect("the agent starts"), stop)
}

fn condition<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let conditions = pod["status"]["conditions"].as_array();
    let mut found = conditions.into_iter().flatten();
    found
        .find(|condition| condition["type"] == name)
        .unwrap_or(&Value::Null)
}

fn container<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let lists = ["containerStatuses", "initContainerStatuses"];
    let mut all = lists
        .iter()
        .flat_map(|list| pod["status"][list].as_array().into_iter().flatten());
    all.find(|status| status["name"] == name)
        .unwrap_or(&Value::Null)
}
