//! The Kubernetes API (level 1.36) as one tower `Service` over [`store`].
//!
//! Objects are JSON values described by [`kinds`]; no object passes through a typed struct, so
//! nothing that a client wrote is lost. The stored bytes are the bytes on the wire: a GET hands
//! them out as they are, a LIST joins them, a watch frames them. A write is one transaction of the
//! store, so that a request that is given up midway leaves no half write. Callers inside the
//! process use the same service as those outside ([`ApiServer::client`]); only their identity is
//! established differently, and authorization and admission run for both.
//!
//! ```text
//!  HTTPS ─► serve ─┐
//!                  ├─► authenticate ► authorize ► verb ► admit ► store.commit
//!  client() ───────┘                               │
//!                                                  └► get, list, watch from a snapshot
//! ```
//!
//! What a kind looks like and which values it takes is left to [`kinds`], how patches merge to
//! [`patch`], durability and history to [`store`]; what follows from an object being there (pods
//! for a ReplicaSet, endpoints for a Service) to controllers, which are clients.

mod admit;
mod allocate;
mod authorize;
mod bodies;
mod bootstrap;
mod caller;
mod discovery;
mod encode;
mod handle;
mod health;
mod heavy;
mod local;
mod meta;
mod openapi;
mod options;
mod places;
mod review;
mod route;
mod serve;
mod status;
mod subresources;
mod table;
mod together;
mod token;
mod verbs;
mod views;
mod websocket;

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body as HttpBody;
use futures::FutureExt as _;
use http::{Request, Response};
use jiff::Timestamp;
use tower::util::BoxCloneSyncService;

pub use authorize::{Attributes, Authorizer, Decision, MastersOnly};
pub use caller::Caller;
pub use meta::{Meta, extract};
pub use route::{Query, RequestInfo};
pub use serve::tls_config;
pub use status::{Failure, ResourceName};

/// The body of answers, and of requests from the network.
pub type Body = HttpBody;

/// A whole HTTP service, as the API server is one and the node agents are others.
pub type Service = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

/// The version that `/version` reports.
#[derive(Clone, Debug)]
pub struct VersionInfo {
    /// `major.minor.patch` with a leading `v`, e.g. `v1.36.3+wharf0.1.0`.
    pub git_version: String,
    /// Commit that the program was built from.
    pub git_commit: String,
    /// When it was built, RFC 3339.
    pub build_date: String,
}

impl Default for VersionInfo {
    fn default() -> Self {
        VersionInfo {
            git_version: concat!("v1.36.3+wharf", env!("CARGO_PKG_VERSION")).into(),
            git_commit: String::new(),
            build_date: "1970-01-01T00:00:00Z".into(),
        }
    }
}

/// The way from the API server to the agents of nodes: logs, exec, attach, port-forward.
pub trait Nodes: Send + Sync {
    /// The kubelet API of a node, if it can be reached.
    ///
    /// The service answers `/containerLogs/…`, `/exec/…`, `/attach/…`, `/portForward/…` and
    /// `/stats/summary`; upgraded connections are passed through untouched.
    fn node(&self, name: &str) -> Option<Service>;
}

/// No node can be reached.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoNodes;

impl Nodes for NoNodes {
    fn node(&self, _name: &str) -> Option<Service> {
        None
    }
}

/// Reads the clock; a value, so that tests can stop it.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// An IPv4 range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    /// The first address.
    pub address: std::net::Ipv4Addr,
    /// Leading bits that all addresses of the range share.
    pub prefix: u8,
}

impl std::str::FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Cidr, CidrError> {
        let error = || CidrError(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(error)?;
        let address: std::net::Ipv4Addr = address.parse().map_err(|_| error())?;
        let prefix: u8 = prefix.parse().map_err(|_| error())?;
        if prefix > 32 {
            return Err(error());
        }
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        Ok(Cidr {
            address: (u32::from(address) & mask).into(),
            prefix,
        })
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}/{}", self.address, self.prefix)
    }
}

/// A text that is no IPv4 range.
#[derive(Clone, Debug, thiserror::Error)]
#[error("\"{0}\" is not an IPv4 range like 10.96.0.0/16")]
pub struct CidrError(String);

