//! The HTTPS listener: HTTP/1.1 and HTTP/2 on one port, with limits on everything that a peer
//! decides.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use lifecycle::Drain;
use rustls::server::WebPkiClientVerifier;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tokio_util::task::TaskTracker;

use crate::Body;
use crate::caller::{Caller, Certified};
use crate::handle::{Core, respond};
use crate::places::{Places, Unproven};
use crate::together::{Collected, Together};

/// Connections that may be open at once; further peers wait in the listener's backlog.
const CONNECTIONS: usize = 8192;
/// A peer that has not finished its TLS handshake by then is dropped.
const TIMEOUT_HANDSHAKE: Duration = Duration::from_secs(10);
/// A peer that has not sent its whole next request head by then is dropped (HTTP/1.1). It is how long
/// upstream keeps a connection on which nothing happens, and clients rely on that.
const TIMEOUT_HEADERS: Duration = Duration::from_secs(90);
/// An HTTP/2 peer is asked for a sign of life this often, so that watches of dead peers end.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Requests that one HTTP/2 connection may have open; upstream's default.
const STREAMS: u32 = 1000;
/// Bytes of a request head of a peer with a certificate; upstream allows as much (Go's default). Also
/// what HTTP/1.1 buffers for one connection.
const HEAD_BYTES: u32 = 1 << 20;
/// Bytes of a request head of any other peer: room for many times the largest token.
const HEAD_BYTES_UNKNOWN: u32 = 64 * 1024;
/// How long open requests may go on once the drain is signaled.
const TIMEOUT_DRAIN: Duration = Duration::from_secs(5);

/// Where the connection of a request comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) std::net::IpAddr);

/// Why no TLS configuration could be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The server's certificate or key is unusable.
    #[error("use the server's certificate: {0}")]
    Certificate(#[source] rustls::Error),
    /// The authority cannot be used to verify clients.
    #[error("use the authority to verify clients: {0}")]
    Clients(String),
}

/// A TLS configuration that shows `issued` and takes, but does not ask for, client certificates
/// of `authority`. HTTP/2 is offered before HTTP/1.1.
///
/// # Errors
/// When the certificate, its key or the authority is unusable.
pub fn tls_config(
    authority: &pki::Authority,
    issued: &pki::Issued,
) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(authority.certificate_der())
        .map_err(|error| TlsError::Clients(error.to_string()))?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| TlsError::Clients(error.to_string()))?;
    let (chain, key) = issued.for_rustls();
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Certificate)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(TlsError::Certificate)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Takes connections until the drain is signaled, then waits for open requests.
pub(crate) async fn serve(
    core: Arc<Core>,
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    drain: Drain,
) {
    let door = Arc::new(Door {
        acceptor: TlsAcceptor::from(tls),
        shaking: Places::new(),
        unknown: Places::new(),
    });
    let open = Arc::new(Semaphore::new(CONNECTIONS));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = drain.signaled() => break,
            accepted = accept(&listener, &open) => accepted,
        };
        let Some((stream, peer, permit)) = accepted else {
            continue;
        };
        let (core, door, drain) = (core.clone(), door.clone(), drain.clone());
        connections.spawn(async move {
            let entering = tokio::time::timeout(TIMEOUT_HANDSHAKE, door.enter(stream, peer));
            let entered = tokio::select! {
                () = drain.signaled() => return,
                entered = entering => entered,
            };
            match entered {
                Ok(Ok(entered)) => connection(core, entered, peer, drain).await,
                Ok(Err(error)) => tracing::debug!(%error, "TLS handshake"),
                Err(_) => tracing::debug!(peer = %peer.0, "TLS handshake timed out"),
            }
            drop(permit);
        });
    }
    connections.close();
    if tokio::time::timeout(TIMEOUT_DRAIN, connections.wait())
        .await
        .is_err()
    {
        tracing::info!(
            open = connections.len(),
            "requests were still open at the end"
        );
    }
}

async fn accept(
    listener: &TcpListener,
    open: &Arc<Semaphore>,
) -> Option<(TcpStream, Peer, OwnedSemaphorePermit)> {
    let permit = open.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, address)) => {
            // Events are small and must not wait for one another.
            stream.set_nodelay(true).ok();
            Some((stream, Peer(address.ip().to_canonical()), permit))
        }
        Err(error) => {
            // Out of file descriptors, most likely: trying again at once would spin.
            tracing::warn!(%error, "accept a connection");
            tokio::time::sleep(Duration::from_millis(50)).await;
            None
        }
    }
}

/// Where peers come in.
struct Door {
    acceptor: TlsAcceptor,
    /// Places for handshakes.
    shaking: Places,
    /// Places for those who have shown no certificate, until they show a token. Apart from the others,
    /// so that whoever holds them all keeps out nobody who has one.
    unknown: Places,
}

/// A peer that has come in.
struct Entered {
    stream: TlsStream<TcpStream>,
    /// Who it is, by its certificate.
    caller: Option<Arc<Caller>>,
    /// What it holds without one.
    unproven: Unproven,
}

impl Door {
    async fn enter(&self, stream: TcpStream, peer: Peer) -> std::io::Result<Entered> {
        let shaking = self.shaking.take(peer.0).await;
        let stream = self.acceptor.accept(stream).await?;
        drop(shaking);
        let caller = stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(|chain| Caller::from_certificate(chain.first()?))
            .map(Arc::new);
        let place = match caller {
            Some(_) => None,
            None => Some(self.unknown.take(peer.0).await),
        };
        Ok(Entered {
            stream,
            caller,
            unproven: Unproven::new(place),
        })
    }
}

async fn connection(core: Arc<Core>, entered: Entered, peer: Peer, drain: Drain) {
    let Entered {
        stream,
        caller,
        unproven,
    } = entered;
    let head_bytes = match caller {
        Some(_) => HEAD_BYTES,
        None => HEAD_BYTES_UNKNOWN,
    };
    let service = hyper::service::service_fn({
        let drain = drain.clone();
        move |request: Request<Incoming>| {
            let (core, caller, drain) = (core.clone(), caller.clone(), drain.clone());
            let unproven = unproven.clone();
            async move {
                let mut request = request.map(Body::new);
                request.extensions_mut().insert(Certified(caller));
                request.extensions_mut().insert(unproven);
                request.extensions_mut().insert(drain);
                request.extensions_mut().insert(peer);
                Ok::<_, Infallible>(respond(core, None, request).await)
            }
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(TIMEOUT_HEADERS)
        .max_buf_size(head_bytes as usize)
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(head_bytes);
    let (stream, collected) = if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        let collected = Collected::new(stream);
        (Either::Left(collected.clone()), Some(collected))
    } else {
        (Either::Right(stream), None)
    };
    let connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let mut connection = Together::new(connection, collected);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = drain.signaled() => {
            connection.get_mut().as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}
