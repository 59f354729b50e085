//! The in-process client: calls go straight to the handler.
//!
//! A request that upgrades its connection takes a detour through hyper over an in-memory pipe,
//! because only hyper makes the handles through which `kube` takes over an upgraded connection.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response, header};
use hyper_util::rt::TokioIo;

use crate::Body;
use crate::caller::Caller;
use crate::handle::{Core, respond};
use crate::status::Failure;

/// Bytes that may wait in the in-memory pipe, each way.
const PIPE_BYTES: usize = 64 * 1024;

/// The service below an in-process `kube::Client`.
#[derive(Clone)]
pub(crate) struct Local {
    core: Arc<Core>,
    caller: Arc<Caller>,
}

impl Local {
    pub(crate) fn new(core: Arc<Core>, caller: Arc<Caller>) -> Local {
        Local { core, caller }
    }
}

impl tower::Service<Request<kube::client::Body>> for Local {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let request = request.map(Body::new);
        let (core, caller) = (self.core.clone(), self.caller.clone());
        if request.headers().contains_key(header::UPGRADE) {
            Box::pin(async move { Ok(through_pipe(core, caller, request).await) })
        } else {
            Box::pin(async move { Ok(respond(core, Some(caller), request).await) })
        }
    }
}

/// Sends one request through hyper over a pipe, so that both ends can upgrade.
async fn through_pipe(
    core: Arc<Core>,
    caller: Arc<Caller>,
    mut request: Request<Body>,
) -> Response<Body> {
    let (near, far) = tokio::io::duplex(PIPE_BYTES);
    let server = hyper::server::conn::http1::Builder::new()
        .serve_connection(
            TokioIo::new(far),
            hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                let (core, caller) = (core.clone(), caller.clone());
                async move {
                    Ok::<_, Infallible>(respond(core, Some(caller), request.map(Body::new)).await)
                }
            }),
        )
        .with_upgrades();
    // Both tasks end with the pipe, which ends when the caller drops the answer.
    tokio::spawn(async move {
        if let Err(error) = server.await {
            tracing::debug!(%error, "in-process connection ended");
        }
    });
    request
        .headers_mut()
        .entry(header::HOST)
        .or_insert(http::HeaderValue::from_static("in-process"));
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(near)).await;
    let (mut sender, connection) = match handshake {
        Ok(pair) => pair,
        Err(error) => {
            return Failure::internal(format!("in-process pipe: {error}")).into_response();
        }
    };
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "in-process connection ended");
        }
    });
    match sender.send_request(request).await {
        Ok(response) => response.map(Body::new),
        Err(error) => Failure::internal(format!("in-process pipe: {error}")).into_response(),
    }
}
