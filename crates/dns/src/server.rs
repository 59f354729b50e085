//! Listening, on UDP and TCP.
//!
//! What the zone knows is answered on the spot; only what resolvers must be asked gets a task of its
//! own. Both those tasks and TCP connections are limited: beyond the limit, the former are told that
//! it cannot be done now, and the latter wait for their turn in the kernel.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::answer::{Answering, First, write_for_tcp, write_for_udp};
use crate::{Upstream, Zone};

/// A TCP connection on which nothing is asked or taken for this long is closed.
const TIMEOUT_TCP: Duration = Duration::from_secs(5);
/// TCP connections at one time, at each address.
const CONNECTIONS_MAX: usize = 128;
/// Questions of UDP clients for which resolvers are being asked, at each address.
const OUTSIDE_MAX: usize = 512;
/// Questions are short; what is longer is not read.
const QUESTION_BYTES: usize = 4096;
/// When the kernel cannot give another socket, a moment later it may.
const PAUSE: Duration = Duration::from_millis(50);

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for DNS on {address} ({protocol}): {source}{}", hint(.source))]
pub struct BindError {
    /// Where.
    pub address: SocketAddr,
    /// `UDP` or `TCP`.
    pub protocol: &'static str,
    /// Why not.
    pub source: io::Error,
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => {
            "; another name server listens there (see `ss -lntup`): stop it or choose another address"
        }
        io::ErrorKind::PermissionDenied => "; ports below 1024 need root",
        io::ErrorKind::AddrNotAvailable => "; the address is not on this machine",
        _ => "",
    }
}

/// A name server that listens. Dropping it ends it.
pub struct Server {
    addresses: Vec<SocketAddr>,
    serving: JoinSet<()>,
}

impl Server {
    /// Listens at these addresses, on UDP and TCP. With port 0, both take the same free port.
    pub async fn bind(
        addresses: &[SocketAddr],
        zone: Zone,
        upstream: Upstream,
    ) -> Result<Server, BindError> {
        let answering = Arc::new(Answering::new(zone, upstream));
        let mut bound = Vec::new();
        let mut sockets = Vec::new();
        for address in addresses {
            let failed = |protocol| {
                move |source| BindError {
                    address: *address,
                    protocol,
                    source,
                }
            };
            let listener = TcpListener::bind(address).await.map_err(failed("TCP"))?;
            let address = listener.local_addr().map_err(failed("TCP"))?;
            let socket = UdpSocket::bind(address).await.map_err(failed("UDP"))?;
            bound.push(address);
            sockets.push((listener, socket));
        }
        let mut serving = JoinSet::new();
        for (listener, socket) in sockets {
            serving.spawn(serve_udp(Arc::new(socket), answering.clone()));
            serving.spawn(serve_tcp(listener, answering.clone()));
        }
        Ok(Server {
            addresses: bound,
            serving,
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Stops listening; answers that are being made are not waited for.
    pub async fn close(mut self) {
        self.serving.shutdown().await;
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, answering: Arc<Answering>) {
    let mut buffer = vec![0; QUESTION_BYTES];
    let mut outside = JoinSet::new();
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "cannot receive a question");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        while outside.try_join_next().is_some() {}
        let answer = match answering.first(&buffer[..length]) {
            First::Answer(answer) => *answer,
            First::Ask(question) if outside.len() >= OUTSIDE_MAX => question.give_up(),
            First::Ask(question) => {
                let (socket, answering) = (socket.clone(), answering.clone());
                outside.spawn(async move {
                    let answer = answering.complete(*question).await;
                    send(&socket, &write_for_udp(answer), client).await;
                });
                continue;
            }
            First::Nothing => continue,
        };
        send(&socket, &write_for_udp(answer), client).await;
    }
}

async fn send(socket: &UdpSocket, bytes: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(bytes, client).await {
        tracing::debug!(%client, %error, "cannot send an answer");
    }
}

async fn serve_tcp(listener: TcpListener, answering: Arc<Answering>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let place = room
            .clone()
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let answering = answering.clone();
                connections.spawn(async move {
                    // Errors are the client's: it hung up, or was silent for too long.
                    let _ = serve_connection(stream, &answering).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// One question after the other, each behind its length (RFC 1035, 4.2.2).
async fn serve_connection(mut stream: TcpStream, answering: &Answering) -> io::Result<()> {
    let mut question = Vec::new();
    loop {
        timeout(TIMEOUT_TCP, read(&mut stream, &mut question)).await??;
        let answer = match answering.first(&question) {
            First::Answer(answer) => *answer,
            First::Ask(question) => answering.complete(*question).await,
            First::Nothing => return Ok(()),
        };
        let bytes = write_for_tcp(answer);
        let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
        let framed = [&length.to_be_bytes()[..], &bytes].concat();
        timeout(TIMEOUT_TCP, stream.write_all(&framed)).await??;
    }
}

async fn read(stream: &mut TcpStream, question: &mut Vec<u8>) -> io::Result<()> {
    let length = usize::from(stream.read_u16().await?);
    if length > QUESTION_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    question.resize(length, 0);
    stream.read_exact(question).await?;
    Ok(())
}
