//! Being the server: every part made, in the order in which they need each other, until told to end.

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::{Arc, OnceLock};

use anyhow::Context;
use apiserver::{ApiServer, Caller};
use cli::{Config, Lock};
use informer::Informers;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use lifecycle::{Drain, DrainTrigger, Ready};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::task::TaskTracker;

use crate::addresses::Addresses;
use crate::local_node::LocalNode;
use crate::parts::Ground;
use crate::progress::Teller;
use crate::server::{Server, Workers};
use crate::{KUBERNETES, control, dns_probe, kubeconfig, service_manager};

/// Below which all names of the cluster are.
const CLUSTER_DOMAIN: &str = "cluster.local";

/// Starts everything, tells when it is ready, and returns when it was told to end and has.
/// The lock is held until then.
pub(crate) async fn run(config: Config, lock: Lock, teller: Teller) -> anyhow::Result<()> {
    let (end, ended) = lifecycle::drain();
    let started = match start(config, &teller, end, ended.clone()).await {
        Ok(started) => started,
        Err(error) => {
            teller.failed(&error);
            return Err(error);
        }
    };
    let watching = tokio::spawn(tell_when_ready(started.server.clone(), teller));
    until_told(&ended).await?;
    service_manager::tell(service_manager::STOPPING);
    tracing::info!("ending; containers go on unless they were taken down");
    started.server.end.signal();
    started.server.stop_workers().await;
    started.fronts.close();
    started.fronts.wait().await;
    watching.abort();
    started.store.close().await;
    drop(lock);
    Ok(())
}

/// What [`run`] holds on to.
struct Started {
    server: Arc<Server>,
    store: store::Store<apiserver::Meta>,
    /// The listeners.
    fronts: TaskTracker,
}

async fn start(
    config: Config,
    teller: &Teller,
    end: DrainTrigger,
    ended: Drain,
) -> anyhow::Result<Started> {
    let addresses = Addresses::of(&config);
    let started_at = Timestamp::now();
    teller.step("Opening what is stored");
    let pki_dir = config.instance.pki_dir();
    let authority = Arc::new(pki::Authority::load_or_create(&pki_dir)?);
    let token_key = Arc::new(pki::TokenKey::load_or_create(&pki_dir)?);
    // Bound before anything is changed, so that a taken port leaves no trace.
    let listener = bind(config.api_listen).await?;
    let (store, ground) = tokio::join!(open_store(&config), Ground::open(&config));
    let (store, ground) = (store?, ground?);
    config.remember()?;

    teller.step("Starting the API");
    let node = Arc::new(LocalNode::new(&config.node_name));
    let mut api = apiserver::Config::new(store.clone(), authority.clone(), token_key);
    api.nodes = node.clone();
    let api = start_api(&config, api).await?;
    let issued = authority.issue_server("kube-apiserver", &addresses.server_names(&config))?;
    let tls = apiserver::tls_config(&authority, &issued)?;
    kubeconfig::write(&config, &authority)?;
    let fronts = TaskTracker::new();
    let api_for_pods = addresses.api_for_pods(&config);
    let for_pods = match api_for_pods {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    for listener in [Some(listener), for_pods].into_iter().flatten() {
        let (api, tls, ended) = (api.clone(), tls.clone(), ended.clone());
        fronts.spawn(async move { api.serve(listener, tls, ended).await });
    }

    teller.step("Starting the workers");
    let ready = Ready::default();
    let (stop, stopped) = ended.child();
    let workers = Workers {
        stop,
        tasks: TaskTracker::new(),
    };
    // One set of caches for all workers of this process, read as the component that upstream lets read everything.
    let informers = Informers::new(
        api.client(Caller::authenticated("system:kube-controller-manager", &[])),
        stopped.clone(),
    );
    let parts = Parts {
        config: &config,
        addresses: &addresses,
        api: &api,
        api_port: config.api_listen.port(),
        root_certificates: authority.certificate_pem().to_string(),
        ground: &ground,
        informers: &informers,
        tasks: &workers.tasks,
        drain: stopped,
        ready: &ready,
    };
    parts.start_controllers();
    let name_server = parts.start_gateway().await?;
    fronts.spawn(close_at_the_end(name_server, ended.clone()));
    let agent = parts.start_node(&node).await?;

    let nodes = informers.of::<Node>();
    let server = Arc::new(Server {
        api_for_pods: api_for_pods.unwrap_or_else(|| {
            SocketAddr::new(addresses.node_in_pod_range.into(), config.api_listen.port())
        }),
        config,
        addresses,
        started_at,
        ground,
        agent,
        nodes,
        ready,
        workers,
        end,
        taking_down: OnceLock::new(),
    });
    let control = control::listen(&server.config.instance.control_socket())?;
    fronts.spawn(control::serve(server.clone(), control, ended));
    Ok(Started {
        server,
        store,
        fronts,
    })
}

async fn start_api(config: &Config, mut api: apiserver::Config) -> anyhow::Result<ApiServer> {
    api.service_cidr = config
        .service_cidr
        .to_string()
        .parse()
        .context("--service-cidr")?;
    api.version.git_version = KUBERNETES.into();
    ApiServer::new(api).await.context("start the API")
}

/// What the workers are made from.
struct Parts<'a> {
    config: &'a Config,
    addresses: &'a Addresses,
    api: &'a ApiServer,
    api_port: u16,
    root_certificates: String,
    ground: &'a Ground,
    informers: &'a Informers,
    tasks: &'a TaskTracker,
    drain: Drain,
    ready: &'a Ready,
}

