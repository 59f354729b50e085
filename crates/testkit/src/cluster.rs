//! The cluster: its parts, put together as the roof puts them together.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use apiserver::{ApiServer, Caller};
use http::Request;
use informer::{Informers, Object};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, ServiceAccount};
use lifecycle::DrainTrigger;
use node::Capacity;
use serde_json::{Value, json};
use store::Store;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::{Route, clients};
use crate::clock::Clock;
use crate::engine::{Counts, FakeEngine};
use crate::history::History;
use crate::ledger::Ledger;
use crate::node::Node;
use crate::script::Script;
use crate::weather::{Weather, WeatherLayer};
use crate::yaml;

/// How long nothing must move until the cluster counts as settled. Longer than any pause that a
/// worker makes between two steps on the same thing, but those that are back-offs by intention.
const CALM: Duration = Duration::from_secs(3);
/// The same after or in bad weather, when workers try again at growing intervals.
const CALM_AFTER_WEATHER: Duration = Duration::from_secs(60);
/// How long a test waits for anything, by the cluster's clock.
const PATIENCE: Duration = Duration::from_secs(1800);
const FIELD_MANAGER: &str = "testkit";

/// What a cluster is to be like.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many nodes. They are called `node-1` and so on.
    pub nodes: u16,
    /// What each of them says it has.
    pub capacity: Capacity,
    /// Pods that each of them takes.
    pub max_pods: u32,
    /// Images that are on all nodes, and behave by default.
    pub images: Vec<String>,
    /// Weather between the workers and the server, once the cluster is up.
    pub weather: Option<Weather>,
    /// Whether tokio's clock is paused.
    pub paused: bool,
    /// When the cluster's clock begins.
    pub began: Timestamp,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            nodes: 1,
            capacity: Capacity {
                cpus: 4,
                memory: 8 << 30,
            },
            max_pods: 110,
            images: ["web:1", "web:2", "web:3"].map(String::from).into(),
            weather: None,
            paused: true,
            began: Timestamp::now(),
        }
    }
}

/// A cluster that runs. It ends when it is dropped.
pub struct Cluster {
    clock: Clock,
    ledger: Ledger,
    route: Route,
    store: Store<apiserver::Meta>,
    authority: Arc<pki::Authority>,
    token_key: Arc<pki::TokenKey>,
    script: Script,
    weather: Option<WeatherLayer>,
    nodes: BTreeMap<String, Node>,
    workers: Option<Workers>,
    /// The test's own eyes: no weather, not ended with the workers.
    eyes: Informers,
    _eyes_stop: DrainTrigger,
    _directory: TempDir,
}

/// Everything but the server that ends with the daemon.
struct Workers {
    stop: DrainTrigger,
    drain: lifecycle::Drain,
    informers: Informers,
    tasks: JoinSet<()>,
}

impl Cluster {
    /// Starts all parts. When this returns, the nodes are Ready.
    ///
    /// # Panics
    /// When a part cannot be started.
    pub async fn start(options: Options) -> Cluster {
        let clock = Clock::starting_at(options.began);
        let ledger = Ledger::default();
        let store = open(&ledger).await;
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let script = Script::default();
        for image in &options.images {
            script.set(image, crate::Behaviour::default());
        }
        let route = clients(options.paused);
        let nodes = (1..=options.nodes).map(|number| {
            let place = directory.path().join(format!("node-{number}"));
            let (capacity, max_pods) = (options.capacity, options.max_pods);
            let node = Node::new(number, place, capacity, max_pods, &script, &clock);
            (node.name.clone(), node)
        });
        let nodes = nodes.collect();
        let authority = Arc::new(pki::Authority::in_memory().expect("keys can be made"));
        let token_key = Arc::new(pki::TokenKey::in_memory().expect("keys can be made"));
        let server = serve(&store, &authority, &token_key, &clock).await;
        route.lead_to(server);
        let (eyes_stop, drain) = lifecycle::drain();
        let eyes = Informers::new(route.client(Caller::system_masters(), None), drain);
        let mut cluster = Cluster {
            weather: options.weather.map(WeatherLayer::new),
            clock,
            ledger,
            route,
            store,
            authority,
            token_key,
            script,
            nodes,
            workers: None,
            eyes,
            _eyes_stop: eyes_stop,
            _directory: directory,
        };
        cluster.without_tokens("default").await;
        cluster.start_workers().await;
        cluster.settle().await;
        if let Some(weather) = &cluster.weather {
            weather.begin();
        }
        cluster
    }