/// What an API server is made of.
pub struct Config {
    /// Where objects live. Opened with [`extract`].
    pub store: store::Store<Meta>,
    /// The authority whose certificate clients trust.
    pub authority: Arc<pki::Authority>,
    /// Signs and verifies ServiceAccount tokens.
    pub token_key: Arc<pki::TokenKey>,
    /// The way to the nodes.
    pub nodes: Arc<dyn Nodes>,
    /// Who may do what; `None` lets the built-in RBAC decide.
    pub authorizer: Option<Arc<dyn Authorizer>>,
    /// Addresses of Services.
    pub service_cidr: Cidr,
    /// Ports of Services of type NodePort.
    pub node_port_range: std::ops::RangeInclusive<u16>,
    /// The `iss` of tokens, e.g. `https://kubernetes.default.svc.cluster.local`; also their
    /// audience unless another is asked for.
    pub issuer: String,
    /// What `/version` says.
    pub version: VersionInfo,
    /// The clock.
    pub now: Clock,
}

impl Config {
    /// A configuration with the usual ranges, no nodes, and the system's clock.
    pub fn new(
        store: store::Store<Meta>,
        authority: Arc<pki::Authority>,
        token_key: Arc<pki::TokenKey>,
    ) -> Config {
        Config {
            store,
            authority,
            token_key,
            nodes: Arc::new(NoNodes),
            authorizer: None,
            service_cidr: Cidr {
                address: std::net::Ipv4Addr::new(10, 96, 0, 0),
                prefix: 16,
            },
            node_port_range: 30000..=32767,
            issuer: "https://kubernetes.default.svc.cluster.local".into(),
            version: VersionInfo::default(),
            now: Arc::new(Timestamp::now),
        }
    }
}

/// Why an API server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The key for tokens is unusable.
    #[error("read the token key: {0}")]
    TokenKey(#[source] jsonwebtoken::errors::Error),
    /// An object that every cluster has could not be written.
    #[error("write {object}: {reason}")]
    Bootstrap {
        /// Which object.
        object: String,
        /// Why not.
        reason: String,
    },
    /// The range has no room for the address of the API itself.
    #[error("service range {0} is too small; use a prefix of 29 bits or less")]
    ServiceRange(Cidr),
}

/// The Kubernetes API. Clones are handles to the same server.
#[derive(Clone)]
pub struct ApiServer {
    core: Arc<handle::Core>,
}

impl ApiServer {
    /// Makes the server and writes the objects that every cluster has: the namespaces `default`,
    /// `kube-system`, `kube-public` and `kube-node-lease`, and the bootstrap priority classes.
    ///
    /// # Errors
    /// When the configuration is unusable or the store does not take the objects.
    pub async fn new(config: Config) -> Result<ApiServer, StartError> {
        let core = Arc::new(handle::Core::new(config)?);
        bootstrap::write(&core).await?;
        Ok(ApiServer { core })
    }

    /// The server as a service. With a caller given, every request is that caller's; without, each
    /// request is authenticated by what [`ApiServer::serve`] found on its connection and by its
    /// headers.
    pub fn service(&self, caller: Option<Caller>) -> Service {
        let core = self.core.clone();
        let caller = caller.map(Arc::new);
        BoxCloneSyncService::new(tower::service_fn(move |request: Request<Body>| {
            handle::respond(core.clone(), caller.clone(), request).map(Ok)
        }))
    }

    /// A client inside the process, with this identity. Needs a running tokio runtime.
    pub fn client(&self, caller: Caller) -> kube::Client {
        kube::Client::new(
            local::Local::new(self.core.clone(), Arc::new(caller)),
            "default",
        )
    }

    /// Serves HTTP/1.1 and HTTP/2 over TLS until the drain is signaled and open requests have
    /// ended. `tls` may ask for client certificates ([`tls_config`]).
    pub async fn serve(
        &self,
        listener: tokio::net::TcpListener,
        tls: Arc<rustls::ServerConfig>,
        drain: lifecycle::Drain,
    ) {
        serve::serve(self.core.clone(), listener, tls, drain).await;
    }

    /// Makes the Service `kubernetes` in `default` point to this server at `addresses`:`port`.
    ///
    /// # Errors
    /// When the store does not take the objects.
    pub async fn bootstrap_service(
        &self,
        addresses: &[std::net::Ipv4Addr],
        port: u16,
    ) -> Result<(), StartError> {
        bootstrap::write_service(&self.core, addresses, port).await
    }
}