impl Parts<'_> {
    /// The same caches, with the identity of one worker for what it does itself.
    fn informers_as(&self, caller: Caller) -> Informers {
        self.informers.acting_as(self.api.client(caller))
    }

    fn start_controllers(&self) {
        let api = self.api.clone();
        let client_for = Arc::new(move |name: &'static str| api.client(Caller::controller(name)));
        let config = controllers::Config::new(client_for, self.root_certificates.clone());
        self.tasks.spawn(controllers::run(
            self.informers.clone(),
            config,
            self.drain.clone(),
        ));
        let (informers, client) = (self.informers.clone(), self.api.client(Caller::scheduler()));
        let (instance, drain) = (self.config.node_name.clone(), self.drain.clone());
        self.tasks
            .spawn(async move { scheduler::run(informers, client, &instance, drain).await });
    }

    /// The name server, its Service, the API's Service, and the loop that programs them.
    async fn start_gateway(&self) -> anyhow::Result<dns::Server> {
        let block = self.ready.block("network");
        let inside = self.addresses.node_in_pod_range;
        let zone = dns::Zone::new(CLUSTER_DOMAIN)?;
        let listens = [inside];
        let listens_at = SocketAddrV4::new(inside, 53);
        let upstream = dns::Upstream::new(
            "/etc/resolv.conf",
            [inside.into(), self.addresses.dns_service.into()],
        );
        let server = dns::Server::bind(&[listens_at.into()], zone.clone(), upstream)
            .await
            .context("start the name server")?;
        let api = self.api.clone();
        let client = api.client(Caller::system_masters());
        let (in_service, in_slices) = tokio::join!(
            gateway::publish_dns_service(&client, self.addresses.dns_service, listens_at),
            api.bootstrap_service(&listens, self.api_port),
        );
        in_service?;
        in_slices?;
        let config = gateway::Config {
            node_name: self.config.node_name.clone(),
            dns_address: self.addresses.dns_service,
        };
        let (informers, network, drain) = (
            self.informers.clone(),
            self.ground.network.clone(),
            self.drain.clone(),
        );
        self.tasks.spawn(async move {
            gateway::run(informers, network, zone, config, block, drain).await
        });
        Ok(server)
    }

    async fn start_node(&self, node: &LocalNode) -> anyhow::Result<node::Agent> {
        let block = self.ready.block("node");
        let name = &self.config.node_name;
        let mut config = node::Config::new(
            name,
            self.addresses.node.into(),
            self.config.instance.data_dir.clone(),
            self.addresses.dns_service,
        );
        config.kubelet_version = KUBERNETES.into();
        let informers = self.informers_as(Caller::node(name));
        let agent = node::Agent::start(
            informers,
            self.ground.engine.clone(),
            config,
            self.drain.clone(),
        )
        .await
        .context("start the node agent")?;
        node.connect(agent.service());
        drop(block);
        let ended = agent.clone();
        self.tasks.spawn(async move { ended.ended().await });
        Ok(agent)
    }
}

/// The name server is there as long as the API: preStop hooks ask for names when the gateway has ended.
async fn close_at_the_end(name_server: dns::Server, ended: Drain) {
    ended.signaled().await;
    name_server.close().await;
}

/// Listens, with a message that says what to do when it cannot.
async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let advice = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "end what listens there (`ss -ltnp` names it), or choose another with --api-listen"
            }
            io::ErrorKind::AddrNotAvailable => {
                "no link of this machine has that address; choose another with --api-listen"
            }
            _ => "choose another with --api-listen",
        };
        anyhow::anyhow!("listen at {address} for the API: {error}; {advice}")
    })
}

async fn open_store(config: &Config) -> anyhow::Result<store::Store<apiserver::Meta>> {
    let path = config.instance.store_file();
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("make {}", directory.display()))?;
    }
    let engine = store::Sqlite::open(&path)?;
    let options = store::Options::default();
    Ok(store::Store::open(Box::new(engine), apiserver::extract(), options).await?)
}

/// Waits for the node and the name server, by the way that pods take.
async fn tell_when_ready(server: Arc<Server>, teller: Teller) {
    teller.step("Waiting for the node and DNS");
    server.until_ready().await;
    match dns_probe::answers(server.addresses.dns_service).await {
        Ok(()) => teller.ready(),
        Err(error) => teller.failed(&error.context("the cluster's name server")),
    }
}

/// Resolves on the first signal, or when `wharf down` has taken everything down.
async fn until_told(ended: &Drain) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for signals")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = ended.signaled() => {}
    }
    Ok(())
}