    /// What the containers do.
    pub fn script(&self) -> &Script {
        &self.script
    }

    /// The cluster's time.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The engine of a node.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn engine(&self, node: &str) -> &FakeEngine {
        &self.nodes.get(node).expect("there is such a node").engine
    }

    /// What all engines together were asked to do so far.
    pub fn counts(&self) -> Counts {
        let all = self.nodes.values().map(|node| node.engine.counts());
        all.fold(Counts::default(), |sum, one| Counts {
            sandboxes: sum.sandboxes + one.sandboxes,
            containers: sum.containers + one.containers,
            starts: sum.starts + one.starts,
            stops: sum.stops + one.stops,
        })
    }

    /// Every state since the beginning.
    pub fn history(&self) -> History {
        History(self.ledger.clone())
    }

    /// A client without weather.
    pub fn client(&self, caller: Caller) -> kube::Client {
        self.route.client(caller, None)
    }

    /// The test's own caches of what there is.
    pub fn informers(&self) -> &Informers {
        &self.eyes
    }

    /// How much the weather has done so far.
    pub fn troubles(&self) -> u64 {
        self.weather.as_ref().map_or(0, WeatherLayer::troubles)
    }

    /// Ends the weather.
    pub fn clear_sky(&self) {
        if let Some(weather) = &self.weather {
            weather.clear();
        }
    }

    /// Applies the objects of a manifest, as `kubectl apply --server-side --force-conflicts` does.
    /// Pods of a namespace that is made here get no token, for its volume would be a mount.
    ///
    /// # Panics
    /// When the server refuses one.
    pub async fn apply(&self, manifest: &str) {
        for object in yaml::objects(manifest) {
            let path = yaml::path(&object);
            let query = format!("{path}?fieldManager={FIELD_MANAGER}&force=true");
            self.send("PATCH", &query, "application/apply-patch+yaml", &object)
                .await;
            if object["kind"] == "Namespace" {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                self.without_tokens(name).await;
            }
        }
    }

    /// Merges a change into an object: `("apps/v1", "Deployment", "web")`.
    ///
    /// # Panics
    /// When the server refuses it.
    pub async fn patch(&self, object: (&str, &str, &str), change: Value) {
        let (api_version, kind, name) = object;
        let named = named(api_version, kind, name);
        self.send(
            "PATCH",
            &yaml::path(&named),
            "application/merge-patch+json",
            &change,
        )
        .await;
    }

    /// Deletes an object; `policy` is `Background`, `Foreground` or `Orphan`.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn delete(&self, object: (&str, &str, &str), policy: &str) {
        let (api_version, kind, name) = object;
        let named = named(api_version, kind, name);
        let options =
            json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": policy});
        self.send("DELETE", &yaml::path(&named), "application/json", &options)
            .await;
    }

    async fn send(&self, method: &str, path: &str, content_type: &str, body: &Value) -> Value {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::CONTENT_TYPE, content_type)
            .body(body.to_string().into_bytes())
            .expect("a valid request");
        let client = self.client(Caller::system_masters());
        let answer = client.request::<Value>(request).await;
        answer.unwrap_or_else(|error| panic!("{method} {path}: {error}\n{body:#}"))
    }

    /// Pods of a namespace get no token: it would be in a volume in memory, which is a mount.
    async fn without_tokens(&self, namespace: &str) {
        let account = json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": "default", "namespace": namespace},
            "automountServiceAccountToken": false,
        });
        let path = yaml::path(&account);
        let query = format!("{path}?fieldManager={FIELD_MANAGER}&force=true");
        self.send("PATCH", &query, "application/apply-patch+yaml", &account)
            .await;
        let accounts = self.eyes.of::<ServiceAccount>();
        accounts
            .until(|accounts| {
                let account = accounts.get(Some(namespace), "default")?;
                (account.automount_service_account_token == Some(false)).then_some(())
            })
            .await;
    }

    /// An object as it is; `namespace/name`, or a name in `default`.
    pub async fn get<K>(&self, name: &str) -> Option<Arc<K>>
    where
        K: Object + kube::Resource<DynamicType = ()>,
    {
        let informer = self.eyes.of::<K>();
        self.catch_up(&informer).await;
        find(&informer, name)
    }

    /// All objects of a kind in a namespace, or of a kind without namespaces.
    pub async fn list<K>(&self, namespace: &str) -> Vec<Arc<K>>
    where
        K: Object + kube::Resource<DynamicType = ()>,
    {
        let informer = self.eyes.of::<K>();
        self.catch_up(&informer).await;
        informer.list_in(namespace)
    }

    /// What was said about an object, as `reason: message`, by name.
    pub async fn events(&self, object: &str) -> Vec<String> {
        let about = |event: &&Arc<Event>| event.involved_object.name.as_deref() == Some(object);
        let events = self.list::<Event>("default").await;
        let text = |event: &Arc<Event>| {
            let reason = event.reason.as_deref().unwrap_or_default();
            format!("{reason}: {}", event.message.as_deref().unwrap_or_default())
        };
        events.iter().filter(about).map(text).collect()
    }

    /// Lets the caches see what has been written.
    async fn catch_up<K>(&self, informer: &informer::Informer<K>)
    where
        K: Object,
    {
        informer.synced().await;
        // The watch has been woken by now; its reader needs a few turns.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    /// Waits until an object is there and `holds`.
    ///
    /// # Panics
    /// With its last state, when that does not come true.
    pub async fn until<K>(&self, name: &str, holds: impl Fn(&K) -> bool) -> Arc<K>
    where
        K: Object + kube::Resource<DynamicType = ()> + Debug,
    {
        let informer = self.eyes.of::<K>();
        let found = informer.until(|informer| find(informer, name).filter(|found| holds(found)));
        match tokio::time::timeout(PATIENCE, found).await {
            Ok(found) => found,
            Err(_) => panic!("in vain: {:#?}", find(&informer, name)),
        }
    }

    /// Waits until nothing moves: no write but leases and events for a while, and everybody idle.
    ///
    /// # Panics
    /// When it does not come to rest.
    pub async fn settle(&self) {
        let calm = match self.weather {
            Some(_) => CALM_AFTER_WEATHER,
            None => CALM,
        };
        let began = Instant::now();
        loop {
            let before = self.ledger.steps();
            tokio::time::sleep(calm).await;
            if self.ledger.steps() == before {
                return;
            }
            if began.elapsed() > PATIENCE {
                panic!(
                    "does not settle; last written: {:?}",
                    self.ledger.last_step()
                );
            }
        }
    }

    /// Lets time pass.
    pub async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    /// Ends the agent of a node, as the machine's failure would show; its containers go on.
    ///
    /// # Panics
    /// When there is no such node.
    pub async fn lose_node(&mut self, name: &str) {
        let node = self.nodes.get_mut(name).expect("there is such a node");
        node.stop().await;
    }

    /// Starts the agent of a node again.
    ///
    /// # Panics
    /// When there is no such node.
    pub async fn return_node(&mut self, name: &str) {
        let workers = self.workers.as_ref().expect("the workers run");
        let informers = self.as_node(workers, name);
        let drain = workers.drain.clone();
        let node = self.nodes.get_mut(name).expect("there is such a node");
        node.start(informers, &drain).await;
    }

    /// Tells all agents that images came or went.
    pub fn images_changed(&self) {
        for agent in self.nodes.values().filter_map(Node::agent) {
            agent.images_changed();
        }
    }

    /// Ends everything but engines and disk, as the end of the daemon does.
    pub async fn stop(&mut self) {
        let Some(mut workers) = self.workers.take() else {
            return;
        };
        workers.stop.signal();
        for node in self.nodes.values_mut() {
            node.stop().await;
        }
        while workers.tasks.join_next().await.is_some() {}
        self.store.close().await;
    }

    /// Starts again what [`Cluster::stop`] has ended: a new server on what is stored, new workers, and
    /// new agents on the same engines.
    ///
    /// # Panics
    /// When a part cannot be started.
    pub async fn start_again(&mut self) {
        self.store = open(&self.ledger).await;
        let server = serve(&self.store, &self.authority, &self.token_key, &self.clock).await;
        self.route.lead_to(server);
        let (stop, drain) = lifecycle::drain();
        let client = self.route.client(Caller::system_masters(), None);
        self.eyes = Informers::new(client, drain);
        self._eyes_stop = stop;
        self.start_workers().await;
    }

    fn worker(&self, caller: Caller) -> kube::Client {
        self.route.client(caller, self.weather.as_ref())
    }

    fn as_node(&self, workers: &Workers, name: &str) -> Informers {
        workers.informers.acting_as(self.worker(Caller::node(name)))
    }

    async fn start_workers(&mut self) {
        let (stop, drain) = lifecycle::drain();
        let reader = Caller::authenticated("system:kube-controller-manager", &[]);
        // The first node is the server's own machine; the others are elsewhere.
        let informers = Informers::new(self.worker(reader), drain.clone());
        let informers = informers.hosting(self.nodes.keys().take(1).cloned());
        let mut tasks = JoinSet::new();
        let (route, weather) = (self.route.clone(), self.weather.clone());
        let client_for = Arc::new(move |name: &'static str| {
            route.client(Caller::controller(name), weather.as_ref())
        });
        let certificate = self.authority.certificate_pem().to_string();
        let mut config = controllers::Config::new(client_for, certificate);
        config.now = self.clock.reader();
        tasks.spawn(controllers::run(informers.clone(), config, drain.clone()));
        let scheduler = self.worker(Caller::scheduler());
        tasks.spawn(scheduler::run(
            informers.clone(),
            scheduler,
            "testkit",
            drain.clone(),
        ));
        let workers = Workers {
            stop,
            drain,
            informers,
            tasks,
        };
        let names: Vec<String> = self.nodes.keys().cloned().collect();
        for name in names {
            let informers = self.as_node(&workers, &name);
            let node = self.nodes.get_mut(&name).expect("it was listed");
            node.start(informers, &workers.drain).await;
        }
        self.workers = Some(workers);
    }
}

fn named(api_version: &str, kind: &str, name: &str) -> Value {
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name, "namespace": namespace}})
}

fn find<K: Object>(informer: &informer::Informer<K>, name: &str) -> Option<Arc<K>> {
    match name.split_once('/') {
        Some((namespace, name)) => informer.get(Some(namespace), name),
        None => informer
            .get(Some("default"), name)
            .or_else(|| informer.get(None, name)),
    }
}

async fn open(ledger: &Ledger) -> Store<apiserver::Meta> {
    let engine = Box::new(ledger.clone());
    let store = Store::open(engine, apiserver::extract(), store::Options::default());
    store.await.expect("a store in memory opens")
}

async fn serve(
    store: &Store<apiserver::Meta>,
    authority: &Arc<pki::Authority>,
    token_key: &Arc<pki::TokenKey>,
    clock: &Clock,
) -> ApiServer {
    let mut config = apiserver::Config::new(store.clone(), authority.clone(), token_key.clone());
    config.now = clock.reader();
    ApiServer::new(config).await.expect("the server starts")
}
