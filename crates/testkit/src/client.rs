//! From a `kube::Client` to the server, by way of the weather.

use std::convert::Infallible;
use std::sync::Arc;

use apiserver::{ApiServer, Caller};
use axum::body::Body;
use http::{Method, Request, Response};
use parking_lot::RwLock;
use tower::util::BoxCloneSyncService;
use tower::{Layer, ServiceExt};

use crate::weather::WeatherLayer;

/// Makes clients of the server that is the current one: they survive its restart.
#[derive(Clone)]
pub struct Route {
    server: Arc<RwLock<Option<ApiServer>>>,
    /// Whether tokio's clock is paused, and must be kept from jumping while a write is under way.
    paused: bool,
}

/// A way to a server that is yet to come.
pub fn clients(paused: bool) -> Route {
    Route {
        server: Arc::default(),
        paused,
    }
}

impl Route {
    /// From now on requests go to this server.
    pub fn lead_to(&self, server: ApiServer) {
        *self.server.write() = Some(server);
    }

    /// A client that acts as `caller`; with weather between it and the server, if there is any.
    /// Needs a running tokio runtime. It cannot upgrade connections (exec, attach, port-forward).
    pub fn client(&self, caller: Caller, weather: Option<&WeatherLayer>) -> kube::Client {
        let route = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let (route, caller) = (route.clone(), caller.clone());
            async move { route.send(caller, request).await }
        });
        match weather {
            Some(weather) => kube::Client::new(weather.layer(service), "default"),
            None => kube::Client::new(service, "default"),
        }
    }

    async fn send(
        &self,
        caller: Caller,
        request: Request<kube::client::Body>,
    ) -> Result<Response<Body>, Infallible> {
        let server = self.server.read().clone();
        let server = server.expect("the server is there before its clients ask");
        let service: BoxCloneSyncService<Request<Body>, Response<Body>, Infallible> =
            server.service(Some(caller));
        let writes = *request.method() != Method::GET;
        let answer = service.oneshot(request.map(Body::new));
        if !(self.paused && writes) {
            return answer.await;
        }
        // The store's writer is a thread that tokio does not know of. Were everybody else idle, the
        // paused clock would jump to the next timer before the thread has answered.
        let awake = async {
            loop {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            answer = answer => answer,
            () = awake => unreachable!("stays awake as long as it is asked to"),
        }
    }
}
